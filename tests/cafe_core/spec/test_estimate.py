"""Compare the estimate's arithmetic with the networks themselves."""

from __future__ import annotations

import itertools
from math import prod

import pytest

from cafe_core.data.builtin import BUILTIN
from cafe_core.evaluation.estimate import estimate_evaluation
from cafe_core.networks import build_network
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.estimate import Estimate, estimate, map_shapes, parameter_count, training_bytes
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.network import NetworkSpec, aligned_map_count
from cafe_core.spec.resolution import resolve
from tests.cafe_core.made_data import make_info

NETWORKS = [
    *({"name": name} for name in ("mlp", "lenet", "alexnet", "vgg11", "resnet18")),
    *({"width": 16, "depth": depth, "pooling": pooling} for depth, pooling in itertools.product((1, 3, 5), ("avg", "none"))),
]


@pytest.mark.parametrize("side", [8, 16, 28, 32, 64])
@pytest.mark.parametrize("fields", NETWORKS, ids=lambda fields: "-".join(str(v) for v in fields.values()))
def test_map_shapes_and_parameter_count_match_the_network(fields: dict[str, object], side: int) -> None:
    spec = NetworkSpec.model_validate(fields)
    network = build_network(spec, (3, side, side), 10)
    assert map_shapes(spec, (3, side, side)) == list(network.map_shapes)
    assert len(network.map_shapes) == aligned_map_count(spec)
    actual = sum(p.numel() for p in network.parameters())
    assert parameter_count(spec, (3, side, side), 10) == pytest.approx(actual, rel=0.15)


def test_estimate_depends_on_workers_ipc_and_precision() -> None:
    info = make_info([500] * 1000, side=64)

    def memory_bytes(**fields: object) -> int:
        spec = CondenseSpec.model_validate(
            {"dataset": {"path": "x"}, "ipc": 10, "method": "cafe", "network": {"depth": 4}, **fields}
        )
        return estimate(resolve(spec, info), info).memory_bytes

    base = memory_bytes()
    assert memory_bytes(resources={"workers": 4}) < base
    assert memory_bytes(ipc=50) > base
    assert memory_bytes(precision="float64") > base
    whole = estimate(resolve(CondenseSpec.model_validate({"dataset": {"path": "x"}, "ipc": 10, "method": "cafe"}), info), info)
    assert whole.numbers_per_outer_step == 2 * 1000 * prod((128, 8, 8))
    assert whole.synthetic_bytes == 3 * 1000 * 10 * 3 * 64 * 64 * 4


@pytest.mark.parametrize(
    ("fields", "copies"),
    [
        ({}, 16),
        ({"gamma": 3}, 2),
        ({"bilevel": "fixed"}, 0),
        ({"query_carry": True}, 0),
        ({"max_outer": 10, "max_inner": 5}, 0),  # no window of ten accuracies is full before the bound
        ({"gamma": 40}, 0),  # more than 128 MiB
    ],
)
def test_estimate_counts_copies_of_the_network_for_query_checks(fields: dict[str, object], copies: int) -> None:
    info, network = make_info([500] * 10, side=32), NetworkSpec(depth=4)

    def statistics_bytes(**method: object) -> int:
        spec = {"dataset": {"name": "digits"}, "ipc": 10, "network": {"depth": 4}, "method": {"name": "cafe"} | method}
        return estimate(resolve(CondenseSpec.model_validate(spec), info), info).statistics_bytes

    without = statistics_bytes(bilevel="fixed")
    assert statistics_bytes(**fields) - without == copies * 4 * parameter_count(network, (3, 32, 32), 10)


def test_estimate_includes_the_decoded_images_of_multi_formation_sets() -> None:
    info = BUILTIN["cifar10"]

    def estimated(factor: int, **fields: object) -> Estimate:
        method = {"name": "dance", "factor": factor}
        return estimate(
            resolve(CondenseSpec.model_validate({"dataset": {"name": "cifar10"}, "ipc": 50, "method": method, **fields}), info),
            info,
        )

    stored = 500 * 3 * 32 * 32 * 4
    assert estimated(1).synthetic_bytes == 3 * stored
    assert estimated(8).synthetic_bytes == (3 + 5 * 64) * stored
    resnet = {"networks": [{"name": "resnet18"}]}
    few = {"ipc": 1, "evaluation": resnet}
    assert estimated(4, **few).network_bytes > 5 * estimated(1, **few).network_bytes  # 160 and 10 images per minibatch


def test_estimate_includes_training_of_evaluation_networks() -> None:
    info = BUILTIN["cifar10"]

    def network_bytes(**fields: object) -> int:
        spec = CondenseSpec.model_validate({"dataset": {"name": "cifar10"}, "ipc": 1, "method": "cafe", **fields})
        return estimate(resolve(spec, info), info).network_bytes

    large = {"name": "resnet18"}
    ten = training_bytes(NetworkSpec(name="resnet18"), info, 10)
    assert network_bytes() < ten
    assert network_bytes(evaluation={"networks": [{}, large]}) == ten
    assert network_bytes(validation={"every": 5, "network": large}) == ten
    full = training_bytes(NetworkSpec(name="resnet18"), info, 256)
    assert network_bytes(evaluation={"networks": [large], "baselines": ["whole"]}) == full

    def evaluation(ipc: int | None, **fields: object) -> Estimate:
        synthetic = {"path": "a.npz"}
        spec = EvaluateSpec.model_validate({"kind": "evaluate", "synthetic": synthetic, "networks": [large], **fields})
        return estimate_evaluation(spec, info, ipc)

    assert evaluation(1).network_bytes == ten
    assert (
        evaluation(1, baselines=["whole"]).network_bytes
        == evaluation(None).network_bytes
        == evaluation(100).network_bytes
        == full
    )
    assert evaluation(None).synthetic_bytes == 0
    assert evaluation(10).synthetic_bytes == 10 * evaluation(1).synthetic_bytes == 100 * 3 * 32 * 32 * 5


def test_estimate_of_coreset_methods_counts_features_of_the_largest_class() -> None:
    info = make_info([500, 13861, 70], side=32)

    def statistics(name: str) -> int:
        spec = CondenseSpec.model_validate({"dataset": {"path": "x"}, "ipc": 10, "method": {"name": name}})
        return estimate(resolve(spec, info), info).statistics_bytes

    features = 8 * 13861 * 128 * 4 * 4
    expected = {"herding": features, "k_center": features, "kmeans": 3 * features, "forgetting": 0, "random": 0}
    assert {name: statistics(name) for name in expected} == expected
