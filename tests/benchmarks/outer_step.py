"""Compare the outer step with a straightforward one: K = 10, N = 64, ipc = 10, ConvNet-3, 32×32 colour images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.method import LearningMethod, ignore_events
from cafe_core.algorithm.model import Budget
from cafe_core.data.class_store import ClassStore
from tests.benchmarks.figures import Figure
from tests.benchmarks.straightforward import ConvNet3, outer_step
from tests.cafe_core.made_data import make_spec, make_store
from tests.cafe_core.started import start_run

K, N, IPC = 10, 64, 10
CPU = torch.device("cpu")
METHOD = {"batch_real": N}


def make_run(store: ClassStore, checkpoints: Path, **fields: object) -> tuple[LearningMethod, Callable[[], Tensor]]:
    """Return a run and a function that computes ∂L/∂S of its first outer step, without updating S."""
    spec = make_spec(store, ipc=IPC, network={}, **{"method": METHOD, **fields})
    run, shard = start_run(spec, store, Comm.single(), Budget.of(CPU), checkpoints)

    def step() -> Tensor:
        return run.gradient(shard, run.context.sample("real", N, 0, 0), None)[0]

    return run, step


def straightforward_step(run: LearningMethod) -> Callable[[], Tensor]:
    """Return the same step as the straightforward code computes it, with the same network and images."""
    network, context = ConvNet3(3, K), run.context
    network.load_state_dict(dict(zip(network.state_dict(), context.model.network.state_dict().values(), strict=True)))
    rows = run.context.sample("real", N, 0, 0)
    images = run.initial_images(ignore_events)

    def step() -> Tensor:
        real = [context.real.batch(k, rows.indices[k]) for k in range(K)]
        synthetic = [images[k * IPC : (k + 1) * IPC].clone().requires_grad_() for k in range(K)]
        network.zero_grad()
        outer_step(network, synthetic, real, context.spec.method.layer_weights, context.spec.method.beta)
        return torch.cat([s.grad for s in synthetic if s.grad is not None])

    return step


def _silent(_type: str, **_data: object) -> None:
    pass


def seconds(step: Callable[[], Tensor], repeats: int) -> float:
    """Return the median time of a step after one step that warms up (and compiles)."""
    step()
    times: list[float] = []
    while len(times) < repeats and (not times or times[0] < SLOW_S):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return median(times)


SLOW_S = 10.0
"""A step slower than this is timed once: for example bfloat16 on a CPU that has no instructions for it."""


def measure(repeats: int = 5) -> Iterator[Figure]:
    """Measure the seconds per outer step, and the speed-up over the straightforward step."""
    torch.set_num_threads(2)
    with TemporaryDirectory() as directory:
        path = Path(directory)
        store = make_store(path / "store", [200] * K, side=32, channels=3)
        run, eager = make_run(store, path / "eager", precision="float32")
        naive = straightforward_step(run)
        expected = naive()
        difference = float((eager() - expected).norm() / expected.norm())
        yield Figure("outer step, eager float32: ‖difference‖ / ‖gradient‖", difference, "", "≤ 1e-4")
        base = seconds(naive, repeats)
        yield Figure("outer step, straightforward", base, "s")
        for name, target, fields in (
            ("eager float32", "≥ 3", {"precision": "float32"}),
            ("compiled float32", None, {"precision": "float32", "compile": True}),
            ("compiled bfloat16", "≥ 6", {"precision": "bfloat16", "compile": True}),
        ):
            _, step = make_run(store, path / name, **fields)
            taken = seconds(step, repeats)
            yield Figure(f"outer step, {name}", taken, "s")
            yield Figure(f"outer step, {name}: speed-up", base / taken, "×", target)
