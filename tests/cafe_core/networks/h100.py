"""Let Triton compile kernels for an H100 on machines without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class H100:
    """Answer what Triton asks of the driver to compile for an H100. Launches do nothing."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 1000  # a number that no GPU has, because Triton keeps the kernels of each

    def get_current_stream(self, _device: int) -> int:
        return 0

    def launcher_cls(self, _source: object, _metadata: object) -> Callable[..., None]:
        return lambda *_: None

    @property
    def utils(self) -> H100:
        return self

    def get_device_properties(self, _device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 << 10}

    def load_binary(self, *_: object) -> tuple[int, int, int, int, int]:
        return 0, 0, 0, 0, 1024  # module, function, registers, spilled bytes, most threads of a block

    def unload_module(self, _module: int) -> None:
        pass
