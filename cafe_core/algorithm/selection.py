"""Choose real images with a network that is trained on all of them; used by herding, k_center, kmeans and forgetting.

Each class is chosen independently of the others. All workers rate the images with the same network θ, which they train
together (:mod:`cafe_core.algorithm.real_training`). In float64 any number of workers chooses the same images. In float32 two
trainings differ in their last bits, so between almost equally good images the choice may depend on the number of workers.

    D   width of the flattened last feature map     n_k   real images of class k
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from cafe_core.algorithm.method import Report, SelectionMethod, repeated
from cafe_core.algorithm.progress import EpochProgress
from cafe_core.algorithm.real_images import BatchIndices
from cafe_core.algorithm.real_training import Epoch, RealTraining, SgdRecipe
from cafe_core.algorithm.sampling import counter_seed
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.errors import NonFiniteLossError
from cafe_core.spec.method import NetworkSelectionSpec


class FeatureSelection(SelectionMethod):
    """Chooses the images of a class by their features under a network trained on all real images."""

    @abstractmethod
    def choose(self, k: int, features: Tensor) -> Tensor:
        """Return the positions of the chosen images of class k: ipc, or fewer if the class has fewer.

        features: (n_k, D) float64, the last feature map of each image.
        """

    def select(self, report: Report) -> list[Tensor]:
        """Train θ, then choose class by class, so that the features of one class are held at a time.

        Raises NonFiniteLossError as :func:`train_network` does, and if only the last step of the training made the features
        infinite.
        """
        context = self.context
        for _ in train_network(context, report):
            pass
        chosen: list[Tensor] = []
        infinite = torch.zeros((), dtype=torch.int64, device=context.real.device)
        for k in context.classes:
            features = _features(context, k)
            if not features.isfinite().all():
                infinite += 1
                break
            chosen.append(repeated(self.choose(k, features), context.spec.ipc))
        if context.comm.all_reduce(infinite):  # on every worker, so that no worker waits for one that has raised
            raise NonFiniteLossError(
                "the features became infinite in the last step of the training on the real images. "
                "A smaller method.network_lr usually helps"
            )
        return chosen


def train_network(context: ShardContext, report: Report) -> Iterator[Epoch]:
    """Make θ a fresh network and train it on all real images; yield after each epoch.

    Reports an `epoch` event per epoch, and `step` events within long epochs. Raises NonFiniteLossError, on every worker, if the
    training diverges.
    """
    method = context.spec.method
    assert isinstance(method, NetworkSelectionSpec)
    seed = counter_seed(context.spec.seed, "embedding network")
    context.model.renew(seed, 0)
    recipe = SgdRecipe(method.network_epochs, method.batch_train, method.network_lr, seed, context.images_per_graph)
    progress = EpochProgress(report, total=recipe.epochs)
    training = RealTraining(context.model, context.real, context.training_classes, context.info.num_classes, context.comm, recipe)
    for epoch in training.epochs(progress.step_done):
        progress.epoch_done(epoch.number, epoch.loss, epoch.accuracy, real_images=sum(context.info.class_counts))
        yield epoch


@torch.no_grad()
def _features(context: ShardContext, k: int) -> Tensor:
    n, model = context.real.count(k), context.model
    last_layer = len(model.network.map_shapes) - 1
    features = torch.empty(n, model.network.feature_dim, dtype=torch.float64, device=context.real.device)
    filled = 0
    for chunk in context.real.chunks(BatchIndices([k], [torch.arange(n)]), context.images_per_chunk):
        (last_map,) = model.features(chunk.images, [last_layer])
        features[filled : filled + len(last_map)] = last_map.flatten(1)
        filled += len(last_map)
    return features
