"""Read JSON strictly: refuse repeated keys and numbers that JSON does not have, and say in plain words what is wrong where."""

from __future__ import annotations

import json
import re
import sys
from typing import Any, NoReturn

MAX_PARTS = 10_000
"""Maximum number of fields, lists and objects in a spec. Items of lists do not count: the spec limits each list itself."""

TOO_MANY_DIGITS = f"a whole number has more than {sys.get_int_max_str_digits()} digits; write a smaller one"


class SpecTextError(ValueError):
    """The text is not a spec; the message names the line and says what to do."""


def read_json(text: str) -> Any:
    """Return the value in a JSON text. Raises SpecTextError."""
    if sum(map(text.count, ":[{")) > MAX_PARTS:  # an upper bound: characters in texts count as well
        raise SpecTextError(f"the spec is too complex: the limit is {MAX_PARTS} fields, lists and objects")

    def refuse(what: str, at: int) -> NoReturn:
        raise SpecTextError(f"{_place(text, at)}: {what}")

    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        refuse(*_json_advice(text, error))
    except RecursionError as error:
        raise SpecTextError("lists and objects are nested too deeply") from error
    except _NotJsonError as error:
        refuse(*_culprit(text, error))
    except ValueError as error:  # a whole number with more than 4300 digits
        raise SpecTextError(TOO_MANY_DIGITS) from error


class _NotJsonError(Exception):
    """json.loads accepts something that would be changed: `number`, or a repeated key if it is None."""

    def __init__(self, number: str | None = None) -> None:
        self.number = number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _NotJsonError
    return value


def _constant(text: str) -> NoReturn:
    raise _NotJsonError(text)


def _finite(text: str) -> float:
    if (value := float(text)) in (float("inf"), float("-inf")):
        raise _NotJsonError(text)
    return value


_TEXT = r'"[^"\\]*(?:\\.[^"\\]*)*"'


def _culprit(text: str, error: _NotJsonError) -> tuple[str, int]:
    """Return what is wrong, and the position in `text`, which is JSON apart from numbers and repeated keys."""
    number = "" if error.number is None else rf"|(?<![\w.+-]){re.escape(error.number)}(?![\w.+-])"
    # Runs of texts in a list, in one piece because there may be very many; keys with their colons; other texts; brackets.
    tokens = re.compile(rf"(?:{_TEXT}\s*,\s*)+|{_TEXT}(?:\s*:)?|[{{}}\[\]]{number}")
    objects: list[dict[str, int] | None] = []  # the keys of each enclosing object, with their positions; None for a list
    for token in tokens.finditer(text):
        match token[0][0], token[0][-1]:
            case (("{" | "["), _):
                objects.append({} if token[0] == "{" else None)
            case (("}" | "]"), _):
                objects.pop()
            case '"', ":":
                key, keys = json.loads(token[0][:-1]), objects[-1]
                assert keys is not None  # a list has no keys
                if error.number is None and key in keys:
                    return _twice(key, _place(text, keys[key])), token.start()
                keys[key] = token.start()
            case '"', _:
                pass
            case _:
                return f"{error.number} is not a number that JSON has; write a finite number", token.start()
    raise AssertionError("json.loads found a repeated key or a number that is not there")


def _twice(key: str, first: str) -> str:
    return f"the key {key!r} is given twice, first in {first}; remove one of them"


def _json_advice(text: str, error: json.JSONDecodeError) -> tuple[str, int]:
    """Return what is wrong with a text that is not JSON, in words for its author, and the position."""
    before, after = text[: error.pos].rstrip(), text[error.pos :].lstrip()
    if not before.endswith(",") and after.startswith(","):  # later versions of Python report the comma itself
        before, after = f"{before},", after[1:].lstrip()
    if before.endswith(",") and after[:1] in ("}", "]"):
        return f"there is a comma before the closing {after[0]}; remove the comma", len(before) - 1
    word = re.match(r"[A-Za-z]+", after)
    python = {"True": "true", "False": "false", "None": "null"}
    if word and word[0] in python:
        return f"{word[0]} is Python; write {python[word[0]]}", error.pos
    if after.startswith(("#", "//", "/*")):
        return "JSON has no comments; remove it, or write the spec as YAML", error.pos
    if after.startswith(("'", "‘", "“", "”")):
        return f'JSON needs straight double quotes; replace {after[0]} by "', error.pos
    if not after:
        return "the text ends too early; a closing bracket or quote is missing", error.pos
    if error.msg == "Unterminated string starting at":
        return "this text has no closing quote; add one", error.pos
    if error.msg == "Invalid control character at":
        return "a text in quotes holds a line break, a tab or another control character; write \\n, \\t or an escape", error.pos
    what = error.msg.removesuffix(" enclosed in double quotes")
    return f"{what[:1].lower()}{what[1:]}; got {after.split(maxsplit=1)[0][:40]!r}", error.pos


def _place(text: str, at: int) -> str:
    """Return the line and column of a position, both from 1."""
    return f"line {text.count(chr(10), 0, at) + 1}, column {at - text.rfind(chr(10), 0, at)}"
