"""Compare NCFM with its paper's loss in complex numbers and with torch's AdamW, and check shards, communication and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cafe_core.algorithm import augment
from cafe_core.algorithm.checkpoint import Checkpoint, Checkpoints
from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.condense import condense
from cafe_core.algorithm.method import ignore_events
from cafe_core.algorithm.model import Budget
from cafe_core.algorithm.sampling import generator
from cafe_core.data.class_store import ClassStore
from cafe_core.methods.ncfm.method import Ncfm, characteristic_distance
from cafe_core.spec.condense import CondenseSpec
from tests.cafe_core.gangs import run_gang
from tests.cafe_core.made_data import make_spec, make_store
from tests.cafe_core.started import start_run

CPU = torch.device("cpu")
ROOMY = Budget(1 << 30, 1 << 30)
TIGHT = Budget(1, 1)
K, IPC, T = 4, 2, 16


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClassStore:
    return make_store(tmp_path_factory.mktemp("store") / "s", [20, 5, 20, 7], channels=3)


def spec_of(store: ClassStore, iterations: int = 4, **fields: Any) -> CondenseSpec:
    method = {"name": "ncfm", "batch_real": 8, "frequencies": T, "pool_size": 2, "pool_epochs": 1, "pool_batch": 16, **fields}
    return make_spec(store, ipc=IPC, iterations=iterations, method=method)


def distance_in_complex_numbers(real: Tensor, synthetic: Tensor, t: Tensor) -> Tensor:
    """Return the distance of the paper's Eq. 6 with α = ½; real, synthetic: features (n, D); t: (T, D)."""
    phi_r, phi_s = (torch.exp(1j * (F.normalize(f) @ t.T)).mean(0) for f in (real, synthetic))
    amplitude = (phi_r.abs() - phi_s.abs()) ** 2
    phase = 2 * phi_r.abs() * phi_s.abs() * (1 - torch.cos(phi_r.angle() - phi_s.angle()))
    return (amplitude / 2 + phase / 2).sqrt().mean()


@pytest.mark.parametrize("augmentation", ["none", "color_crop_cutout"])
@pytest.mark.parametrize("budget", [ROOMY, TIGHT], ids=["kept graph", "graph rebuilt per image"])
def test_gradient_matches_autograd_of_the_papers_loss(
    store: ClassStore, tmp_path: Path, budget: Budget, augmentation: str
) -> None:
    spec = spec_of(store, augment=augmentation, cross_entropy=0.5, factor=1, distance=10.0)
    run, shard = start_run(spec, store, Comm.single(), budget, tmp_path)
    assert isinstance(run, Ncfm)
    draws, draws_of_trained = run.class_draws("augment_class", 0, 0), run.class_draws("augment_class trained", 0)
    batch = run.context.sample("real", 8, 0, 0)
    random = generator(spec.seed, "frequencies", 0)
    t = torch.randn(T, run.context.model.network.feature_dim, generator=random).double()

    def augmented(images: Tensor, k: int, draws: augment.Draws | None) -> Tensor:
        return images if draws is None else augment.apply(images, draws[torch.full((len(images),), k)])

    S, expected, total = shard.images.clone().requires_grad_(), torch.zeros(()), 0.0
    net = run.context.model.network
    net.load_state_dict(run.between)
    for k in range(K):
        real = augmented(run.context.real.batch(k, batch.indices[k]), k, draws)
        own = augmented(S[k * IPC : (k + 1) * IPC], k, draws)
        features = (net.features(real)[-1].flatten(1).detach(), net.features(own)[-1].flatten(1))
        expected = expected + 10 * distance_in_complex_numbers(*features, t)
    (gradient,) = torch.autograd.grad(expected, S)
    total += float(expected.detach())
    net.load_state_dict(run.final)
    for k in range(K):
        logits = net(augmented(S[k * IPC : (k + 1) * IPC], k, draws_of_trained))
        cross_entropy = 0.5 * F.cross_entropy(logits, torch.full((IPC,), k))
        gradient += torch.autograd.grad(cross_entropy, S)[0]
        total += float(cross_entropy.detach())

    found, losses = run.gradient(shard, batch, draws)
    assert float(losses["loss"]) == pytest.approx(total, rel=1e-9)
    torch.testing.assert_close(found * run.formation.std**2, gradient, rtol=1e-8, atol=1e-11)


def test_equal_characteristic_functions_have_a_finite_gradient() -> None:
    target = torch.randn(2, 5, dtype=torch.float64)
    own = target.clone().requires_grad_()
    distance = characteristic_distance(target, own)
    assert float(distance.detach()) < 1e-5
    assert torch.autograd.grad(distance, own)[0].isfinite().all()


def test_steps_match_torchs_adamw(store: ClassStore, tmp_path: Path) -> None:
    """Take the same gradients in both, of pixels in [0, 1]."""
    spec = spec_of(store, image_lr=0.01, weight_decay=0.1, image_milestones=[2])
    run, shard = start_run(spec, store, Comm.single(), ROOMY, tmp_path)
    assert isinstance(run, Ncfm)
    pixels = run.formation.pixels(shard.images).requires_grad_()
    optimizer = torch.optim.AdamW([pixels], lr=0.01, betas=(0.9, 0.999), weight_decay=0.1)
    for iteration in range(4):
        optimizer.param_groups[0]["lr"] = 0.01 if iteration < 2 else 0.005
        run.renew_network(iteration)
        with torch.no_grad():
            pixels.clamp_(0, 1)
        run.clip(shard)
        batch, draws = run.context.sample("real", 8, iteration, 0), run.class_draws("augment_class", iteration, 0)
        pixels.grad = run.gradient(shard, batch, draws)[0] * run.formation.std
        run.update_images(shard, iteration, 0)
        optimizer.step()
        torch.testing.assert_close(run.formation.pixels(shard.images), pixels.detach(), rtol=0, atol=1e-12)


def images(spec: CondenseSpec, store: ClassStore, path: Path, world: int, until: int) -> Checkpoint:
    checkpoints = Checkpoints(path / "checkpoints")

    def work(comm: Comm) -> None:
        condense(spec, store, comm, CPU, checkpoints=checkpoints, report=ignore_events, until=until, cache=path / "cache")

    run_gang(world, work)
    checkpoint = checkpoints.latest(spec)
    assert checkpoint is not None
    return checkpoint


def test_images_do_not_depend_on_the_number_of_shards_and_resume(store: ClassStore, tmp_path: Path) -> None:
    spec = spec_of(store)
    alone = images(spec, store, tmp_path / "alone", 1, 4)
    assert alone.per_class["squares"].shape == alone.images.shape
    for world in (2, 3, K):
        found = images(spec, store, tmp_path / str(world), world, 4)
        torch.testing.assert_close(found.images, alone.images, rtol=0, atol=1e-9)
    images(spec, store, tmp_path / "resumed", 1, 1)
    assert torch.equal(images(spec, store, tmp_path / "resumed", 1, 4).images, alone.images)
