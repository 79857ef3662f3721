"""Test that a method's own state, and artifacts computed before its loop, survive a restart with another number of workers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cafe_core.algorithm import condense as loop
from cafe_core.algorithm.artifact_cache import ArtifactCache
from cafe_core.algorithm.augment import Draws
from cafe_core.algorithm.checkpoint import Checkpoint, Checkpoints
from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.method import LearningMethod, Losses, MethodState, Report, ignore_events
from cafe_core.algorithm.real_images import BatchIndices
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.algorithm.synthetic_shard import SyntheticShard
from cafe_core.data.class_store import ClassStore
from cafe_core.errors import CheckpointError
from cafe_core.spec.condense import CondenseSpec
from tests.cafe_core.gangs import run_gang
from tests.cafe_core.made_data import make_spec, make_store

CPU = torch.device("cpu")


class AdaptiveSteps(LearningMethod):
    """Move S towards the mean of the real images by Adagrad.

    Its second moments are state per class; its step count is shared state.
    """

    def __init__(self, context: ShardContext) -> None:
        super().__init__(context)
        self.squares: Tensor | None = None
        self.steps = torch.zeros((), dtype=torch.int64)
        self.target: dict[str, Tensor] = {}

    def prepare(self, cache: ArtifactCache, report: Report) -> None:  # noqa: ARG002
        key = {"dataset": self.context.dataset_key, "seed": self.context.spec.seed}
        self.target = cache.load_or_make(key, lambda: {"scale": torch.full((), 0.5, dtype=torch.float64)})

    def gradient(self, shard: SyntheticShard, batch: BatchIndices, draws: Draws | None) -> tuple[Tensor, Losses]:  # noqa: ARG002
        means = [self.context.real.batch(k, i).mean(0) for k, i in zip(batch.classes, batch.indices, strict=True)]
        difference = shard.images - torch.stack(means).repeat_interleave(shard.ipc, 0)
        return difference * self.target["scale"], {"loss": self.context.comm.all_reduce(difference.square().sum())}

    def update_images(self, shard: SyntheticShard, iteration: int, outer: int) -> Losses:
        batch = self.context.sample("real", 4, iteration, outer)
        gradient, losses = self.gradient(shard, batch, None)
        self.squares = gradient.square() if self.squares is None else self.squares + gradient.square()
        self.steps += 1
        shard.images -= gradient / (self.steps * self.squares.sqrt() + 1)
        return losses

    def state(self) -> MethodState:
        return MethodState({} if self.squares is None else {"squares": self.squares}, {"steps": self.steps})

    def load_state(self, state: MethodState) -> None:
        self.squares = state.per_class.get("squares")
        self.steps = state.shared["steps"]


@pytest.fixture
def store(tmp_path: Path) -> ClassStore:
    return make_store(tmp_path / "store", [6, 3, 5, 4, 7])


@pytest.fixture(autouse=True)
def use_adaptive_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "make_method", AdaptiveSteps)


def run(spec: CondenseSpec, store: ClassStore, directory: Path, world: int, until: int, cache: Path | None = None) -> Checkpoint:
    checkpoints = Checkpoints(directory)

    def work(comm: Comm) -> None:
        loop.condense(spec, store, comm, CPU, checkpoints=checkpoints, report=ignore_events, until=until, cache=cache)

    run_gang(world, work)
    found = checkpoints.latest(spec)
    assert found is not None
    return found


def test_run_resumes_with_its_methods_state_on_any_number_of_workers(store: ClassStore, tmp_path: Path) -> None:
    spec = make_spec(store, iterations=6, method={"name": "dm"})
    undisturbed = run(spec, store, tmp_path / "undisturbed", 1, 6)
    assert undisturbed.per_class["squares"].shape == undisturbed.images.shape
    assert int(undisturbed.shared["steps"]) == 6
    run(spec, store, tmp_path / "resumed", 2, 2)
    run(spec, store, tmp_path / "resumed", 3, 4)
    resumed = run(spec, store, tmp_path / "resumed", 1, 6)
    torch.testing.assert_close(resumed.images, undisturbed.images, rtol=0, atol=1e-12)
    torch.testing.assert_close(resumed.per_class["squares"], undisturbed.per_class["squares"], rtol=0, atol=1e-12)


def test_method_without_state_refuses_checkpoint_with_state(
    store: ClassStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(store, iterations=2, method={"name": "dm"})
    run(spec, store, tmp_path / "run", 1, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="squares"):
        run(spec, store, tmp_path / "run", 1, 2)


def test_artifacts_are_computed_once_and_recomputed_when_damaged(tmp_path: Path) -> None:
    made: list[int] = []

    def load(world: int, key: dict[str, int]) -> list[Tensor]:
        def work(comm: Comm) -> Tensor:
            def make() -> dict[str, Tensor]:
                made.append(comm.rank)
                return {"weights": torch.arange(3.0) * key["seed"]}

            return ArtifactCache(tmp_path / "cache", comm, CPU).load_or_make(key, make)["weights"]

        return run_gang(world, work)

    assert all(torch.equal(weights, torch.arange(3.0) * 2) for weights in load(2, {"seed": 2}))
    assert sorted(made) == [0, 1]
    assert torch.equal(load(1, {"seed": 2})[0], torch.arange(3.0) * 2)
    assert len(made) == 2
    assert torch.equal(load(1, {"seed": 3})[0], torch.arange(3.0) * 3)
    assert len(made) == 3
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:20])
    assert torch.equal(load(2, {"seed": 2})[0], torch.arange(3.0) * 2)
    assert len(made) == 5
