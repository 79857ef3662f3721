r"""Format texts for messages, and make texts from outside printable.

Names of files need not be UTF-8. Python reads the other bytes as lone surrogates, which neither a terminal nor JSON nor a
database accepts. :func:`printable` shows them as escapes, such as `\xff`. It is called where names and messages enter: by the
readers of file trees, and by every :class:`cafe_core.errors.CafeError`. The database applies :func:`printable_json` to all JSON
that it stores and reads.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

_UNPRINTABLE = re.compile("[\0\ud800-\udfff]")
#: Control characters, lone surrogates, separators of lines and paragraphs; and controls of the direction of writing.
_NOT_SHOWN = ("Cc", "Cs", "Zl", "Zp")
_BIDI_CONTROLS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
_ESCAPES_TO_CHECK = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")


def counted(count: int, noun: str) -> str:
    """Return e.g. `1 image` or `3 images`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def is_shown(text: str) -> bool:
    """Return whether a name has no characters that break a line, move the cursor or reverse the order of others.

    Joiners and spaces of all kinds, which names in many scripts need, are allowed.
    """
    return not any(unicodedata.category(c) in _NOT_SHOWN or unicodedata.bidirectional(c) in _BIDI_CONTROLS for c in text)


def printable(text: str) -> str:
    r"""Return the text with escapes, such as `\xff`, for NUL and for what is not Unicode."""
    return _UNPRINTABLE.sub(lambda found: _escaped(ord(found[0])), text)


def _escaped(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as `surrogateescape` decodes it
        code -= 0xDC00
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"


def printable_json(value: Any) -> Any:
    """Return a JSON value with all texts in it made :func:`printable`."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable_json(key): printable_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [printable_json(inner) for inner in value]
    return value


def may_be_unprintable(json_text: str) -> bool:
    """Return whether JSON written with ASCII escapes can hold texts that are not :func:`printable`."""
    return _ESCAPES_TO_CHECK.search(json_text) is not None
