"""Find the field that makes a spec invalid, and the reason. This module does not import torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.extend import ExtendSpec
from cafe_core.spec.job import field_path
from cafe_core.spec.sweep import SweepSpec

_FIELDS = {**CondenseSpec.model_fields, **EvaluateSpec.model_fields, **SweepSpec.model_fields, **ExtendSpec.model_fields}
_NAMES_A_FIELD = re.compile(rf"((?:{'|'.join(_FIELDS)})(?:\.[a-z0-9_]+)*): ")


def refused_field(error: Mapping[str, Any], *, outer: int = 0) -> tuple[str, str]:
    """Return (path of the field as a user writes it, what is wrong with it) for one of pydantic's errors.

    outer: how many leading parts of the location to leave out (`body`, `query`, …).
    """
    kind, loc, message = error["type"], field_path(tuple(error["loc"][outer:])), str(error["msg"])
    match kind:
        case "extra_forbidden":
            return loc, "unknown field"
        case "unknown_kind" if isinstance(error["input"], Mapping):
            return "kind", message.removeprefix("kind ")
        case "unknown_kind":
            return loc, "a job spec must be an object with fields"
        case "unknown_method":
            return f"{loc}.name", message.removeprefix("method.name ")
        case "value_error":
            within = "base" if loc.split(".")[0] == "base" else ""
            return named_field(message.removeprefix("Value error, "), loc, within=within)
        case _:
            return loc, message


def named_field(message: str, otherwise: str = "", *, within: str = "") -> tuple[str, str]:
    """Split a message such as `network.norm: …` into (path of the field, rest of the message).

    The path is prefixed with `within`. If the message does not start with a field, returns
    (`otherwise`, `message`).
    """
    named = _NAMES_A_FIELD.match(message)
    if named is None:
        return otherwise, message
    return ".".join(part for part in (within, named[1]) if part), message[named.end() :]
