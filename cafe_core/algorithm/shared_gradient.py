"""The gradient of a network that all ranks train together, as one buffer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def shared_gradient(parameters: Sequence[nn.Parameter]) -> Tensor:
    """A flat buffer of zeros, of which every parameter's gradient is made a view.

    What backward adds up is then reduced by one collective, and an optimizer steps on what came back. Of a minibatch of B images
    ∇J = (1/B) Σ_{i∈batch} ∇CE_i = Σ_r (1/B) Σ_{i∈batch∩r} ∇CE_i: each rank adds up its own images, divided by the *global* B; one
    that owns none of them contributes zeros.
    """
    flat = torch.zeros(sum(p.numel() for p in parameters), dtype=parameters[0].dtype, device=parameters[0].device)
    for parameter, part in zip(parameters, flat.split_with_sizes([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
    return flat
