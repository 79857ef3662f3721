"""Format the overrides of a trial for display. Clients use this module without the rest of the package."""

from __future__ import annotations

import json
from typing import Any


def setting(overrides: dict[str, Any]) -> str:
    """Return the overrides as text: `method.beta = 0.5, ipc = 10`."""
    return ", ".join(f"{path} = {shown(value)}" for path, value in overrides.items())


def shown(value: Any) -> str:
    """Return a value as JSON, shortened to 80 characters."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "…"
