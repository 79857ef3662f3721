"""Define the spec of an extend job, and fill it in from the set that it extends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import StringConstraints, ValidationError, model_validator

from cafe_core.spec.base import SpecModel, resolved_later
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.method import LearningMethodSpec

_FROM_BASE = ("ipc", "seed", "method", "network", "precision")
"""The fields that determine the images of a class, besides its real images and the number of iterations."""


class BaseSetSpec(SpecModel):
    """The set to extend: exactly one of `job_id`, `path`."""

    job_id: Annotated[str, StringConstraints(pattern=r"^job_[a-z0-9]{1,40}$")] | None = None
    """The synthetic set of another job, copied when this job is submitted."""
    path: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    """A synthetic set as .safetensors or .npz, under the server's dataset root."""

    @model_validator(mode="after")
    def _one_source(self) -> BaseSetSpec:
        if (self.job_id is None) == (self.path is None):
            raise ValueError("give exactly one of job_id and path")
        return self


class ExtendSpec(CondenseSpec):
    """Extend a synthetic set to a dataset with more classes, or with other images in some classes.

    Only classes that the set does not have, or whose real images have changed, are condensed; the images of all other classes
    keep their bytes. Classes that the dataset no longer has are left out. `ipc`, `seed`, `method`, `network` and `precision` are
    those of the set, whose method must not couple classes: dance, ncfm or dm.
    """

    kind: Literal["extend"]  # type: ignore[assignment]  # CondenseSpec's is "condense"
    """The kind of job."""
    base: BaseSetSpec
    """The set to extend."""
    ipc: int = resolved_later(ge=1, le=10_000)
    """Synthetic images per class: that of the set."""

    @model_validator(mode="after")
    def _without_validation(self) -> ExtendSpec:
        if self.validation is not None:
            raise ValueError("validation: an extend job does not support it, because it condenses some classes only")
        return self

    def filled_from(self, made_by: Mapping[str, Any]) -> ExtendSpec:
        """Return this spec with the fields of the job that made the set. made_by: that job's resolved spec.

        Raises ValueError if its method couples classes, or if this spec has another value for such a field.
        """
        try:
            base = CondenseSpec.model_validate(
                {k: v for k, v in made_by.items() if k in CondenseSpec.model_fields and k != "kind"}
            )
        except ValidationError as error:
            raise ValueError("base: the set does not say how it was made, so it cannot be extended") from error
        if not isinstance(base.method, LearningMethodSpec) or base.method.couples_classes:
            raise ValueError(
                f"base: a set made by {base.method.name} cannot be extended, because its classes depend on each other or are "
                "real images; sets of dance, ncfm and dm can be"
            )
        for field in _FROM_BASE:
            own, of_base = getattr(self, field), getattr(base, field)
            if field in self.model_fields_set and own is not None and own != of_base:
                raise ValueError(f"{field}: an extended set keeps the value of its base, {of_base!r}; leave {field} out")
        filled = {field: getattr(base, field) for field in _FROM_BASE}
        iterations = base.iterations if self.iterations is None else self.iterations
        return self.model_copy(update=filled | {"iterations": iterations})
