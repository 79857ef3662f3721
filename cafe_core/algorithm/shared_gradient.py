"""Keep the gradient of a jointly trained network in one buffer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def shared_gradient(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return a flat buffer of zeros and make every parameter's gradient a view of it.

    Backward passes accumulate in the buffer, one collective reduces it, and the optimizer uses the result. For a minibatch of B
    images ∇J = (1/B) Σ_{i∈batch} ∇CE_i = Σ_r (1/B) Σ_{i∈batch∩r} ∇CE_i: each rank sums over its own images and divides by the
    *global* B; a rank without images in the batch contributes zeros.
    """
    flat = torch.zeros(sum(p.numel() for p in parameters), dtype=parameters[0].dtype, device=parameters[0].device)
    for parameter, part in zip(parameters, flat.split_with_sizes([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
    return flat
