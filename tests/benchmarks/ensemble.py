"""Compare training networks together with training them one after the other: ConvNet-3, ten 32×32 colour images (ipc 1)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from unittest.mock import patch

import torch
from torch import Tensor, nn

from cafe_core.evaluation import training
from cafe_core.evaluation.images import HeldImages, Normalisation
from cafe_core.evaluation.training import Recipe, train
from cafe_core.networks import FeatureNetwork
from cafe_core.networks.layers import InstanceNorm
from cafe_core.spec.network import NetworkSpec
from tests.benchmarks.figures import Figure
from tests.cafe_core.made_data import make_info

K = 10
INFO = make_info([1] * K, side=32)


class VmapEnsemble(nn.Module):
    """Ensemble by torch.func: M stacked states and a vmapped functional call, for networks with instance norm."""

    def __init__(self, networks: Sequence[FeatureNetwork]) -> None:
        super().__init__()
        self.size = len(networks)
        # vmap supports neither the networks' choice of memory layout nor the custom derivative of their instance norm.
        plain = [nn.Sequential(*network.stages, nn.Flatten(), network.classifier) for network in networks]
        for network in plain:
            _use_group_norm(network)
        stacked, buffers = torch.func.stack_module_state(plain)
        assert not buffers
        self.names = list(stacked)
        self.values = nn.ParameterList(stacked.values())
        self._skeleton = [plain[0]]  # in a list, so that its parameters are not registered here

    def forward(self, images: Tensor) -> Tensor:
        """(M, b, C, H, W) → (M, b, K)."""

        def call(parameters: dict[str, Tensor], own: Tensor) -> Tensor:
            logits: Tensor = torch.func.functional_call(self._skeleton[0], parameters, (own,))
            return logits

        logits: Tensor = torch.func.vmap(call)(dict(zip(self.names, self.values, strict=True)), images)
        return logits


def _use_group_norm(module: nn.Module) -> None:
    """Replace InstanceNorm by GroupNorm, which computes the same values."""
    for name, child in module.named_children():
        if isinstance(child, InstanceNorm):
            norm = nn.GroupNorm(len(child.weight), len(child.weight))
            norm.load_state_dict(child.state_dict())
            setattr(module, name, norm)
        else:
            _use_group_norm(child)


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Return the best time of three runs after a warm-up run."""
    times = []
    for _ in range(4):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _measure(device: torch.device, size: int, epochs: int, target: str | None) -> list[Figure]:
    """Train `size` networks for `epochs` steps each by the evaluation's own training loop, without augmentation."""
    images = torch.randn(K, *INFO.shape, generator=torch.Generator().manual_seed(0))
    pool = HeldImages(images, torch.arange(K), Normalisation(INFO.mean, INFO.std, device))
    recipe = Recipe(NetworkSpec().resolved(), epochs, "none", INFO)
    rows, seeds = torch.arange(K).expand(size, -1), list(range(size))

    def at_once() -> None:
        train(recipe, pool, rows, seeds)

    def one_by_one() -> None:
        for m, seed in enumerate(seeds):
            train(recipe, pool, rows[m : m + 1], [seed])

    alone = _seconds(device, one_by_one)
    grouped = _seconds(device, at_once)
    with patch.object(training, "Ensemble", VmapEnsemble):
        vmapped = _seconds(device, at_once)
    what = f"{size} networks on {device.type}, {epochs} steps"
    return [
        Figure(f"{what}: one after the other", alone, "s"),
        Figure(f"{what}: grouped against one after the other", alone / grouped, "×", target),
        Figure(f"{what}: vmap against one after the other", alone / vmapped, "×"),
    ]


def measure() -> list[Figure]:
    """Measure on a GPU if there is one. The CPU figures show why networks are trained one after the other there."""
    if torch.cuda.is_available():
        return _measure(torch.device("cuda"), size=20, epochs=100, target="≥ 5")
    torch.set_num_threads(1)
    return _measure(torch.device("cpu"), size=4, epochs=4, target=None)
