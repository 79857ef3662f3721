"""Test what happens when a GPU is full, with torch's own error raised on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cafe_core.algorithm.gpu_memory import explain_out_of_memory
from cafe_core.algorithm.model import Budget, Model
from cafe_core.errors import GpuOutOfMemoryError
from cafe_core.jobs import local
from cafe_core.jobs.local import LocalJob
from cafe_core.synthetic_set.synthetic_set import SyntheticSet

CUDA_MESSAGE = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which 15.12 MiB is free. "
    "Of the allocated memory 1.00 GiB is allocated by PyTorch. If reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(CUDA_MESSAGE),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:94, unhandled cuda error. Cuda failure 2 'out of memory'"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_a_full_gpu_are_explained(error: RuntimeError) -> None:
    with pytest.raises(GpuOutOfMemoryError) as raised, explain_out_of_memory("Use less"):
        raise error
    assert raised.value.as_dict()["code"] == "gpu_out_of_memory"
    assert raised.value.retryable
    assert str(raised.value).endswith(". Use less")


def test_message_quotes_the_numbers_of_torch() -> None:
    with pytest.raises(GpuOutOfMemoryError) as raised, explain_out_of_memory("Use less"):
        raise torch.OutOfMemoryError(CUDA_MESSAGE)
    assert str(raised.value) == (
        "the GPU ran out of memory: CUDA out of memory. Tried to allocate 20.00 MiB. "
        "GPU 0 has a total capacity of 79.10 GiB of which 15.12 MiB is free. Use less"
    )


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
    """Raise torch's out-of-memory error in passes through the network: in `times` passes, after the first `passes`."""

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


def run(job: LocalJob, events: list[dict[str, Any]]) -> None:
    """Run the job, and append its events to a list."""
    job.run(lambda type, **data: events.append({"type": type} | data))


def of_type(events: list[dict[str, Any]], type: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == type]


def test_full_gpu_continues_from_the_last_checkpoint_with_half_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, disturbed = (prepared(tmp_path / name, tmp_path / "data") for name in ("undisturbed", "disturbed"))
    run(undisturbed, [])

    budgets: list[Budget] = []
    condense = local.condense

    def watched(*args: Any, budget: Budget, **kwargs: Any) -> Any:
        budgets.append(budget)
        return condense(*args, budget=budget, **kwargs)

    monkeypatch.setattr(local, "condense", watched)
    monkeypatch.setattr(local.Budget, "of", lambda _, share: Budget(int(share * (32 << 20)), 1 << 30))
    monkeypatch.setattr(local, "_use_device", lambda _: torch.device("cpu"))
    monkeypatch.setattr(disturbed.job.spec.resources, "gpus_per_worker", 1.0)
    FullGpu(monkeypatch, passes=5, times=2)
    events: list[dict[str, Any]] = []
    run(disturbed, events)
    assert [budget.forward_bytes >> 20 for budget in budgets] == [32, 16, 8]
    assert [(event["restarts"], event["workers"]) for event in of_type(events, "restart")] == [(1, 1), (2, 1)]
    assert [event["iteration"] for event in of_type(events, "iteration")] == [1, 2, 3, 4]  # none is repeated
    sets = [SyntheticSet.load(job.directory.attempt(1).synthetic_file).images for job in (undisturbed, disturbed)]
    assert np.array_equal(*sets)  # so few images pass in one chunk with each of the budgets


def test_job_fails_if_the_gpu_stays_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = prepared(tmp_path / "out", tmp_path / "data")
    FullGpu(monkeypatch, passes=5, times=1000)
    events: list[dict[str, Any]] = []
    with pytest.raises(GpuOutOfMemoryError, match=r"method\.batch_train"):
        run(job, events)
    assert [event["restarts"] for event in of_type(events, "restart")] == [1, 2, 3]
    assert job.directory.checkpoint_files()  # a later run can continue
