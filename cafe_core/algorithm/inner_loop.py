"""Train the network on S for one epoch, and measure its accuracy on a query set: the steps of the inner loop.

Training is data-parallel over class shards; the images of S are never sent. All ranks iterate over one global permutation of S,
and each rank processes the images of a minibatch that it owns. The reduced gradient, and so θ, is the same on all ranks.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cafe_core.algorithm.augment import Draws, apply
from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.model import Model
from cafe_core.algorithm.real_images import BatchIndices, RealImages
from cafe_core.algorithm.synthetic_shard import SyntheticShard
from cafe_core.algorithm.transfer import send


def train_epoch(
    network: Model, shard: SyntheticShard, comm: Comm, permutation: Tensor, *, batch: int, lr: float, draws: Draws | None
) -> None:
    """Train for one epoch with plain SGD and cross-entropy on S; update the network's parameters in place.

    permutation: (K·ipc,) of all synthetic images, the same on every rank. draws: one augmentation per image of S,
    in the order of the permutation, or None.
    """
    parameters: list[Tensor] = list(network.parameters())
    first_row = shard.classes[0] * shard.ipc
    for start in range(0, len(permutation), batch):
        members = permutation[start : start + batch]
        mine = (members >= first_row) & (members < first_row + len(shard.images))
        rows = members[mine]
        gradients: Sequence[Tensor]  # the sum over this rank's images, divided by the batch size B of all ranks
        if len(rows):
            images = shard.images[send(rows - first_row, shard.images.device)]
            if draws is not None:
                images = apply(images, draws[torch.arange(start, start + len(members))[mine]])
            loss = F.cross_entropy(network(images), send(rows // shard.ipc, images.device), reduction="sum")
            gradients = torch.autograd.grad(loss / len(members), parameters)
        else:
            gradients = [torch.zeros_like(parameter) for parameter in parameters]
        with torch.no_grad():
            torch._foreach_add_(parameters, comm.all_reduce_all(gradients), alpha=-lr)  # on a GPU, one kernel


@torch.no_grad()
def query_accuracy(network: Model, real: RealImages, comm: Comm, rows: BatchIndices, total: int, images_per_chunk: int) -> float:
    """Return the accuracy (0 … 1) on the query images of all ranks, of which there are `total`; a worker sends one integer."""
    hits = [(network(chunk.images).argmax(1) == chunk.labels()).sum() for chunk in real.chunks(rows, images_per_chunk)]
    return int(comm.all_reduce(functools.reduce(torch.add, hits))) / total
