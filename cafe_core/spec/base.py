"""Define the parts that all specs share: the strict model, fields that resolution fills in, and validators of collections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticKnownError

Precision = Literal["float64", "float32", "tf32", "bfloat16"]


class SpecModel(BaseModel):
    """A part of a spec. It rejects unknown fields, type conversions and infinities; field docstrings become descriptions."""

    model_config = ConfigDict(
        extra="forbid", strict=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


def resolved_later(**constraints: Any) -> Any:
    """Return a field that :mod:`cafe_core.spec.resolution` fills in when the spec leaves it out.

    The attribute is typed without None, because only resolved specs are run.
    """

    return Field(default=None, json_schema_extra=_drop_null_default, **constraints)


def _drop_null_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def is_resolved_later(field: FieldInfo) -> bool:
    """Return whether `field` was made by :func:`resolved_later`."""
    return field.json_schema_extra is _drop_null_default


def max_entries(count: int) -> BeforeValidator:
    """Return a validator that refuses a dict with more than `count` entries, before pydantic validates each of them."""

    def refuse_more(value: Any) -> Any:
        if isinstance(value, Mapping) and len(value) > count:
            context = {"field_type": "Dictionary", "max_length": count, "actual_length": len(value)}
            raise PydanticKnownError("too_long", context)
        return value

    return BeforeValidator(refuse_more)


def given_one_of(spec: BaseModel, *names: str) -> str:
    """Return the name of the only field of `names` that is given. Raises ValueError if it is not exactly one."""
    given = [name for name in names if getattr(spec, name) is not None]
    if len(given) != 1:
        choice = f"{', '.join(names[:-1])} and {names[-1]}"
        raise ValueError(f"give exactly one of {choice}; got {' and '.join(given) or 'none of them'}")
    return given[0]


def all_different(values: list[Any]) -> list[Any]:
    """Return `values`. Raises ValueError if a value is repeated."""
    if len(set(values)) != len(values):
        raise ValueError("each value may be given once")
    return values
