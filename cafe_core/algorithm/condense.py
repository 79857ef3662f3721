"""Condense a labelled image set into ipc synthetic images per class: Algorithm 1 of CAFE (Wang et al., CVPR 2022).

Every method that learns images runs in this loop, in the paper's order and words. Methods differ only in their
:class:`cafe_core.algorithm.method.LearningMethod`. DC uses CAFE's loops without the stop rules; DM takes one step per iteration.
A method that chooses real images has made its choice when :func:`cafe_core.algorithm.run_state.start` returns.

Every worker of a gang calls :func:`condense` with the same spec. Worker r owns the classes 𝒦_r, holds only their images, and
communicates with the others in its method's `gradient` and in the inner loop.

    S   synthetic images     θ  network     γ  length of the queues     λ1, λ2  thresholds of the outer and the inner loop
"""

from __future__ import annotations

from pathlib import Path

import torch

from cafe_core.algorithm.artifact_cache import ArtifactCache
from cafe_core.algorithm.bilevel import Loop
from cafe_core.algorithm.checkpoint import Checkpoints
from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.extension import Extension
from cafe_core.algorithm.gpu_memory import CONDENSATION_ADVICE, explain_out_of_memory
from cafe_core.algorithm.method import LearningMethod, Report, ignore_events, make_method
from cafe_core.algorithm.model import Budget
from cafe_core.algorithm.network_steps import Queries, update_network
from cafe_core.algorithm.precision import in_precision_of_spec
from cafe_core.algorithm.progress import Progress
from cafe_core.algorithm.run_state import save, start
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.algorithm.synthetic_shard import SyntheticShard
from cafe_core.data.class_store import ClassStore
from cafe_core.spec.condense import CondenseSpec


@in_precision_of_spec
@explain_out_of_memory(CONDENSATION_ADVICE)
def condense(
    spec: CondenseSpec,
    store: ClassStore,
    comm: Comm,
    device: torch.device,
    *,
    checkpoints: Checkpoints,
    report: Report,
    budget: Budget | None = None,
    until: int | None = None,
    cache: Path | None = None,
    extension: Extension | None = None,
) -> SyntheticShard:
    """Run the iterations that follow the newest checkpoint, and return this worker's part of S.

    spec: resolved. until: stop after that many iterations (default: the spec's); continuing later gives the same images.
    cache: a directory for artifacts that the method makes before the loop, shared by all workers. extension: learn only some
    classes; the method must not couple classes, and checkpoints hold the images of all classes.

    Rank 0 writes checkpoints, including one after the last iteration, and reports `step`, `iteration` and `checkpoint` events.
    Raises NonFiniteLossError if a loss is not finite, CheckpointError if a checkpoint cannot be read or written, and
    GpuOutOfMemoryError on the worker whose GPU is full. Call it again with a smaller budget to continue from the last checkpoint.
    """
    assert extension is None or spec.method.can_be_extended
    budget = budget or Budget.of(device, spec.resources.gpus_per_worker)
    context = ShardContext.of(spec, store, comm, device, budget, extension)
    report = report if comm.rank == 0 else ignore_events
    method = make_method(context)
    first, shard = start(context, method, checkpoints, report)
    last = spec.iterations if until is None else min(until, spec.iterations)
    if first >= last:
        return shard

    assert isinstance(method, LearningMethod)
    method.prepare(ArtifactCache(None if cache is None else cache / context.dataset_key, comm, device), report)
    loops = method.loops
    progress = Progress(report, done=first, total=spec.iterations, real_images_per_step=method.real_images_per_step())
    for iteration in range(first, last):
        method.renew_network(iteration)  # θ ← fresh random network
        queries = Queries(context, loops, iteration)
        outer_loop = Loop(loops.max_outer, loops.window, loops.lambda_1, "converged")
        inner_loops = []
        for outer in outer_loop:
            losses = method.update_images(shard, iteration, outer)  # S ← S − step on L (Eq. 5)
            if outer_loop.ends_after(queries.after_outer_step(outer)):
                break  # the network is replaced next, so training it further would have no effect
            inner_loop = Loop(loops.max_inner, loops.window, loops.lambda_2, "moved")
            progress.step_done(outer_loop, inner_loop, queries)
            for inner in inner_loop:
                update_network(context, shard, iteration, outer, inner)  # θ ← one epoch of SGD on S (Eq. 6)
                inner_loop.ends_after(queries.after_inner_epoch(outer, inner))
                progress.step_done(outer_loop, inner_loop, queries)
            inner_loops.append(inner_loop)

        done = iteration + 1
        progress.iteration_done(done, losses, outer_loop, inner_loops, queries)
        if done % spec.checkpoint_every == 0 or done == last:
            path = save(context, method, checkpoints, shard, done)
            if path is not None:
                report("checkpoint", iteration=done, file=path.name)
    return shard
