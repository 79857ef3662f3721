"""Define the comparison beyond the paper: its methods, its rivals and later methods, by accuracy and by compute."""

from __future__ import annotations

from cafe_core.reproduction import published, specs
from cafe_core.reproduction.differences import beyond_differences
from cafe_core.reproduction.experiment import Cell, Experiment
from cafe_core.reproduction.jobs import Job
from cafe_core.reproduction.published import Published
from cafe_core.reproduction.scales import PAPER_NAMES, Scale

_LATER = {
    "DANCE": {1: 47.1, 10: 70.8, 50: 76.1},
    "NCFM": {1: 49.5, 10: 71.8, 50: 77.4},
}
"""Accuracies on CIFAR10 by ipc: Table 1 of Zhang et al., IJCAI 2024, and Table 1 of Wang et al., CVPR 2025. Both are means of the
best accuracies on the test set during training, with the methods' own evaluations."""


def beyond(scale: Scale) -> Experiment:
    """Return the comparison: random images, k-means, DC, DM, CAFE, CAFE+DSA, DANCE and NCFM on one dataset."""
    cells = []
    for setting in scale.beyond:
        rows: dict[str, tuple[Job, ...]] = {"Random": specs.random(scale, setting)}
        for row, name in (("K-means", "kmeans"), ("DC", "dc"), ("DM", "dm"), ("CAFE", "cafe")):
            rows[row] = specs.condense(scale, setting, {"name": name})
        siamese = {"augment": "dsa"}
        rows["CAFE+DSA"] = specs.condense(scale, setting, {"name": "cafe"} | siamese, evaluation=siamese)
        for row in _LATER:
            rows[row] = specs.condense(scale, setting, {"name": row.lower()})
        dataset = PAPER_NAMES.get(setting.dataset_name, "MNIST")
        cells += [Cell(row, setting.in_words, jobs, _published(dataset, row, setting.ipc)) for row, jobs in rows.items()]
    own_digits = scale.name == "smoke"
    return Experiment(
        "beyond",
        scale,
        "Beyond the paper: accuracy, and what it costs",
        "trained on",
        tuple(cells),
        ours="digits" if own_digits else "the data of each column",
        paper="MNIST" if own_digits else "the data of each column",
        notes=(
            "Random: different images for each network. DANCE and NCFM train a pool of networks on the real images, once for all "
            "their sets of a dataset. The picture counts the images of that training for each set, and its seconds for the set "
            "whose job did it.",
            "All sets are evaluated alike, those of CAFE+DSA with DSA. The published numbers of DANCE and NCFM are the best "
            "accuracies on the test set during training, in their own evaluations (1,500 and 2,000 epochs with CutMix). Ours are "
            "those of the last epoch, and nothing is chosen on the test set. NCFM is without its adversarial sampler.",
        ),
        differences=beyond_differences(scale),
    )


def _published(dataset: str, row: str, ipc: int) -> Published | None:
    if row in _LATER:
        return Published(_LATER[row][ipc]) if dataset == "CIFAR10" else None
    return None if row in ("K-means", "DM") else published.table1(dataset, row, ipc)
