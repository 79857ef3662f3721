"""Convert the errors of a full GPU to a CafeError, so that callers can retry with smaller chunks."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cafe_core.errors import GpuOutOfMemoryError

CONDENSATION_ADVICE = "Use a smaller network, ipc or method.batch_train, or more workers on a cluster, or free the GPU"
EVALUATION_ADVICE = "Use a smaller network or batch, or free the GPU"

_OUTSIDE_THE_ALLOCATOR = re.compile(
    r"CUDA error: out of memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED|Cuda failure 2 'out of memory'", re.IGNORECASE
)
"""Matches the message of a RuntimeError that CUDA, cuBLAS, cuDNN or NCCL raises because the GPU has no free memory."""
_SENTENCES = 3
"""Number of sentences to quote from torch's message. They say what it tried to allocate and how much memory the GPU has."""


@contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Raise GpuOutOfMemoryError if the GPU runs out of memory. Its message quotes torch's and ends with `advice`."""
    try:
        yield
    except RuntimeError as error:  # the base class of torch.OutOfMemoryError
        if not isinstance(error, torch.OutOfMemoryError) and not _OUTSIDE_THE_ALLOCATOR.search(str(error)):
            raise
        quoted = ". ".join(str(error).splitlines()[0].split(". ")[:_SENTENCES]).rstrip(".")
        raise GpuOutOfMemoryError(f"the GPU ran out of memory: {quoted}. {advice}") from error


def free_memory() -> None:
    """Free the tensors of a failed computation. Call it after the exception was handled, because its frames hold them."""
    gc.collect()
    torch.cuda.empty_cache()
