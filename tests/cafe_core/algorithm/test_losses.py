"""Compare Eq. 1–4 with values derived by hand: plain Python sums and the chain rule, without autograd."""

from __future__ import annotations

import math

import pytest
import torch

from cafe_core.algorithm import losses
from cafe_core.methods.cafe.spec import CafeMethod
from cafe_core.spec.method import ResolutionContext
from cafe_core.spec.network import NetworkSpec

RTOL = 1e-10


def test_feature_alignment_is_the_weighted_sum_of_squared_norms() -> None:
    # Two classes, two maps of 1×1×2 and 1×1×1.
    synthetic = [torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[3.0], [0.5]])]
    real = [torch.tensor([[0.0, 4.0], [1.0, 1.0]]), torch.tensor([[1.0], [2.5]])]
    # map 1: (1² + 2²) + (1² + 2²) = 10; map 2: 2² + 2² = 8
    value, _ = losses.feature_alignment([s.double() for s in synthetic], [t.double() for t in real], [0.1, 2.0])
    assert value.item() == pytest.approx(0.1 * 10 + 2.0 * 8, rel=RTOL)


def test_feature_alignment_gradient_is_two_w_times_the_difference() -> None:
    s = torch.tensor([[1.0, 2.0], [0.0, -1.0]], dtype=torch.float64)
    t = torch.tensor([[0.0, 4.0], [1.0, 1.0]], dtype=torch.float64)
    _, [gradient] = losses.feature_alignment([s], [t], [0.1])
    torch.testing.assert_close(gradient, torch.tensor([[0.2, -0.4], [-0.2, -0.4]], dtype=torch.float64), rtol=RTOL, atol=0)


def test_discrimination_and_its_gradient_match_the_softmax() -> None:
    F = [[1.0, 2.0], [0.5, -1.0], [-2.0, 0.25]]
    y = [0, 1, 1]
    C = [[0.3, -0.2], [1.0, 0.4]]
    loss, gradient = 0.0, [[0.0, 0.0], [0.0, 0.0]]
    for features, label in zip(F, y, strict=True):
        logits = [sum(f * c for f, c in zip(features, centre, strict=True)) for centre in C]
        z = sum(math.exp(o) for o in logits)
        p = [math.exp(o) / z for o in logits]
        loss += -math.log(p[label]) / 3
        for k in range(2):
            for d in range(2):
                gradient[k][d] += (p[k] - (k == label)) * features[d] / 3
    value, G = losses.discrimination(
        *(torch.tensor(v, dtype=torch.float64) for v in (F,)), torch.tensor(y), torch.tensor(C, dtype=torch.float64), 3
    )
    assert value.item() == pytest.approx(loss, rel=RTOL)
    torch.testing.assert_close(G, torch.tensor(gradient, dtype=torch.float64), rtol=RTOL, atol=0)


def test_discrimination_of_batches_adds_up() -> None:
    random = torch.Generator().manual_seed(0)
    F = torch.randn(12, 5, generator=random, dtype=torch.float64)
    C = torch.randn(4, 5, generator=random, dtype=torch.float64)
    y = torch.arange(12) % 4
    whole = losses.discrimination(F, y, C, 12)
    parts = [losses.discrimination(F[a:b], y[a:b], C, 12) for a, b in ((0, 3), (3, 4), (4, 12))]
    for i in range(2):
        torch.testing.assert_close(sum(part[i] for part in parts), whole[i], rtol=RTOL, atol=1e-15)


@pytest.mark.parametrize(
    ("preset", "weights", "beta"),
    [("paper", [1.0, 1.0, 1.0, 1.0], 1.0), ("reference", [0.1, 0.1, 1.0, 2.0], 25.6)],
)
def test_total_loss_and_gradient_of_a_linear_network(preset: str, weights: list[float], beta: float) -> None:
    """With maps φ_l(x) = A_l x every derivative is a matrix product, so ∂L/∂S can be written out and compared."""
    method = CafeMethod.model_validate({"preset": preset}).resolved(ResolutionContext(2, 10, NetworkSpec(), (3, 32, 32)))
    assert method.layer_weights == weights
    assert method.beta == pytest.approx(beta)

    random = torch.Generator().manual_seed(1)
    K, ipc, N, P, D = 3, 2, 4, 6, 5
    A = [torch.randn(D, P, generator=random, dtype=torch.float64) for _ in range(4)]
    S = torch.randn(K, ipc, P, generator=random, dtype=torch.float64, requires_grad=True)
    T = torch.randn(K, N, P, generator=random, dtype=torch.float64)
    y = torch.arange(K).repeat_interleave(N)

    # By hand. ∂f̄ˢ_{k,l}/∂s_{k,j} = A_l / ipc, so ∂L_f/∂s_{k,j} = Σ_l (2 w_l / ipc) A_lᵀ (f̄ˢ − f̄ᵀ).
    means_s = [torch.einsum("dp,kjp->kd", a, S.detach()) / ipc for a in A]
    means_t = [torch.einsum("dp,knp->kd", a, T) / N for a in A]
    F, C = torch.einsum("dp,knp->knd", A[-1], T).reshape(K * N, D), means_s[-1]
    p = torch.exp(F @ C.T)
    p = p / p.sum(1, keepdim=True)
    loss_f = sum(w * ((s - t) ** 2).sum() for w, s, t in zip(weights, means_s, means_t, strict=True))
    loss_d = -sum(torch.log(p[i, y[i]]) for i in range(K * N)) / (K * N)
    onehot = torch.zeros(K * N, K, dtype=torch.float64)
    onehot[range(K * N), y] = 1
    G = (p - onehot).T @ F / (K * N)
    expected = torch.stack(
        [
            sum(2 * w / ipc * (s - t)[k] @ a for w, s, t, a in zip(weights, means_s, means_t, A, strict=True))
            + beta / ipc * G[k] @ A[-1]
            for k in range(K)
        ]
    )

    # The implementation.
    maps_s = [torch.einsum("dp,kjp->kjd", a, S).mean(1) for a in A]
    value_d, gradient = losses.discrimination(F, y, maps_s[-1].detach(), K * N)
    value_f, gradients = losses.feature_alignment([m.detach() for m in maps_s], means_t, method.layer_weights)
    gradients[-1] += method.beta * gradient
    torch.autograd.backward(maps_s, gradients)
    assert value_f.item() == pytest.approx(float(loss_f), rel=RTOL)
    assert value_d.item() == pytest.approx(float(loss_d), rel=RTOL)
    assert S.grad is not None
    torch.testing.assert_close(S.grad, expected[:, None].expand(-1, ipc, -1), rtol=RTOL, atol=1e-14)


def test_gradient_distance_compares_output_nodes() -> None:
    # A linear layer of 2 nodes: parallel (distance 0) and opposite (2); a convolution of 1 node: orthogonal (1); zeros: 1.
    synthetic = [torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([[[[1.0, 0.0]], [[2.0, 0.0]]]]), torch.zeros(1, 2)]
    real = [torch.tensor([[2.0, 4.0], [0.0, -1.0]]), torch.tensor([[[[0.0, 5.0]], [[0.0, 1.0]]]]), torch.ones(1, 2)]
    value = losses.gradient_distance([s.double() for s in synthetic], [t.double() for t in real])
    e = losses.MIN_NORM_PRODUCT
    assert value.item() == pytest.approx((1 - 10 / (10 + e)) + (1 + 3 / (3 + e)) + 1 + 1, rel=RTOL)


def test_gradient_distance_is_zero_for_equal_gradients_and_finite_for_zero_gradients() -> None:
    g = [torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)]
    assert losses.gradient_distance(g, [t.clone() for t in g]).item() == pytest.approx(0, abs=1e-5)
    dead = [torch.zeros(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)]
    losses.gradient_distance(dead, g).backward()
    assert dead[0].grad is not None
    assert dead[0].grad.isfinite().all()
