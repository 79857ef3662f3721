"""Define the spec of a condense job."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cafe_core.methods.registry import BEST, AnyMethod
from cafe_core.spec.base import Precision, resolved_later
from cafe_core.spec.dataset import AnyDataset
from cafe_core.spec.evaluation import EvaluationSpec, ValidationSpec
from cafe_core.spec.job_fields import JobFields
from cafe_core.spec.network import AnyNetwork, NetworkSpec
from cafe_core.spec.resources import ResourcesSpec


class CondenseSpec(JobFields):
    """Condense a dataset into ipc synthetic images per class."""

    kind: Literal["condense"] = "condense"
    """The kind of job."""
    dataset: AnyDataset
    """The real images."""
    ipc: Annotated[int, Field(ge=1, le=10_000)]
    """Synthetic images per class."""
    iterations: int = resolved_later(ge=0, le=1_000_000)
    """Number of iterations, each with a fresh network. Default: the number published for the method, or chosen with it by
    `method: best`; methods that choose real images have none. 0 returns the initial images."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of all random draws of the job."""
    method: AnyMethod = Field(default=BEST, validate_default=True)
    """The method and its hyper-parameters. Default: `best`, or `cafe` if `iterations` is given."""
    network: AnyNetwork = NetworkSpec()
    """The network whose features are aligned."""
    resources: ResourcesSpec = ResourcesSpec()
    """The number of workers and the resources of each."""
    precision: Precision = "float32"
    """Precision of the condensation. float64 is for checks. float32 does not use TF32. tf32 lets a GPU compute convolutions in
    TF32: up to a quarter faster, with an error of 3e-3 instead of 3e-7 in the gradient of the images; on CPUs it is float32.
    bfloat16 computes features in bfloat16 and keeps images, statistics and weights in float32. Evaluations always compute in
    tf32."""
    compile: bool = False
    """Compile the feature pass of cafe, dm, dance and ncfm (torch.compile): slower to start, faster per step. The training of
    networks, and therefore all of dc, is never compiled. For methods that choose real images, only the last pass over the images
    is compiled."""
    checkpoint_every: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Iterations between checkpoints."""
    evaluation: EvaluationSpec | None = None
    """Evaluate the synthetic set at the end."""
    validation: ValidationSpec | None = None
    """Validate checkpoints on held-out training images and keep the best."""

    @model_validator(mode="after")
    def _condensable(self) -> CondenseSpec:
        if self.network.norm == "batch":
            raise ValueError(
                "network.norm: batch statistics couple the images of all shards, so condensation supports instance, "
                "group, layer or none; networks of the evaluation may use batch"
            )
        check_gpus_per_worker(self.resources)
        return self


def check_gpus_per_worker(resources: ResourcesSpec) -> None:
    """Raise ValueError if several workers would share a GPU."""
    gpus = resources.gpus_per_worker
    if resources.workers > 1 and gpus is not None and 0 < gpus < 1:
        raise ValueError(
            "resources.gpus_per_worker: several workers that condense need a whole GPU each (NCCL has one rank per GPU), or 0"
        )
