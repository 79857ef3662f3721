"""Define the experiments of Tables 1 to 6."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from cafe_core.reproduction import published, specs
from cafe_core.reproduction.differences import differences, table1_differences
from cafe_core.reproduction.experiment import Cell, Experiment
from cafe_core.reproduction.jobs import Job
from cafe_core.reproduction.scales import PAPER_ABLATION, PAPER_NAMES, Scale

RANDOM = published.table1("CIFAR10", "Random", 50)
"""The published accuracy of random real images in the setting of the paper's ablations."""


def table1(scale: Scale) -> Experiment:
    """Return Table 1: coresets, gradient matching and CAFE."""
    cells = []
    for setting in scale.table1:
        rows: dict[str, tuple[Job, ...]] = {"Random": specs.random(scale, setting)}
        for row, name in (("Herding", "herding"), ("K-Center", "k_center"), ("Forgetting", "forgetting")):
            rows[row] = specs.condense(scale, setting, {"name": name})
        for row, name in (("DC", "dc"), ("DSA", "dc"), ("CAFE", "cafe"), ("CAFE+DSA", "cafe")):
            siamese = {"augment": "dsa"} if "DSA" in row else {}
            rows[row] = specs.condense(scale, setting, {"name": name} | siamese, evaluation=siamese)
        rows["Whole"] = specs.whole(scale, setting)
        dataset = PAPER_NAMES.get(setting.dataset_name, "MNIST")
        cells += [Cell(row, setting.in_words, jobs, published.table1(dataset, row, setting.ipc)) for row, jobs in rows.items()]
    own_digits = scale.name == "smoke"
    return Experiment(
        "table1",
        scale,
        "Table 1: coresets, gradient matching and CAFE",
        "trained on",
        tuple(cells),
        ours="digits" if own_digits else "the data of each column",
        paper="MNIST" if own_digits else "the data of each column",
        notes=(
            "Random: different images for each network. Whole: all training images, independent of ipc.",
            "The paper's columns LD and DD are omitted, because this project does not implement them.",
        ),
        differences=table1_differences(scale),
    )


def table2(scale: Scale) -> Experiment:
    """Return Table 2: the components of CAFE."""
    setting = scale.ablation
    cells = []
    for dynamic in (False, True):
        for losses in ("DL", "LFA", "DL+LFA"):
            bilevel = "dynamic" if dynamic else "fixed"
            jobs = specs.cafe(scale, setting, bilevel=bilevel, **specs.losses(setting, losses))
            row = losses.replace("+", " + ") + (" + dynamic" if dynamic else "")
            cells.append(Cell(row, "accuracy", jobs, published.table2(losses, dynamic=dynamic)))
    cells.append(Cell("random real images, for comparison", "accuracy", specs.random(scale, setting), RANDOM))
    notes = [
        "DL: discrimination loss (Eq. 2–3). LFA: layer-wise feature alignment (Eq. 1). dynamic: the bi-level optimisation, which "
        "ends its loops by query accuracy (Algorithm 1); otherwise loops run to their bounds.",
    ]
    if scale.name != "paper":
        notes.append(
            "At this scale the order of the rows may differ from the paper's: differences below about twice the ± are noise, and "
            "DL without LFA is far from converged after so few iterations from noise, as its gradient is far smaller than LFA's."
        )
    return Experiment(
        "table2",
        scale,
        "Table 2: the components of CAFE",
        "components",
        tuple(cells),
        ours=setting.in_words,
        paper=PAPER_ABLATION.in_words,
        notes=tuple(notes),
        differences=differences(scale, setting),
    )


def table3(scale: Scale) -> Experiment:
    """Return Table 3: aligning one layer."""
    rows = [(f"layer {layer}", [layer]) for layer in (1, 2, 3, 4)]
    return _aligned_layers(scale, "table3", "Table 3: aligning one layer", rows)


def table4(scale: Scale) -> Experiment:
    """Return Table 4: aligning more and more layers."""
    rows = [("layer 1", [1]), ("layers 1–2", [1, 2]), ("layers 1–3", [1, 2, 3]), ("layers 1–4", [1, 2, 3, 4])]
    return _aligned_layers(scale, "table4", "Table 4: aligning more and more layers", rows)


def _aligned_layers(
    scale: Scale, name: Literal["table3", "table4"], title: str, rows: Sequence[tuple[str, list[int]]]
) -> Experiment:
    """Return Table 3 or 4. rows: a name, and the aligned layers as numbered in the paper, 1 being closest to the output."""
    setting = scale.deep
    last = specs.last_map(setting)
    cells = []
    for position, (row, layers) in enumerate(rows):
        maps = sorted(last + 1 - layer for layer in layers)
        for column, discrimination in (("LFA", False), ("LFA + DL", True)):
            jobs = specs.cafe(scale, setting, layers=maps, discrimination=discrimination)
            cells.append(Cell(row, column, jobs, published.layers(name, position, with_discrimination=discrimination)))
    return Experiment(
        name,
        scale,
        title,
        "aligned",
        tuple(cells),
        ours=setting.in_words,
        paper=PAPER_ABLATION.in_words,
        notes=(
            f"Layer 1 is closest to the output: the last pooling's output, map {last} of `method.layers`. Layer 4 is map 0, the "
            "first block's activation. (The paper's caption says both that layer 4 is closest to the input and that it is the "
            "last pooling layer, which contradict each other.)",
        ),
        differences=differences(scale, setting),
    )


def table5(scale: Scale) -> Experiment:
    """Return Table 5: the length of the queues."""
    setting = scale.ablation
    cells = []
    for gamma in (5, 10, 15, 20, None):
        method: dict[str, Any] = {"name": "dc"} if gamma is None else {"name": "cafe", "gamma": gamma}
        jobs = specs.condense(scale, setting, method | scale.long_loops, iterations=scale.long_iterations)
        row = "DC" if gamma is None else f"γ = {gamma}"
        accuracy, minutes = published.table5(gamma)
        cells += [Cell(row, "accuracy", jobs, accuracy), Cell(row, "minutes", jobs, minutes, measure="minutes")]
    return Experiment(
        "table5",
        scale,
        "Table 5: the length γ of the queues, and the time",
        "queues",
        tuple(cells),
        ours=setting.in_words,
        paper=PAPER_ABLATION.in_words,
        notes=("Minutes: time to condense one set on this machine, including the effect of its other load.",),
        differences=differences(scale, setting, long_loops=True),
    )


def table6(scale: Scale) -> Experiment:
    """Return Table 6: networks that condensation has not seen."""
    setting = scale.deep
    names = ("ConvNet", "AlexNet", "VGG11", "ResNet18", "MLP")
    networks = [{"name": name.lower()} | (setting.network if name == "ConvNet" else {}) for name in names]
    evaluation = {"networks": networks} | scale.table6
    cells = []
    for row, method in (("DC", "dc"), ("CAFE", "cafe")):
        jobs = specs.condense(scale, setting, {"name": method}, evaluation=evaluation)
        cells += [Cell(row, name, jobs, published.table6(row, name), network=place) for place, name in enumerate(names)]
    return Experiment(
        "table6",
        scale,
        "Table 6: networks that condensation has not seen",
        "condensed by",
        tuple(cells),
        ours=setting.in_words,
        paper=PAPER_ABLATION.in_words,
        notes=("Condensed with a ConvNet; each column is the kind of network that is trained on the result and tested.",),
        differences=differences(scale, setting, evaluation=scale.table6),
    )
