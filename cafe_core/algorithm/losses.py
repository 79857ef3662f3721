"""Compute the losses of CAFE (Section 3, Eq. 1–4) and DC as pure functions of tensors.

Legend::

    K   classes              k   classes of this call (a shard, or a chunk of one)
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


def feature_alignment(
    synthetic_means: Sequence[Tensor], real_means: Sequence[Tensor], weights: Sequence[float]
) -> tuple[Tensor, list[Tensor]]:
    """Return L_f = Σ_k Σ_l w_l ‖f̄ˢ_{k,l} − f̄ᵀ_{k,l}‖² (Eq. 1) and its gradient in each f̄ˢ_l, 2 w_l (f̄ˢ_l − f̄ᵀ_l).

    The squared norms are summed over C·H·W, not averaged. The closed form takes fewer operations than a graph.

    synthetic_means, real_means: for each map l a tensor (k, C, H, W), no graph. Returns a scalar and tensors (k, C, H, W).
    """
    assert len(synthetic_means) == len(real_means) == len(weights)
    # On a GPU, each operation on lists is one kernel, if the two means of each map have the same memory layout.
    differences = torch._foreach_sub(list(synthetic_means), list(real_means))
    norms = [square.sum() for square in torch._foreach_mul(differences, differences)]
    loss = torch.stack(torch._foreach_mul(norms, list(weights))).sum()
    return loss, list(torch._foreach_mul(differences, [2 * w for w in weights]))


def discrimination(features: Tensor, labels: Tensor, centres: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Return this batch's share of L_d (Eq. 2–3) and of its gradient in the centres.

    The real images are classified by inner product with the class centres, o_i = F_i Cᵀ; L_d is the mean
    cross-entropy over all N' real images. Both results are sums over the batch divided by N', so the shares
    of chunks and of workers add up to L_d and to G = ∂L_d/∂C.

    With p_i = softmax(o_i):  ∂CE_i/∂C = (p_i − onehot(y_i)) ⊗ F_i,  hence  G = (P − Y)ᵀ F / N'.
    The closed form avoids a graph through the real features.

    features: (n, D) real, no graph. labels: (n,). centres: (K, D), no graph. total: N'.
    Returns (loss (), G (K, D)).
    """
    logits = features @ centres.T  # (n, K)
    loss = F.cross_entropy(logits, labels, reduction="sum") / total
    residual = logits.softmax(dim=1)  # (n, K)
    residual.scatter_(1, labels[:, None], -1.0, reduce="add")  # P − Y
    return loss, residual.T @ features / total


MIN_NORM_PRODUCT = 1e-6
"""Added to ‖a‖·‖b‖ of each cosine, as in DC's released code. Gradients are small, so its value matters; rows may be zero."""


def gradient_distance(synthetic: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Return D = Σ_layers Σ_i (1 − ⟨a_i, b_i⟩ / (‖a_i‖·‖b_i‖)), which compares a layer's gradients per output node.

    a_i, b_i are row i of a weight's two gradients, flattened: out × in of a linear layer, out × (in·h·w) of a convolution
    (the gradient matching loss of Zhao et al., ICLR 2021, https://arxiv.org/abs/2006.05929), C × (H·W) of layer norm. The
    caller omits one-dimensional parameters (biases, the affine parameters of instance and group norm), as the authors'
    released code does (github.com/VICO-UoE/DatasetCondensation, `distance_wb`).

    synthetic, real: one tensor per weight, with two or more dimensions. Returns a scalar.
    """
    terms = []
    for g_s, g_t in zip(synthetic, real, strict=True):
        a, b = g_s.flatten(1), g_t.flatten(1)
        norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
        terms.append((1 - (a * b).sum(1) / (norms + MIN_NORM_PRODUCT)).sum())
    return torch.stack(terms).sum()
