"""Compare training on the real images with a plain torch loop, for any number of shards, including results per image."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cafe_core.algorithm import augment
from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.cutmix import CutMix
from cafe_core.algorithm.real_images import RealImages
from cafe_core.algorithm.real_training import Epoch, RealTraining, SgdRecipe
from cafe_core.algorithm.sampling import generator
from cafe_core.algorithm.sharding import class_shard
from cafe_core.data.class_store import ClassStore
from cafe_core.errors import NonFiniteLossError
from cafe_core.networks import init_network
from cafe_core.networks.sgd import FIFTHS_AT_THE_END
from cafe_core.spec.network import NetworkSpec
from tests.cafe_core.gangs import run_gang
from tests.cafe_core.made_data import make_store

CPU = torch.device("cpu")
COUNTS = [2, 40, 11, 3, 25, 1, 18]
RECIPE = SgdRecipe(epochs=5, batch=16, lr=0.05, seed=3, images_per_chunk=1000)
MIXED = dataclasses.replace(RECIPE, decay=FIFTHS_AT_THE_END, augment="dsa", cutmix=0.7)


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
    epochs = list(training_of(network, store, comm, recipe).epochs())
    return parameter_vector(network), epochs


def training_of(network: nn.Module, store: ClassStore, comm: Comm, recipe: SgdRecipe) -> RealTraining:
    classes = class_shard(len(COUNTS), comm.rank, comm.world)
    real, all_real = (RealImages(store, of, CPU, torch.float64) for of in (classes, range(len(COUNTS))))
    return RealTraining(network, real, classes, len(COUNTS), comm, recipe, all_real)


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


def test_augmented_and_mixed_training_matches_a_plain_torch_loop(store: ClassStore) -> None:
    """Augment and mix whole minibatches of one tensor of all images."""
    theta, epochs = trained(store, Comm.single(), MIXED)

    real = RealImages(store, range(len(COUNTS)), CPU, torch.float64)
    images = torch.cat([real.batch(k, torch.arange(n)) for k, n in enumerate(COUNTS)])
    labels = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))
    network = fresh_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    mixed = 0
    for number, rate in enumerate([0.05, 0.05, 0.05, 0.05, 0.01], start=1):  # ×0.2 after 10/3 and 25/6 epochs, rounded up
        optimizer.param_groups[0]["lr"] = rate
        draws = augment.draw("dsa", len(images), (3, 8, 8), False, generator(3, "real augmentation", number))
        for index, batch in enumerate(torch.split(torch.randperm(len(images), generator=generator(3, "real epoch", number)), 16)):
            x, y = augment.apply(images[batch], draws[batch]), labels[batch]
            mix = CutMix.draw(len(batch), 8, 8, 0.7, generator(3, "real mix", number, index))
            if mix is None:
                loss = F.cross_entropy(network(x), y)
            else:
                mixed += 1
                box = (..., slice(mix.top, mix.bottom), slice(mix.left, mix.right))
                both = x.clone()
                both[box] = x[mix.partners][box]
                logits = network(both)
                loss = mix.kept * F.cross_entropy(logits, y) + (1 - mix.kept) * F.cross_entropy(logits, y[mix.partners])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert 0 < mixed < len(epochs) * -(-sum(COUNTS) // 16)
    torch.testing.assert_close(theta, parameter_vector(network), rtol=0, atol=1e-11)


@pytest.mark.parametrize("recipe", [RECIPE, MIXED], ids=["plain", "augmented and mixed"])
@pytest.mark.parametrize("world", [2, 3, len(COUNTS)])
def test_network_does_not_depend_on_the_number_of_shards(store: ClassStore, world: int, recipe: SgdRecipe) -> None:
    alone, epochs = trained(store, Comm.single(), recipe)
    gang = run_gang(world, lambda comm: trained(store, comm, recipe))
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


@pytest.mark.parametrize("stopped_after", [1, 3])
def test_training_continues_from_its_state_to_the_same_bytes(store: ClassStore, stopped_after: int) -> None:
    undisturbed, epochs = trained(store, Comm.single(), MIXED)
    first = training_of(fresh_network(), store, Comm.single(), MIXED)
    for epoch in first.epochs():
        if epoch.number == stopped_after:
            break
    network = fresh_network()
    second = training_of(network, store, Comm.single(), MIXED)
    second.load_state(first.state())
    rest = list(second.epochs())
    assert [epoch.number for epoch in rest] == list(range(stopped_after + 1, MIXED.epochs + 1))
    assert [epoch.loss for epoch in rest] == [epoch.loss for epoch in epochs[stopped_after:]]
    assert torch.equal(parameter_vector(network), undisturbed)


def test_boxes_of_mixes_lie_in_the_image_and_cover_the_stated_area() -> None:
    mixes = [CutMix.draw(5, 12, 7, 0.5, generator(seed, "mix")) for seed in range(400)]
    drawn = [mix for mix in mixes if mix is not None]
    assert 150 < len(drawn) < 250
    for mix in drawn:
        assert 0 <= mix.top <= mix.bottom <= 12
        assert 0 <= mix.left <= mix.right <= 7
        zeros, ones = torch.zeros(5, 1, 12, 7), torch.ones(5, 1, 12, 7)
        assert float(mix.mixed(zeros, ones).mean()) == pytest.approx(1 - mix.kept, abs=1e-6)
        assert sorted(mix.partners.tolist()) == list(range(5))
    kept = torch.tensor([mix.kept for mix in drawn])
    assert kept.min() < 0.3
    assert kept.max() > 0.95
