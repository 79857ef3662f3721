"""Define a stage of convolutions, the last of which can share a GPU kernel with the pooling of the next stage."""

from __future__ import annotations

from torch import Tensor, nn

from cafe_core.networks import fused
from cafe_core.networks.layers import InstanceNorm


class ConvStage(nn.Sequential):
    """Pooling, then one or more times (convolution, normalisation, activation). The map is the last activation."""

    def map_and_pooled(
        self, x: Tensor | None, pooled: Tensor | None, *, keep: bool, pool: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the map, and the map after 2×2 average pooling, with few GPU kernels.

        x: the stage's input. pooled: x after this stage's pooling, if it was computed before; x is then not used. Without `keep`,
        the map may be None. Without `pool`, and where the fused kernel cannot be used, the pooled map is None.
        """
        pooling, *layers, norm, activation = self
        z = pooling(x) if pooled is None else pooled
        for layer in layers:
            z = layer(z)
        if isinstance(norm, InstanceNorm) and isinstance(activation, nn.ReLU) and fused.usable(z, keep=keep, pool=pool):
            return fused.norm_relu_pool(z, norm.weight, norm.bias, keep=keep, pool=pool)
        return activation(norm(z)), None
