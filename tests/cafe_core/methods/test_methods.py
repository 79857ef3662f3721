"""Compare the gradients of DM and DC with gradients derived by hand, and check what callers expect of every method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cafe_core.algorithm import augment
from cafe_core.algorithm.checkpoint import Checkpoints
from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.condense import condense
from cafe_core.algorithm.losses import MIN_NORM_PRODUCT
from cafe_core.algorithm.method import LearningMethod, ignore_events
from cafe_core.algorithm.model import Budget
from cafe_core.algorithm.synthetic_shard import SyntheticShard
from cafe_core.data.class_store import ClassStore
from cafe_core.methods.registry import METHODS
from cafe_core.spec.estimate import method_sizes
from cafe_core.spec.method import LearningMethodSpec
from tests.cafe_core.gangs import run_gang
from tests.cafe_core.made_data import make_spec, make_store
from tests.cafe_core.started import start_run

CPU = torch.device("cpu")
ROOMY = Budget(1 << 30, 1 << 30)
TIGHT = Budget(1, 1)  # one image at a time, real or synthetic
N, IPC = 8, 3


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClassStore:
    """Build a store of four classes, one of them smaller than N and one smaller than ipc."""
    return make_store(tmp_path_factory.mktemp("store") / "s", [20, 5, 20, 1], channels=3)


def real_and_synthetic(run: LearningMethod, shard: SyntheticShard) -> list[tuple[Tensor, Tensor]]:
    """Return (T_k, S_k) of every class, as sampled by the first outer step."""
    rows = run.context.sample("real", N, 0, 0)
    real = [run.context.real.batch(k, indices) for k, indices in zip(rows.classes, rows.indices, strict=True)]
    return list(zip(real, shard.images.split(shard.ipc), strict=True))


class HandMLP:
    """The MLP with two hidden layers, without autograd: o = W3 h2 + b3, h2 = [W2 h1 + b2]₊, h1 = [W1 x + b1]₊."""

    def __init__(self, run: LearningMethod) -> None:
        self.W1, self.b1, self.W2, self.b2, self.W3, self.b3 = (p.detach() for p in run.context.model.parameters())

    def hidden(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return h1 and h2 of x (n, P)."""
        h1 = (x @ self.W1.T + self.b1).clamp(min=0)
        return h1, (h1 @ self.W2.T + self.b2).clamp(min=0)

    def residual(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return p and (p − onehot(k))/n, the gradient of the mean cross-entropy with respect to the logits; both are (n, K)."""
        p = torch.exp(self.hidden(x)[1] @ self.W3.T + self.b3)
        p = p / p.sum(1, keepdim=True)
        onehot = torch.zeros_like(p)
        onehot[:, k] = 1
        return p, (p - onehot) / len(x)

    def weight_gradients(self, x: Tensor, k: int) -> list[Tensor]:
        """Return the gradients of the mean cross-entropy of class k's images x with respect to W1, W2 and W3."""
        h1, h2 = self.hidden(x)
        d3 = self.residual(x, k)[1]
        d2 = d3 @ self.W3 * (h2 > 0)
        d1 = d2 @ self.W2 * (h1 > 0)
        return [d1.T @ x, d2.T @ h1, d3.T @ h2]

    def matched_gradient(self, x: Tensor, k: int, V: list[Tensor]) -> Tensor:
        """Return ∂/∂x ⟨∇_W CE(x), V⟩.

        ⟨∇_W CE, V⟩ is the derivative R{CE} of CE along V (Pearlmutter 1994). The chain rule gives its gradient.
        """
        V1, V2, V3 = V
        h1, h2 = self.hidden(x)
        p, d = self.residual(x, k)
        m1, m2 = (h1 > 0).to(x), (h2 > 0).to(x)
        Rh1 = m1 * (x @ V1.T)
        Rh2 = m2 * (Rh1 @ self.W2.T + h1 @ V2.T)
        Ro = Rh2 @ self.W3.T + h2 @ V3.T
        d_o = p * (Ro - (p * Ro).sum(1, keepdim=True)) / len(x)  # ∂⟨d, Ro⟩/∂o = (diag p − p pᵀ) Ro / n
        d_a2, d_Ra2 = m2 * (d_o @ self.W3 + d @ V3), m2 * (d @ self.W3)
        d_a1, d_Ra1 = m1 * (d_a2 @ self.W2 + d_Ra2 @ V2), m1 * (d_Ra2 @ self.W2)
        return d_a1 @ self.W1 + d_Ra1 @ V1


def distance_and_gradient(a: Tensor, b: Tensor) -> tuple[float, Tensor]:
    """Return Σ_i 1 − ⟨a_i, b_i⟩/(‖a_i‖‖b_i‖ + ε) and its gradient with respect to a, row by row by the quotient rule."""
    value, gradient = 0.0, torch.zeros_like(a)
    for i in range(len(a)):
        dot, norm_a, norm_b = a[i] @ b[i], a[i].square().sum().sqrt(), b[i].square().sum().sqrt()
        q = norm_a * norm_b + MIN_NORM_PRODUCT
        value += float(1 - dot / q)
        if norm_a > 0:
            gradient[i] = -(b[i] / q - dot / q**2 * norm_b / norm_a * a[i])
    return value, gradient


@pytest.mark.parametrize("budget", [ROOMY, TIGHT], ids=["whole classes", "image by image"])
def test_dm_gradient_matches_hand_derivation(store: ClassStore, tmp_path: Path, budget: Budget) -> None:
    method = {"name": "dm", "augment": "none", "init": "noise", "batch_real": N}
    spec = make_spec(store, ipc=IPC, network={"name": "mlp", "width": 16}, method=method)
    run, shard = start_run(spec, store, Comm.single(), budget, tmp_path)
    hand, loss, expected = HandMLP(run), 0.0, []
    for T, S in real_and_synthetic(run, shard):
        h1, h2 = hand.hidden(S.flatten(1))
        difference = h2.mean(0) - hand.hidden(T.flatten(1))[1].mean(0)
        loss += float(difference @ difference)
        expected.append(((2 / IPC * difference * (h2 > 0)) @ hand.W2 * (h1 > 0)) @ hand.W1)
    gradient, losses = run.gradient(shard, run.context.sample("real", N, 0, 0), None)
    assert float(losses["loss"]) == pytest.approx(loss, rel=1e-10)
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(gradient.flatten(1), torch.cat(expected), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("budget", [ROOMY, TIGHT], ids=["kept graph", "graph rebuilt per image"])
def test_dc_gradient_matches_hand_derivation(store: ClassStore, tmp_path: Path, budget: Budget) -> None:
    spec = make_spec(store, ipc=IPC, network={"name": "mlp", "width": 16}, method={"name": "dc", "batch_real": N})
    run, shard = start_run(spec, store, Comm.single(), budget, tmp_path)
    hand, loss, expected = HandMLP(run), 0.0, []
    for k, (T, S) in enumerate(real_and_synthetic(run, shard)):
        x = S.flatten(1)
        terms = [
            distance_and_gradient(a, b)
            for a, b in zip(hand.weight_gradients(x, k), hand.weight_gradients(T.flatten(1), k), strict=True)
        ]
        loss += sum(value for value, _ in terms)
        expected.append(hand.matched_gradient(x, k, [V for _, V in terms]))
    gradient, losses = run.gradient(shard, run.context.sample("real", N, 0, 0), None)
    assert float(losses["loss"]) == pytest.approx(loss, rel=1e-10)
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(gradient.flatten(1), torch.cat(expected), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("network", [{"width": 6, "depth": 2}, {"width": 4, "depth": 2, "norm": "layer"}], ids=str)
@pytest.mark.parametrize("budget", [ROOMY, TIGHT], ids=["kept graph", "graph rebuilt per image"])
@pytest.mark.parametrize("name", ["dc", "dm"])
def test_gradient_with_augmentation_matches_autograd_of_the_papers_loss(
    store: ClassStore, tmp_path: Path, name: str, budget: Budget, network: dict[str, Any]
) -> None:
    """Write the losses of DSA and DM as in their papers, and differentiate them by autograd through convolutions and norms."""
    spec = make_spec(store, ipc=IPC, network=network, method={"name": name, "augment": "dsa", "init": "noise", "batch_real": N})
    run, shard = start_run(spec, store, Comm.single(), budget, tmp_path)
    draws = augment.draw("dsa", 4, store.info.shape, True, torch.Generator().manual_seed(3)).to(
        torch.device("cpu"), torch.float64
    )
    S = shard.images.clone().requires_grad_()
    net = run.context.model.network.requires_grad_(True)
    weights = [p for p in net.parameters() if p.dim() > 1]
    loss = torch.zeros((), dtype=torch.float64)
    for k, (T_k, _) in enumerate(real_and_synthetic(run, shard)):
        T, own = (augment.apply(x, draws[torch.full((len(x),), k)]) for x in (T_k, S[k * IPC : (k + 1) * IPC]))
        if name == "dm":
            loss = loss + (net.features(own)[-1].mean(0) - net.features(T)[-1].mean(0)).square().sum()
            continue
        g_T, g_S = (
            torch.autograd.grad(F.cross_entropy(net(x), torch.full((len(x),), k)), weights, create_graph=True) for x in (T, own)
        )
        for a, b in zip(g_S, g_T, strict=True):
            a, b = a.flatten(1), b.detach().flatten(1)
            loss = loss + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + MIN_NORM_PRODUCT)).sum()
    (expected,) = torch.autograd.grad(loss, S)
    gradient, losses = run.gradient(shard, run.context.sample("real", N, 0, 0), draws)
    assert float(losses["loss"]) == pytest.approx(float(loss.detach()), rel=1e-10)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "numbers"), [("dm", 2), ("dc", 1)])
def test_outer_step_of_dc_and_dm_sends_only_losses(store: ClassStore, tmp_path: Path, name: str, numbers: int) -> None:
    """Workers exchange no statistics of classes, because the loss is a sum over classes."""
    spec = make_spec(store, method={"name": name, "batch_real": N})

    def work(comm: Comm) -> int:
        run, shard = start_run(spec, store, comm, ROOMY, tmp_path)
        before = comm.numbers
        run.update_images(shard, 0, 0)
        return comm.numbers - before

    assert run_gang(3, work) == [numbers] * 3


@pytest.mark.parametrize("method", [{"name": "dance"}, {"name": "dance", "preset": "reference"}, {"name": "ncfm"}], ids=str)
def test_iterations_of_methods_with_a_pool_communicate_nothing(store: ClassStore, tmp_path: Path, method: dict[str, Any]) -> None:
    spec = make_spec(store, method={"batch_real": N, "pool_size": 2, "pool_epochs": 1, **method})

    def work(comm: Comm) -> int:
        run, shard = start_run(spec, store, comm, ROOMY, tmp_path)
        before = comm.numbers
        for iteration in range(3):
            run.renew_network(iteration)
            run.update_images(shard, iteration, 0)
        return comm.numbers - before

    assert run_gang(3, work) == [0, 0, 0]


@pytest.mark.parametrize("name", list(METHODS))
def test_images_of_every_method_do_not_depend_on_the_number_of_shards(name: str, store: ClassStore, tmp_path: Path) -> None:
    """One worker and three workers give the same images."""
    few = {"network_epochs": 2, "pool_epochs": 2, "pool_size": 2}
    fields = {field: value for field, value in few.items() if field in METHODS[name].spec.model_fields}
    iterations = 2 if issubclass(METHODS[name].spec, LearningMethodSpec) else 0
    spec = make_spec(store, iterations=iterations, method={"name": name, **fields})

    def images(world: int) -> Tensor:
        checkpoints = Checkpoints(tmp_path / f"{world} workers")
        run_gang(world, lambda comm: condense(spec, store, comm, CPU, checkpoints=checkpoints, report=ignore_events))
        checkpoint = checkpoints.latest(spec)
        assert checkpoint is not None
        return checkpoint.images

    one, three = images(1), images(3)
    assert one.isfinite().all()
    torch.testing.assert_close(three, one, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if issubclass(method.spec, LearningMethodSpec)])
def test_outer_step_sends_the_numbers_that_the_spec_states(name: str, store: ClassStore, tmp_path: Path) -> None:
    """An outer step sends the numbers stated by the spec, and at most its losses."""
    few = {"pool_epochs": 1, "pool_size": 1} if "pool_size" in METHODS[name].spec.model_fields else {}
    spec = make_spec(store, method={"name": name, "batch_real": N, **few})

    def work(comm: Comm) -> tuple[int, int]:
        run, shard = start_run(spec, store, comm, ROOMY, tmp_path)
        before = comm.numbers
        losses = run.update_images(shard, 0, 0)
        return comm.numbers - before, len(losses)

    stated = spec.method.numbers_per_outer_step(method_sizes(spec, store.info))
    for numbers, losses in run_gang(3, work):
        assert stated <= numbers <= stated + max(2, losses)
