"""Read the text of a spec: JSON or YAML 1.2, in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

The `cafe` command (a file or standard input) and the REST API use this module, so that the same bytes give the same spec
everywhere. Nothing that was written is changed or dropped silently: a key that is given twice is refused.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from cafe_core.spec.json_text import SpecTextError, read_json
from cafe_core.spec.wording import described

Format = Literal["json", "yaml"]


def read_spec(content: bytes, format: Format | None = None) -> dict[str, Any]:
    """Return the spec in `content`. Raises SpecTextError. format: None to recognize JSON by its first characters."""
    text = decoded(content)
    if format is None:
        format = "json" if re.match(r"\s*(\{\s*[\"}]|\[)", text) else "yaml"
    if not text.strip():
        raise SpecTextError("the spec is empty")
    spec = read_json(text) if format == "json" else _read_yaml(text)
    if not isinstance(spec, dict):
        raise SpecTextError(f"a spec must be a mapping of fields; got {described(spec)}")
    try:
        json.dumps(spec, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # an escape such as \ud800
        raise SpecTextError(f"a text holds {error.object[error.start]!r}, which is half of a character; remove it") from error
    return spec


def decoded(content: bytes) -> str:
    """Return the text in `content`. Raises SpecTextError for bytes that are no text."""
    encoding = json.detect_encoding(content)  # by the byte order mark and zero bytes, as YAML's specification does too
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        name = encoding.upper().removesuffix("-SIG")
        raise SpecTextError(
            f"line {line}: byte 0x{content[error.start]:02x} is not valid {name}; save the file as UTF-8"
        ) from error


def _read_yaml(text: str) -> Any:
    from cafe_core.spec.yaml_text import read_yaml  # imports a parser that the server does not need

    return read_yaml(text)
