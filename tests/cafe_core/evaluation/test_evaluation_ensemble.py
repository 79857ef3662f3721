from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cafe_core.evaluation.ensemble import Ensemble
from cafe_core.evaluation.images import HeldImages, Normalisation
from cafe_core.evaluation.training import Recipe, accuracies, train
from cafe_core.networks import init_network
from cafe_core.spec.dataset import DatasetInfo
from cafe_core.spec.evaluation import Augmentation
from cafe_core.spec.network import NetworkSpec
from tests.cafe_core.made_data import make_info

SEEDS = [11, 12, 13]
SMALL = [
    *(NetworkSpec(width=8, depth=2, norm=norm) for norm in ("none", "instance", "batch", "layer", "group")),
    NetworkSpec(width=8, depth=2, activation="sigmoid", pooling="max"),
    NetworkSpec(name="mlp", width=16),
    NetworkSpec(name="lenet"),
]
LARGE = [
    *(NetworkSpec(name="resnet18", norm=norm) for norm in ("instance", "batch")),
    NetworkSpec(name="vgg11", norm="group"),
    NetworkSpec(name="alexnet", norm="layer"),
]
IDS = {id(spec): f"{spec.name}-{spec.norm}-{spec.activation}" for spec in [*SMALL, *LARGE]}


def info(channels: int, side: int, count: int) -> DatasetInfo:
    return make_info([count] * 3, side=side, channels=channels)


def images(data: DatasetInfo, count: int, seed: int = 0) -> HeldImages:
    """Return `count` random images with labels, in float64."""
    random = torch.Generator().manual_seed(seed)
    normalisation = Normalisation(data.mean, data.std, torch.device("cpu"), torch.float64)
    x = torch.randn(count, *data.shape, dtype=torch.float64, generator=random)
    return HeldImages(x, torch.randint(0, 3, (count,), generator=random), normalisation)


def rows_per_network(count: int, each: int) -> Tensor:
    """Return row numbers (M, each) below `count`, drawn separately for each network."""
    random = torch.Generator().manual_seed(7)
    return torch.stack([torch.randperm(count, generator=random)[:each] for _ in SEEDS])


def state_of_network(ensemble: Ensemble, m: int, like: nn.Module) -> list[Tensor]:
    """Return network m's part of the ensemble's floating-point parameters and buffers, in the shapes of `like`."""
    state, shapes = ensemble.grouped.state_dict(), like.state_dict()
    return [
        value.view(len(SEEDS), *shapes[name].shape)[m]
        for name, value in state.items()
        if value.is_floating_point() and value.ndim
    ]


def assert_equals_separate_training(recipe: Recipe, pool: HeldImages, rows: Tensor) -> None:
    """Check that an ensemble has the parameters, running statistics and accuracies of its networks trained separately."""
    test, everything = images(recipe.info, 40, seed=1), torch.arange(40)
    together = train(recipe, pool, rows, SEEDS)
    found = accuracies(together, test, everything)
    for m, seed in enumerate(SEEDS):
        single = train(recipe, pool, rows[m : m + 1], [seed])
        expected = [value for value in single.grouped.state_dict().values() if value.is_floating_point()]
        for ours, theirs in zip(state_of_network(together, m, single.grouped), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        assert found[m] == accuracies(single, test, everything)[0]


@pytest.mark.parametrize("augment", ["none", "dsa"])
@pytest.mark.parametrize("network", SMALL, ids=lambda spec: IDS[id(spec)])
def test_ensemble_equals_networks_trained_separately(network: NetworkSpec, augment: Augmentation) -> None:
    """Compare after 20 steps, in float64."""
    data = info(1, 8, 10)
    assert_equals_separate_training(Recipe(network.resolved(), 20, augment, data), images(data, 12), rows_per_network(12, 7))


def test_each_network_has_its_own_batches_and_draws() -> None:
    """Compare after 20 steps: 10 epochs of two batches, with 256 images and 4."""
    data = info(3, 8, 100)
    recipe = Recipe(NetworkSpec(name="mlp", width=8), 10, "crop_flip_cutout", data)
    assert_equals_separate_training(recipe, images(data, 300), rows_per_network(300, 260))


def gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


@pytest.mark.parametrize("network", LARGE, ids=lambda spec: IDS[id(spec)])
def test_logits_and_gradients_of_larger_networks_match(network: NetworkSpec) -> None:
    data = info(3, 8, 10)
    x = torch.stack([images(data, 4, seed).normalised(torch.arange(4)) for seed in (1, 2)])
    networks = [init_network(network.resolved(), data.shape, 3, seed).double() for seed in (1, 2)]
    expected = [net(own) for net, own in zip(networks, x, strict=True)]
    ensemble = Ensemble(networks)
    logits = ensemble(x)
    torch.testing.assert_close(logits, torch.stack(expected))
    torch.autograd.backward([logits.square().sum(), *(own.square().sum() for own in expected)])
    for name, parameter in ensemble.grouped.named_parameters():
        theirs = torch.stack([gradient(net.get_parameter(name)) for net in networks])
        torch.testing.assert_close(gradient(parameter).view_as(theirs), theirs)


@pytest.mark.parametrize("network", SMALL, ids=lambda spec: IDS[id(spec)])
def test_diverging_network_does_not_affect_the_others(network: NetworkSpec) -> None:
    data = info(1, 8, 20)
    pool = images(data, 60)
    rows = torch.arange(60).view(3, 20)
    recipe = Recipe(network.resolved(), 5, "none", data)
    healthy = train(recipe, pool, rows, SEEDS)
    x = pool.normalised(torch.arange(60))
    x[20:40] = torch.inf  # the images of network 1
    diverged = train(recipe, HeldImages(x, pool.labels(torch.arange(60)), pool.normalisation), rows, SEEDS)
    probe = images(data, 30, seed=3).normalised(torch.arange(30)).expand(3, -1, -1, -1, -1)
    with torch.no_grad():
        expected, found = healthy.eval()(probe), diverged.eval()(probe)
    assert not found[1].isfinite().all()
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]])


def test_unsupported_layer_is_refused() -> None:
    network = init_network(NetworkSpec(name="mlp", width=4), (1, 8, 8), 3, seed=0)
    network.stages.append(nn.PReLU())
    with pytest.raises(AssertionError, match="PReLU has \\['weight'\\]"):
        Ensemble([network, network])
