"""Compute the gradient of L = L_f + β L_d in this shard's synthetic images, for an outer step of CAFE, or of DM with L_f only.

The sharded form is exact. L_f is a sum over classes, so it is local. L_d couples all classes, but only through the
centres C: ∂L_d/∂S_k = (∂c_k/∂S_k)ᵀ G_k with G = ∂L_d/∂C = Σ_r G_r, and G_r needs only rank r's real images. So a step
communicates C and G, K·D numbers each (and two for the losses), independently of N, ipc and the image size.

No graph is built through the real images or to the network's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cafe_core.algorithm import losses
from cafe_core.algorithm.augment import Draws, apply
from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.real_images import BatchIndices, RealImages
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.algorithm.synthetic_shard import SyntheticShard
from cafe_core.algorithm.transfer import send

FeatureMaps = Callable[[Tensor], Iterable[Tensor]]
"""images (n, C, H, W) → the aligned maps and, last, the map that gives the centres: each (n, C, H, W)."""


@dataclass(frozen=True)
class StepLosses:
    """The losses of one outer step over all classes before the update, as scalars on the device."""

    feature: Tensor
    discrimination: Tensor


@dataclass(frozen=True)
class OuterStep:
    """The gradient computation of an outer step, with everything that is constant during a run.

    images_per_chunk: real images per forward pass. classes_per_chunk: classes whose synthetic images form one forward pass.
    keep_graph: whether there is memory for the graphs of all these chunks.
    """

    features: FeatureMaps
    weights: Sequence[float]
    """w_l of each aligned map."""
    beta: float | None
    """β; None: without discrimination."""
    real: RealImages
    comm: Comm
    num_classes: int
    images_per_chunk: int
    classes_per_chunk: int
    keep_graph: bool

    @classmethod
    def of(
        cls,
        context: ShardContext,
        layers: Sequence[int],
        weights: Sequence[float],
        beta: float | None,
        *,
        ipc: int | None = None,
        comm: Comm | None = None,
    ) -> OuterStep:
        """Return the step of a rank.

        layers: indices of the aligned maps. ipc: images per class of the shards (default: the spec's). comm: default: the gang's;
        without discrimination, `Comm.single()` gives the losses of the rank alone and communicates nothing.
        """
        model, ipc = context.model, ipc or context.spec.ipc
        last = len(model.network.map_shapes) - 1
        maps = [*layers, last] if beta is not None and last not in layers else list(layers)  # the last one, for the centres
        return cls(
            partial(model.features, layers=maps),
            weights,
            beta,
            context.real,
            comm or context.comm,
            context.info.num_classes,
            context.images_per_chunk,
            context.budget.classes_per_chunk(model, ipc),
            context.budget.keeps_graph(model, ipc, len(context.classes)),
        )

    def gradient(self, shard: SyntheticShard, rows: BatchIndices, total: int, draws: Draws | None) -> tuple[Tensor, StepLosses]:
        """Return ∂L/∂S of this shard, (k·ipc, C, H, W), and the losses over all shards.

        rows: the real images T_k of the shard's classes. total: N', real images of all classes and ranks (for L_d).
        draws: one augmentation per class of the shard, shared by its real and synthetic images.

        If the shard's synthetic graphs exceed the memory budget, each is recomputed when needed instead of being kept.
        The result is the same.
        """
        comm, ipc = self.comm, shard.ipc
        images = shard.images.detach().requires_grad_()
        classes, size = len(shard.classes), self.classes_per_chunk
        chunks = [range(first, min(first + size, classes)) for first in range(0, classes, size)]

        def make_means(chunk: range) -> list[Tensor]:  # f̄ˢ: (k, C, H, W) per map
            mine = images[chunk.start * ipc : chunk.stop * ipc]
            if draws is not None:
                mine = apply(mine, draws[torch.arange(chunk.start, chunk.stop).repeat_interleave(ipc)])
            return [_class_means(m, ipc, images.dtype) for m in self.features(mine)]

        # Without discrimination each chunk is needed only once: its graph is freed after the backward pass.
        kept = {chunk: make_means(chunk) for chunk in chunks} if self.keep_graph and self.beta is not None else {}

        def synthetic_means(chunk: range) -> list[Tensor]:
            return kept[chunk] if chunk in kept else make_means(chunk)

        # 1. Gather the class centres of all ranks.
        centres = None
        if self.beta is not None:
            with torch.no_grad():
                own = torch.cat([synthetic_means(chunk)[-1].flatten(1) for chunk in chunks])
            centres = comm.gather_rows(own.detach(), shard.classes[0], self.num_classes)  # C: (K, D)

        # 2. Compute the real statistics and the local terms: L_f, and this rank's share of L_d and of G = ∂L_d/∂C.
        feature_loss: Tensor | None = None
        discrimination_loss: Tensor | None = None
        G: Tensor | None = None
        alignments: dict[range, list[Tensor]] = {}  # ∂L_f/∂f̄ˢ
        for chunk in chunks:
            chunk_rows = BatchIndices(rows.classes[chunk.start : chunk.stop], rows.indices[chunk.start : chunk.stop])
            real_means, loss, share = self._real_statistics(chunk_rows, chunk.start, centres, total, draws)
            aligned = synthetic_means(chunk)[: len(self.weights)]
            alignment, gradients = losses.feature_alignment([m.detach() for m in aligned], real_means, self.weights)
            if chunk in kept:
                alignments[chunk] = gradients  # one backward pass through the kept graph, with both terms
            else:
                torch.autograd.backward(aligned, gradients)
            feature_loss = _add(feature_loss, alignment)
            if loss is not None and share is not None:
                discrimination_loss, G = _add(discrimination_loss, loss), _add(G, share)

        # 3. Reduce the gradient of the centres and backpropagate it into the images: ∂L_d/∂S = Σ_k (∂c_k/∂S)ᵀ G_k, with G
        # constant. c_k depends only on class k's images, so a worker needs only the rows of G of its own classes.
        if G is not None and self.beta is not None:
            own_G = comm.all_reduce(G)[shard.classes[0] : shard.classes[-1] + 1]  # own rows of Σ_r G_r: (k, D)
            for chunk in chunks:
                means, gradients = synthetic_means(chunk), alignments.pop(chunk, [])
                gradient_of_last = self.beta * own_G[chunk.start : chunk.stop].view_as(means[-1])
                if len(gradients) == len(means):  # the last map is aligned, too
                    gradient_of_last += gradients.pop()
                torch.autograd.backward([*means[: len(gradients)], means[-1]], [*gradients, gradient_of_last])
                kept.pop(chunk, None)

        assert images.grad is not None
        assert feature_loss is not None
        if discrimination_loss is None:
            discrimination_loss = torch.zeros_like(feature_loss)
        return images.grad, StepLosses(*comm.all_reduce(torch.stack([feature_loss, discrimination_loss])).unbind())

    @torch.no_grad()
    def _real_statistics(
        self, rows: BatchIndices, first: int, centres: Tensor | None, total: int, draws: Draws | None
    ) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
        """Return f̄ᵀ of each aligned map, (k, C, H, W), and this batch's share of L_d and of G; in chunks, without a graph.

        Sums start from the first chunk instead of zeros, which saves kernels.

        first: position in the shard of the first class in `rows`.
        """
        position = {k: j for j, k in enumerate(rows.classes)}
        counts = [len(indices) for indices in rows.indices]
        sums: list[Tensor] = []
        loss: Tensor | None = None
        gradient: Tensor | None = None
        for chunk in self.real.chunks(rows, self.images_per_chunk):
            sizes = [n for _, n in chunk.segments]
            images = chunk.images
            if draws is not None:
                in_shard = torch.tensor([first + position[k] for k, _ in chunk.segments])
                images = apply(images, draws[in_shard.repeat_interleave(torch.tensor(sizes))])
            # The chunks keep the order of the classes, so their sums are added to consecutive rows.
            places = range(position[chunk.segments[0][0]], position[chunk.segments[-1][0]] + 1)
            last = images
            for layer, last in enumerate(self.features(images)):
                if layer == len(self.weights):
                    break  # not aligned, needed only for the centres
                share = _segment_sums(last, sizes, self.real.dtype)
                if layer < len(sums):
                    sums[layer][places.start : places.stop] += share
                elif len(share) == len(counts):
                    sums.append(share)
                else:
                    sums.append(share.new_zeros(len(counts), *share.shape[1:]))
                    sums[layer][places.start : places.stop] = share
            if centres is not None:
                F = last.flatten(1).to(self.real.dtype)  # (n, D)
                chunk_loss, chunk_gradient = losses.discrimination(F, chunk.labels(), centres, total)
                loss, gradient = _add(loss, chunk_loss), _add(gradient, chunk_gradient)
        count = send(torch.tensor(counts, dtype=self.real.dtype), self.real.device).view(-1, 1, 1, 1)
        return [s / count for s in sums], loss, gradient


def _add(total: Tensor | None, share: Tensor) -> Tensor:
    """Add `share` to the total in place; without a total, return `share` itself."""
    return share if total is None else total.add_(share)


def _class_means(m: Tensor, ipc: int, dtype: torch.dtype) -> Tensor:
    """Return the means of ipc consecutive images each: (k·ipc, C, H, W) → (k, C, H, W)."""
    if m.is_cuda:  # one kernel forward and one backward
        return torch.unflatten(m, 0, (-1, ipc)).mean(1, dtype=dtype)
    return _segment_sums(m, [ipc] * (len(m) // ipc), dtype) / ipc


def _segment_sums(m: Tensor, sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Sum consecutive images: (n, C, H, W) → (len(sizes), C, H, W).

    On GPUs one kernel sums all classes if they have the same size. On CPUs sums follow the memory order of a channels-last map;
    summing over its first dimension directly is ten times slower there.
    """
    if m.is_cuda and len(set(sizes)) == 1:
        return torch.unflatten(m, 0, (len(sizes), sizes[0])).sum(1, dtype=dtype)
    rows = m.permute(0, 2, 3, 1)
    return torch.stack([segment.sum(0, dtype=dtype) for segment in rows.split_with_sizes(list(sizes))]).permute(0, 3, 1, 2)
