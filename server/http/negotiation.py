"""Which of several representations a client wants: the Accept header (RFC 9110, 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence

# A quoted text that does not end goes on to the header's end: looking for its end from each quote would take quadratic time.
_RANGE = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*+"?)++')
_PARAMETER = re.compile(r';\s*([^\s;=]+)\s*=\s*("(?:\\.|[^"\\])*"|[^\s;]*)')
_QUALITY = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_TYPE = re.compile(r"([!#$%&'*+.^_`|~0-9a-z-]+)/([!#$%&'*+.^_`|~0-9a-z-]+)")


def preferred(accept: str | None, offered: Sequence[str]) -> str | None:
    """The media type of `offered` that `accept` likes best; None: it takes none of them.

    Each is judged by the most specific range that covers it. Of two that are liked as much, the one that is named more
    specifically is taken, then the one that is offered first. Without a header, or one that can be read, all are liked.
    """
    ranges = _ranges(accept or "")
    if not ranges:
        return offered[0]
    liked = [(*_liking(media_type, ranges), -place, media_type) for place, media_type in enumerate(offered)]
    quality, _, _, media_type = max(liked)
    return media_type if quality > 0 else None


def _ranges(accept: str) -> list[tuple[str, float]]:
    """(`type/subtype` in lower case, quality) of what can be read; parameters other than q do not count here."""
    found = []
    for element in _RANGE.findall(accept):
        media_type = element.partition(";")[0].strip().lower()
        parameters = {name.lower(): value for name, value in _PARAMETER.findall(element)}
        quality = parameters.get("q", "1")
        if _TYPE.fullmatch(media_type) and _QUALITY.fullmatch(quality):
            found.append((media_type, float(quality)))
    return found


def _liking(media_type: str, ranges: list[tuple[str, float]]) -> tuple[float, int]:
    """(quality, how specific the range is that says so: 2 `a/b`, 1 `a/*`, 0 `*/*`)."""
    for specificity, pattern in ((2, media_type), (1, media_type.partition("/")[0] + "/*"), (0, "*/*")):
        qualities = [quality for named, quality in ranges if named == pattern]
        if qualities:
            return max(qualities), specificity
    return 0.0, 0
