"""CAFE's losses (Section 3, Eq. 1–4), as pure functions of tensors.

Legend::

    K   classes              k   classes at hand (a shard, or a chunk of one)
    ipc synthetic images per class           N   real images per class and outer step
    L   aligned feature maps, l = 1 … L      N'  Σ_k N_k, real images of all classes
    D   width of the flattened last map      w_l weight of map l
    f̄ˢ, f̄ᵀ  class means of the synthetic and the real feature maps, each kept as C×H×W
    c_k = flatten(f̄ˢ_{k,L})                   the class centre
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def feature_alignment(synthetic_means: Sequence[Tensor], real_means: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """L_f = Σ_k Σ_l w_l ‖f̄ˢ_{k,l} − f̄ᵀ_{k,l}‖² (Eq. 1): squared norms, summed over C·H·W, not averaged.

    synthetic_means, real_means: for each map l a tensor (k, C, H, W). Returns a scalar.
    """
    assert len(synthetic_means) == len(real_means) == len(weights)
    return torch.stack(
        [w * (s - t).square().sum() for s, t, w in zip(synthetic_means, real_means, weights, strict=True)]
    ).sum()  # fmt: skip


def discrimination(features: Tensor, labels: Tensor, centres: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """This batch's share of L_d (Eq. 2–3) and its gradient in the centres.

    The real images are classified by inner product with the class centres, o_i = F_i Cᵀ; L_d is the mean
    cross-entropy over all N' real images. Both results are sums over the batch divided by N', so the shares
    of chunks and of workers add up to L_d and to G = ∂L_d/∂C.

    With p_i = softmax(o_i):  ∂CE_i/∂C = (p_i − onehot(y_i)) ⊗ F_i,  hence  G = (P − Y)ᵀ F / N'.
    The closed form spares a graph through the real features, which need none.

    features: (n, D) real, no graph. labels: (n,). centres: (K, D), no graph. total: N'.
    Returns (loss (), G (K, D)).
    """
    logits = features @ centres.T  # (n, K)
    loss = F.cross_entropy(logits, labels, reduction="sum") / total
    residual = logits.softmax(dim=1)  # (n, K)
    residual[torch.arange(len(labels), device=labels.device), labels] -= 1
    return loss, residual.T @ features / total


def centre_surrogate(centres: Tensor, centre_gradient: Tensor) -> Tensor:
    """Σ_k ⟨G_k, c_k⟩: a scalar whose gradient in the synthetic images is that of L_d.

    G is a constant here. By the chain rule ∂L_d/∂S = Σ_k (∂c_k/∂S)ᵀ G_k, and c_k depends on class k's images
    only: so each worker needs nothing but the rows of G of its own classes.

    centres: (k, D) with graph. centre_gradient: (k, D).
    """
    return (centres * centre_gradient).sum()
