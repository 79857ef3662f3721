"""Parse the spec of any job, and name its fields as users write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import Discriminator, Tag, TypeAdapter

from cafe_core.methods.registry import BEST, METHODS
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.extend import ExtendSpec
from cafe_core.spec.sweep import SweepSpec

KINDS = ("condense", "evaluate", "sweep", "extend")
"""The kinds of jobs."""


def _job_kind(value: Any) -> str | None:
    """Return the kind in a submitted or validated job spec: condense if it has none, None if it is unknown."""
    kind = value.get("kind", "condense") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) and kind in KINDS else None


JobSpec: TypeAlias = Annotated[
    Annotated[CondenseSpec, Tag("condense")]
    | Annotated[EvaluateSpec, Tag("evaluate")]
    | Annotated[SweepSpec, Tag("sweep")]
    | Annotated[ExtendSpec, Tag("extend")],
    Discriminator(_job_kind, custom_error_type="unknown_kind", custom_error_message=f"kind must be one of {', '.join(KINDS)}"),
]
"""Any job's spec."""
_JOB_SPEC: TypeAdapter[CondenseSpec | EvaluateSpec | SweepSpec | ExtendSpec] = TypeAdapter(JobSpec)


def parse_job_spec(value: Any) -> JobSpec:
    """Return the job spec in `value`, which was read from JSON or YAML. Raises pydantic.ValidationError."""
    return _JOB_SPEC.validate_python(value)


def field_path(loc: tuple[str | int, ...]) -> str:
    """Return the path of a field as a user writes it, from a validation error's location: without the tags of unions."""
    parts = list(loc)
    if parts and parts[0] in KINDS:
        del parts[0]
    tags = {"method": {*METHODS, BEST}, "augment": {"one", "several"}}
    for index in range(len(parts) - 1, 0, -1):
        if parts[index] in tags.get(str(parts[index - 1]), ()):
            del parts[index]
    return ".".join(str(part) for part in parts)
