"""M networks of one kind as a single network of M groups, so that a GPU trains them all at once.

    M   networks     b   images of a minibatch     C, H, W   of a map     D   width of a dense layer     K   classes

Small networks on a few images leave a GPU idle: launching their kernels takes longer than running them. Side by side, one
kernel does the work of M. Maps are (b, M·C, H, W), network m in channels m·C … (m+1)·C, and every layer keeps the groups apart:

* convolutions are grouped ones, instance, group and batch norm are per channel or per group of channels anyway, pooling and
  activations are per channel: each is torch's own layer, with the M networks' parameters one after the other;
* layer norm is over the (C, H, W) of one network; dense layers are one batched matrix product.

So ∂(Σ_m L_m)/∂θ_m = ∂L_m/∂θ_m, and SGD with momentum and weight decay, which is elementwise, treats each network as if it
were alone; a network that diverges leaves the others as they are.

Why not `torch.func.vmap` over `functional_call`: its rule for convolutions is the same grouped convolution, but it moves the
networks' axis before and after each operation, which copies every map, and dispatches each operation through several layers of
function transforms. Why grouped convolutions and not unfolding into one batched product: they write no unfolded copies, nine
times the size of a map, and cuDNN may use TF32 for them, as it does for a network alone. Where a network's own minibatch fills
the GPU there is nothing to gain, and grouped convolutions can be slower than separate ones
(github.com/pytorch/pytorch/issues/73764): `run.py` bounds what is trained at once.

On a CPU an ensemble is slower than its networks one after the other. What it gains on a GPU has not been measured yet:
`tests/benchmarks/ensemble.py` measures it, and vmap, where there is one.
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
    """Networks of one kind, trained or tested together. Of a single one, it is that network itself."""

    def __init__(self, networks: Sequence[FeatureNetwork]) -> None:
        """The networks differ in the values of their parameters only, and are in one mode (training or evaluation)."""
        super().__init__()
        self.size = len(networks)
        """M"""
        self.grouped: nn.Module = networks[0] if self.size == 1 else _grouped(networks)

    def forward(self, images: Tensor) -> Tensor:
        """Each network's logits on its own images: (M, b, C, H, W) → (M, b, K)."""
        if self.size == 1:
            logits: Tensor = self.grouped(images[0])[None]
            return logits
        side_by_side = images.transpose(0, 1).flatten(1, 2)  # (b, M·C, H, W)
        logits = self.grouped(side_by_side)  # (b, M·K)
        return torch.unflatten(logits, 1, (self.size, -1)).transpose(0, 1)


def _grouped(modules: Sequence[nn.Module]) -> nn.Module:
    """The module that does to M groups of channels what `modules` do to their own maps."""
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
    """A module that has no parameters of its own: the same with its parts grouped."""
    first = modules[0]
    own = [name for name, _ in (*first.named_parameters(recurse=False), *first.named_buffers(recurse=False))]
    assert not own, f"{type(first).__name__} has {own}, and no rule says how to group it"
    grouped = copy.copy(first)
    grouped._modules = {}
    for name, _ in first.named_children():
        grouped.add_module(name, _grouped([module.get_submodule(name) for module in modules]))
    return grouped


def _with_state(grouped: nn.Module, modules: Sequence[nn.Module]) -> nn.Module:
    """`grouped` with the parameters and buffers of the M `modules`, one after the other, and in their mode."""
    first = modules[0]
    grouped.to(next(first.parameters()))
    states = [module.state_dict() for module in modules]
    for name, value in grouped.state_dict().items():
        if value.ndim > 0:  # not batch norm's count of batches, which all share
            value.copy_(torch.cat([state[name] for state in states]).view_as(value))
    return grouped.train(first.training)


class _GroupedLayerNorm(nn.Module):
    """nn.LayerNorm((C, H, W)) of each of M groups of channels."""

    def __init__(self, size: int, alone: nn.LayerNorm) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, *alone.normalized_shape))  # (M, C, H, W)
        self.bias = nn.Parameter(torch.zeros(size, *alone.normalized_shape))
        self._eps = alone.eps

    def forward(self, x: Tensor) -> Tensor:
        """(b, M·C, H, W) → the same shape."""
        groups = torch.unflatten(x, 1, self.weight.shape[:2])  # (b, M, C, H, W)
        return (F.layer_norm(groups, self.weight.shape[1:], eps=self._eps) * self.weight + self.bias).flatten(1, 2)


class _GroupedLinear(nn.Module):
    """nn.Linear of each of M groups of features."""

    def __init__(self, size: int, alone: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, alone.out_features, alone.in_features))
        self.bias = nn.Parameter(torch.empty(size, alone.out_features))

    def forward(self, x: Tensor) -> Tensor:
        """(b, M·inputs) → (b, M·outputs)."""
        groups = torch.unflatten(x, 1, (len(self.weight), -1)).transpose(0, 1)  # (M, b, inputs)
        return torch.baddbmm(self.bias[:, None], groups, self.weight.mT).transpose(0, 1).flatten(1)
