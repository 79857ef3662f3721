"""Define the spec of a sweep: a condense spec and the values of some of its fields."""

from __future__ import annotations

from math import prod
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, FieldSerializationInfo, field_serializer, model_validator

from cafe_core.spec.base import SpecModel, given_one_of, max_entries, resolved_later
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.job_fields import JobFields

MAX_TRIALS = 10_000
MAX_NESTING = 32
"""Limit on the nesting of the values in a space: deeper than any field, and safe to copy and to serialize."""


def _shallow(values: list[Any]) -> list[Any]:
    level = values
    for _ in range(MAX_NESTING):
        containers = [value for value in level if isinstance(value, list | dict)]
        level = [inner for value in containers for inner in (value.values() if isinstance(value, dict) else value)]
        if not level:
            return values
    raise ValueError(f"a value is nested too deeply: at most {MAX_NESTING - 1} levels of lists and objects are allowed")


_Values: TypeAlias = Annotated[list[Any], Field(min_length=1, max_length=MAX_TRIALS), AfterValidator(_shallow)]


class DimensionSpec(SpecModel):
    """The values of one field in a sweep: exactly one of the following."""

    grid: _Values | None = None
    """All values, combined with all values of the other grids."""
    choice: _Values | None = None
    """One of these values at random."""
    uniform: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """[a, b]: a random number between them."""
    loguniform: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """[a, b]: a random number whose logarithm is uniform; a > 0."""
    integers: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    """[a, b]: a random whole number from a to b, both included."""

    @model_validator(mode="after")
    def _one_kind(self) -> DimensionSpec:
        kind = given_one_of(self, "grid", "choice", "uniform", "loguniform", "integers")
        if kind in ("uniform", "loguniform", "integers"):
            low, high = getattr(self, kind)
            if not low < high:
                raise ValueError(f"{kind}: [{low}, {high}] must increase")
            if kind == "loguniform" and low <= 0:
                raise ValueError(f"loguniform: {low} must be greater than 0")
        return self


class SweepSpec(JobFields):
    """Condense with many settings and keep the best synthetic set.

    The best set has the highest mean accuracy of the first kind of network, in the validation if `base` has one, otherwise in
    the evaluation. The evaluation uses the test set, so the reported accuracy of the best set is slightly too high. Use
    `validation` to avoid this.
    """

    kind: Literal["sweep"]
    """The kind of job."""
    base: CondenseSpec
    """The job that all trials have in common, with an evaluation. It is not resolved: its defaults depend on the trial."""
    space: Annotated[dict[str, DimensionSpec], Field(min_length=1, max_length=64), max_entries(64)]
    """Fields of `base` by path, e.g. `method.beta`, and the values that each takes."""
    samples: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Trials per point of the grid; each draws new values of the random dimensions."""
    scheduler: Literal["fifo", "asha"] = "fifo"
    """`asha`: stop trials early if their validation falls behind (Li et al., MLSys 2020). It needs `base.validation`,
    by default every quarter of the iterations."""
    max_concurrent: int = resolved_later(ge=1, le=10_000)
    """Trials that run at the same time; each uses `base.resources`. Default: as many as fit into the cluster."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the random dimensions. The seed of the trials is `base.seed`."""

    @field_serializer("base")
    def _as_sent(self, base: CondenseSpec, info: FieldSerializationInfo) -> dict[str, Any]:
        """Serialize only what was sent: a default of one method would be wrong for trials with another."""
        return base.model_dump(mode=info.mode, exclude_unset=True)

    @property
    def trial_count(self) -> int:
        """Return the number of trials: the product of the sizes of the grids, times `samples`."""
        return self.samples * prod(len(dimension.grid) for dimension in self.space.values() if dimension.grid is not None)

    @model_validator(mode="after")
    def _sensible(self) -> SweepSpec:
        if self.base.evaluation is None:
            raise ValueError("base.evaluation: a sweep compares accuracies; give base an evaluation")
        if self.base.webhook is not None:
            raise ValueError("base.webhook: a trial is not a separate job; set webhook on the sweep")
        if self.trial_count > MAX_TRIALS:
            raise ValueError(f"space: {self.trial_count} trials are more than {MAX_TRIALS}")
        choices = sum(len(dimension.choice) for dimension in self.space.values() if dimension.choice is not None)
        if choices > MAX_TRIALS:  # each value is validated before the sweep is accepted
            raise ValueError(f"space: {choices} values to choose from are more than {MAX_TRIALS}")
        return self
