"""Draw the picture of an experiment from its jobs' outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cafe_core.reproduction import pictures
from cafe_core.reproduction.cost_picture import draw_costs
from cafe_core.reproduction.experiment import Experiment
from cafe_core.reproduction.jobs import Finished, Outcome
from cafe_core.spec.network import NetworkSpec
from cafe_core.synthetic_set.synthetic_set import SyntheticSet

_PERPLEXITY = 20.0
CATEGORY = 0
"""The class shown in Figure 5; the paper does not state which class it shows."""


def illustrate(experiment: Experiment, outcomes: Mapping[str, Outcome], out: Path) -> list[Path]:
    """Draw the experiment's picture in `out`, without the parts of failed jobs; draw nothing if no job finished.

    Raises DiskFullError.
    """
    path = out / f"{experiment.name}.png"
    if not any(isinstance(outcome, Finished) for outcome in outcomes.values()):
        return []
    if experiment.name == "figure4":
        return _image_grids(experiment, outcomes, path)
    if experiment.name == "figure5":
        return _features(experiment, outcomes, path)
    if experiment.name == "beyond":
        draw_costs(experiment, outcomes, path)
    elif experiment.curve is not None:
        pictures.draw_curve(experiment, outcomes, path)
    else:
        pictures.draw_table(experiment, outcomes, path)
    return [path]


def _image_grids(experiment: Experiment, outcomes: Mapping[str, Outcome], path: Path) -> list[Path]:
    sets = _sets(experiment, outcomes)
    class_names = next(iter(sets.values())).class_names
    grids = {row: s.pixels().reshape(len(class_names), s.ipc, *s.images.shape[1:]) for row, s in sets.items()}
    pictures.draw_grids(f"{experiment.title} ({experiment.ours})", grids, class_names, path)
    return [path]


def _features(experiment: Experiment, outcomes: Mapping[str, Outcome], path: Path) -> list[Path]:
    from cafe_core.reproduction.embedding import embed  # importing torch takes seconds

    real_job = outcomes.get(experiment.further_jobs[0].name)
    sets = _sets(experiment, outcomes)
    if not isinstance(real_job, Finished) or not sets:
        return []
    real = real_job.synthetic_set()
    network = NetworkSpec.model_validate({"name": "convnet"} | experiment.scale.ablation.network)
    features = embed(real, network, [_of_category(s) for s in (real, *sets.values())])
    positions = _tsne(features)
    title = f"{experiment.title}\nclass {real.class_names[CATEGORY]!r} of {experiment.ours}, t-SNE"
    pictures.draw_scatter(title, positions[0], dict(zip(sets, positions[1:], strict=True)), path)
    return [path]


def _sets(experiment: Experiment, outcomes: Mapping[str, Outcome]) -> dict[str, SyntheticSet]:
    """Return the finished jobs' sets by row."""
    finished = {cell.row: outcomes.get(cell.jobs[0].name) for cell in experiment.cells}
    return {row: outcome.synthetic_set() for row, outcome in finished.items() if isinstance(outcome, Finished)}


def _of_category(images: SyntheticSet) -> NDArray[np.float32]:
    chosen: NDArray[np.float32] = images.images[images.labels == CATEGORY]
    return chosen


def _tsne(features: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Embed all arrays (n_i, D) together in the plane: (n_i, 2) each."""
    from sklearn.manifold import TSNE

    together = np.concatenate(features)
    perplexity = min(_PERPLEXITY, (len(together) - 1) / 3)
    positions: NDArray[np.float32] = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(together)
    ends = np.cumsum([len(array) for array in features])
    return [positions[end - len(array) : end] for array, end in zip(features, ends, strict=True)]
