"""Define the scales of reproduction: the settings that each uses instead of the paper's.

`paper` overrides nothing, because a job's defaults are the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from cafe_core.spec.dataset import DatasetName

ScaleName = Literal["smoke", "small", "paper"]

PAPER_NAMES: dict[DatasetName, str] = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "svhn": "SVHN",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}
"""The paper's datasets, as it spells them."""


@dataclass(frozen=True)
class Setting:
    """The data and the network of a set of jobs."""

    dataset: dict[str, Any]
    """A DatasetSpec."""
    ipc: int
    network: dict[str, Any] = field(default_factory=dict)
    """A NetworkSpec for condensation, and for evaluation with the same kind of network."""
    in_words: str = ""

    @property
    def dataset_name(self) -> DatasetName:
        """Return the name of the built-in dataset."""
        name: DatasetName = self.dataset["name"]
        return name


@dataclass(frozen=True)
class Scale:
    """A scale. Method fields are those of :mod:`cafe_core.spec`; absent ones keep their defaults, the paper's."""

    name: ScaleName
    takes: str
    """Duration and hardware for one table."""
    ablation: Setting
    """The setting of Tables 2 and 5 and of all figures."""
    deep: Setting
    """The setting of Tables 3 and 4, which need the four maps of ConvNet-3, and of Table 6, which has deeper networks."""
    table1: tuple[Setting, ...]
    """The settings of Table 1, one per column."""
    seeds: int
    """Synthetic sets per number."""
    repeats: int
    """Networks per synthetic set."""
    epochs: int
    """Training epochs of each network."""
    iterations: dict[str, int] = field(default_factory=dict)
    """Iterations by method: cafe, dc."""
    matching: dict[str, Any] = field(default_factory=dict)
    """Fields of cafe and dc."""
    cafe: dict[str, Any] = field(default_factory=dict)
    """Further fields of cafe."""
    dc: dict[str, Any] = field(default_factory=dict)
    """Further fields of dc."""
    coreset: dict[str, Any] = field(default_factory=dict)
    """Fields of the coreset methods."""
    dm: dict[str, Any] = field(default_factory=dict)
    """Fields of dm."""
    pool: dict[str, Any] = field(default_factory=dict)
    """Fields of dance and ncfm."""
    ncfm: dict[str, Any] = field(default_factory=dict)
    """Further fields of ncfm."""
    whole_epochs: int = 300
    """Epochs on all training images."""
    whole_repeats: int = 5
    """Networks trained on all training images."""
    long_loops: dict[str, Any] = field(default_factory=dict)
    """Fields of cafe and dc in Table 5, whose γ goes up to 20, and in Figures 3a and 3b. A queue can end a loop only if the
    bound of the loop exceeds γ."""
    long_iterations: int | None = None
    """Iterations with `long_loops`."""
    table6: dict[str, Any] = field(default_factory=dict)
    """Fields of the evaluation in Table 6, whose networks are larger."""
    lambdas: tuple[float, ...] = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08)
    """Values of λ1 and λ2 in Figures 3a and 3b."""
    betas: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
    """Values of β in Figure 3c."""
    beyond: tuple[Setting, ...] = ()
    """The settings of the comparison beyond the paper, one per column."""
    embedded_per_class: int = 500
    """Real images per class in Figure 5."""

    def fields(self, method: str) -> dict[str, Any]:
        """Return the fields of a method by its name."""
        learned = {
            "cafe": self.matching | self.cafe,
            "dc": self.matching | self.dc,
            "dm": self.dm,
            "dance": self.pool,
            "ncfm": self.pool | self.ncfm,
            "random": {},
        }
        return learned.get(method, self.coreset)


_DIGITS = {"name": "digits"}
_SMOKE_NETWORK = {"width": 32, "depth": 2}
_SMOKE_ITERATIONS = 30

SMOKE = Scale(
    name="smoke",
    takes="minutes on two cores",
    ablation=Setting(_DIGITS, 5, _SMOKE_NETWORK, "digits, ipc 5"),
    deep=Setting(_DIGITS | {"image_size": 16}, 5, {"width": 16}, "digits at 16×16, ipc 5"),
    table1=tuple(Setting(_DIGITS, ipc, _SMOKE_NETWORK, f"ipc {ipc}") for ipc in (1, 10)),
    seeds=1,
    repeats=5,
    epochs=150,
    iterations={"cafe": _SMOKE_ITERATIONS, "dc": _SMOKE_ITERATIONS, "dm": 100, "dance": 100, "ncfm": 100},
    matching={"batch_real": 32, "image_lr": 1.0, "max_outer": 8, "max_inner": 8},
    cafe={"query_per_class": 16, "gamma": 4},
    coreset={"network_epochs": 20},
    dm={"batch_real": 32, "init": "noise"},
    pool={"pool_size": 3, "pool_epochs": 20, "pool_augment": "none", "batch_real": 32, "factor": 1, "augment": "dsa"},
    ncfm={"frequencies": 256, "image_lr": 0.01},
    beyond=tuple(Setting(_DIGITS, ipc, _SMOKE_NETWORK, f"ipc {ipc}") for ipc in (1, 10)),
    whole_epochs=30,
    whole_repeats=3,
    long_loops={"max_outer": 20, "max_inner": 20},
    long_iterations=10,
    table6={"repeats": 3, "epochs": 100},
    lambdas=(0.01, 0.03, 0.05, 0.08),
    betas=(0.1, 1.0, 10.0, 100.0, 1000.0),
    embedded_per_class=100,
)

_MNIST = {"name": "mnist"}
_SMALL_NETWORK = {"width": 32}
_SMALL_ITERATIONS = 60

SMALL = Scale(
    name="small",
    takes="about an hour on two cores",
    ablation=Setting(_MNIST, 10, _SMALL_NETWORK, "MNIST, ipc 10"),
    deep=Setting(_MNIST, 10, _SMALL_NETWORK, "MNIST, ipc 10"),
    table1=tuple(Setting(_MNIST, ipc, _SMALL_NETWORK, f"MNIST, ipc {ipc}") for ipc in (1, 10)),
    seeds=1,
    repeats=5,
    epochs=150,
    iterations={"cafe": _SMALL_ITERATIONS, "dc": _SMALL_ITERATIONS, "dm": 300, "dance": 300, "ncfm": 300},
    matching={"batch_real": 64, "image_lr": 1.0, "max_outer": 8, "max_inner": 8},
    cafe={"query_per_class": 16, "gamma": 4},
    coreset={"network_epochs": 3},
    dm={"batch_real": 64},
    pool={"pool_size": 3, "pool_epochs": 3, "pool_augment": "crop_scale_rotate", "batch_real": 64, "augment": "dsa"},
    ncfm={"frequencies": 512, "image_lr": 0.01},
    beyond=tuple(Setting(_MNIST, ipc, _SMALL_NETWORK, f"ipc {ipc}") for ipc in (1, 10, 50)),
    whole_epochs=5,
    whole_repeats=2,
    long_loops={"max_outer": 20, "max_inner": 20},
    long_iterations=15,
    table6={"repeats": 2, "epochs": 100},
    lambdas=(0.01, 0.03, 0.05, 0.08),
    betas=(0.1, 1.0, 10.0, 100.0, 1000.0),
    embedded_per_class=200,
)

PAPER_ABLATION = Setting({"name": "cifar10"}, 50, {}, "CIFAR10, ipc 50")
"""The setting of the paper's Tables 2 to 6 and its figures."""

PAPER = Scale(
    name="paper",
    takes="days on several GPUs for Table 1, hours for the others",
    ablation=PAPER_ABLATION,
    deep=PAPER_ABLATION,
    table1=tuple(
        Setting({"name": name}, ipc, {}, f"{PAPER_NAMES[name]}, ipc {ipc}") for name in PAPER_NAMES for ipc in (1, 10, 50)
    ),
    beyond=tuple(Setting({"name": "cifar10"}, ipc, {}, f"CIFAR10, ipc {ipc}") for ipc in (1, 10, 50)),
    seeds=5,
    repeats=20,
    epochs=300,
)

SCALES: dict[str, Scale] = {scale.name: scale for scale in (SMOKE, SMALL, PAPER)}
