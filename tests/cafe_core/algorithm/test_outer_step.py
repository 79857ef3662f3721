"""Compare the streamed, sharded outer step with autograd through one graph of the whole loss, as written in the paper."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.method import LearningMethod
from cafe_core.algorithm.model import Budget
from cafe_core.data.class_store import ClassStore
from cafe_core.spec.condense import CondenseSpec
from tests.cafe_core.gangs import run_gang
from tests.cafe_core.made_data import make_spec, make_store
from tests.cafe_core.started import start_run

CPU = torch.device("cpu")
ROOMY = Budget(1 << 30, 1 << 30)
TIGHT = Budget(1, 1)  # one real image and one class at a time


def reference_gradient(spec: CondenseSpec, run: LearningMethod, images: Tensor) -> tuple[float, Tensor]:
    """Return L = L_f + β L_d (Eq. 1–4) and ∂L/∂S for all K classes together, with the real images that the run draws."""
    method, K, ipc, network = spec.method, run.context.info.num_classes, spec.ipc, run.context.model.network
    rows = run.context.sample("real", method.batch_real, 0, 0)
    S = images.clone().requires_grad_()
    feature_loss = torch.zeros((), dtype=S.dtype)
    centres, features, labels = [], [], []
    for k in range(K):
        maps_s = network.features(S[k * ipc : (k + 1) * ipc])
        maps_t = network.features(run.context.real.batch(k, rows.indices[k]))
        for w, layer in zip(method.layer_weights, method.layers, strict=True):
            feature_loss = feature_loss + w * ((maps_s[layer].mean(0) - maps_t[layer].mean(0)) ** 2).sum()
        centres.append(maps_s[-1].mean(0).flatten())
        features.append(maps_t[-1].flatten(1))
        labels += [k] * len(maps_t[-1])
    loss = feature_loss
    if method.discrimination:
        logits = torch.cat(features) @ torch.stack(centres).T
        loss = loss + method.beta * F.cross_entropy(logits, torch.tensor(labels))
    (gradient,) = torch.autograd.grad(loss, S)
    return float(loss.detach()), gradient


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClassStore:
    """Build a store of seven classes, three of them smaller than N."""
    return make_store(tmp_path_factory.mktemp("store") / "s", [20, 3, 20, 1, 20, 20, 5])


@pytest.mark.parametrize("preset", ["paper", "reference"])
@pytest.mark.parametrize("budget", [ROOMY, TIGHT], ids=["kept graph", "graph rebuilt per class"])
@pytest.mark.parametrize(
    "method",
    [
        {},
        {"layers": [2]},
        {"layers": [0, 1]},  # without the map of the class centres
        {"discrimination": False},
        {"layers": [0], "discrimination": False},
    ],
    ids=lambda m: ",".join(f"{k}={v}" for k, v in m.items()) or "whole",
)
def test_gradient_matches_the_loss_of_the_paper(
    store: ClassStore, tmp_path: Path, preset: str, budget: Budget, method: dict[str, object]
) -> None:
    spec = make_spec(store, method={"preset": preset, "batch_real": 8, **method})
    run, shard = start_run(spec, store, Comm.single(), budget, tmp_path)
    expected_loss, expected = reference_gradient(spec, run, shard.images)
    gradient, losses = run.gradient(shard, run.context.sample("real", 8, 0, 0), None)
    assert float(losses["loss"]) == pytest.approx(expected_loss, rel=1e-10)
    assert float(losses["feature_loss"] + spec.method.beta * losses["discrimination_loss"]) == float(losses["loss"])
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("discrimination", [True, False])
def test_outer_step_sends_2kd_numbers_and_two_losses(store: ClassStore, tmp_path: Path, world: int, discrimination: bool) -> None:
    def numbers_sent(ipc: int, batch_real: int) -> list[int]:
        spec = make_spec(store, ipc=ipc, method={"batch_real": batch_real, "discrimination": discrimination})

        def work(comm: Comm) -> int:
            run, shard = start_run(spec, store, comm, ROOMY, tmp_path / f"{ipc} {batch_real}")
            before = comm.numbers
            run.update_images(shard, 0, 0)
            return comm.numbers - before

        return run_gang(world, work)

    K, D = store.info.num_classes, 6 * 2 * 2
    expected = (2 * K * D if discrimination else 0) + 2  # two losses
    for ipc, batch_real in ((1, 4), (5, 4), (1, 20)):
        assert numbers_sent(ipc, batch_real) == [expected] * world


def test_step_matches_sgd_with_momentum(store: ClassStore, tmp_path: Path) -> None:
    """Compare with torch.optim.SGD over three steps, with the learning rate halved at the milestone."""
    spec = make_spec(store, method={"batch_real": 8, "image_milestones": [1]})
    run, shard = start_run(spec, store, Comm.single(), ROOMY, tmp_path)
    twin = shard.images.clone().requires_grad_()
    optimizer = torch.optim.SGD([twin], lr=0.1, momentum=0.5)
    for iteration in range(3):
        run.context.model.renew(spec.seed, iteration)
        twin.grad, _ = run.gradient(shard, run.context.sample("real", 8, iteration, 0), None)
        optimizer.param_groups[0]["lr"] = 0.1 if iteration < 1 else 0.05
        optimizer.step()
        run.update_images(shard, iteration, 0)
        torch.testing.assert_close(shard.images, twin.detach(), rtol=1e-12, atol=1e-12)
