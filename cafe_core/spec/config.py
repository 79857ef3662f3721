"""The job spec: every field of every job, defined once.

The REST API, the CLI, the workers and the documentation all take their fields, defaults, bounds and
descriptions from here. The module imports no torch, so that the API can validate without it.

A spec has two forms, of the same classes:

* as *sent*: what a user wrote; fields whose default depends on the method, on ipc or on the data
  may be absent;
* as *resolved* by :mod:`cafe_core.spec.resolution`: every default written out. Only a resolved spec is stored or run.

Symbols as in the method: K classes, N real images per class and outer step, ipc synthetic images per class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    FieldSerializationInfo,
    HttpUrl,
    StringConstraints,
    Tag,
    TypeAdapter,
    UrlConstraints,
    field_serializer,
    model_validator,
)
from pydantic_core import PydanticKnownError

Preset = Literal["paper", "reference"]
DatasetName = Literal["digits", "mnist", "fashion_mnist", "svhn", "cifar10", "cifar100"]
NetworkName = Literal["convnet", "mlp", "lenet", "alexnet", "vgg11", "resnet18"]
CoresetName = Literal["herding", "k_center", "forgetting", "kmeans"]
Selection = Literal["random", "whole", "herding", "k_center", "forgetting", "kmeans"]
Augmentation = Literal["none", "dsa", "crop_scale_rotate", "autoaugment", "randaugment", "crop_flip_cutout"]
Baseline = Literal["random", "whole"]
Precision = Literal["float64", "float32", "bfloat16"]

DEFAULT_PRESET: Preset = "paper"
MAX_IMAGE_SIDE = 512
MAX_TRIALS = 10_000
MAX_NESTING = 32
"""Of the values that a sweep sets: more than any field's has, and less than what copies and writes them can take."""


class _Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


def _resolved_later(**constraints: Any) -> Any:
    """A field that :mod:`cafe_core.spec.resolution` fills when the spec leaves it out.

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


class MatchingMethod(_Model):
    """What the methods that learn synthetic images by gradient descent share."""

    batch_real: int = _resolved_later(ge=1, le=65536)
    """N, real images per class and outer step (256). A smaller class uses all it has."""
    image_lr: float = _resolved_later(gt=0, le=1e30)
    """Learning rate of the synthetic images. cafe and dc 0.1; dm 1."""
    image_momentum: float = _resolved_later(ge=0, lt=1)
    """Momentum of the synthetic images (0.5)."""
    image_milestones: list[Annotated[int, Field(ge=0)]] = _resolved_later(max_length=1000)
    """Iterations at which image_lr is halved. cafe: paper 1200, 1400, 1800; reference 1200, 1600, 1800. dc, dm: none."""
    init: Literal["noise", "real"] = _resolved_later()
    """Synthetic images start as Gaussian noise (cafe, dc) or as real images (dm, and dc with `augment: dsa`)."""
    augment: Literal["none", "dsa"] = _resolved_later()
    """`dsa`: differentiable Siamese augmentation, without flips for digits (CAFE+DSA, DSA). Default none; dm: dsa."""


class BilevelMethod(MatchingMethod):
    """What the methods share that train the network on S between steps of the images."""

    max_outer: int = _resolved_later(ge=1, le=100_000)
    """Bound on outer steps per iteration.

    cafe paper and dc: DC's, by ipc (1→1, 10→10, 20→20, 30→30, 40→40, 50→50); reference: a generous 100."""
    max_inner: int = _resolved_later(ge=0, le=100_000)
    """Bound on inner epochs per outer step.

    cafe paper and dc: DC's, by ipc (1→1, 10→50, 20→25, 30→20, 40→15, 50→10); reference: a generous 500."""
    batch_train: int = _resolved_later(ge=1, le=65536)
    """Minibatch of the inner loop, over all classes (256)."""
    network_lr: float = _resolved_later(gt=0, le=1e30)
    """Learning rate of the network in the inner loop (plain SGD, 0.01)."""


class CafeMethod(BilevelMethod):
    """CAFE (Wang et al., CVPR 2022): aligned features and discrimination. What is left out comes from the preset."""

    name: Literal["cafe"] = "cafe"
    """CAFE."""
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
    query_per_class: int = _resolved_later(ge=1, le=65536)
    """Query images per class at each check. paper N; reference 128. Query checks dominate a run's time."""
    query_carry: bool = _resolved_later()
    """Carry a_t = mean_t + a_{t-1}/K between checks, as the reference's never-reset accumulator does."""


class DcMethod(BilevelMethod):
    """DC, gradient matching (Zhao et al., ICLR 2021); with `augment: dsa` it is DSA (Zhao & Bilen, ICML 2021).

    It fails where a block normalises maps of 2×2 pixels: 8×8 images take a network of depth 2.
    """

    name: Literal["dc"]
    """Gradient matching."""


class DmMethod(MatchingMethod):
    """DM, distribution matching (Zhao & Bilen, WACV 2023): the mean embedding, under fresh networks that are never trained."""

    name: Literal["dm"]
    """Distribution matching."""


class RandomMethod(_Model):
    """Random real images of each class."""

    name: Literal["random"]
    """Random real images."""


class CoresetMethod(_Model):
    """A choice of real images, by what a network trained on all of them makes of them."""

    name: CoresetName
    """herding (Welling, ICML 2009), k_center (Sener & Savarese, ICLR 2018), forgetting (Toneva et al., ICLR 2019), or kmeans:
    the images nearest the centres of k-means (Cui et al., NeurIPS 2022)."""
    network_epochs: Annotated[int, Field(ge=0, le=100_000)] = 50
    """Epochs of training on all real images. 0: embed with a random network (not forgetting). Nothing is saved on the way: a job
    that is broken off trains from the start again."""
    network_lr: Annotated[float, Field(gt=0, le=1e30)] = 0.01
    """Learning rate of that training; a tenth after half the epochs. Momentum and weight decay as in evaluations."""
    batch_train: Annotated[int, Field(ge=1, le=65536)] = 256
    """Minibatch of that training, over all classes."""

    @model_validator(mode="after")
    def _forgets_something(self) -> CoresetMethod:
        if self.name == "forgetting" and self.network_epochs < 2:
            raise ValueError("method.network_epochs: forgetting counts changes from one epoch to the next; 2 at least")
        return self


def _method_tag(value: Any) -> str | None:
    """Which class of MethodSpec `value` is, sent or validated: cafe where it does not say."""
    name = value.get("name", "cafe") if isinstance(value, Mapping) else getattr(value, "name", None)
    return _METHOD_TAGS.get(name) if isinstance(name, str) else None


_METHOD_TAGS = {"cafe": "cafe", "dc": "dc", "dm": "dm", "random": "random"} | dict.fromkeys(
    ("herding", "k_center", "forgetting", "kmeans"), "coreset"
)

MethodSpec: TypeAlias = Annotated[
    Annotated[CafeMethod, Tag("cafe")]
    | Annotated[DcMethod, Tag("dc")]
    | Annotated[DmMethod, Tag("dm")]
    | Annotated[RandomMethod, Tag("random")]
    | Annotated[CoresetMethod, Tag("coreset")],
    Discriminator(
        _method_tag,
        custom_error_type="unknown_method",
        custom_error_message=f"method.name must be one of {', '.join(_METHOD_TAGS)}",
    ),
]
"""A way to make ipc images per class. Each is one module of `cafe_core.methods`."""


class ResourcesSpec(_Model):
    """What the workers of a job hold while it runs."""

    workers: Annotated[int, Field(ge=1, le=4096)] = 1
    """Class shards, one actor each. At most the number of classes."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=1)] = _resolved_later()
    """GPUs of each worker: 1, 0 for the CPU, or a fraction (of several workers only in an evaluation: condensing workers
    need a whole one each). Default: 1 where the cluster has GPUs, else 0."""
    cpus_per_worker: Annotated[int, Field(ge=1, le=256)] = 1
    """CPU cores of each worker, and its number of threads."""


def _at_most(count: int) -> BeforeValidator:
    """Refuses more entries of a dict at once. By itself pydantic looks at each first, and notes what is wrong with it."""

    def refuse_more(value: Any) -> Any:
        if isinstance(value, Mapping) and len(value) > count:
            context = {"field_type": "Dictionary", "max_length": count, "actual_length": len(value)}
            raise PydanticKnownError("too_long", context)
        return value

    return BeforeValidator(refuse_more)


def _all_different(values: list[Any]) -> list[Any]:
    if len(set(values)) != len(values):
        raise ValueError("each may be named once")
    return values


_OneOrSeveral: TypeAlias = Annotated[
    Annotated[Augmentation, Tag("one")]
    | Annotated[list[Augmentation], Field(min_length=1, max_length=8), AfterValidator(_all_different), Tag("several")],
    Discriminator(lambda value: "several" if isinstance(value, list) else "one"),
]


class EvaluationSpec(_Model):
    """Train fresh networks on the synthetic set; the accuracy of the *last* epoch on the test set counts.

    SGD lr 0.01, momentum 0.9, weight decay 5e-4, batch 256, ×0.1 at half the epochs (both presets).
    """

    networks: Annotated[list[NetworkSpec], Field(min_length=1, max_length=64)] = [NetworkSpec()]
    """The kinds of network to train."""
    repeats: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Fresh networks per kind, augmentation and source of images; all together at most 100000."""
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 300
    """Epochs per network. paper 300; reference 600, or 1000 with augmentation."""
    augment: _OneOrSeveral = "none"
    """Augmentation while training, or several to compare (the first gives the main result). `crop_scale_rotate` is what the
    reference does for MNIST; autoaugment, randaugment and crop_flip_cutout are torchvision's, for DC-BENCH's table."""
    baselines: Annotated[list[Baseline], Field(max_length=2), AfterValidator(_all_different)] = []
    """Also train the same networks on `random`, as many random real images per class, or on `whole`, all training images.
    With both the result has DD-Ranking's scores."""
    whole_epochs: int = _resolved_later(ge=1, le=100_000)
    """Epochs per network on `whole`. Default: epochs."""

    @property
    def augmentations(self) -> list[Augmentation]:
        """`augment` as a list."""
        return self.augment if isinstance(self.augment, list) else [self.augment]


class ValidationSpec(_Model):
    """Judge the set while it is being made, on a held-out part of the *training* images; the best checkpoint is the result.

    The held-out images are never used for condensing. The test set is never used for choosing.
    """

    every: Annotated[int, Field(ge=1, le=1_000_000)]
    """Iterations between validations; the last iteration is always validated."""
    fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Part of each class's training images that is held out, at least one image. Which ones follows from the job's seed. (The
    images' mean and std are those of all.)"""
    network: NetworkSpec = NetworkSpec()
    """The kind of network to train."""
    repeats: Annotated[int, Field(ge=1, le=10_000)] = 3
    """Fresh networks per validation."""
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 300
    """Epochs per network."""
    augment: Augmentation = "none"
    """Augmentation while training."""

    def as_evaluation(self) -> EvaluationSpec:
        """The same as an evaluation."""
        return EvaluationSpec(
            networks=[self.network], repeats=self.repeats, epochs=self.epochs, augment=self.augment, whole_epochs=self.epochs
        )


def _printable(text: str) -> str:
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError("control characters are not allowed")
    return text


_LABEL = Annotated[str, StringConstraints(max_length=128), AfterValidator(_printable)]


def _webhook(text: str) -> str:
    """As parsers that disagree on odd forms would all read it: normalised, in ASCII."""
    url = _URL.validate_python(text)
    if url.username is not None or url.password is not None:
        raise ValueError("a URL with credentials is refused: deliveries are signed instead")
    return str(url)


_URL = TypeAdapter(Annotated[HttpUrl, UrlConstraints(max_length=2048)])
WebhookUrl = Annotated[str, StringConstraints(max_length=2048), AfterValidator(_webhook)]


class _Job(_Model):
    """What every job has."""

    name: _LABEL | None = None
    """A name for people."""
    labels: Annotated[dict[_LABEL, _LABEL], Field(max_length=64), _at_most(64)] = {}
    """Key-value pairs to find the job by."""
    webhook: WebhookUrl | None = None
    """An https URL that the server POSTs the job to when it has ended; see docs/webhooks.md."""


class CondenseSpec(_Job):
    """Condense a dataset into ipc synthetic images per class."""

    kind: Literal["condense"] = "condense"
    """The kind of job."""
    dataset: DatasetSpec
    """The real images."""
    ipc: Annotated[int, Field(ge=1, le=10_000)]
    """Synthetic images per class."""
    iterations: int = _resolved_later(ge=0, le=1_000_000)
    """Fresh networks, one after the other. Default: cafe 2000, dc 1000, dm 20000, as published; methods that choose real
    images have none. 0 returns the initial images."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Every random draw of the job follows from it."""
    method: MethodSpec = CafeMethod()
    """The method and its hyper-parameters."""
    network: NetworkSpec = NetworkSpec()
    """The network whose features are aligned."""
    resources: ResourcesSpec = ResourcesSpec()
    """Workers and what each holds."""
    precision: Precision = "float32"
    """float64 for checks; bfloat16 computes features in bfloat16 and keeps images, statistics and weights in float32."""
    compile: bool = False
    """Compile the feature pass of cafe and dm (torch.compile): slower to start, faster per step. The training of networks, and
    with it all of dc, is never compiled; of the methods that choose images only the last pass over the images is."""
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
                "network.norm: batch statistics couple the images of all shards, so condensation takes instance, "
                "group, layer or none; networks of the evaluation may use batch"
            )
        gpus = self.resources.gpus_per_worker
        if self.resources.workers > 1 and gpus is not None and 0 < gpus < 1:
            raise ValueError(
                "resources.gpus_per_worker: several workers that condense need a whole GPU each (NCCL has one rank per GPU), or 0"
            )
        return self


class JudgedSpec(_Model):
    """The images that an evaluation judges: exactly one of `job_id`, `path`, `dataset`."""

    job_id: Annotated[str, StringConstraints(pattern=r"^job_[a-z0-9]{1,40}$")] | None = None
    """The synthetic set of another job, as it is when this one is submitted."""
    path: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    """A synthetic set as .safetensors or .npz, under the server's dataset root."""
    dataset: DatasetSpec | None = None
    """Real images, chosen by `selection`."""
    selection: Selection | None = None
    """With `dataset`: `random` (others for each network), `whole` (all training images), or a coreset method."""
    ipc: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """With `selection`: images per class; none for `whole`."""

    @model_validator(mode="after")
    def _one_source(self) -> JudgedSpec:
        if sum(source is not None for source in (self.job_id, self.path, self.dataset)) != 1:
            raise ValueError("give exactly one of job_id, path and dataset")
        if (self.dataset is None) != (self.selection is None):
            raise ValueError("selection and dataset belong together")
        if (self.ipc is not None) != (self.selection not in (None, "whole")):
            raise ValueError("ipc says how many images a selection takes per class; `whole` and synthetic sets have none")
        return self


class EvaluateSpec(EvaluationSpec, _Job):
    """Judge a synthetic set, or a choice of real images, by training fresh networks on it."""

    kind: Literal["evaluate"]
    """The kind of job."""
    synthetic: JudgedSpec
    """The images to train on."""
    dataset: DatasetSpec | None = None
    """Whose test images count. Default: the dataset that the images were made from."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Every random draw of the job follows from it."""
    resources: ResourcesSpec = ResourcesSpec()
    """Workers: networks, or on GPUs ensembles of networks, that are trained at the same time."""


def _shallow(values: list[Any]) -> list[Any]:
    level = values
    for _ in range(MAX_NESTING):
        containers = [value for value in level if isinstance(value, list | dict)]
        level = [inner for value in containers for inner in (value.values() if isinstance(value, dict) else value)]
        if not level:
            return values
    raise ValueError(f"a value has more than {MAX_NESTING - 1} lists and objects within each other")


_Values: TypeAlias = Annotated[list[Any], Field(min_length=1, max_length=MAX_TRIALS), AfterValidator(_shallow)]


class DimensionSpec(_Model):
    """The values of one field in a sweep: exactly one of these."""

    grid: _Values | None = None
    """Every value, combined with every value of the other grids."""
    choice: _Values | None = None
    """One of these, at random."""
    uniform: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """[a, b]: a random number between them."""
    loguniform: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """[a, b]: a random number whose logarithm is uniform; a > 0."""
    integers: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    """[a, b]: a random whole number from a to b, both included."""

    @model_validator(mode="after")
    def _one_kind(self) -> DimensionSpec:
        kinds = [kind for kind in ("grid", "choice", "uniform", "loguniform", "integers") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError("give exactly one of grid, choice, uniform, loguniform and integers")
        if kinds[0] in ("uniform", "loguniform", "integers"):
            low, high = getattr(self, kinds[0])
            if not low < high:
                raise ValueError(f"{kinds[0]}: [{low}, {high}] must increase")
            if kinds[0] == "loguniform" and low <= 0:
                raise ValueError(f"loguniform: {low} must be greater than 0")
        return self


class SweepSpec(_Job):
    """Condense with many settings and keep the best synthetic set.

    Best is the mean accuracy of the first kind of network: of the validation where `base` has one, else of the evaluation.
    The evaluation's is measured on the test set, so what it chooses looks a little better than it is: `validation` is honest.
    """

    kind: Literal["sweep"]
    """The kind of job."""
    base: CondenseSpec
    """What all trials share, with an evaluation. Not resolved: its defaults depend on the trial."""
    space: Annotated[dict[str, DimensionSpec], Field(min_length=1, max_length=64), _at_most(64)]
    """Fields of `base` by path, e.g. `method.beta`, and the values that each takes."""
    samples: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Trials per point of the grid; each draws the random dimensions anew."""
    scheduler: Literal["fifo", "asha"] = "fifo"
    """`asha`: stop trials early whose validation falls behind (Li et al., MLSys 2020). It needs `base.validation`; default then:
    every quarter of the iterations."""
    max_concurrent: int = _resolved_later(ge=1, le=10_000)
    """Trials that run at the same time; each holds `base.resources`. Default: as many as the cluster holds."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """The random dimensions follow from it. The trials' own seed is `base.seed`."""

    @field_serializer("base")
    def _as_sent(self, base: CondenseSpec, info: FieldSerializationInfo) -> dict[str, Any]:
        """A default written out would hold for all trials, also for those whose method has another or no such field."""
        return base.model_dump(mode=info.mode, exclude_unset=True)

    @property
    def trial_count(self) -> int:
        """Trials: the product of the grids, times `samples`."""
        return self.samples * prod(len(dimension.grid) for dimension in self.space.values() if dimension.grid is not None)

    @model_validator(mode="after")
    def _sensible(self) -> SweepSpec:
        if self.base.evaluation is None:
            raise ValueError("base.evaluation: a sweep compares accuracies; give base an evaluation")
        if self.base.webhook is not None:
            raise ValueError("base.webhook: a trial is no job of its own; give the sweep a webhook")
        if self.trial_count > MAX_TRIALS:
            raise ValueError(f"space: {self.trial_count} trials are more than {MAX_TRIALS}")
        choices = sum(len(dimension.choice) for dimension in self.space.values() if dimension.choice is not None)
        if choices > MAX_TRIALS:  # each of them is tried out before the sweep is taken
            raise ValueError(f"space: {choices} values to choose from are more than {MAX_TRIALS}")
        return self


def _job_kind(value: Any) -> str | None:
    """The kind of a job spec, sent or validated: condense where it does not say."""
    kind = value.get("kind", "condense") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) and kind in ("condense", "evaluate", "sweep") else None


JobSpec: TypeAlias = Annotated[
    Annotated[CondenseSpec, Tag("condense")] | Annotated[EvaluateSpec, Tag("evaluate")] | Annotated[SweepSpec, Tag("sweep")],
    Discriminator(
        _job_kind, custom_error_type="unknown_kind", custom_error_message="kind must be one of condense, evaluate, sweep"
    ),
]
"""Any job's spec."""

_JOB_SPEC: TypeAdapter[CondenseSpec | EvaluateSpec | SweepSpec] = TypeAdapter(JobSpec)


def parse_job_spec(value: Any) -> JobSpec:
    """A job's spec from what JSON or YAML hold. Raises pydantic.ValidationError."""
    return _JOB_SPEC.validate_python(value)


def field_path(loc: tuple[str | int, ...]) -> str:
    """The path of a field as a user writes it, from a validation error's: without the names that unions put in between."""
    parts = list(loc)
    if parts and parts[0] in ("condense", "evaluate", "sweep"):
        del parts[0]
    tags = {"method": set(_METHOD_TAGS.values()), "augment": {"one", "several"}}
    for index in range(len(parts) - 1, 0, -1):
        if parts[index] in tags.get(str(parts[index - 1]), ()):
            del parts[index]
    return ".".join(str(part) for part in parts)


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
