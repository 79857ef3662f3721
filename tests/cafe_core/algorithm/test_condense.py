"""Test whole runs: S does not depend on the number of shards, interrupted runs are resumed, and NaN stops a run."""

from __future__ import annotations

import math
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cafe_core.algorithm import step_clock
from cafe_core.algorithm.checkpoint import Checkpoints
from cafe_core.algorithm.checkpoint_files import checkpoint_files
from cafe_core.algorithm.condense import condense
from cafe_core.algorithm.held_out import split
from cafe_core.data.class_store import ClassStore, build
from cafe_core.data.image_source import ArraySource
from cafe_core.errors import CheckpointError, NonFiniteLossError
from cafe_core.spec.condense import CondenseSpec
from tests.cafe_core.gangs import run_gang
from tests.cafe_core.made_data import make_spec, make_store

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> ClassStore:
    """Build a store of 10 classes of different sizes: some smaller than N, one smaller than ipc."""
    return make_store(tmp_path_factory.mktemp("store") / "ten", [30, 12, 30, 5, 30, 1, 30, 9, 30, 17])


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> ClassStore:
    return make_store(tmp_path_factory.mktemp("store") / "seven", [2, 40, 11, 3, 25, 1, 18], channels=3)


def condensed_images(
    spec: CondenseSpec, store: ClassStore, path: Path, world: int, events: list[dict[str, Any]] | None = None
) -> torch.Tensor:
    """Condense with `world` workers and return the images of the last checkpoint. Events are added to `events`."""

    def report(type: str, **data: Any) -> None:
        if events is not None:
            events.append({"type": type, **data})

    run_gang(world, lambda comm: condense(spec, store, comm, CPU, checkpoints=Checkpoints(path), report=report))
    checkpoint = Checkpoints(path).latest(spec)
    assert checkpoint is not None
    assert checkpoint.iteration == spec.iterations
    return checkpoint.images


BILEVEL = {"batch_real": 8, "max_outer": 3, "max_inner": 4, "batch_train": 7}
METHOD = {**BILEVEL, "query_per_class": 6, "gamma": 2}


@pytest.mark.parametrize(
    ("name", "worlds", "method"),
    [
        ("ten", (2, 3, 10), METHOD),
        ("seven", (2, 3), METHOD),
        ("seven", (3,), {**METHOD, "preset": "reference"}),
        ("seven", (3,), {**METHOD, "augment": "dsa", "init": "real"}),
        ("ten", (3,), {**METHOD, "bilevel": "fixed"}),
        ("ten", (2, 3, 10), {"name": "dm", "batch_real": 8, "init": "noise"}),
        ("seven", (2, 3), {"name": "dm", "batch_real": 8, "init": "noise", "augment": "none"}),
        ("ten", (3,), {"name": "dc", **BILEVEL, "augment": "dsa", "init": "noise"}),
        ("seven", (2, 3, 7), {"name": "dc", **BILEVEL}),
    ],
    ids=str,
)
def test_images_do_not_depend_on_the_number_of_shards(
    name: str, worlds: tuple[int, ...], method: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store: ClassStore = request.getfixturevalue(name)
    spec = make_spec(store, method=method, iterations=2)
    one = condensed_images(spec, store, tmp_path / "1", 1)
    for world in worlds:
        sharded = condensed_images(spec, store, tmp_path / str(world), world)
        torch.testing.assert_close(sharded, one, rtol=0, atol=1e-9)
    start = condensed_images(make_spec(store, method=method, iterations=0), store, tmp_path / "0", 1)
    assert (one - start).abs().amax(dim=(1, 2, 3)).min() > 1e-3  # every image has changed


@pytest.mark.parametrize(("first", "then"), [(1, 1), (2, 2), (3, 1), (1, 3)])
def test_interrupted_run_is_resumed(seven: ClassStore, tmp_path: Path, first: int, then: int) -> None:
    whole = condensed_images(make_spec(seven, iterations=4, method=METHOD), seven, tmp_path / "whole", then)
    condensed_images(make_spec(seven, iterations=2, method=METHOD), seven, tmp_path / "parts", first)
    resumed = condensed_images(make_spec(seven, iterations=4, method=METHOD), seven, tmp_path / "parts", then)
    if first == then:
        assert torch.equal(resumed, whole)  # the same bytes
    torch.testing.assert_close(resumed, whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["cafe", "dc", "dm"])
def test_run_stopped_at_an_iteration_is_resumed(seven: ClassStore, tmp_path: Path, name: str) -> None:
    spec = make_spec(seven, iterations=4, checkpoint_every=3, method={"name": name, "batch_real": 8})
    whole = condensed_images(spec, seven, tmp_path / "whole", 2)
    events: list[tuple[str, int]] = []

    def report(type: str, **data: Any) -> None:
        events.append((type, data["iteration"]))

    for until in (1, 3, 2, 4):  # 2: already exceeded, so there is nothing to do
        run_gang(
            2,
            lambda comm, until=until: condense(
                spec, seven, comm, CPU, checkpoints=Checkpoints(tmp_path), report=report, until=until
            ),
        )
    checkpoint = Checkpoints(tmp_path).latest(spec)
    assert checkpoint is not None
    assert torch.equal(checkpoint.images, whole)
    assert [i for type, i in events if type == "checkpoint"] == [1, 3, 4]
    assert [i for type, i in events if type == "iteration"] == [1, 2, 3, 4]


VALIDATION = {"every": 2, "fraction": 0.3}
TWO_AT_LEAST = [2, 40, 11, 3, 25, 2, 18]


@pytest.mark.parametrize("method", [METHOD, {"name": "dm", "batch_real": 8}, {"name": "dc", **BILEVEL}], ids=str)
def test_held_out_images_do_not_affect_a_run(method: dict[str, Any], tmp_path: Path) -> None:
    """A run with a validation equals a run on a dataset without the held-out images, for any number of shards."""
    whole = make_store(tmp_path / "whole", TWO_AT_LEAST)
    spec = make_spec(whole, method=method, validation=VALIDATION)
    kept = [split(spec.seed, k, count, 0.3)[0].numpy() for k, count in enumerate(TWO_AT_LEAST)]
    without = ArraySource(
        name="without",
        class_names=whole.info.class_names,
        images=np.concatenate([whole.images(k)[rows] for k, rows in enumerate(kept)]),
        labels=np.repeat(np.arange(7), [len(rows) for rows in kept]),
        test_images=np.array(whole.test_images),
        test_labels=np.array(whole.test_labels),
    )
    smaller = build(tmp_path / "without", without)
    statistics = {"mean": whole.info.mean, "std": whole.info.std}  # of all training images
    smaller = ClassStore(smaller.path, smaller.info.model_copy(update=statistics))
    expected = condensed_images(make_spec(smaller, method=method), smaller, tmp_path / "expected", 1)
    for world in (1, 3):
        images = condensed_images(spec, whole, tmp_path / str(world), world)
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-9)


def test_checkpoint_with_other_held_out_images_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", TWO_AT_LEAST)
    condensed_images(make_spec(store, validation=VALIDATION), store, tmp_path, 1)
    same = make_spec(store, iterations=4, validation={**VALIDATION, "every": 1, "repeats": 9})
    condensed_images(same, store, tmp_path, 1)
    for validation in ({**VALIDATION, "fraction": 0.2}, None):
        with pytest.raises(CheckpointError, match=r"another .*validation\.fraction"):
            condensed_images(make_spec(store, iterations=5, validation=validation), store, tmp_path, 1)


def test_all_ranks_resume_from_the_newest_checkpoint_of_rank_0(seven: ClassStore, tmp_path: Path) -> None:
    """A shared file system may show a file to one machine later than to another."""
    whole = condensed_images(make_spec(seven, iterations=5, method=METHOD), seven, tmp_path / "whole", 2)
    for view, iterations in (("rank 0", 4), ("rank 1", 2)):
        condensed_images(make_spec(seven, iterations=iterations, method=METHOD), seven, tmp_path / view, 2)
    newest = checkpoint_files(tmp_path / "rank 0")[0]
    appears = threading.Timer(1.0, lambda: shutil.copy(newest, tmp_path / "rank 1"))
    appears.start()
    spec = make_spec(seven, iterations=5, method=METHOD)
    run_gang(
        2, lambda comm: condense(spec, seven, comm, CPU, checkpoints=Checkpoints(tmp_path / f"rank {comm.rank}"), report=_ignore)
    )
    appears.join()
    resumed = Checkpoints(tmp_path / "rank 0").latest(spec)
    assert resumed is not None
    assert torch.equal(resumed.images, whole)


def test_non_finite_images_are_not_saved(seven: ClassStore, tmp_path: Path) -> None:
    spec = make_spec(seven, iterations=1, precision="float32", method={**METHOD, "max_outer": 1, "image_lr": 1e30, "beta": 1e12})
    with pytest.raises(NonFiniteLossError, match="iteration 1"):
        condensed_images(spec, seven, tmp_path, 2)
    assert [path.name for path in checkpoint_files(tmp_path)] == ["checkpoint-00000000.safetensors"]


def test_checkpoint_beyond_the_last_iteration_is_refused(seven: ClassStore, tmp_path: Path) -> None:
    condensed_images(make_spec(seven, iterations=3), seven, tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"^iterations: .*\b3\b.*\b2\b"):
        condensed_images(make_spec(seven, iterations=2), seven, tmp_path, 1)


def _ignore(type: str, **data: Any) -> None:
    pass


def test_queries_stop_all_ranks_at_the_same_step_and_are_reported(seven: ClassStore, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    method = {**METHOD, "lambda_1": 1.0, "gamma": 2, "max_outer": 9}  # any two accuracies span less than 1: stops at 2
    condensed_images(make_spec(seven, method=method), seven, tmp_path, 3, events)
    iterations = [e for e in events if e["type"] == "iteration"]
    assert [e["iteration"] for e in iterations] == [1, 2, 3]
    for e in iterations:
        assert e["outer_steps"] == 2
        assert e["stop_outer"] == {"converged": 1}
        assert sum(e["stop_inner"].values()) == 1  # one inner loop, after the first of the two outer steps
        assert 1 <= e["inner_epochs"] <= METHOD["max_inner"]
        assert 0 <= e["query_accuracy"] <= 1
        assert math.isfinite(e["feature_loss"])


def test_fixed_loops_run_to_their_bounds(seven: ClassStore, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    condensed_images(make_spec(seven, method={**METHOD, "bilevel": "fixed"}), seven, tmp_path, 1, events)
    for e in (e for e in events if e["type"] == "iteration"):
        assert (e["outer_steps"], e["inner_epochs"]) == (3, 2 * 4)
        assert (e["stop_outer"], e["stop_inner"]) == ({"bound": 1}, {"bound": 2})


def test_steps_of_long_iterations_are_reported(seven: ClassStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_clock, "FIRST_STEP_S", 0.0)
    monkeypatch.setattr(step_clock, "STEP_EVERY_S", 0.0)
    events: list[dict[str, Any]] = []
    condensed_images(make_spec(seven, method={**METHOD, "bilevel": "fixed"}), seven, tmp_path, 2, events)
    kinds = [e["type"] for e in events if e["type"] != "checkpoint"]
    assert kinds == ([*["step"] * 10, "iteration"]) * 3  # the last outer step has no inner loop
    steps = [e for e in events if e["type"] == "step"]
    assert [(e["outer_step"], e["inner_epoch"]) for e in steps[:10]] == [(outer, inner) for outer in (1, 2) for inner in range(5)]
    assert [e["done"] for e in steps] == [0] * 10 + [1] * 10 + [2] * 10
    assert {(e["max_outer"], e["max_inner"], e["total"]) for e in steps} == {(3, 4, 3)}


@pytest.mark.parametrize(("name", "steps"), [("dc", (3, 2 * 4)), ("dm", (1, 0))])
def test_other_methods_report_their_loss(seven: ClassStore, tmp_path: Path, name: str, steps: tuple[int, int]) -> None:
    events: list[dict[str, Any]] = []
    method = {"name": name, **(BILEVEL if name == "dc" else {"batch_real": 8})}
    condensed_images(make_spec(seven, method=method), seven, tmp_path, 3, events)
    iterations = [e for e in events if e["type"] == "iteration"]
    assert [e["iteration"] for e in iterations] == [1, 2, 3]
    for e in iterations:
        assert math.isfinite(e["loss"])
        assert not {"feature_loss", "discrimination_loss"} & set(e)
        assert (e["outer_steps"], e["inner_epochs"]) == steps
        assert e["stop_outer"] == {"bound": 1}
        assert e["query_accuracy"] is None


def test_zero_iterations_give_the_initial_images(ten: ClassStore, tmp_path: Path) -> None:
    noise = condensed_images(make_spec(ten, iterations=0, ipc=3), ten, tmp_path / "noise", 2)
    assert noise.shape == (30, 1, 8, 8)
    assert abs(float(noise.mean())) < 0.1
    real = condensed_images(make_spec(ten, iterations=0, ipc=3, method={"init": "real"}), ten, tmp_path / "real", 2)
    mean, std = ten.info.mean[0], ten.info.std[0]
    for k in range(10):
        images = (ten.images(k) / 255 - mean) / std
        for image in real[3 * k : 3 * k + 3].numpy():
            assert abs(images - image).max(axis=(1, 2, 3)).min() < 1e-12  # an image of the class


@pytest.mark.parametrize(
    ("method", "falls_to"),
    [
        ({"max_outer": 1, "image_lr": 1.0}, 0.5),
        ({"name": "dm", "image_lr": 10.0, "init": "noise", "augment": "none"}, 0.5),
        ({"name": "dc", "max_outer": 1, "image_lr": 1.0}, 0.8),
    ],
    ids=str,
)
def test_loss_decreases(ten: ClassStore, tmp_path: Path, method: dict[str, Any], falls_to: float) -> None:
    events: list[dict[str, Any]] = []
    spec = make_spec(ten, iterations=30, precision="float32", method={"batch_real": 8, **method})
    condensed_images(spec, ten, tmp_path, 1, events)
    losses = [e["loss"] for e in events if e["type"] == "iteration"]
    assert sum(losses[-5:]) < falls_to * sum(losses[:5]), losses


def test_non_finite_loss_stops_the_run_and_keeps_the_last_checkpoint(seven: ClassStore, tmp_path: Path) -> None:
    network = {"width": 6, "depth": 2, "norm": "none"}  # a network with a norm does not depend on the images' scale
    spec = make_spec(seven, iterations=50, checkpoint_every=1, network=network, method={**METHOD, "image_lr": 1e30})
    with pytest.raises(NonFiniteLossError, match=r"iteration \d+, outer step \d+"):
        condensed_images(spec, seven, tmp_path, 2)
    checkpoint = Checkpoints(tmp_path).latest(spec)
    assert checkpoint is not None
    assert checkpoint.images.isfinite().all()


def test_checkpoints_are_pruned_and_refused_for_another_spec(seven: ClassStore, tmp_path: Path) -> None:
    condensed_images(make_spec(seven, iterations=5, checkpoint_every=1), seven, tmp_path, 1)
    assert [p.name for p in checkpoint_files(tmp_path)] == ["checkpoint-00000005.safetensors", "checkpoint-00000004.safetensors"]
    with pytest.raises(CheckpointError, match="another dataset, seed"):
        condensed_images(make_spec(seven, iterations=6, seed=1), seven, tmp_path, 1)


def test_run_resumes_from_the_previous_checkpoint_if_the_newest_is_damaged(seven: ClassStore, tmp_path: Path) -> None:
    spec = make_spec(seven, iterations=4, checkpoint_every=1)
    whole = condensed_images(spec, seven, tmp_path, 1)
    newest = checkpoint_files(tmp_path)[0]
    newest.write_bytes(newest.read_bytes()[:100])
    assert torch.equal(condensed_images(spec, seven, tmp_path, 1), whole)
