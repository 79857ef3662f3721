"""A trial's overrides in words, for people. Clients show them, and need nothing else of the package for it."""

from __future__ import annotations

import json
from typing import Any


def setting(overrides: dict[str, Any]) -> str:
    """A trial's overrides in words: `method.beta = 0.5, ipc = 10`."""
    return ", ".join(f"{path} = {shown(value)}" for path, value in overrides.items())


def shown(value: Any) -> str:
    """A value, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "…"
