"""What the methods share that choose real images instead of making images: random, herding, k_center, kmeans, forgetting.

Each is one function, `select(rank, report)`, in a module of `cafe_core.methods`. Choosing is local to a class, hence to a rank.
All that ranks must agree on is the network θ that judges the images; they train it together
(:mod:`cafe_core.algorithm.real_training`).
So in float64 any number of shards chooses the same images. In float32, two trainings differ in their last bits, and between
images that are almost equally good the choice may differ with the number of shards.

    D   width of the flattened last feature map     n_k   real images of class k
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cafe_core.algorithm.real_images import BatchIndices
from cafe_core.algorithm.real_training import Epoch, SgdRecipe, train
from cafe_core.algorithm.sampling import counter_seed
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.errors import NonFiniteLossError
from cafe_core.spec.method import CoresetMethod


def repeated(chosen: Tensor, ipc: int) -> Tensor:
    """(ipc,) positions: `chosen`, from its start again where a class has fewer images, as `init: real` does."""
    return chosen[torch.arange(ipc) % len(chosen)]


def train_network(rank: ShardContext, report: Callable[..., None]) -> Iterator[Epoch]:
    """Make θ a fresh network and train it on all real images, an epoch each time the iterator is asked for one.

    Reports every epoch as an `epoch` event. Raises NonFiniteLossError, on every rank, when the training diverges.
    """
    method = rank.spec.method
    assert isinstance(method, CoresetMethod)
    seed = counter_seed(rank.spec.seed, "embedding network")
    rank.model.renew(seed, 0)
    recipe = SgdRecipe(method.network_epochs, method.batch_train, method.network_lr, seed, rank.images_per_graph)
    started = last = time.monotonic()
    for epoch in train(rank.model, rank.real, rank.classes, rank.info.num_classes, rank.comm, recipe):
        now = time.monotonic()
        report(
            "epoch",
            epoch=epoch.number,
            total=recipe.epochs,
            loss=epoch.loss,
            accuracy=epoch.accuracy,
            seconds=round(now - last, 4),
            eta_s=round((now - started) / epoch.number * (recipe.epochs - epoch.number), 1),
        )
        last = now
        yield epoch


def select_by_features(rank: ShardContext, report: Callable[..., None], choose: Callable[[int, Tensor], Tensor]) -> list[Tensor]:
    """Train θ to the end, then let `choose` see each own class by θ's last map; of each class ipc positions, (ipc,) int64.

    choose(k, features): (n_k, D) float64 of the images of class k → positions, fewer than ipc only where the class is smaller.
    One class's features are held at a time. Raises NonFiniteLossError as :func:`train_network` does, and where only the last
    step of the training made the features infinite.
    """
    for _ in train_network(rank, report):
        pass
    chosen: list[Tensor] = []
    infinite = torch.zeros((), dtype=torch.int64, device=rank.real.device)
    for k in rank.classes:
        features = _features(rank, k)
        if not features.isfinite().all():
            infinite += 1
            break
        chosen.append(repeated(choose(k, features), rank.spec.ipc))
    if rank.comm.all_reduce(infinite):  # asked of all, so that no rank waits for one that gave up
        raise NonFiniteLossError(
            "the features became infinite in the last step of the training on the real images. "
            "A smaller method.network_lr usually helps"
        )
    return chosen


@torch.no_grad()
def _features(rank: ShardContext, k: int) -> Tensor:
    n, model = rank.real.count(k), rank.model
    last_layer = len(model.network.map_shapes) - 1
    features = torch.empty(n, model.network.feature_dim, dtype=torch.float64, device=rank.real.device)
    filled = 0
    for chunk in rank.real.chunks(BatchIndices([k], [torch.arange(n)]), rank.images_per_chunk):
        (last_map,) = model.features(chunk.images, [last_layer])
        features[filled : filled + len(last_map)] = last_map.flatten(1)
        filled += len(last_map)
    return features
