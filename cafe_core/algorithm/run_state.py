"""Start or resume a run, and save it. Each worker holds its own classes; a checkpoint holds all classes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cafe_core.algorithm.checkpoint import Checkpoint, Checkpoints
from cafe_core.algorithm.method import Method, MethodState, Report, divergence_advice
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.algorithm.sharding import class_shard
from cafe_core.algorithm.synthetic_shard import SyntheticShard
from cafe_core.errors import CheckpointError, NonFiniteLossError


def start(context: ShardContext, method: Method, checkpoints: Checkpoints, report: Report) -> tuple[int, SyntheticShard]:
    """Return (iterations done, this worker's part of S), from the newest checkpoint or else from the method's initial images.

    A run without a checkpoint writes the initial one, so that there is always a checkpoint to resume from and to download.
    Raises CheckpointError if a checkpoint cannot be read or written, or has more iterations than the spec.
    """
    spec, real = context.spec, context.real
    checkpoint = checkpoints.latest(spec) if context.comm.rank == 0 else None
    # Rank 0 decides for all ranks, because a shared file system may show a different newest checkpoint on each machine.
    found = torch.tensor(0 if checkpoint is None else checkpoint.iteration + 1, device=real.device)
    iteration = int(context.comm.all_reduce(found)) - 1
    if iteration > spec.iterations:
        raise CheckpointError(
            f"iterations: an earlier run completed {iteration} iterations, more than the {spec.iterations} of the spec"
        )
    if checkpoint is None and iteration >= 0:
        checkpoint = checkpoints.read(iteration, spec)
    if checkpoint is not None:
        images, momentum = (_own_rows(context, part).to(real.dtype) for part in (checkpoint.images, checkpoint.momentum))
        per_class = {name: _own_rows(context, part) for name, part in checkpoint.per_class.items()}
        shared = {name: part.to(real.device) for name, part in checkpoint.shared.items()}
        method.load_state(MethodState(per_class, shared))
        return checkpoint.iteration, SyntheticShard(context.classes, spec.ipc, images, momentum)
    images = method.initial_images(report)
    shard = SyntheticShard(context.classes, spec.ipc, images, torch.zeros_like(images))
    save(context, method, checkpoints, shard, 0)
    return 0, shard


def save(context: ShardContext, method: Method, checkpoints: Checkpoints, shard: SyntheticShard, iteration: int) -> Path | None:
    """Gather S, its momentum and the method's state on rank 0, which writes a checkpoint. Return its path there, else None.

    Raises NonFiniteLossError on every worker, and writes nothing, if the last step made S or its momentum infinite.
    """
    finite = shard.images.isfinite().all() & shard.momentum.isfinite().all()
    if context.comm.all_reduce((~finite).long()):
        advice = divergence_advice(context.spec.method)
        raise NonFiniteLossError(f"the synthetic images became infinite in iteration {iteration}; {advice}")
    state = method.state()
    images = _gather(context, shard.images)
    momentum = _gather(context, shard.momentum)
    per_class = {name: _gather(context, part) for name, part in sorted(state.per_class.items())}
    if images is None or momentum is None:
        return None
    gathered = {name: part for name, part in per_class.items() if part is not None}
    if (extension := context.extension) is not None:
        K = context.info.num_classes
        images, momentum = extension.with_kept_images(images), extension.with_zeros(momentum, K)
        gathered = {name: extension.with_zeros(part, K) for name, part in gathered.items()}
    return checkpoints.save(Checkpoint(images, momentum, iteration, gathered, state.shared), context.spec)


def _own_rows(context: ShardContext, of_all: Tensor) -> Tensor:
    """Return the rows of the own classes of (K·m, …), on the device: (k·m, …)."""
    by_class = torch.unflatten(of_all, 0, (context.info.num_classes, -1))
    own = context.classes
    rows = by_class[own.start : own.stop] if isinstance(own, range) else by_class[list(own)]  # a range needs no copy
    return rows.flatten(0, 1).to(context.real.device)


def _gather(context: ShardContext, own: Tensor) -> Tensor | None:
    """Return the rows of all workers, (k·m, …) each, on rank 0, (|learned|·m, …); None elsewhere."""
    learned, world = len(context.learned), context.comm.world
    per_class = len(own) // len(context.classes)
    return context.comm.gather_to_root(own, [len(class_shard(learned, rank, world)) * per_class for rank in range(world)])
