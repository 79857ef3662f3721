"""Compare training on the real images with a plain torch loop, for any number of shards, including results per image."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.real_images import RealImages
from cafe_core.algorithm.real_training import Epoch, SgdRecipe, train
from cafe_core.algorithm.sampling import generator
from cafe_core.algorithm.sharding import class_shard
from cafe_core.data.class_store import ClassStore
from cafe_core.errors import NonFiniteLossError
from cafe_core.networks import init_network
from cafe_core.spec.network import NetworkSpec
from tests.cafe_core.gangs import run_gang
from tests.cafe_core.made_data import make_store

CPU = torch.device("cpu")
COUNTS = [2, 40, 11, 3, 25, 1, 18]
RECIPE = SgdRecipe(epochs=5, batch=16, lr=0.05, seed=3, images_per_chunk=1000)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClassStore:
    return make_store(tmp_path_factory.mktemp("store") / "seven", COUNTS, channels=3)


def fresh_network() -> nn.Module:
    return init_network(NetworkSpec(width=6, depth=2), (3, 8, 8), len(COUNTS), seed=1).double()


def trained(store: ClassStore, comm: Comm, recipe: SgdRecipe) -> tuple[Tensor, list[Epoch]]:
    network = fresh_network()
    classes = class_shard(len(COUNTS), comm.rank, comm.world)
    real = RealImages(store, classes, CPU, torch.float64)
    epochs = list(train(network, real, classes, len(COUNTS), comm, recipe))
    return parameter_vector(network), epochs


def parameter_vector(network: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(network.parameters()).detach()


def test_training_matches_a_plain_torch_loop(store: ClassStore) -> None:
    """Compare with a plain torch loop over one tensor of all images."""
    theta, epochs = trained(store, Comm.single(), RECIPE)

    real = RealImages(store, range(len(COUNTS)), CPU, torch.float64)
    images = torch.cat([real.batch(k, torch.arange(n)) for k, n in enumerate(COUNTS)])
    labels = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))
    network = fresh_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for number, epoch in enumerate(epochs, start=1):
        optimizer.param_groups[0]["lr"] = 0.05 if number <= 3 else 0.005
        losses, correct = torch.zeros(len(images), dtype=torch.float64), torch.zeros(len(images), dtype=torch.bool)
        for batch in torch.split(torch.randperm(len(images), generator=generator(3, "real epoch", number)), 16):
            logits = network(images[batch])
            each = F.cross_entropy(logits, labels[batch], reduction="none")
            losses[batch], correct[batch] = each.detach(), logits.argmax(1) == labels[batch]
            optimizer.zero_grad()
            each.mean().backward()
            optimizer.step()
        assert epoch.number == number
        assert epoch.loss == pytest.approx(float(losses.mean()), abs=1e-11)
        assert epoch.accuracy == pytest.approx(float(correct.double().mean()), abs=1e-12)
        assert torch.cat(epoch.correct).tolist() == correct.tolist()
        assert [len(of_class) for of_class in epoch.correct] == COUNTS
    assert len(epochs) == RECIPE.epochs
    torch.testing.assert_close(theta, parameter_vector(network), rtol=0, atol=1e-11)


@pytest.mark.parametrize("world", [2, 3, len(COUNTS)])
def test_network_does_not_depend_on_the_number_of_shards(store: ClassStore, world: int) -> None:
    alone, epochs = trained(store, Comm.single(), RECIPE)
    gang = run_gang(world, lambda comm: trained(store, comm, RECIPE))
    for theta, _ in gang:
        torch.testing.assert_close(theta, alone, rtol=0, atol=1e-9)
        assert torch.equal(theta, gang[0][0])
    for number, epoch in enumerate(epochs):
        shards = [shard_epochs[number] for _, shard_epochs in gang]
        assert [of_class.tolist() for shard in shards for of_class in shard.correct] == [c.tolist() for c in epoch.correct]
        for shard in shards:
            assert shard.loss == pytest.approx(epoch.loss, abs=1e-9)
            assert shard.accuracy == pytest.approx(epoch.accuracy, abs=1e-12)


def test_chunks_of_a_minibatch_add_up(store: ClassStore) -> None:
    whole, _ = trained(store, Comm.single(), RECIPE)
    pieces, _ = trained(store, Comm.single(), dataclasses.replace(RECIPE, images_per_chunk=3))
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-11)


def test_each_minibatch_sends_one_gradient(store: ClassStore) -> None:
    comm = Comm.single()
    theta, _ = trained(store, comm, RECIPE)
    minibatches = -(-sum(COUNTS) // RECIPE.batch)
    assert comm.numbers == len(COUNTS) + RECIPE.epochs * (minibatches * len(theta) + 2)


def test_training_increases_the_accuracy(store: ClassStore) -> None:
    _, epochs = trained(store, Comm.single(), dataclasses.replace(RECIPE, epochs=12))
    assert epochs[0].accuracy < 0.6
    assert epochs[-1].accuracy > 0.95


def test_zero_epochs_do_not_change_the_network(store: ClassStore) -> None:
    theta, epochs = trained(store, Comm.single(), dataclasses.replace(RECIPE, epochs=0))
    assert epochs == []
    assert torch.equal(theta, parameter_vector(fresh_network()))


def test_diverging_training_fails_on_every_rank(store: ClassStore) -> None:
    def work(comm: Comm) -> str:
        with pytest.raises(NonFiniteLossError, match=r"epoch \d of the training on the real images") as raised:
            trained(store, comm, dataclasses.replace(RECIPE, lr=1e200))
        return raised.value.message

    assert len(set(run_gang(3, work))) == 1
