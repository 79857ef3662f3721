"""The estimate's arithmetic against the networks themselves."""

from __future__ import annotations

import itertools
from math import prod

import pytest

from cafe_core.config import CondenseSpec, DatasetInfo, NetworkSpec, aligned_map_count, resolve
from cafe_core.estimate import estimate, map_shapes, parameter_count
from cafe_core.networks import build_network

NETWORKS = [
    *({"name": name} for name in ("mlp", "lenet", "alexnet", "vgg11", "resnet18")),
    *({"width": 16, "depth": depth, "pooling": pooling} for depth, pooling in itertools.product((1, 3, 5), ("avg", "none"))),
]


@pytest.mark.parametrize("side", [8, 16, 28, 32, 64])
@pytest.mark.parametrize("fields", NETWORKS, ids=lambda fields: "-".join(str(v) for v in fields.values()))
def test_map_shapes_are_the_networks(fields: dict[str, object], side: int) -> None:
    spec = NetworkSpec.model_validate(fields)
    network = build_network(spec, (3, side, side), 10)
    assert map_shapes(spec, (3, side, side)) == list(network.map_shapes)
    assert len(network.map_shapes) == aligned_map_count(spec)
    actual = sum(p.numel() for p in network.parameters())
    assert parameter_count(spec, (3, side, side), 10) == pytest.approx(actual, rel=0.15)


def test_estimate_grows_with_what_is_held() -> None:
    info = DatasetInfo(
        name="made",
        class_names=[str(k) for k in range(1000)],
        class_counts=[500] * 1000,
        test_count=0,
        channels=3,
        height=64,
        width=64,
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )

    def of(**fields: object) -> int:
        spec = CondenseSpec.model_validate({"dataset": {"path": "x"}, "ipc": 10, "network": {"depth": 4}, **fields})
        return estimate(resolve(spec, info), info).memory_bytes

    base = of()
    assert of(resources={"workers": 4}) < base
    assert of(ipc=50) > base
    assert of(precision="float64") > base
    whole = estimate(resolve(CondenseSpec.model_validate({"dataset": {"path": "x"}, "ipc": 10}), info), info)
    assert whole.numbers_per_outer_step == 2 * 1000 * prod((128, 8, 8))
    assert whole.synthetic_bytes == 3 * 1000 * 10 * 3 * 64 * 64 * 4
