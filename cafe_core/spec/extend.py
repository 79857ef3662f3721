"""Define the spec of an extend job, and fill it in from the set that it extends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import StringConstraints, ValidationError, field_validator, model_validator

from cafe_core.methods.registry import AnyMethod
from cafe_core.spec.base import Precision, SpecModel, given_one_of, resolved_later
from cafe_core.spec.best import BestMethod
from cafe_core.spec.condense import CondenseSpec, check_gpus_per_worker
from cafe_core.spec.network import AnyNetwork
from cafe_core.spec.resources import ResourcesSpec

_FROM_BASE = ("ipc", "seed", "method", "network", "precision")
"""The fields that determine the images of a class, besides its real images and the number of iterations."""
_UNKNOWN_ORIGIN = "base: the set does not say how it was made, so it cannot be extended"


class BaseSetSpec(SpecModel):
    """The set to extend: exactly one of `job_id`, `path`."""

    job_id: Annotated[str, StringConstraints(pattern=r"^job_[a-z0-9]{1,40}$")] | None = None
    """The synthetic set of another job, copied when this job is submitted."""
    path: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    """A synthetic set as .safetensors or .npz, under the server's dataset root."""

    @model_validator(mode="after")
    def _one_source(self) -> BaseSetSpec:
        given_one_of(self, "job_id", "path")
        return self


class ExtendSpec(CondenseSpec):
    """Extend a synthetic set to a dataset with more classes, or with other images in some classes.

    Only classes that the set does not have, or whose real images have changed, are condensed; the images of all other classes
    keep their bytes. Classes that the dataset no longer has are left out. The set must be finished, and its method must be one of
    dance, ncfm and dm, whose classes do not depend on each other.
    """

    kind: Literal["extend"]  # type: ignore[assignment]  # CondenseSpec's is "condense"
    """The kind of job."""
    base: BaseSetSpec
    """The set to extend."""
    ipc: int = resolved_later(ge=1, le=10_000)
    """Synthetic images per class: that of the set."""
    iterations: int = resolved_later(ge=0, le=1_000_000)
    """Number of iterations. Default: that of the set."""
    seed: int = resolved_later(ge=0, lt=2**63)
    """Seed of all random draws: that of the set."""
    method: AnyMethod = resolved_later()
    """The method and its hyper-parameters: those of the set."""
    network: AnyNetwork = resolved_later()
    """The network whose features are aligned: that of the set."""
    precision: Precision = resolved_later()
    """The precision of the computation, which is that of the set."""
    resources: ResourcesSpec = ResourcesSpec()
    """The number of workers and the resources of each. No more workers are used than there are classes to condense, also while
    they train a pool of networks."""
    validation: None = None
    """Not supported, because only some classes are condensed."""

    @field_validator("validation", mode="before")
    @classmethod
    def _without_validation(cls, value: Any) -> None:
        if value is not None:
            raise ValueError("an extend job does not support it, because it condenses some classes only; leave validation out")

    @model_validator(mode="after")
    def _condensable(self) -> ExtendSpec:  # replaces CondenseSpec's, whose network is not known yet
        check_gpus_per_worker(self.resources)
        return self

    def filled_from(self, made_by: Mapping[str, Any]) -> ExtendSpec:
        """Return this spec with the fields of the job that made the set. made_by: that job's resolved spec.

        Raises ValueError if its classes depend on each other, or if this spec has another value for such a field.
        """
        known = {name: value for name, value in made_by.items() if name in CondenseSpec.model_fields and name != "kind"}
        known["dataset"] = self.dataset  # a set does not name a dataset outside the dataset root, and it does not matter here
        try:
            base = CondenseSpec.model_validate(known)
        except ValidationError as error:
            raise ValueError(_UNKNOWN_ORIGIN) from error
        if isinstance(base.method, BestMethod):  # the spec is not resolved
            raise ValueError(_UNKNOWN_ORIGIN)
        if not base.method.can_be_extended:
            raise ValueError(
                f"base: a set made by {base.method.name} cannot be extended, because its classes depend on each other or are "
                "real images; sets of dance, ncfm and dm can be"
            )
        for field in _FROM_BASE:
            if field in self.model_fields_set and getattr(self, field) is not None:
                _check_equal(field, getattr(self, field), getattr(base, field))
        filled = {field: getattr(base, field) for field in _FROM_BASE}
        iterations = base.iterations if self.iterations is None else self.iterations
        return self.model_copy(update=filled | {"iterations": iterations})


def _check_equal(path: str, own: Any, of_base: Any) -> None:
    """Raise ValueError unless every value that was given for the field `path` is that of the base."""
    if isinstance(own, SpecModel):
        for field in own.model_fields_set:
            _check_equal(f"{path}.{field}", getattr(own, field), getattr(of_base, field, None))
    elif own != of_base:
        raise ValueError(f"{path}: an extended set keeps the value of its base, {of_base!r}; leave {path.split('.')[0]} out")
