"""Train a pool of networks on the real images, and share it between jobs.

A member is determined by the dataset, the network, the recipe, the pool's seed and its number, so it is cached under these
(:mod:`cafe_core.algorithm.artifact_cache`): jobs and sweeps share members, and a smaller pool is the start of a larger one. The
gang trains the members one after the other (:mod:`cafe_core.algorithm.real_training`), and stores the state of the training after
each epoch, so that an interrupted job continues from the last complete epoch. Jobs that run at the same time do not wait for each
other: each trains the members that are missing when it needs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cafe_core.algorithm.artifact_cache import ArtifactCache
from cafe_core.algorithm.method import Report
from cafe_core.algorithm.progress import EpochProgress
from cafe_core.algorithm.real_training import RealTraining, SgdRecipe
from cafe_core.algorithm.sampling import counter_seed
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.errors import NonFiniteLossError
from cafe_core.networks import init_network
from cafe_core.networks.sgd import FIFTHS_AT_THE_END
from cafe_core.spec.pool_method import PoolMethodSpec

Weights = dict[str, Tensor]
"""A network's parameters by name, on the device."""


@dataclass(frozen=True)
class Member:
    """A network of the pool, before and after its training on the real images."""

    initial: Weights
    final: Weights

    def between(self, share: float) -> Weights:
        """Return the interpolated weights, share·initial + (1 − share)·final."""
        return {name: torch.lerp(final, self.initial[name], share) for name, final in self.final.items()}


def load_or_train(context: ShardContext, cache: ArtifactCache, report: Report) -> list[Member]:
    """Return the pool that the spec's method asks for; train the members that are not cached. All workers call it together.

    Reports a `pool` event with the images that the training of the whole pool passes through a network, and an `epoch` event per
    epoch of training, and `step` events within long epochs. Raises NonFiniteLossError, on every worker, if a training diverges.
    """
    spec = context.spec.method
    assert isinstance(spec, PoolMethodSpec)
    passes = spec.pool_size * spec.pool_epochs * sum(context.info.class_counts)
    report("pool", networks=spec.pool_size, epochs=spec.pool_epochs, real_images=passes)
    progress = EpochProgress(report, total=spec.pool_size * spec.pool_epochs)
    return [_member(context, spec, number, cache, progress) for number in range(spec.pool_size)]


def _member(context: ShardContext, spec: PoolMethodSpec, number: int, cache: ArtifactCache, progress: EpochProgress) -> Member:
    initial = _initial(context, spec, number)
    key = _key(context, spec, number)
    final = cache.load(key)
    if final is None:
        final = _train(context, spec, number, initial, cache, key | {"unfinished": True}, progress)
        _check_finite(context, number)
        cache.store(key, final)
        cache.remove(key | {"unfinished": True})
    return Member(initial, final)


@torch.no_grad()
def _check_finite(context: ShardContext, number: int) -> None:
    """Raise NonFiniteLossError, on every worker, if θ has no finite logits. The loss of an epoch is older than its last step."""
    infinite = torch.zeros((), dtype=torch.int64, device=context.real.device)
    for k in context.classes:
        infinite += (~context.model(context.real.batch(k, torch.tensor([0]))).isfinite()).sum()
    if context.comm.all_reduce(infinite):
        raise NonFiniteLossError(
            f"network {number + 1} of the pool became infinite in the last step of its training. "
            "A smaller method.pool_lr usually helps"
        )


def _initial(context: ShardContext, spec: PoolMethodSpec, number: int) -> Weights:
    info, real = context.info, context.real
    seed = counter_seed(spec.pool_seed, "pool network", number)
    fresh = init_network(context.spec.network, info.shape, info.num_classes, seed)
    return {name: weight.to(real.device, real.dtype) for name, weight in fresh.state_dict().items()}


def _train(
    context: ShardContext,
    spec: PoolMethodSpec,
    number: int,
    initial: Weights,
    cache: ArtifactCache,
    unfinished: dict[str, Any],
    progress: EpochProgress,
) -> Weights:
    """Train a member from its initial weights, or from the state that an interrupted job stored under `unfinished`."""
    context.model.load(initial)
    recipe = SgdRecipe(
        spec.pool_epochs,
        spec.pool_batch,
        spec.pool_lr,
        counter_seed(spec.pool_seed, "pool training", number),
        context.images_per_graph,
        decay=FIFTHS_AT_THE_END,
        augment=spec.pool_augment,
        cutmix=spec.pool_cutmix,
        is_digits=context.info.is_digits,
        lr_field="method.pool_lr",
    )
    training = RealTraining(
        context.model,
        context.all_real,
        context.training_classes,
        context.info.num_classes,
        context.comm,
        recipe,
        context.all_real,
    )
    if (state := cache.load(unfinished)) is not None:
        training.load_state(state)
    earlier_epochs = number * spec.pool_epochs
    progress.skip_to(earlier_epochs + training.epochs_done)
    for epoch in training.epochs(progress.step_done):
        cache.store(unfinished, training.state())
        progress.epoch_done(earlier_epochs + epoch.number, epoch.loss, epoch.accuracy, pool_network=number + 1)
    return {name: weight.detach().clone() for name, weight in context.model.network.state_dict().items()}


def _key(context: ShardContext, spec: PoolMethodSpec, number: int) -> dict[str, Any]:
    """Return what determines the final weights of a member."""
    validation = context.spec.validation
    extension = context.extension
    normalisation = {} if extension is None else {"mean": extension.mean, "std": extension.std}  # else the dataset's
    return normalisation | {
        "artifact": "network of a pool",
        "version": 1,
        "dataset": context.dataset_key,
        "dataset_name": context.info.name,
        "held_out": None if validation is None else {"seed": context.spec.seed, "fraction": validation.fraction},
        "network": context.spec.network.model_dump(mode="json"),
        "precision": context.spec.precision,
        "recipe": {name: value for name, value in spec.model_dump(mode="json").items() if name in POOL_RECIPE},
        "number": number,
    }


POOL_RECIPE = ("pool_epochs", "pool_batch", "pool_lr", "pool_augment", "pool_cutmix", "pool_seed")
"""The fields of a spec that determine a member."""
