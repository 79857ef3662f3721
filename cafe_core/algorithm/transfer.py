"""Send small tensors to a device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on `device`. The copy to a GPU is asynchronous.

    A copy from ordinary memory to a GPU blocks until all work that was queued before has finished. A copy from pinned memory
    does not; torch keeps the pinned copy until the GPU has read it.
    """
    if tensor.device.type == device.type:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
