"""Test whole condense jobs that choose real images: their results for any number of shards, and the events they report."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cafe_core.algorithm.checkpoint import Checkpoints
from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.condense import condense
from cafe_core.algorithm.coresets import ForgettingCounts, herding, k_center, kmeans, most_forgotten
from cafe_core.algorithm.sampling import counter_seed, generator
from cafe_core.data.class_store import ClassStore
from cafe_core.data.roots import DataRoots
from cafe_core.errors import NonFiniteLossError
from cafe_core.jobs import local
from cafe_core.jobs.jobdir import JobDir
from cafe_core.networks import init_network
from cafe_core.spec.condense import CondenseSpec
from cafe_core.synthetic_set.synthetic_set import SyntheticSet
from tests.cafe_core.gangs import run_gang
from tests.cafe_core.made_data import make_spec, make_store

CPU = torch.device("cpu")
COUNTS = [12, 40, 11, 3, 25, 1, 18]
METHODS = ["random", "herding", "k_center", "kmeans", "forgetting"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClassStore:
    """Build a store of K = 7 classes of different sizes, two of them smaller than ipc."""
    return make_store(tmp_path_factory.mktemp("store") / "seven", COUNTS, channels=3)


def coreset_spec(store: ClassStore, name: str, **fields: Any) -> CondenseSpec:
    method = {} if name == "random" else {"network_epochs": 4, "batch_train": 16, "network_lr": 0.02}
    return make_spec(store, **{"ipc": 4, "iterations": 0, "method": {"name": name, **method}, **fields})


def select_images(
    spec: CondenseSpec, store: ClassStore, path: Path, world: int = 1, events: list[dict[str, Any]] | None = None
) -> Tensor:
    """Run the job with `world` workers and return S (K·ipc, C, H, W). Events are added to `events`."""

    def report(type: str, **data: Any) -> None:
        if events is not None:
            events.append({"type": type, **data})

    run_gang(world, lambda comm: condense(spec, store, comm, CPU, checkpoints=Checkpoints(path), report=report))
    checkpoint = Checkpoints(path).latest(spec)
    assert checkpoint is not None
    assert checkpoint.iteration == 0
    assert not checkpoint.momentum.any()
    return checkpoint.images


def normalised_images(store: ClassStore, k: int) -> Tensor:
    """Return the real images of class k: (n_k, C, H, W) float64."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (store.info.mean, store.info.std))
    return (torch.from_numpy(store.images(k).copy()).double() / 255 - mean) / std


def positions(images: Tensor, store: ClassStore, ipc: int, atol: float = 1e-12) -> list[list[int]]:
    """Return, for each class, which of its real images the images of S are. Fail if an image of S is not a real image."""
    found = []
    for k, of_class in enumerate(images.split(ipc)):
        gaps = (of_class[:, None] - normalised_images(store, k)[None]).abs().amax(dim=(2, 3, 4))  # (ipc, n_k)
        assert gaps.amin(1).max() < atol
        found.append(gaps.argmin(1).tolist())
    return found


@pytest.mark.parametrize("name", METHODS)
def test_selected_images_do_not_depend_on_the_number_of_shards(store: ClassStore, name: str, tmp_path: Path) -> None:
    spec = coreset_spec(store, name)
    one = select_images(spec, store, tmp_path / "1")
    for chosen, count in zip(positions(one, store, 4), COUNTS, strict=True):
        distinct = min(4, count)
        assert len(set(chosen)) == distinct
        assert chosen == (chosen[:distinct] * 4)[:4]  # a class with too few images repeats them
    for world in (2, 3, len(COUNTS)):
        assert torch.equal(select_images(spec, store, tmp_path / str(world), world), one)


def train_with_torch(spec: CondenseSpec, store: ClassStore) -> tuple[torch.nn.Module, list[Tensor]]:
    """Train the embedding network with torch's own optimizer on one tensor of all images.

    Return the network and, for each epoch, which images it classified correctly.
    """
    seed = counter_seed(spec.seed, "embedding network")
    network = init_network(spec.network, store.info.shape, len(COUNTS), counter_seed(seed, "network", 0)).double()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    images = torch.cat([normalised_images(store, k) for k in range(len(COUNTS))])
    labels = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))
    record = []
    for epoch in range(1, 5):
        optimizer.param_groups[0]["lr"] = 0.02 if epoch <= 2 else 0.002
        correct = torch.zeros(len(images), dtype=torch.bool)
        for batch in torch.split(torch.randperm(len(images), generator=generator(seed, "real epoch", epoch)), 16):
            logits = network(images[batch])
            correct[batch] = logits.argmax(1) == labels[batch]
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[batch]).backward()
            optimizer.step()
        record.append(correct)
    return network, record


def kmeans_seed(k: int) -> int:
    return counter_seed(0, "coreset kmeans", k) % 2**32


@pytest.mark.parametrize("name", ["herding", "k_center", "kmeans"])
def test_images_are_embedded_by_a_trained_network(store: ClassStore, name: str, tmp_path: Path) -> None:
    spec = coreset_spec(store, name)
    network, _ = train_with_torch(spec, store)
    for k, chosen in enumerate(positions(select_images(spec, store, tmp_path), store, 4)):
        with torch.no_grad():
            features = network.features(normalised_images(store, k))[-1].flatten(1)
        algorithm = {"herding": herding, "k_center": k_center, "kmeans": partial(kmeans, seed=kmeans_seed(k))}[name]
        assert chosen[: COUNTS[k]] == algorithm(features, 4).tolist()


def test_forgetting_selects_by_the_forgetting_counts_of_the_training(store: ClassStore, tmp_path: Path) -> None:
    spec = coreset_spec(store, "forgetting")
    _, record = train_with_torch(spec, store)
    tally = ForgettingCounts(sum(COUNTS))
    for correct in record:
        tally.update(correct)
    counts = tally.counts().split(COUNTS)
    assert len(set(torch.cat(counts).tolist())) > 2  # some images were forgotten, and not equally often
    for k, chosen in enumerate(positions(select_images(spec, store, tmp_path), store, 4)):
        assert chosen[: COUNTS[k]] == most_forgotten(counts[k], 4).tolist()


def test_methods_and_seeds_select_different_images(store: ClassStore, tmp_path: Path) -> None:
    chosen = [positions(select_images(coreset_spec(store, name), store, tmp_path / name), store, 4) for name in METHODS]
    chosen.append(positions(select_images(coreset_spec(store, "random", seed=1), store, tmp_path / "seed"), store, 4))
    assert len({str(c) for c in chosen}) == len(METHODS) + 1


def test_epochs_are_reported_once(store: ClassStore, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    select_images(coreset_spec(store, "herding"), store, tmp_path, 3, events)
    epochs = [event for event in events if event["type"] == "epoch"]
    assert [(e["epoch"], e["total"]) for e in epochs] == [(n, 4) for n in range(1, 5)]
    assert all(0 <= e["accuracy"] <= 1 and e["loss"] > 0 and e["seconds"] >= 0 for e in epochs)
    assert epochs[-1]["eta_s"] == 0
    assert epochs[-1]["loss"] < epochs[0]["loss"]


def test_finished_selection_is_not_repeated(store: ClassStore, tmp_path: Path) -> None:
    spec = coreset_spec(store, "kmeans")
    first = select_images(spec, store, tmp_path)
    events: list[dict[str, Any]] = []
    assert torch.equal(select_images(spec, store, tmp_path, 2, events), first)
    assert events == []


def test_images_can_be_embedded_by_an_untrained_network(store: ClassStore, tmp_path: Path) -> None:
    spec = coreset_spec(store, "herding", method={"name": "herding", "network_epochs": 0})
    events: list[dict[str, Any]] = []
    positions(select_images(spec, store, tmp_path, 2, events), store, 4)
    assert events == []


def test_error_of_diverging_training_names_the_field_to_change(store: ClassStore, tmp_path: Path) -> None:
    method = {"name": "herding", "network_epochs": 3, "batch_train": 16, "network_lr": 1e30}
    with pytest.raises(NonFiniteLossError, match=r"training on the real images.*network_lr"):
        select_images(coreset_spec(store, "herding", method=method, precision="float32"), store, tmp_path, 2)
    assert not list(tmp_path.glob("checkpoint*"))


@pytest.mark.parametrize("name", ["herding", "k_center", "kmeans"])
def test_every_rank_detects_divergence_in_the_last_step(store: ClassStore, tmp_path: Path, name: str) -> None:
    """The loss of the only minibatch is computed before its step, so only the features show that the step diverged."""
    spec = coreset_spec(
        store,
        name,
        method={"name": name, "network_epochs": 1, "batch_train": 1000, "network_lr": 1e30},
        network={"name": "mlp", "width": 8},
        precision="float32",
    )
    messages = []

    def work(comm: Comm) -> None:
        with pytest.raises(NonFiniteLossError, match=r"features became infinite.*network_lr") as raised:
            condense(spec, store, comm, CPU, checkpoints=Checkpoints(tmp_path), report=lambda *_, **__: None)
        messages.append(raised.value.message)

    run_gang(3, work)
    assert len(messages) == 3
    assert not list(tmp_path.glob("checkpoint*"))


def test_whole_job_in_one_process(store: ClassStore, tmp_path: Path) -> None:
    """Run `cafe_core.jobs.local` from a file of images to a set of real images, and check the reported phases and epochs."""
    images = np.concatenate([store.images(k) for k in range(len(COUNTS))]).transpose(0, 2, 3, 1)
    labels = np.repeat(np.arange(len(COUNTS)), COUNTS)
    (tmp_path / "datasets").mkdir()
    np.savez(tmp_path / "datasets" / "own.npz", images=images, labels=labels)
    roots = DataRoots(datasets=tmp_path / "datasets", uploads=tmp_path / "u", downloads=tmp_path / "d", cache=tmp_path / "c")
    spec = {
        "dataset": {"path": "own.npz"},
        "ipc": 4,
        "method": {"name": "kmeans", "network_epochs": 2},
        "network": {"width": 6, "depth": 2},
        "precision": "float64",
    }
    events: list[str] = []
    local.prepare(spec, tmp_path / "out", roots).run(lambda type, **data: events.append(data.get("phase", type)))
    assert events == [
        "preparing",
        "notes",
        "condensing",
        "epoch",
        "epoch",
        "publishing",
    ]  # the note: some classes are smaller than ipc
    condensed = SyntheticSet.load(JobDir(tmp_path / "out").attempt(1).synthetic_file)
    assert condensed.labels.tolist() == [k for k in range(len(COUNTS)) for _ in range(4)]
    chosen = positions(torch.tensor(condensed.images).double(), store, 4, atol=1e-5)  # the set's images are float32
    assert [len(set(of_class)) for of_class in chosen] == [min(4, count) for count in COUNTS]
