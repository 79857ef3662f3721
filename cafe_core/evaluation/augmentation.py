"""Provide one interface for all augmentations of an evaluation, and number their random draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cafe_core.algorithm import augment as differentiable
from cafe_core.algorithm.sampling import generator
from cafe_core.evaluation.images import Images
from cafe_core.spec.evaluation import Augmentation

Batch = Callable[[Tensor, Tensor], Tensor]
"""batch(rows, drawn) returns images `rows` (r,), each augmented by the epoch's draw `drawn` (r,): (r, C, H, W), normalised."""


def augmented_epoch(
    augment: Augmentation, images: Images, seeds: Sequence[int], epoch: int, count: int, is_digits: bool
) -> Batch:
    """Return the function that loads minibatches in `epoch`, for the networks of `seeds` with `count` images each.

    The draw for image i of network m has number m·count + i and depends only on (seeds[m], epoch, i).
    """
    if augment == "none":
        return lambda rows, _: images.normalised(rows)

    def uniforms(columns: int) -> Tensor:  # (M·count, columns)
        generators = [generator(seed, "evaluation augmentation", epoch) for seed in seeds]
        return torch.cat([torch.rand(count, columns, dtype=torch.float64, generator=g) for g in generators])

    if augment in differentiable.STRATEGIES:
        u = uniforms(differentiable.UNIFORMS)

        def batch(rows: Tensor, drawn: Tensor) -> Tensor:
            draws = differentiable.from_uniforms(augment, u[drawn], images.shape, is_digits)
            return differentiable.apply(images.normalised(rows), draws)

        return batch

    from cafe_core.evaluation import pixel_augment  # importing torchvision takes a second

    u = uniforms(pixel_augment.UNIFORMS)
    return lambda rows, drawn: pixel_augment.augmented(augment, images, rows, u[drawn], is_digits)
