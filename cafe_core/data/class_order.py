"""Order the classes of own data."""

from __future__ import annotations

from collections.abc import Iterable


def class_order(names: Iterable[str]) -> list[str]:
    """Return the names sorted, by number if all of them are whole numbers: 0, 1, 2, 10 instead of 0, 1, 10, 2."""
    names = sorted(names)
    if all(name.isascii() and name.isdigit() for name in names):
        names.sort(key=lambda name: (len(name.lstrip("0")), name.lstrip("0")))  # int() refuses more than 4,300 digits
    return names
