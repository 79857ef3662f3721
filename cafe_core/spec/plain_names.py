"""Accept a plain string for a dataset, a method or a network: `dataset: digits`, `method: kmeans`, `network: resnet18`.

The resolved spec writes it out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

UPLOAD_ID = r"^ds_[a-z0-9]{1,40}$"
"""The id of an uploaded dataset."""
_GENERATED_ID = re.compile(r"ds_[a-z2-7]{16}")
"""An id as the server makes them. A shorter one in a plain string is a path."""


def named(value: Any) -> Any:
    """Return the object that a plain string stands for: `{"name": value}`. Return any other value unchanged."""
    return {"name": value} if isinstance(value, str) else value


def dataset_named(value: Any, builtin: Iterable[str]) -> Any:
    """Return the object that a plain string stands for: a built-in dataset, the id of an upload, or a path."""
    if not isinstance(value, str):
        return value
    field = "name" if value in builtin else "id" if _GENERATED_ID.fullmatch(value) else "path"
    return {field: value}
