"""A refused spec in the words of its fields: which one, and what is wrong with it. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.job import field_path
from cafe_core.spec.sweep import SweepSpec

_FIELDS = {**CondenseSpec.model_fields, **EvaluateSpec.model_fields, **SweepSpec.model_fields}
_NAMES_A_FIELD = re.compile(rf"((?:{'|'.join(_FIELDS)})(?:\.[a-z0-9_]+)*): ")


def refused_field(error: Mapping[str, Any], *, outer: int = 0) -> tuple[str, str]:
    """(the field's path as a user writes it, what is wrong with it) of one of pydantic's errors.

    `outer` leading parts of its location are left out (`body`, `query`, …).
    """
    kind, loc, message = error["type"], field_path(tuple(error["loc"][outer:])), str(error["msg"])
    match kind:
        case "extra_forbidden":
            return loc, "unknown field"
        case "unknown_kind" if isinstance(error["input"], Mapping):
            return "kind", message.removeprefix("kind ")
        case "unknown_kind":
            return loc, "a job spec is an object of fields"
        case "unknown_method":
            return f"{loc}.name", message.removeprefix("method.name ")
        case "value_error":
            within = "base" if loc.split(".")[0] == "base" else ""
            return named_field(message.removeprefix("Value error, "), loc, within=within)
        case _:
            return loc, message


def named_field(message: str, otherwise: str = "", *, within: str = "") -> tuple[str, str]:
    """(field's path, the rest of the message) where `message` starts with the path, as in `network.norm: …`.

    The path is one of the spec at `within`. Where there is none: (`otherwise`, `message`).
    """
    named = _NAMES_A_FIELD.match(message)
    if named is None:
        return otherwise, message
    return ".".join(part for part in (within, named[1]) if part), message[named.end() :]
