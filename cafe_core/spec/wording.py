"""Format values and names for error messages. This module imports nothing of the rest of the package."""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def did_you_mean(name: str, candidates: Iterable[str], *, prefix: str = "", cutoff: float = 0.7) -> str:
    """Return `; did you mean beta?` for the candidate closest to a name, or nothing. Case and hyphens do not count.

    cutoff: the least similarity, from 0 to 1. prefix: of the candidate in the message.
    """
    by_plain = {_plain(candidate): candidate for candidate in candidates}
    found = get_close_matches(_plain(name[:100]), by_plain, n=1, cutoff=cutoff)
    return f"; did you mean {prefix}{by_plain[found[0]]}?" if found else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def described(value: Any) -> str:
    """Return a value and its type for an error message, at most about 100 characters long: `42 (a number)`."""
    match value:
        case None:
            return "nothing (null)"
        case bool():
            return f"{json.dumps(value)} (true or false)"
        case int() | float():
            return f"{_shortened(json.dumps(value))} (a number)"
        case str():
            return f"{_shortened(json.dumps(value[:100], ensure_ascii=False))} (text)"
        case list():
            return f"a list of {len(value)} item{'' if len(value) == 1 else 's'}"
        case dict():
            names = ", ".join(str(key)[:40] for key in list(value)[:5])
            return f"a mapping with the fields {names}{', …' if len(value) > 5 else ''}" if names else "a mapping without fields"
        case _:
            return f"a value of type {type(value).__name__}"


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"
