"""Test what happens when a GPU is full, with torch's own error raised on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cafe_core.algorithm.gpu_memory import explain_out_of_memory
from cafe_core.algorithm.model import Model
from cafe_core.errors import GpuOutOfMemoryError
from cafe_core.jobs import local
from cafe_core.jobs.local import LocalJob
from cafe_core.synthetic_set.synthetic_set import SyntheticSet

CUDA_MESSAGE = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which 15.12 MiB is free. "
    "Of the allocated memory 1.00 GiB is allocated by PyTorch. If reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
)


def test_message_has_the_numbers_and_the_advice() -> None:
    with pytest.raises(GpuOutOfMemoryError) as raised, explain_out_of_memory("Use less"):
        raise torch.OutOfMemoryError(CUDA_MESSAGE)
    assert raised.value.as_dict()["code"] == "gpu_out_of_memory"
    assert "Tried to allocate 20.00 MiB" in str(raised.value)
    assert "PYTORCH_CUDA_ALLOC_CONF" not in str(raised.value)
    assert str(raised.value).endswith(". Use less")


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="a bug") as raised, explain_out_of_memory("Use less"):
        raise RuntimeError("a bug")
    assert type(raised.value) is RuntimeError


SPEC: dict[str, Any] = {
    "dataset": {"name": "digits"},
    "ipc": 1,
    "iterations": 4,
    "checkpoint_every": 1,
    "network": {"width": 4, "depth": 1},
    "method": {"batch_real": 4, "max_outer": 1},
    "evaluation": None,
    "resources": {"gpus_per_worker": 0},
}


class FullGpu:
    """Let passes through the network fail as on a full GPU: each pass after the first `passes`, `times` times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, passes: int, times: int) -> None:
        self._passes, self._times = passes, times
        original = Model.features

        def features(model: Model, *args: Any, **kwargs: Any) -> Any:
            self._passes -= 1
            if self._passes < 0 and self._times > 0:
                self._times -= 1
                raise torch.OutOfMemoryError(CUDA_MESSAGE)
            return original(model, *args, **kwargs)

        monkeypatch.setattr(Model, "features", features)


def prepared(out: Path, data: Path) -> LocalJob:
    return local.prepare(SPEC, out, local.DataRoots(datasets=data, uploads=data, downloads=data, cache=data))


def run(job: LocalJob) -> list[dict[str, Any]]:
    """Run the job, and return its events."""
    events: list[dict[str, Any]] = []
    job.run(lambda type, **data: events.append({"type": type} | data))
    return events


def test_full_gpu_continues_from_the_last_checkpoint_with_half_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, disturbed = (prepared(tmp_path / name, tmp_path / "data") for name in ("undisturbed", "disturbed"))
    run(undisturbed)

    shares: list[float] = []
    budget_of = local.Budget.of
    monkeypatch.setattr(local, "_use_device", lambda _: torch.device("cpu"))
    monkeypatch.setattr(local.Budget, "of", lambda device, share: shares.append(share) or budget_of(device, share))
    monkeypatch.setattr(disturbed.job.spec.resources, "gpus_per_worker", 1.0)
    FullGpu(monkeypatch, passes=5, times=2)
    events = run(disturbed)
    assert shares == [1.0, 0.5, 0.25]
    restarts = [event for event in events if event["type"] == "restart"]
    assert [(event["restarts"], event["workers"]) for event in restarts] == [(1, 1), (2, 1)]
    assert "Tried to allocate 20.00 MiB" in restarts[0]["reason"]
    iterations = [event["iteration"] for event in events if event["type"] == "iteration"]
    assert iterations == [1, 2, 3, 4]  # what was checkpointed is not repeated
    sets = [SyntheticSet.load(job.directory.attempt(1).synthetic_file).images for job in (undisturbed, disturbed)]
    assert np.array_equal(*sets)  # a CPU's budget is always the same


def test_job_fails_if_the_gpu_stays_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = prepared(tmp_path / "out", tmp_path / "data")
    FullGpu(monkeypatch, passes=5, times=1000)
    with pytest.raises(GpuOutOfMemoryError, match=r"method\.batch_real"):
        run(job)
    assert job.job.max_restarts == 3
    assert json.loads(job.directory.job_file.read_text())["spec"]["ipc"] == 1
    assert job.directory.checkpoint_files()  # a later run can continue
