"""Turn torch's out-of-memory error into a CafeError, which callers answer with smaller chunks, and users understand."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cafe_core.errors import GpuOutOfMemoryError

CONDENSATION_ADVICE = "Use a smaller method.batch_real, ipc or network, more workers, or a larger resources.gpus_per_worker"
EVALUATION_ADVICE = "Use a smaller evaluation.batch or network, or a larger resources.gpus_per_worker"
_DETAIL_CHARACTERS = 200


@contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Raise GpuOutOfMemoryError for torch.OutOfMemoryError. Its message has torch's numbers and `advice`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        detail = str(error).partition(". If reserved but unallocated")[0].strip()[:_DETAIL_CHARACTERS]
        raise GpuOutOfMemoryError(f"the GPU has too little memory: {detail.rstrip('.')}. {advice}") from error


def free_memory() -> None:
    """Free the tensors of a failed computation. Call it after the exception was handled, because its frames hold them."""
    gc.collect()
    torch.cuda.empty_cache()
