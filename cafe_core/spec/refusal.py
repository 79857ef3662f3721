"""Find the field that makes a spec invalid, and the reason. This module does not import torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cafe_core.methods.registry import BEST, METHODS
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.extend import ExtendSpec
from cafe_core.spec.job import KINDS, field_path
from cafe_core.spec.suggestions import suggested_field
from cafe_core.spec.sweep import SweepSpec
from cafe_core.spec.wording import described, did_you_mean

_FIELDS = {**CondenseSpec.model_fields, **EvaluateSpec.model_fields, **SweepSpec.model_fields, **ExtendSpec.model_fields}
_NUMBER = re.compile(r"[-+]?[0-9][0-9_]{0,30}(\.[0-9]{1,30})?([eE][-+]?[0-9]{1,4})?")
_NAMES_A_FIELD = re.compile(rf"((?:{'|'.join(_FIELDS)})(?:\.[a-z0-9_]+)*): ")


def refused_field(error: Mapping[str, Any], *, outer: int = 0) -> tuple[str, str]:
    """Return (path of the field as a user writes it, what is wrong with it) for one of pydantic's errors.

    outer: how many leading parts of the location to leave out (`body`, `query`, …).
    """
    kind, message, value = error["type"], str(error["msg"]), error["input"]
    loc = field_path(tuple(error["loc"][outer:]))
    match kind:
        case "extra_forbidden":
            return loc, "unknown field" + suggested_field(tuple(error["loc"][outer:]), loc)
        case "json_invalid":
            return "", str(error["ctx"]["error"])
        case "missing":
            return loc, message
        case "unknown_kind" if isinstance(value, Mapping):
            return "kind", message.removeprefix("kind ") + _got_name(value.get("kind"), KINDS)
        case "unknown_kind" if isinstance(value, bytes):
            return loc, "the body is not declared as JSON; send the header Content-Type: application/json"
        case "unknown_kind":
            return loc, f"a job spec must be an object with fields; got {described(value)}"
        case "unknown_method":
            given = value.get("name") if isinstance(value, Mapping) else value
            return f"{loc}.name", message.removeprefix("method.name ") + _got_name(given, [*METHODS, BEST])
        case "literal_error":
            return loc, message + _got_name(value, re.findall(r"'([^']*)'", str(error["ctx"]["expected"])))
        case "string_type":
            return loc, "must be text" + _got(kind, loc, value)
        case "model_type" | "dict_type":
            or_name = " or a name" if loc.rpartition(".")[2] in ("dataset", "network") else ""
            return loc, f"must be an object with fields{or_name}; got {described(value)}"
        case "value_error":
            within = "base" if loc.split(".")[0] == "base" else ""
            return named_field(message.removeprefix("Value error, ") + _got(kind, loc, value), loc, within=within)
        case _:
            return loc, message + _got(kind, loc, value)


def _got_name(value: Any, choices: Sequence[str]) -> str:
    """Return what was read instead of one of `choices`, and the closest of them."""
    return f"; got {described(value)}" + (did_you_mean(value, choices) if isinstance(value, str) else "")


def _got(kind: str, loc: str, value: Any) -> str:
    """Return the value that was read, its type, and how to write it if only the type is wrong."""
    if loc == "webhook":  # its URL may hold a password
        return ""
    if kind in ("value_error", "too_long", "too_short") and not isinstance(value, str | int | float):
        return ""  # the message says what is wrong with the list or object
    return f"; got {described(value)}{_advice(kind, value)}"


def _advice(kind: str, value: Any) -> str:
    match kind, value:
        case "string_type", float():  # 1.10 was read as 1.1
            return "; write it in quotes, with all its digits"
        case "string_type", bool() | int():
            return f'; write it in quotes: "{json.dumps(value)}"'
        case "bool_type", str() if value.lower() in ("yes", "no", "on", "off", "true", "false"):
            return f"; write {'true' if value.lower() in ('yes', 'on', 'true') else 'false'} without quotes"
        case "int_type" | "float_type", str() if _NUMBER.fullmatch(value):
            return f"; write {value.replace('_', '')}, without quotes"
        case "int_type" | "int_from_float", float() if value.is_integer():
            return f"; write {int(value)}"
        case "list_type", str() | int() | float():
            return f"; write a list: [{json.dumps(value)[:80]}]"
        case _:
            return ""


def named_field(message: str, otherwise: str = "", *, within: str = "") -> tuple[str, str]:
    """Split a message such as `network.norm: …` into (path of the field, rest of the message).

    The path is prefixed with `within`. If the message does not start with a field, returns
    (`otherwise`, `message`).
    """
    named = _NAMES_A_FIELD.match(message)
    if named is None:
        return otherwise, message
    return ".".join(part for part in (within, named[1]) if part), message[named.end() :]
