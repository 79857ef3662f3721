"""Content negotiation with the Accept header (RFC 9110 §12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence

# An unterminated quoted string extends to the end of the header: searching for its end from each quote would take quadratic time.
_RANGE = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*+"?)++')
_PARAMETER = re.compile(r';\s*([^\s;=]+)\s*=\s*("(?:\\.|[^"\\])*"|[^\s;]*)')
_QUALITY = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_TYPE = re.compile(r"([!#$%&'*+.^_`|~0-9a-z-]+)/([!#$%&'*+.^_`|~0-9a-z-]+)")


def preferred(accept: str | None, offered: Sequence[str]) -> str | None:
    """Return the media type of `offered` that `accept` prefers; None if it accepts none of them.

    The most specific matching range determines the quality of a type. Ties go to the more specific match, then to the type
    offered first. A missing or unreadable header accepts everything.
    """
    ranges = _ranges(accept or "")
    if not ranges:
        return offered[0]
    ranked = [(*_quality_of(media_type, ranges), -place, media_type) for place, media_type in enumerate(offered)]
    quality, _, _, media_type = max(ranked)
    return media_type if quality > 0 else None


def _ranges(accept: str) -> list[tuple[str, float]]:
    """Return (`type/subtype` in lower case, quality) of each readable element; parameters other than q are ignored."""
    found = []
    for element in _RANGE.findall(accept):
        media_type = element.partition(";")[0].strip().lower()
        parameters = {name.lower(): value for name, value in _PARAMETER.findall(element)}
        quality = parameters.get("q", "1")
        if _TYPE.fullmatch(media_type) and _QUALITY.fullmatch(quality):
            found.append((media_type, float(quality)))
    return found


def _quality_of(media_type: str, ranges: list[tuple[str, float]]) -> tuple[float, int]:
    """Return (quality, specificity of the matching range: 2 for `a/b`, 1 for `a/*`, 0 for `*/*`)."""
    for specificity, pattern in ((2, media_type), (1, media_type.partition("/")[0] + "/*"), (0, "*/*")):
        qualities = [quality for named, quality in ranges if named == pattern]
        if qualities:
            return max(qualities), specificity
    return 0.0, 0
