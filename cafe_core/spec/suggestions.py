"""Suggest the field that a user may have meant by an unknown one. This module does not import torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any, get_args

from pydantic import BaseModel

from cafe_core.methods.registry import METHODS
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.extend import ExtendSpec
from cafe_core.spec.sweep import SweepSpec
from cafe_core.spec.wording import did_you_mean

_KINDS: dict[str | int, type[BaseModel]] = {
    "condense": CondenseSpec,
    "evaluate": EvaluateSpec,
    "sweep": SweepSpec,
    "extend": ExtendSpec,
}
_SHOWN = 3


def suggested_field(loc: tuple[str | int, ...], path: str) -> str:
    """Return `; did you mean method.beta?` for an unknown field, or nothing.

    loc: of the validation error; it starts with the kind of job, or with a field of a condense job. path: the same as a user
    writes it.
    """
    kind = _KINDS.get(loc[0], CondenseSpec)
    name, within = str(loc[-1]), path.rpartition(".")[0]
    prefix = f"{within}." if within else ""
    fields = _object_at(kind, loc[:-1]).model_fields
    beside = partial(did_you_mean, name, fields, prefix=prefix)
    elsewhere = [known for known in _paths(kind) if known.rpartition(".")[2] == name]
    if path in elsewhere:
        return f"; only these methods have it: {', '.join(n for n, m in METHODS.items() if name in m.spec.model_fields)}"
    longer = [f"{prefix}{known}" for known in fields if known.endswith(f"_{name}")]  # image_lr and network_lr for lr
    longer = longer or [known for known in _paths(kind) if known.endswith(f"_{name}") and known.rpartition(".")[0] != within]
    return beside(cutoff=0.85) or _any_of(elsewhere) or _any_of(longer) or beside()


def _any_of(paths: list[str]) -> str:
    return f"; did you mean {' or '.join(paths[:_SHOWN])}?" if paths else ""


def _object_at(kind: type[BaseModel], loc: tuple[str | int, ...]) -> type[BaseModel]:
    """Return the class of the object at a location. The name of a method in the location selects the method's class."""
    current = kind
    for part in loc:
        if part in METHODS:
            current = METHODS[str(part)].spec
        elif part in current.model_fields:
            found = list(_classes(current.model_fields[str(part)].annotation))
            current = found[0] if found else current
    return current


@cache
def _paths(kind: type[BaseModel], prefix: str = "") -> tuple[str, ...]:
    """Return the paths of all fields of a kind of job, without those of lists and mappings. Each is listed once."""
    found: dict[str, None] = {}
    for name, field in kind.model_fields.items():
        found[f"{prefix}{name}"] = None
        if not _is_collection(field.annotation):
            for inner in _classes(field.annotation):
                found |= dict.fromkeys(_paths(inner, f"{prefix}{name}."))
    return tuple(found)


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _classes(argument)


def _is_collection(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) in (list, dict)
