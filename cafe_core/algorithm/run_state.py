"""The state of a run at an iteration boundary, (S, momentum, iteration): where a rank's share of it comes from, and goes to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cafe_core.algorithm.checkpoint import Checkpoint, latest_checkpoint, read_checkpoint, save_checkpoint
from cafe_core.algorithm.sampling import choose, generator
from cafe_core.algorithm.selection import repeated
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.algorithm.sharding import class_shard
from cafe_core.algorithm.synthetic_shard import SyntheticShard
from cafe_core.errors import CheckpointError, NonFiniteLossError
from cafe_core.files import Fence, unfenced
from cafe_core.methods import select
from cafe_core.spec.method import BilevelMethod, MatchingMethod, MethodSpec


def start(
    rank: ShardContext, checkpoints: Path, report: Callable[..., None], fence: Fence = unfenced
) -> tuple[int, SyntheticShard]:
    """(iterations done, this rank's share of S): from the newest checkpoint, else from what the method starts with.

    A run without a checkpoint writes the initial one, so that there is always something to resume and to download.
    Raises CheckpointError when a checkpoint cannot be read or written, or has more iterations than the spec.
    """
    spec = rank.spec
    checkpoint = latest_checkpoint(checkpoints, spec) if rank.comm.rank == 0 else None
    # Rank 0 decides where all go on: a file system that is shared may show each machine another newest checkpoint.
    found = torch.tensor(0 if checkpoint is None else checkpoint.iteration + 1, device=rank.real.device)
    iteration = int(rank.comm.all_reduce(found)) - 1
    if iteration > spec.iterations:
        raise CheckpointError(f"iterations: {spec.iterations} are wanted, and {iteration} were done by an earlier run")
    if checkpoint is None and iteration >= 0:
        checkpoint = read_checkpoint(checkpoints, iteration, spec)
    if checkpoint is not None:
        own = slice(rank.classes.start * spec.ipc, rank.classes.stop * spec.ipc)
        images, momentum = (part[own].to(rank.real.device, rank.real.dtype) for part in (checkpoint.images, checkpoint.momentum))
        return checkpoint.iteration, SyntheticShard(rank.classes, spec.ipc, images, momentum)
    images = _initial_images(rank, report)
    shard = SyntheticShard(rank.classes, spec.ipc, images, torch.zeros_like(images))
    save(rank, checkpoints, fence, shard, 0)
    return 0, shard


def save(rank: ShardContext, checkpoints: Path, fence: Fence, shard: SyntheticShard, iteration: int) -> Path | None:
    """Gather S and its momentum on rank 0, which writes them; the path there, None elsewhere.

    Raises NonFiniteLossError, on every rank, where the last step has made them infinite: nothing is written then.
    """
    finite = shard.images.isfinite().all() & shard.momentum.isfinite().all()
    if rank.comm.all_reduce((~finite).long()):
        raise NonFiniteLossError(f"the synthetic images became infinite in iteration {iteration}; {advice(rank.spec.method)}")
    world = rank.comm.world
    sizes = [len(class_shard(rank.info.num_classes, other, world)) * shard.ipc for other in range(world)]
    images = rank.comm.gather_to_root(shard.images, sizes)
    momentum = rank.comm.gather_to_root(shard.momentum, sizes)
    if images is None or momentum is None:
        return None
    return save_checkpoint(checkpoints, Checkpoint(images, momentum, iteration), rank.spec, fence=fence)


def advice(method: MethodSpec) -> str:
    """What a user can do about numbers that are not finite."""
    fields = "method.image_lr or method.network_lr" if isinstance(method, BilevelMethod) else "method.image_lr"
    return f"the last checkpoint is intact. A smaller {fields} usually helps"


def _initial_images(rank: ShardContext, report: Callable[..., None]) -> Tensor:
    """S of iteration 0, (k·ipc, C, H, W): the method's choice of real images, or what its images are learnt from."""
    if not isinstance(rank.spec.method, MatchingMethod):
        chosen = select(rank, report)
        return torch.cat([rank.real.batch(k, indices) for k, indices in zip(rank.classes, chosen, strict=True)])
    return torch.cat([_first_draft(rank, k, rank.spec.method.init) for k in rank.classes])


def _first_draft(rank: ShardContext, k: int, init: str) -> Tensor:
    """(ipc, C, H, W): standard normal noise, or real images of class k, repeated where it has too few."""
    ipc, draws = rank.spec.ipc, generator(rank.spec.seed, "init", k)
    if init == "real":
        return rank.real.batch(k, repeated(choose(draws, rank.real.count(k), ipc), ipc))
    return torch.randn(ipc, *rank.info.shape, generator=draws).to(rank.real.device, rank.real.dtype)
