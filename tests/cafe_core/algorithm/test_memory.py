"""Compare the measured memory of a step with its estimate."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.model import Budget
from cafe_core.data.class_store import ClassStore
from cafe_core.methods.dc.spec import WEIGHT_GRADIENTS_HELD
from cafe_core.networks import build_network
from cafe_core.spec.estimate import GRAPH_BYTES_CPU, estimate
from cafe_core.spec.network import NetworkSpec
from cafe_core.spec.network_sizes import DOUBLE_GRAPH_FACTOR
from tests.cafe_core.live_memory import LiveBytes
from tests.cafe_core.made_data import make_spec, make_store
from tests.cafe_core.started import start_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClassStore:
    return make_store(tmp_path_factory.mktemp("store") / "s", [8, 8], side=32, channels=3)


@pytest.mark.parametrize(
    "fields",
    [
        {"width": 32},
        {"width": 32, "norm": "layer"},
        {"width": 32, "pooling": "max", "activation": "sigmoid"},
        {"name": "lenet"},
        {"name": "alexnet", "norm": "layer"},
        {"name": "vgg11"},
        {"name": "resnet18"},
    ],
    ids=lambda fields: "-".join(str(v) for v in fields.values()),
)
def test_memory_of_a_double_graph_matches_the_estimate(fields: dict[str, object]) -> None:
    """Measure the peak memory per image while differentiating the gradients of the weights."""
    spec = NetworkSpec.model_validate(fields)
    network = build_network(spec, (3, 16, 16), 10)
    weights = [p for p in network.parameters() if p.dim() > 1]

    def peak(images: int) -> int:
        with LiveBytes() as live:
            x = torch.zeros(images, 3, 16, 16, requires_grad=True)
            loss = F.cross_entropy(network(x), torch.zeros(images, dtype=torch.int64))
            gradients = torch.autograd.grad(loss, weights, create_graph=True)
            torch.autograd.grad(gradients, x, [torch.ones_like(w) for w in weights])
        return live.peak

    measured = (peak(4) - peak(2)) / 2 / (4 * sum(prod(shape) for shape in network.map_shapes))
    assert 0.5 * DOUBLE_GRAPH_FACTOR[spec.name] <= measured <= DOUBLE_GRAPH_FACTOR[spec.name]


@pytest.mark.parametrize("method", [{"name": "dc"}, {"name": "dm"}, {"name": "cafe"}], ids=str)
def test_memory_of_a_step_does_not_exceed_the_estimate(store: ClassStore, tmp_path: Path, method: dict[str, object]) -> None:
    """Run an outer step with more synthetic images than fit into a chunk, with the budget of a CPU."""
    spec = make_spec(store, ipc=26, network={}, method={"batch_real": 8, **method}, precision="float32")
    run, shard = start_run(spec, store, Comm.single(), Budget.of(CPU), tmp_path)
    assert run.context.images_per_double_graph < spec.ipc
    with LiveBytes() as live:
        run.update_images(shard, 0, 0)
    estimated = estimate(spec, store.info)
    assert live.peak <= estimated.features_bytes + estimated.statistics_bytes + estimated.synthetic_bytes
    assert live.peak >= 0.2 * GRAPH_BYTES_CPU  # a lower limit: chunks are not smaller than necessary


@pytest.mark.parametrize("ipc", [1, 12], ids=["kept graph", "graph rebuilt per image"])
def test_memory_of_weight_gradients_matches_the_estimate(store: ClassStore, tmp_path: Path, ipc: int) -> None:
    """Use a network of large weights and small maps, with one chunk per class and with several."""
    spec = make_spec(
        store, ipc=ipc, network={"name": "mlp", "width": 1500}, method={"name": "dc", "batch_real": 1}, precision="float32"
    )
    run, shard = start_run(spec, store, Comm.single(), Budget(1, 1), tmp_path)  # one image at a time
    with LiveBytes() as live:
        run.update_images(shard, 0, 0)
    estimated = estimate(spec, store.info).statistics_bytes
    assert estimated / WEIGHT_GRADIENTS_HELD == pytest.approx(
        4 * sum(p.numel() for p in run.context.model.parameters()), rel=0.15
    )
    assert 0.5 * estimated <= live.peak <= estimated
