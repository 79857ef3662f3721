"""Build ResNets for small images: a 3×3 stem without pooling (He et al. 2016, section 4.2, with ResNet18's widths and blocks)."""

from __future__ import annotations

from torch import Tensor, nn

from cafe_core.networks.layers import Shape, make_activation, make_norm


class _BasicBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut, which is a 1×1 convolution if the shape changes."""

    def __init__(self, shape: Shape, width: int, stride: int, norm: str) -> None:
        super().__init__()
        self.shape = _strided(shape, width, stride)
        self.main = nn.Sequential(
            nn.Conv2d(shape[0], width, 3, stride, padding=1, bias=False),
            make_norm(norm, self.shape),
            make_activation("relu"),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            make_norm(norm, self.shape),
        )
        self.shortcut: nn.Module = nn.Identity()
        if self.shape != shape:
            self.shortcut = nn.Sequential(nn.Conv2d(shape[0], width, 1, stride, bias=False), make_norm(norm, self.shape))
        self.activation = make_activation("relu")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.main(x) + self.shortcut(x))
        return out


def resnet_stages(shape: Shape, norm: str, *, widths: list[int], blocks: int, padding: int) -> list[tuple[nn.Module, Shape]]:
    """Return one stage of `blocks` blocks per width. Maps: each stage's output, and the global average.

    Each stage except the first halves the sides if that leaves at least 2 (see `make_pooling` for the reason).
    """
    channels, height, across = shape
    grow = 2 * padding - 2
    shape = (widths[0], height + grow, across + grow)
    stem = nn.Sequential(
        nn.Conv2d(channels, widths[0], 3, padding=padding, bias=False), make_norm(norm, shape), make_activation("relu")
    )
    stages: list[tuple[nn.Module, Shape]] = []
    for index, width in enumerate(widths):
        layers: list[nn.Module] = [stem] if index == 0 else []
        stride = 2 if index > 0 and min(_strided(shape, width, 2)[1:]) >= 2 else 1
        for _ in range(blocks):
            block = _BasicBlock(shape, width, stride, norm)
            layers.append(block)
            shape, stride = block.shape, 1
        stages.append((nn.Sequential(*layers), shape))
    return [*stages, (nn.AdaptiveAvgPool2d(1), (widths[-1], 1, 1))]


def _strided(shape: Shape, width: int, stride: int) -> Shape:
    """Return the shape after a padded 3×3 convolution of `width` channels: sides are divided by `stride`, rounding up."""
    _, height, across = shape
    return width, (height - 1) // stride + 1, (across - 1) // stride + 1
