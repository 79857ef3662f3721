"""Prepare the run of a method up to its first outer step."""

from __future__ import annotations

from pathlib import Path

import torch

from cafe_core.algorithm.artifact_cache import ArtifactCache
from cafe_core.algorithm.checkpoint import Checkpoints
from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.method import LearningMethod, ignore_events, make_method
from cafe_core.algorithm.model import Budget
from cafe_core.algorithm.run_state import start
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.algorithm.synthetic_shard import SyntheticShard
from cafe_core.data.class_store import ClassStore
from cafe_core.spec.condense import CondenseSpec

CPU = torch.device("cpu")


def start_run(
    spec: CondenseSpec, store: ClassStore, comm: Comm, budget: Budget, checkpoints: Path
) -> tuple[LearningMethod, SyntheticShard]:
    """Return the method of `spec` with the network of iteration 0, and this worker's shard of the initial S."""
    method = make_method(ShardContext.of(spec, store, comm, CPU, budget))
    assert isinstance(method, LearningMethod)
    _, shard = start(method.context, method, Checkpoints(checkpoints), ignore_events)
    method.prepare(ArtifactCache(None, comm, CPU), ignore_events)
    method.renew_network(0)
    return method, shard
