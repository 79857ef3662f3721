"""Hold the network θ of a run, call it in the run's precision, and bound the memory that it uses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cafe_core.algorithm.sampling import counter_seed
from cafe_core.networks import init_network
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset import DatasetInfo
from cafe_core.spec.estimate import GRAPH_BYTES_CPU
from cafe_core.spec.network_sizes import DOUBLE_GRAPH_FACTOR, GRAPH_FACTOR


class Model:
    """A network object for the whole run, into which the fresh weights of each iteration are copied.

    The compiled feature pass is therefore reused in all iterations. With `precision: bfloat16` features and logits are
    computed under autocast; weights, images and statistics stay float32.
    """

    def __init__(self, spec: CondenseSpec, info: DatasetInfo, device: torch.device, dtype: torch.dtype) -> None:
        self._spec = spec
        self._info = info
        self.device = device
        self.dtype = dtype
        self.network = init_network(spec.network, info.shape, info.num_classes, 0).to(device, dtype)
        self._compiled = torch.compile(self.network.features, dynamic=False) if spec.compile else None
        self.graph_factor = GRAPH_FACTOR[spec.network.name]
        self.double_graph_factor = DOUBLE_GRAPH_FACTOR[spec.network.name]
        self._autocast = spec.precision == "bfloat16"

    def renew(self, seed: int, iteration: int) -> None:
        """Set θ to the fresh random network of `iteration`, the same on every worker."""
        fresh = init_network(
            self._spec.network, self._info.shape, self._info.num_classes, counter_seed(seed, "network", iteration)
        )
        self.load(fresh.state_dict())

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Set θ to `weights`, by parameter name."""
        self.network.load_state_dict(weights)

    @torch.no_grad()
    def copy_weights(self) -> list[Tensor]:
        """Return a copy of the parameters θ, for :meth:`with_weights`. Buffers are not copied: networks run in training mode."""
        return [parameter.clone() for parameter in self.parameters()]

    @contextmanager
    def with_weights(self, weights: Sequence[Tensor]) -> Iterator[None]:
        """Use an earlier copy of θ within the context, and the current θ again after it."""
        current = self.copy_weights()
        self._set(weights)
        try:
            yield
        finally:
            self._set(current)

    @torch.no_grad()
    def _set(self, weights: Sequence[Tensor]) -> None:
        torch._foreach_copy_(list(self.parameters()), list(weights))

    def features(self, images: Tensor, layers: Sequence[int] | None = None) -> Iterable[Tensor]:
        """Return the maps of `layers` (0-based, increasing; None: all), early → late.

        Weights get no gradient. Maps are computed lazily, so a caller that reduces each map holds only one at a time, and a CPU
        still has it in its caches. When compiled or under autocast all maps are computed together.
        """
        self.network.requires_grad_(False)
        if self._compiled is None and not self._autocast:
            return (feature_map for _, feature_map in self.network.iter_features(images, layers))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            return (self._compiled or self.network.features)(images, layers)

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits (n, K), with a graph to the weights."""
        return self._logits(images, to_weights=True)

    def logits(self, images: Tensor) -> Tensor:
        """Return logits (n, K), with a graph to the images only."""
        return self._logits(images, to_weights=False)

    def _logits(self, images: Tensor, *, to_weights: bool) -> Tensor:
        self.network.requires_grad_(to_weights)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            logits: Tensor = self.network(images)
        return logits.to(self.dtype)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters θ."""
        return self.network.parameters()


@dataclass(frozen=True)
class Budget:
    """Limits on the bytes of feature maps in flight, regardless of the number of classes, and of images kept on the device."""

    forward_bytes: int
    """Limit on the maps of the images that pass through the network together."""
    graph_bytes: int
    """Limit on the graphs of the synthetic images, kept for the backward pass, and the real class means."""
    resident_bytes: int = 0
    """Limit on a worker's real images, uint8, up to which all of them stay on the device."""

    @classmethod
    def of(cls, device: torch.device, share: float = 1.0) -> Budget:
        """Return the budget of a device: an eighth, a quarter and a quarter of a share of the GPU's memory.

        On a CPU few images are in flight, to fit its caches, and real images are read from the memory map.
        """
        if device.type == "cuda":
            memory = int(share * torch.cuda.get_device_properties(device).total_memory)
            return cls(memory // 8, memory // 4, memory // 4)
        return cls(32 << 20, GRAPH_BYTES_CPU)

    def images_per_chunk(self, model: Model) -> int:
        """Return how many images to process at once, at least 1."""
        return max(1, self.forward_bytes // (2 * _map_bytes(model)))

    def classes_per_chunk(self, model: Model, ipc: int) -> int:
        """Return how many classes' synthetic images to process at once, at least 1."""
        return max(1, min(self.images_per_chunk(model), self.graph_bytes // (model.graph_factor * _map_bytes(model))) // ipc)

    def images_per_double_graph(self, model: Model) -> int:
        """Return how many images to process at once when the gradient of the weights is differentiated, at least 1."""
        return max(1, min(self.images_per_chunk(model), self.graph_bytes // (model.double_graph_factor * _map_bytes(model))))

    def keeps_graph(self, model: Model, ipc: int, classes: int) -> bool:
        """Return whether the graphs of all `classes` fit, with the class means of real and synthetic images."""
        return classes * (model.graph_factor * ipc + 2) * _map_bytes(model) <= self.graph_bytes


def _map_bytes(model: Model) -> int:
    return model.dtype.itemsize * sum(math.prod(shape) for shape in model.network.map_shapes)
