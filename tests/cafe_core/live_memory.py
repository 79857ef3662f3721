"""Count the bytes of tensors that are alive at once. Unlike resident memory, the count is the same on every run and machine."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Count the bytes of the storages that operations within the `with` block allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        """Largest number of bytes that were alive at once."""
        self._live = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address not in self._sizes:
            self._sizes[address] = storage.nbytes()
            self._live += storage.nbytes()
            self.peak = max(self.peak, self._live)
            weakref.finalize(storage, self._forget, address)

    def _forget(self, address: int) -> None:
        self._live -= self._sizes.pop(address)
