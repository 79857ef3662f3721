"""Combine M networks of one kind into a single network of M groups, which a GPU trains at once.

    M   networks     b   images of a minibatch     C, H, W   of a map     D   width of a dense layer     K   classes

Small networks on a few images leave a GPU idle, because launching their kernels takes longer than running them. In an ensemble
one kernel does the work of M. Maps are (b, M·C, H, W) with network m in channels m·C … (m+1)·C, and no layer mixes the groups:

* convolutions are grouped; instance, group and batch norm, pooling and activations work per channel or group of channels. Each
  is torch's own layer with the concatenated parameters of the M networks;
* layer norm is over the (C, H, W) of one network; dense layers are one batched matrix product.

So ∂(Σ_m L_m)/∂θ_m = ∂L_m/∂θ_m, and SGD with momentum and weight decay, which is elementwise, updates each network as if it
were trained separately. A network that diverges does not affect the others.

`torch.func.vmap` over `functional_call` uses the same grouped convolution, but moves the networks' axis before and after each
operation, which copies every map, and dispatches each operation through several function transforms. Unfolding into one batched
product would write copies nine times the size of a map. If one network's minibatch fills the GPU, an ensemble saves nothing, and
grouped convolutions can be slower than separate ones (github.com/pytorch/pytorch/issues/73764), so `run.py` limits the size.

On a CPU an ensemble is slower than training one network after the other. On an H100, 20 ConvNet-3 together are about 13 times
faster at ipc 1, 2.6 times at ipc 10 and 1.8 times at ipc 50, and faster than with vmap everywhere (docs/results.md).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cafe_core.networks import FeatureNetwork
from cafe_core.networks.layers import InstanceNorm


class Ensemble(nn.Module):
    """Networks of one kind that are trained or tested together. An ensemble of one uses that network unchanged."""

    def __init__(self, networks: Sequence[FeatureNetwork]) -> None:
        """The networks must have the same architecture and be in the same mode (training or evaluation)."""
        super().__init__()
        self.size = len(networks)
        """M"""
        self.grouped: nn.Module = networks[0] if self.size == 1 else _grouped(networks)

    def forward(self, images: Tensor) -> Tensor:
        """Return each network's logits on its own images: (M, b, C, H, W) → (M, b, K)."""
        if self.size == 1:
            logits: Tensor = self.grouped(images[0])[None]
            return logits
        side_by_side = images.transpose(0, 1).flatten(1, 2)  # (b, M·C, H, W)
        logits = self.grouped(side_by_side)  # (b, M·K)
        return torch.unflatten(logits, 1, (self.size, -1)).transpose(0, 1)


def _grouped(modules: Sequence[nn.Module]) -> nn.Module:
    """Return a module that applies each of the M `modules` to its own group of channels."""
    first, M = modules[0], len(modules)
    grouped: nn.Module
    match first:
        case nn.Conv2d():
            grouped = nn.Conv2d(
                M * first.in_channels,
                M * first.out_channels,
                first.kernel_size,  # type: ignore[arg-type]
                stride=first.stride,  # type: ignore[arg-type]
                padding=first.padding,  # type: ignore[arg-type]
                groups=M,
                bias=first.bias is not None,
            )
        case InstanceNorm():
            grouped = InstanceNorm(M * len(first.weight))
        case nn.GroupNorm():
            grouped = nn.GroupNorm(M * first.num_groups, M * first.num_channels, first.eps)
        case nn.BatchNorm2d():
            grouped = nn.BatchNorm2d(M * first.num_features, first.eps, first.momentum)
        case nn.LayerNorm():
            grouped = _GroupedLayerNorm(M, first)
        case nn.Linear():
            grouped = _GroupedLinear(M, first)
        case nn.Unflatten():
            width, *rest = first.unflattened_size
            return nn.Unflatten(1, (M * int(width), *rest))
        case _:
            return _container(modules)
    return _with_state(grouped, modules)


def _container(modules: Sequence[nn.Module]) -> nn.Module:
    """Copy a module that has no parameters itself, with its children grouped."""
    first = modules[0]
    own = [name for name, _ in (*first.named_parameters(recurse=False), *first.named_buffers(recurse=False))]
    assert not own, f"{type(first).__name__} has {own}, but there is no rule to group it"
    grouped = copy.copy(first)
    grouped._modules = {}
    for name, _ in first.named_children():
        grouped.add_module(name, _grouped([module.get_submodule(name) for module in modules]))
    return grouped


def _with_state(grouped: nn.Module, modules: Sequence[nn.Module]) -> nn.Module:
    """Copy the concatenated parameters and buffers of the M `modules`, and their mode, to `grouped`."""
    first = modules[0]
    grouped.to(next(first.parameters()))
    states = [module.state_dict() for module in modules]
    for name, value in grouped.state_dict().items():
        if value.ndim > 0:  # skip batch norm's count of batches, which is shared
            value.copy_(torch.cat([state[name] for state in states]).view_as(value))
    return grouped.train(first.training)


class _GroupedLayerNorm(nn.Module):
    """Apply nn.LayerNorm((C, H, W)) to each of M groups of channels."""

    def __init__(self, size: int, single: nn.LayerNorm) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, *single.normalized_shape))  # (M, C, H, W)
        self.bias = nn.Parameter(torch.zeros(size, *single.normalized_shape))
        self._eps = single.eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the map of each network: (b, M·C, H, W) → the same shape."""
        groups = torch.unflatten(x, 1, self.weight.shape[:2])  # (b, M, C, H, W)
        return (F.layer_norm(groups, self.weight.shape[1:], eps=self._eps) * self.weight + self.bias).flatten(1, 2)


class _GroupedLinear(nn.Module):
    """Apply nn.Linear to each of M groups of features."""

    def __init__(self, size: int, single: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, single.out_features, single.in_features))
        self.bias = nn.Parameter(torch.empty(size, single.out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer of each network: (b, M·inputs) → (b, M·outputs)."""
        groups = torch.unflatten(x, 1, (len(self.weight), -1)).transpose(0, 1)  # (M, b, inputs)
        return torch.baddbmm(self.bias[:, None], groups, self.weight.mT).transpose(0, 1).flatten(1)
