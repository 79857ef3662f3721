"""Define the spec of an evaluate job."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from cafe_core.methods.registry import Selection
from cafe_core.spec.base import SpecModel, given_one_of
from cafe_core.spec.dataset import AnyDataset
from cafe_core.spec.evaluation import EvaluationSpec
from cafe_core.spec.job_fields import JobFields
from cafe_core.spec.resources import ResourcesSpec


class JudgedSpec(SpecModel):
    """The images to evaluate: exactly one of `job_id`, `path`, `dataset`."""

    job_id: Annotated[str, StringConstraints(pattern=r"^job_[a-z0-9]{1,40}$")] | None = None
    """The synthetic set of another job, copied when this job is submitted."""
    path: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    """A synthetic set as .safetensors or .npz, under the server's dataset root."""
    dataset: AnyDataset | None = None
    """Real images, chosen by `selection`."""
    selection: Selection | None = None
    """With `dataset`: `random` (a new choice for each network), `whole` (all training images), or a coreset method."""
    ipc: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """With `selection`: images per class. Leave it out for `whole`."""

    @model_validator(mode="after")
    def _one_source(self) -> JudgedSpec:
        given_one_of(self, "job_id", "path", "dataset")
        if (self.dataset is None) != (self.selection is None):
            raise ValueError("selection and dataset belong together")
        if (self.ipc is not None) != (self.selection not in (None, "whole")):
            raise ValueError("ipc is required for a selection other than `whole`, and not allowed otherwise")
        return self


class EvaluateSpec(EvaluationSpec, JobFields):
    """Evaluate a synthetic set, or a choice of real images, by training fresh networks on it."""

    kind: Literal["evaluate"]
    """The kind of job."""
    synthetic: JudgedSpec
    """The images to train on."""
    dataset: AnyDataset | None = None
    """The dataset whose test images are used. Default: the dataset that the images were made from."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of all random draws of the job."""
    resources: ResourcesSpec = ResourcesSpec()
    """Workers, each of which trains one network at a time, or an ensemble of networks on a GPU."""
