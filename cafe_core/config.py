"""The job spec: every field of every job, defined once.

The REST API, the CLI, the workers and the documentation all take their fields, defaults, bounds and
descriptions from here. The module imports no torch, so that the API can validate without it.

A spec has two forms, of the same classes:

* as *sent*: what a user wrote; fields whose default depends on the preset, on ipc or on the data
  may be absent;
* as *resolved* by :func:`resolve`: every default written out. Only a resolved spec is stored or run.

Symbols as in the method: K classes, N real images per class and outer step, ipc synthetic images per class.
"""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

Preset = Literal["paper", "reference"]
DatasetName = Literal["digits", "mnist", "fashion_mnist", "svhn", "cifar10", "cifar100"]
NetworkName = Literal["convnet", "mlp", "lenet", "alexnet", "vgg11", "resnet18"]
Augmentation = Literal["none", "dsa", "crop_scale_rotate"]
Precision = Literal["float64", "float32", "bfloat16"]

DEFAULT_PRESET: Preset = "paper"
MAX_IMAGE_SIDE = 512


class _Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


def _resolved_later(**constraints: Any) -> Any:
    """A field that :func:`resolve` fills when the spec leaves it out.

    The attribute is typed without None, because everything that runs a spec runs a resolved one.
    """

    def drop_null_default(schema: dict[str, Any]) -> None:
        schema.pop("default", None)

    return Field(default=None, json_schema_extra=drop_null_default, **constraints)


class DatasetSpec(_Model):
    """The real images: exactly one of `name`, `id`, `path`."""

    name: DatasetName | None = None
    """A built-in dataset."""
    id: Annotated[str, StringConstraints(pattern=r"^ds_[a-z0-9]{1,40}$")] | None = None
    """A dataset uploaded to this server."""
    path: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    """An image folder (`train/CLASS/*.png`, optional `test/`), a .zip of one, or an .npz, under the server's dataset root."""
    image_size: Annotated[int, Field(ge=4, le=MAX_IMAGE_SIDE)] | None = None
    """Side in pixels: images are resized on their shorter side and centre-cropped. Needed where sizes differ."""
    channels: Literal[1, 3] | None = None
    """Convert to grey (1) or RGB (3). Needed where the images' modes differ."""

    @model_validator(mode="after")
    def _one_source(self) -> DatasetSpec:
        if sum(source is not None for source in (self.name, self.id, self.path)) != 1:
            raise ValueError("give exactly one of name, id and path")
        if self.path is not None and "\x00" in self.path:
            raise ValueError("path holds a NUL character")
        return self


class NetworkSpec(_Model):
    """A classifier. Options that a network does not have must be left out (only the ConvNet has all)."""

    name: NetworkName = "convnet"
    """convnet, mlp, lenet, alexnet, vgg11 or resnet18."""
    width: int = _resolved_later(ge=1, le=4096)
    """Channels per convolution (convnet, default 128) or hidden units (mlp, default 128)."""
    depth: int = _resolved_later(ge=1, le=8)
    """Blocks of the convnet, default 3."""
    norm: Literal["none", "instance", "batch", "layer", "group"] = _resolved_later()
    """Normalisation (all but mlp and lenet), default instance (alexnet: none). `batch` only where networks are evaluated."""
    activation: Literal["relu", "leaky_relu", "sigmoid"] = _resolved_later()
    """Activation (convnet), default relu."""
    pooling: Literal["none", "max", "avg"] = _resolved_later()
    """Pooling (convnet), default avg."""

    @model_validator(mode="after")
    def _options_exist(self) -> NetworkSpec:
        defaults = _NETWORK_DEFAULTS[self.name]
        for option in ("width", "depth", "norm", "activation", "pooling"):
            if getattr(self, option) is not None and option not in defaults:
                raise ValueError(f"{self.name} has no option {option!r}; it has: {', '.join(defaults) or 'none'}")
        return self

    def resolved(self) -> NetworkSpec:
        """The same network with every option it has written out."""
        return self.model_copy(update={k: v for k, v in _NETWORK_DEFAULTS[self.name].items() if getattr(self, k) is None})


_NETWORK_DEFAULTS: dict[str, dict[str, Any]] = {
    "convnet": {"width": 128, "depth": 3, "norm": "instance", "activation": "relu", "pooling": "avg"},
    "mlp": {"width": 128},
    "lenet": {},
    "alexnet": {"norm": "none"},
    "vgg11": {"norm": "instance"},
    "resnet18": {"norm": "instance"},
}
_ALIGNED_MAPS = {"mlp": 2, "lenet": 3, "alexnet": 6, "vgg11": 6, "resnet18": 5}


def aligned_map_count(network: NetworkSpec) -> int:
    """L, the number of feature maps of `network` that can be aligned; the last one gives the class centres.

    ConvNet-d: each block's activation before its pooling, plus the last pooling's output. Others: the
    output of each stage plus the last feature before the classifier.
    """
    if network.name == "convnet":
        return network.resolved().depth + 1
    return _ALIGNED_MAPS[network.name]


class MethodSpec(_Model):
    """CAFE's hyper-parameters. What is left out comes from the preset."""

    name: Literal["cafe"] = "cafe"
    """The condensation method (Wang et al., CVPR 2022)."""
    preset: Preset = DEFAULT_PRESET
    """`paper`: the paper's settings; `reference`: what the authors' released code does."""
    beta: float = _resolved_later(ge=0, le=1e30)
    """β of Eq. 4, on the *mean* cross-entropy. paper 1; reference 0.01·K·N (that code sums instead of averaging)."""
    layer_weights: Annotated[list[Annotated[float, Field(ge=0, le=1e30)]], Field(min_length=1, max_length=64)] = _resolved_later()
    """w_l, one per aligned map, early → late. paper all 1; reference 0.1 …, 1, 2."""
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=64)] = _resolved_later()
    """Which feature maps are aligned, 0-based from the input (Tables 3 and 4, which count from the output). Default: all."""
    discrimination: bool = True
    """Whether the discrimination loss (Eq. 2–3) is part of the loss."""
    bilevel: Literal["dynamic", "fixed"] = "dynamic"
    """`dynamic`: Algorithm 1's stop rules; `fixed`: always max_outer and max_inner."""
    lambda_1: float = _resolved_later(ge=0, le=1)
    """λ1: the outer loop ends when the last γ query accuracies span less.

    With 1280 query images the sampling noise of a window of 10 alone spans about 0.04: λ sits near it."""
    lambda_2: float = _resolved_later(ge=0, le=1)
    """λ2: the inner loop ends when the last γ query accuracies span more. Near the noise too: see lambda_1."""
    gamma: int = _resolved_later(ge=1, le=1000)
    """γ: length of both queues."""
    max_outer: int = _resolved_later(ge=1, le=100_000)
    """Bound on outer steps per iteration.

    paper: DC's, by ipc (1→1, 10→10, 20→20, 30→30, 40→40, 50→50); reference: a generous 100."""
    max_inner: int = _resolved_later(ge=0, le=100_000)
    """Bound on inner epochs per outer step.

    paper: DC's, by ipc (1→1, 10→50, 20→25, 30→20, 40→15, 50→10); reference: a generous 500."""
    batch_real: int = _resolved_later(ge=1, le=65536)
    """N, real images per class and outer step. A smaller class uses all it has."""
    batch_train: int = _resolved_later(ge=1, le=65536)
    """Minibatch of the inner loop, over all classes."""
    query_per_class: int = _resolved_later(ge=1, le=65536)
    """Query images per class at each check. paper N; reference 128. Query checks dominate a run's time."""
    query_carry: bool = _resolved_later()
    """Carry a_t = mean_t + a_{t-1}/K between checks, as the reference's never-reset accumulator does."""
    image_lr: float = _resolved_later(gt=0, le=1e30)
    """Learning rate of the synthetic images."""
    image_momentum: float = _resolved_later(ge=0, lt=1)
    """Momentum of the synthetic images."""
    image_milestones: list[Annotated[int, Field(ge=0)]] = _resolved_later(max_length=1000)
    """Iterations at which image_lr is halved. paper 1200, 1400, 1800; reference 1200, 1600, 1800."""
    network_lr: float = _resolved_later(gt=0, le=1e30)
    """Learning rate of the network in the inner loop (plain SGD)."""
    init: Literal["noise", "real"] = "noise"
    """Synthetic images start as Gaussian noise or as real images."""
    augment: Literal["none", "dsa"] = "none"
    """`dsa`: differentiable Siamese augmentation (CAFE+DSA), without flips for digits."""


class ResourcesSpec(_Model):
    """What the workers of a job hold while it runs."""

    workers: Annotated[int, Field(ge=1, le=4096)] = 1
    """Class shards, one actor each. At most the number of classes."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=1)] = _resolved_later()
    """GPUs of each worker: 1, 0 for the CPU, or for a single worker a fraction. Default: 1 where the cluster has GPUs, else 0."""
    cpus_per_worker: Annotated[int, Field(ge=1, le=256)] = 1
    """CPU cores of each worker, and its number of threads."""

    @model_validator(mode="after")
    def _one_rank_per_gpu(self) -> ResourcesSpec:
        if self.workers > 1 and self.gpus_per_worker is not None and 0 < self.gpus_per_worker < 1:
            raise ValueError("gpus_per_worker: several workers need a whole GPU each (NCCL takes one rank per GPU), or 0")
        return self


class EvaluationSpec(_Model):
    """Train fresh networks on the synthetic set; the accuracy of the *last* epoch on the test set counts.

    SGD lr 0.01, momentum 0.9, weight decay 5e-4, batch 256, ×0.1 at half the epochs (both presets).
    """

    networks: Annotated[list[NetworkSpec], Field(min_length=1, max_length=64)] = [NetworkSpec()]
    """The kinds of network to train."""
    repeats: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Fresh networks per kind."""
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 300
    """Epochs per network. paper 300; reference 600, or 1000 with augmentation."""
    augment: Augmentation = "none"
    """Augmentation while training. `crop_scale_rotate` is what the reference does for MNIST."""
    baselines: Annotated[list[Literal["random"]], Field(max_length=1)] = []
    """Also evaluate the same number of random real images per class, with the same networks."""


def _printable(text: str) -> str:
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError("control characters are not allowed")
    return text


_LABEL = Annotated[str, StringConstraints(max_length=128), AfterValidator(_printable)]


class CondenseSpec(_Model):
    """Condense a dataset into ipc synthetic images per class."""

    kind: Literal["condense"] = "condense"
    """The kind of job."""
    name: _LABEL | None = None
    """A name for people."""
    labels: Annotated[dict[_LABEL, _LABEL], Field(max_length=64)] = {}
    """Key-value pairs to find the job by."""
    dataset: DatasetSpec
    """The real images."""
    ipc: Annotated[int, Field(ge=1, le=10_000)]
    """Synthetic images per class."""
    iterations: Annotated[int, Field(ge=0, le=1_000_000)] = 2000
    """Fresh networks, one after the other (paper: 2000). 0 returns the initial images."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Every random draw of the job follows from it."""
    method: MethodSpec = MethodSpec()
    """The method and its hyper-parameters."""
    network: NetworkSpec = NetworkSpec()
    """The network whose features are aligned."""
    resources: ResourcesSpec = ResourcesSpec()
    """Workers and what each holds."""
    precision: Precision = "float32"
    """float64 for checks; bfloat16 computes features in bfloat16 and keeps images, statistics and weights in float32."""
    compile: bool = False
    """Compile the feature pass (torch.compile): slower to start, faster per step."""
    checkpoint_every: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Iterations between checkpoints."""
    evaluation: EvaluationSpec | None = None
    """Evaluate the synthetic set at the end."""

    @model_validator(mode="after")
    def _condensable(self) -> CondenseSpec:
        if self.network.norm == "batch":
            raise ValueError(
                "network.norm: batch statistics couple the images of all shards, so condensation takes instance, "
                "group, layer or none; networks of the evaluation may use batch"
            )
        return self


JobSpec = CondenseSpec
"""Any job's spec. Evaluate and sweep jobs join here as a union discriminated by `kind`."""


class DatasetInfo(_Model):
    """What a spec is resolved against: the facts about a dataset that need no pixel."""

    name: str
    class_names: list[str]
    class_counts: list[int]
    """Training images of each class."""
    test_count: int
    channels: int
    height: int
    width: int
    mean: list[float]
    """Per channel, of images scaled to [0, 1]."""
    std: list[float]
    is_digits: bool = False
    """Whether a mirrored image changes its class (MNIST, SVHN, digits): no flips then."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width


# ------------------------------------------------------------------------------------------------
# Resolution

_DC_LOOPS = ((1, 1, 1), (10, 10, 50), (20, 20, 25), (30, 30, 20), (40, 40, 15), (50, 50, 10))
"""(ipc, max_outer, max_inner) of DC, which the paper takes over."""


def dc_loops(ipc: int) -> tuple[int, int]:
    """(max_outer, max_inner) for an ipc: DC's table, linear between its entries, constant past its end."""
    for (ipc_a, outer_a, inner_a), (ipc_b, outer_b, inner_b) in pairwise(_DC_LOOPS):
        if ipc_a <= ipc < ipc_b:
            t = (ipc - ipc_a) / (ipc_b - ipc_a)
            return round(outer_a + t * (outer_b - outer_a)), round(inner_a + t * (inner_b - inner_a))
    return _DC_LOOPS[-1][1:]


def _preset_values(preset: Preset, *, ipc: int, num_classes: int, batch_real: int, map_count: int) -> dict[str, Any]:
    shared: dict[str, Any] = {
        "gamma": 10,
        "batch_train": 256,
        "image_lr": 0.1,
        "image_momentum": 0.5,
        "network_lr": 0.01,
    }
    if preset == "paper":
        max_outer, max_inner = dc_loops(ipc)
        return shared | {
            "beta": 1.0,
            "layer_weights": [1.0] * map_count,
            "lambda_1": 0.05,
            "lambda_2": 0.05,
            "max_outer": max_outer,
            "max_inner": max_inner,
            "query_per_class": batch_real,
            "query_carry": False,
            "image_milestones": [1200, 1400, 1800],
        }
    return shared | {
        "beta": 0.01 * num_classes * batch_real,
        "layer_weights": [0.1] * max(0, map_count - 2) + [1.0, 2.0][-map_count:],
        "lambda_1": 0.04,
        "lambda_2": 0.03,
        "max_outer": 100,
        "max_inner": 500,
        "query_per_class": 128,
        "query_carry": True,
        "image_milestones": [1200, 1600, 1800],
    }


def resolve_method(method: MethodSpec, *, ipc: int, num_classes: int, network: NetworkSpec) -> MethodSpec:
    """`method` with everything the preset decides written out.

    Raises ValueError when layers or layer_weights do not fit the network.
    """
    map_count = aligned_map_count(network)
    layers = method.layers if method.layers is not None else list(range(map_count))
    if max(layers) >= map_count or len(set(layers)) != len(layers) or layers != sorted(layers):
        raise ValueError(f"method.layers: {layers} must be increasing and below {map_count}, the feature maps of {network.name}")
    batch_real = method.batch_real if method.batch_real is not None else 256
    values = _preset_values(method.preset, ipc=ipc, num_classes=num_classes, batch_real=batch_real, map_count=map_count)
    values |= {"batch_real": batch_real, "layers": layers, "layer_weights": [values["layer_weights"][i] for i in layers]}
    resolved = method.model_copy(update={k: v for k, v in values.items() if getattr(method, k) is None})
    if len(resolved.layer_weights) != len(layers):
        raise ValueError(
            f"method.layer_weights: {len(resolved.layer_weights)} weights for {len(layers)} aligned maps (layers {layers})"
        )
    return resolved


def resolve(spec: CondenseSpec, dataset: DatasetInfo, *, cluster_gpus: float = 0) -> CondenseSpec:
    """`spec` with every default written out, checked against the dataset.

    Raises ValueError with a message that starts with the field's path.
    """
    k = dataset.num_classes
    if k < 2:
        raise ValueError(f"dataset: {dataset.name} has {k} class; condensation needs at least 2")
    if spec.resources.workers > k:
        raise ValueError(
            f"resources.workers: {spec.resources.workers} workers for {k} classes; each worker needs a class of its own"
        )
    if spec.evaluation is not None and dataset.test_count == 0:
        raise ValueError("evaluation: the dataset has no test images (a test/ folder, or test_images and test_labels)")
    network = spec.network.resolved()
    resources = spec.resources
    if resources.gpus_per_worker is None:
        resources = resources.model_copy(update={"gpus_per_worker": 1.0 if cluster_gpus > 0 else 0.0})
    evaluation = spec.evaluation
    if evaluation is not None:
        evaluation = evaluation.model_copy(update={"networks": [n.resolved() for n in evaluation.networks]})
    return spec.model_copy(
        update={
            "method": resolve_method(spec.method, ipc=spec.ipc, num_classes=k, network=network),
            "network": network,
            "resources": resources,
            "evaluation": evaluation,
        }
    )


def image_lr_at(method: MethodSpec, iteration: int) -> float:
    """Learning rate of the synthetic images in `iteration` (0-based): halved at each milestone reached."""
    return method.image_lr * math.pow(0.5, sum(iteration >= m for m in method.image_milestones))
