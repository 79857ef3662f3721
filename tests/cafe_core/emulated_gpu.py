"""Emulate a GPU on the CPU: tensors that report cuda:0 and wrap a CPU tensor.

An operation that mixes devices fails as on a real GPU. Kernel launches, transfers, and waits of the host for the device are
counted, so that tests can bound them. Times and the numerics of a GPU are not emulated. The fused operations of
`cafe_core.networks.fused` compute their formulas on the CPU and count as one launch each, which is what they are with Triton
(tests/cafe_core/networks/test_fused.py counts them).
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from cafe_core.networks import fused

GPU = torch.device("cuda:0")
_INDEXING = ("aten.index.Tensor", "aten.index_put_.default", "aten.index_put.default", "aten._index_put_impl_.default")
"""Operations that accept indices on the CPU: torch copies them to the GPU, and waits."""
WITHOUT_KERNEL = {
    *("view", "_unsafe_view", "_reshape_alias", "detach", "permute", "slice", "select", "t", "expand", "unbind", "split"),
    *("split_with_sizes", "alias", "transpose", "unsqueeze", "squeeze", "as_strided"),
    *("empty", "empty_like", "empty_strided", "new_empty"),
}
"""Operations that only describe memory."""
_RESULT_ON_HOST = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}
"""Operations for whose result, or its size, the host waits."""


@dataclass
class Counts:
    """Count the launches, transfers and waits of the host."""

    launches: int = 0
    transfers: int = 0
    """Copies in either direction."""
    waits: Counter[str] = field(default_factory=Counter)
    """Waits of the host for the device, by the line of `cafe_core` that waits."""

    def clear(self) -> None:
        self.launches = self.transfers = 0
        self.waits.clear()

    def wait(self) -> None:
        self.waits[_line()] += 1


class _OnGpu(torch.Tensor):
    """A tensor that says it is on the GPU."""

    held: Tensor
    counts: Counts

    @staticmethod
    def __new__(cls, held: Tensor, counts: Counts) -> _OnGpu:
        made: _OnGpu = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device("meta"),  # torch itself has to find no GPU
        )
        return made

    def __init__(self, held: Tensor, counts: Counts) -> None:
        self.held = held
        self.counts = counts

    device = property(lambda _: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda _: True)  # type: ignore[assignment]
    is_cpu = property(lambda _: False)  # type: ignore[assignment]
    is_meta = property(lambda _: False)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl

    def _read(self) -> Tensor:
        self.counts.wait()
        return self.held

    def __int__(self) -> int:
        return int(self._read())

    def __float__(self) -> float:
        return float(self._read())

    def __bool__(self) -> bool:
        return bool(self._read())

    def item(self) -> Any:
        return self._read().item()

    def tolist(self) -> Any:
        return self._read().tolist()

    def cpu(self) -> Tensor:  # type: ignore[override]
        self.counts.transfers += 1
        return self._read().clone()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        counts = next(tensor.counts for tensor in tree_flatten((args, kwargs))[0] if isinstance(tensor, _OnGpu))
        return _run(func, args, kwargs or {}, counts)


class _Dispatch(TorchDispatchMode):
    """Send every operation of torch through the emulation."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self._counts)


@contextmanager
def emulated_gpu(*, fused_kernels: bool = True) -> Iterator[Counts]:
    """Emulate a GPU within the context. Yield the counts, which the test reads and clears.

    fused_kernels: use them for maps of any size, because the maps of tests are small; otherwise torch's operations are used.
    """
    counts, make = Counts(), torch.tensor

    def tensor(*args: Any, device: torch.device | None = None, **kwargs: Any) -> Tensor:
        made = make(*args, **kwargs)
        return made if device is None else made.to(device)

    with ExitStack() as stack:
        stack.enter_context(patch("torch.cuda._lazy_init"))
        stack.enter_context(patch("torch.cuda._initialized", True))
        stack.enter_context(patch("torch.tensor", tensor))
        stack.enter_context(patch.object(torch.Tensor, "pin_memory", _pinned))
        stack.enter_context(patch.object(fused, "MIN_ELEMENTS", 0))
        stack.enter_context(patch.object(fused.verification, "passes", return_value=fused_kernels))
        stack.enter_context(_Dispatch(counts))
        yield counts


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], counts: Counts) -> Any:
    """Run an operation on the held tensors, as the GPU would."""
    name = str(func)
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    on_gpu = [tensor for tensor in tensors if isinstance(tensor, _OnGpu)]
    asked = kwargs.get("device")
    target = (
        None if asked is None else "cpu" if torch.device(asked).type == "cpu" else "cuda"
    )  # "meta" is what _OnGpu says to C++
    plain = {key: value for key, value in kwargs.items() if key != "device"} | ({} if asked is None else {"device": "cpu"})

    def call(**changed: Any) -> Any:
        return func(*tree_map(_held, args), **tree_map(_held, plain | changed))

    operation = name.split(".")[1]
    if operation in _RESULT_ON_HOST and on_gpu:
        counts.wait()
    if name == "aten._to_copy.default":
        return _copied(call, args[0], target, bool(kwargs.get("non_blocking")), counts)
    if name == "aten.copy_.default":
        if isinstance(args[0], _OnGpu) != isinstance(args[1], _OnGpu):
            counts.transfers += 1
            counts.wait()
        elif isinstance(args[0], _OnGpu):
            counts.launches += not _same_elements(args[0].held, args[1].held)
        call()
        return args[0]
    _refuse_mixed_devices(name, args, tensors, counts)
    if on_gpu and name in _INDEXING and any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]):
        counts.wait()  # for the number of selected elements
    result = call()
    if target == "cpu" or (target is None and not on_gpu):
        return result
    counts.launches += operation not in WITHOUT_KERNEL
    if operation.endswith("_") and isinstance(args[0], _OnGpu):
        return args[0]  # in place
    return tree_map(lambda value: _OnGpu(value, counts) if type(value) is Tensor else value, result)


def _copied(call: Callable[..., Any], source: Tensor, target: str | None, non_blocking: bool, counts: Counts) -> Tensor:
    """Copy a tensor to a device or into another type."""
    from_gpu = isinstance(source, _OnGpu)
    to_gpu = from_gpu if target is None else target == "cuda"
    made: Tensor = call(non_blocking=False)
    if from_gpu == to_gpu:
        counts.launches += to_gpu
    else:
        counts.transfers += 1
        if not (non_blocking and getattr(source, "is_pinned_copy", False)):
            counts.wait()
    return _OnGpu(made, counts) if to_gpu else made


def _refuse_mixed_devices(name: str, args: Sequence[Any], tensors: Sequence[Tensor], counts: Counts) -> None:
    """Raise RuntimeError if tensors of both devices meet. Scalars of the CPU are allowed, and so are indices, which wait."""
    on_gpu = [isinstance(tensor, _OnGpu) for tensor in tensors]
    on_cpu = [not isinstance(tensor, _OnGpu) and tensor.dim() > 0 for tensor in tensors]
    if not (any(on_gpu) and any(on_cpu)):
        return
    if name not in _INDEXING or not isinstance(args[0], _OnGpu):
        raise RuntimeError(f"{name} mixes tensors of the CPU and the GPU in {_line()}")
    for index in args[1]:
        if index is not None and not isinstance(index, _OnGpu):
            counts.transfers += 1
            counts.wait()


def _same_elements(first: Tensor, second: Tensor) -> bool:
    """Return whether both are views of the same elements, so that a copy, as after `x[rows] += y`, does nothing."""
    return (first.data_ptr(), first.shape, first.stride()) == (second.data_ptr(), second.shape, second.stride())


def _pinned(tensor: Tensor) -> Tensor:
    """Return a copy that can be sent without waiting."""
    copy = tensor.clone()
    copy.is_pinned_copy = True  # type: ignore[attr-defined]
    return copy


def _held(value: Any) -> Any:
    return value.held if isinstance(value, _OnGpu) else value


def _line() -> str:
    """Return the line of `cafe_core` that is running."""
    for frame in reversed(traceback.extract_stack()):
        if "/cafe_core/" in frame.filename and "/tests/" not in frame.filename:
            return f"{frame.filename.rpartition('/cafe_core/')[2]}:{frame.lineno}"
    return "a test"
