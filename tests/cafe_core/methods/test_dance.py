"""Compare DANCE with its paper's loss and its authors' optimizer, both in plain torch, and check what its pool guarantees."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from cafe_core.algorithm import augment, pool, step_clock
from cafe_core.algorithm.artifact_cache import ArtifactCache
from cafe_core.algorithm.bilevel import Loop
from cafe_core.algorithm.checkpoint import Checkpoints
from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.condense import condense
from cafe_core.algorithm.method import ignore_events
from cafe_core.algorithm.model import Budget
from cafe_core.algorithm.network_steps import Queries
from cafe_core.algorithm.progress import Progress
from cafe_core.algorithm.run_state import save
from cafe_core.algorithm.synthetic_shard import SyntheticShard
from cafe_core.data.class_store import ClassStore
from cafe_core.errors import NonFiniteLossError
from cafe_core.methods.dance.method import Dance
from cafe_core.spec.condense import CondenseSpec
from tests.cafe_core.gangs import run_gang
from tests.cafe_core.made_data import make_spec, make_store
from tests.cafe_core.started import start_run

CPU = torch.device("cpu")
ROOMY = Budget(1 << 30, 1 << 30)
TIGHT = Budget(1, 1)
K, IPC, FACTOR = 4, 2, 2
POOL = {"pool_size": 2, "pool_epochs": 2, "pool_batch": 16}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClassStore:
    return make_store(tmp_path_factory.mktemp("store") / "s", [20, 5, 20, 7], channels=3)


def spec_of(store: ClassStore, *, iterations: int = 3, seed: int = 0, **fields: Any) -> CondenseSpec:
    method = {"name": "dance", "batch_real": 8, "factor": FACTOR, **POOL, **fields}
    return make_spec(store, ipc=IPC, iterations=iterations, seed=seed, method=method)


def started(spec: CondenseSpec, store: ClassStore, path: Path, budget: Budget = ROOMY) -> tuple[Dance, SyntheticShard]:
    run, shard = start_run(spec, store, Comm.single(), budget, path)
    assert isinstance(run, Dance)
    return run, shard


class PlainDance:
    """DANCE on images in [0, 1], (K·ipc, C, H, W), as in its paper: one loss at a time, by autograd."""

    def __init__(self, run: Dance) -> None:
        info = run.context.info
        self.mean, self.std = (torch.tensor(of, dtype=torch.float64).view(-1, 1, 1) for of in (info.mean, info.std))
        member, share = run.draw_member(0)
        between = {name: share * member.initial[name] + (1 - share) * final for name, final in member.final.items()}
        self.between, self.trained = (copy.deepcopy(run.context.model.network) for _ in range(2))
        self.between.load_state_dict(between)
        self.trained.load_state_dict(member.final)
        self.draws = run.class_draws("augment_class", 0, 0)
        self.draws_of_trained = run.class_draws("augment_class trained", 0)
        batch = run.context.sample("real", 8, 0, 0)
        self.real = [run.context.real.batch(k, indices) for k, indices in zip(batch.classes, batch.indices, strict=True)]

    def decoded(self, images: Tensor) -> Tensor:
        """Return the tiles of normalised images, each enlarged to the full side by torch's interpolation."""
        n, _, height, width = images.shape
        tiles = images.unfold(2, height // FACTOR, height // FACTOR).unfold(3, width // FACTOR, width // FACTOR)
        tiles = tiles.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        assert len(tiles) == n * FACTOR**2
        return F.interpolate(tiles, (height, width), mode="bilinear")

    def images_of(self, stored: Tensor, k: int, draws: augment.Draws | None) -> Tensor:
        own = self.decoded((stored[k * IPC : (k + 1) * IPC] - self.mean) / self.std)
        return own if draws is None else augment.apply(own, draws[torch.full((len(own),), k)])

    def distance(self, stored: Tensor, k: int) -> Tensor:
        """Return ‖mean ψ(T_k) − mean ψ(D_k)‖² under the weights between the initial and the final ones."""
        real = self.real[k]
        if self.draws is not None:
            real = augment.apply(real, self.draws[torch.full((len(real),), k)])
        synthetic = self.between.features(self.images_of(stored, k, self.draws))[-1].mean(0)
        return (synthetic - self.between.features(real)[-1].mean(0).detach()).square().sum()

    def cross_entropy(self, stored: Tensor, k: int) -> Tensor:
        """Return the mean cross-entropy of the trained network on class k's images."""
        logits = self.trained(self.images_of(stored, k, self.draws_of_trained))
        return F.cross_entropy(logits, torch.full((len(logits),), k))


@pytest.mark.parametrize("augmentation", ["none", "color_crop_cutout"])
@pytest.mark.parametrize("budget", [ROOMY, TIGHT], ids=["whole classes", "image by image"])
def test_joint_gradient_matches_autograd_of_the_papers_loss(
    store: ClassStore, tmp_path: Path, budget: Budget, augmentation: str
) -> None:
    run, shard = started(spec_of(store, augment=augmentation, cross_entropy=0.5), store, tmp_path, budget)
    plain = PlainDance(run)
    pixels = (shard.images * plain.std + plain.mean).requires_grad_()
    distance = torch.stack([plain.distance(pixels, k) for k in range(K)]).sum()
    cross_entropy = torch.stack([plain.cross_entropy(pixels, k) for k in range(K)]).sum()
    (expected,) = torch.autograd.grad(distance + 0.5 * cross_entropy, pixels)
    gradient, losses = run.gradient(shard, run.context.sample("real", 8, 0, 0), plain.draws)
    assert float(losses["feature_loss"]) == pytest.approx(float(distance.detach()), rel=1e-10)
    assert float(losses["cross_entropy"]) == pytest.approx(0.5 * float(cross_entropy.detach()), rel=1e-10)
    # A step of the normalised images is a step of the pixels, divided by std.
    torch.testing.assert_close(gradient * plain.std, expected, rtol=1e-9, atol=1e-12)


def test_reference_steps_match_one_optimizer_over_all_images(store: ClassStore, tmp_path: Path) -> None:
    """Step torch's SGD on all images after the loss of each class, first for the distances and then for the cross-entropies."""
    run, shard = started(spec_of(store, preset="reference", image_lr=0.01), store, tmp_path)
    plain = PlainDance(run)
    pixels = (shard.images * plain.std + plain.mean).requires_grad_()
    shard.momentum.normal_(generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD([pixels], lr=0.01, momentum=0.5)
    optimizer.state[pixels]["momentum_buffer"] = shard.momentum * plain.std
    with torch.no_grad():
        pixels.clamp_(0, 1)
    for loss in (plain.distance, plain.cross_entropy):
        for k in range(K):
            optimizer.zero_grad()
            loss(pixels, k).backward()
            optimizer.step()
    run.update_images(shard, 0, 0)
    torch.testing.assert_close(shard.images * plain.std + plain.mean, pixels.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(shard.momentum * plain.std, optimizer.state[pixels]["momentum_buffer"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("preset", ["best", "reference"])
def test_images_do_not_depend_on_the_number_of_shards(store: ClassStore, tmp_path: Path, preset: str) -> None:
    spec = spec_of(store, preset=preset)

    def images(world: int) -> Tensor:
        checkpoints = Checkpoints(tmp_path / f"{world}")
        run_gang(world, lambda comm: condense(spec, store, comm, CPU, checkpoints=checkpoints, report=ignore_events))
        checkpoint = checkpoints.latest(spec)
        assert checkpoint is not None
        return checkpoint.images

    alone = images(1)
    for world in (2, 3, K):
        torch.testing.assert_close(images(world), alone, rtol=0, atol=1e-9)


def test_a_class_does_not_depend_on_the_images_of_other_classes(store: ClassStore, tmp_path: Path) -> None:
    """Turn the images of class 3 upside down, and keep the pool: the other classes keep their bytes."""
    spec = spec_of(store)
    run, shard = started(spec, store, tmp_path / "a")
    other = shutil.copytree(store.path, tmp_path / "other")
    pixels = np.fromfile(other / "train-images.u8", dtype=np.uint8).reshape(-1, 3, 8, 8)
    pixels[45:] = pixels[45:, :, ::-1]
    pixels.tofile(other / "train-images.u8")
    changed, changed_shard = started(spec, ClassStore.open(other), tmp_path / "b")
    changed.pool = run.pool
    for each, images in ((run, shard), (changed, changed_shard)):
        each.renew_network(0)
        each.update_images(images, 0, 0)
    assert torch.equal(shard.images[: 3 * IPC], changed_shard.images[: 3 * IPC])
    assert not torch.equal(shard.images[3 * IPC :], changed_shard.images[3 * IPC :])


def test_stored_images_start_as_shrunk_real_images_and_are_clipped(store: ClassStore, tmp_path: Path) -> None:
    run, shard = started(spec_of(store), store, tmp_path)
    halved = F.avg_pool2d(run.context.real.batch(0, torch.arange(20)), 2)  # (20, C, 4, 4)
    tiles = shard.images[:IPC].unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    distances = torch.cdist(tiles.flatten(1), halved.flatten(1))
    assert (distances.min(1).values < 1e-6).all()
    assert len(set(distances.argmin(1).tolist())) == IPC * FACTOR**2, "every tile is another image"
    shard.images += 100
    run.clip(shard)
    torch.testing.assert_close(shard.images, run.formation.high.expand_as(shard.images))


def test_step_uses_a_random_part_of_many_decoded_images(store: ClassStore, tmp_path: Path) -> None:
    run, shard = started(spec_of(store, decoded_per_class=3), store, tmp_path)
    picked = [run.decode(shard, iteration)[1] for iteration in range(2)]
    everything = run.formation.decode(shard.images).unflatten(0, (K, -1))
    for decoded in picked:
        assert decoded.images.shape == (K * 3, 3, 8, 8)
        for k, images in enumerate(decoded.images.detach().split(3)):
            assert all(any(torch.equal(image, one) for one in everything[k]) for image in images)
    assert not torch.equal(picked[0].images, picked[1].images)


class KilledError(Exception):
    """Stands for the end of a process."""


@pytest.mark.parametrize("epochs_before", [1, 2, 3], ids=["within a member", "between members", "in the last member"])
def test_killed_training_of_the_pool_resumes_to_the_same_bytes(store: ClassStore, tmp_path: Path, epochs_before: int) -> None:
    spec = spec_of(store)

    def images(path: Path, report: Any) -> Tensor:
        checkpoints = Checkpoints(path / "checkpoints")
        condense(spec, store, Comm.single(), CPU, checkpoints=checkpoints, report=report, cache=path / "cache")
        checkpoint = checkpoints.latest(spec)
        assert checkpoint is not None
        return checkpoint.images

    undisturbed = images(tmp_path / "undisturbed", ignore_events)
    epochs: list[int] = []

    def killing(type: str, **data: Any) -> None:
        if type == "epoch":
            epochs.append(data["epoch"])
            if len(epochs) == epochs_before:
                raise KilledError

    with pytest.raises(KilledError):
        images(tmp_path / "killed", killing)
    assert torch.equal(images(tmp_path / "killed", killing), undisturbed)
    assert epochs == [1, 2, 3, 4], "each epoch runs once"
    assert len(list((tmp_path / "killed" / "cache").glob("*/*"))) == POOL["pool_size"], "unfinished states are removed"


def test_minibatches_of_long_epochs_are_reported(store: ClassStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_clock, "FIRST_STEP_S", 0.0)
    monkeypatch.setattr(step_clock, "STEP_EVERY_S", 0.0)
    events: list[tuple[str, dict[str, Any]]] = []

    def report(type: str, **data: Any) -> None:
        events.append((type, data))

    for _ in range(2):  # the second job finds the pool
        run = tmp_path / str(len(events))
        condense(spec_of(store), store, Comm.single(), CPU, checkpoints=Checkpoints(run), report=report, cache=tmp_path / "cache")
    batches = math.ceil(sum(store.info.class_counts) / POOL["pool_batch"])
    steps = [data for type, data in events if type == "step"]
    assert [(e["of"], e["done"], e["batch"]) for e in steps] == [
        ("epoch", epoch, batch) for epoch in range(4) for batch in range(1, batches + 1)
    ]
    assert {(e["total"], e["batches"]) for e in steps} == {(4, batches)}


@pytest.mark.parametrize(("epochs", "batch"), [(2, 8), (1, 512)], ids=["seen in an epoch", "only in the last step"])
def test_diverging_training_of_the_pool_fails_and_caches_nothing(
    store: ClassStore, tmp_path: Path, epochs: int, batch: int
) -> None:
    method = {"name": "dance", **POOL, "pool_epochs": epochs, "pool_batch": batch, "pool_lr": 1e30}
    spec = make_spec(store, ipc=IPC, network={"name": "mlp", "width": 8}, method=method, precision="float32")

    def work(comm: Comm) -> str:
        with pytest.raises(NonFiniteLossError, match=r"smaller method\.pool_lr") as raised:
            condense(
                spec,
                store,
                comm,
                CPU,
                checkpoints=Checkpoints(tmp_path / "checkpoints"),
                report=ignore_events,
                cache=tmp_path / "cache",
            )
        return raised.value.message

    assert len(set(run_gang(2, work))) == 1
    keys = [safe_open(path, "numpy").metadata()["key"] for path in (tmp_path / "cache").glob("*/*")]
    assert all("unfinished" in key for key in keys)


def test_diverged_run_reports_no_loss_and_fails_at_its_checkpoint(store: ClassStore, tmp_path: Path) -> None:
    """NaN in an event would make it unreadable, because JSON has no NaN."""
    method = {"name": "dance", **POOL, "batch_real": 8}
    network = {"width": 6, "depth": 2, "norm": "none"}
    spec = make_spec(store, ipc=IPC, iterations=3, network=network, method=method, precision="float32")
    run, shard = start_run(spec, store, Comm.single(), ROOMY, tmp_path / "alone")
    assert isinstance(run, Dance)
    with torch.no_grad():
        for member in run.pool:
            member.final["classifier.weight"].fill_(torch.inf)
    reports: list[Any] = []
    progress = Progress(lambda _, **data: reports.append(data), done=0, total=1, real_images_per_step=1)
    queries = Queries(run.context, run.loops, 0)
    run.renew_network(0)
    losses = run.update_images(shard, 0, 0)
    assert not torch.isfinite(losses["loss"])
    progress.iteration_done(1, losses, Loop(1, 0, 0, "converged"), [], queries)
    assert reports[0]["loss"] is None
    json.dumps(reports, allow_nan=False)
    with pytest.raises(NonFiniteLossError, match="synthetic images became infinite"):
        save(run.context, run, Checkpoints(tmp_path / "alone"), shard, 1)


def test_pools_share_their_members(store: ClassStore, tmp_path: Path) -> None:
    """A larger pool trains only the members that a smaller one lacks, and another job seed trains none."""
    epochs: list[int] = []

    def load(**fields: Any) -> list[pool.Member]:
        run, _ = start_run(spec_of(store, **fields), store, Comm.single(), ROOMY, tmp_path / str(fields))
        cache = ArtifactCache(tmp_path / "cache", Comm.single(), CPU)
        return pool.load_or_train(
            run.context, cache, lambda type, **data: epochs.append(data["epoch"]) if type == "epoch" else None
        )

    small = load()
    assert epochs == [1, 2, 3, 4]
    large = load(pool_size=3)
    assert epochs[4:] == [5, 6]
    assert all(torch.equal(a.final[name], b.final[name]) for a, b in zip(small, large, strict=False) for name in a.final)
    assert not torch.equal(*(member.final["classifier.weight"] for member in large[:2]))
    load(pool_lr=0.02)
    assert len(epochs) == 10
