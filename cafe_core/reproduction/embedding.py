"""Compute features of images with a trained network, for Figure 5."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cafe_core.evaluation.images import HeldImages, Normalisation
from cafe_core.evaluation.training import Recipe, train
from cafe_core.networks import FeatureNetwork
from cafe_core.spec.dataset import DatasetInfo
from cafe_core.spec.network import NetworkSpec
from cafe_core.synthetic_set.synthetic_set import SyntheticSet

EPOCHS = 20
_CHUNK = 32
"""Images per forward pass."""


def embed(real: SyntheticSet, network: NetworkSpec, images: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Return the flattened last feature map, (n, D), of each array of images (n, C, H, W).

    The network is trained for :data:`EPOCHS` epochs on `real`, a set of real images, normalised as `images` are.
    """
    trained = _trained(real, network)
    return [_features(trained, torch.from_numpy(array)) for array in images]


def _trained(real: SyntheticSet, network: NetworkSpec) -> FeatureNetwork:
    _, channels, height, width = real.images.shape
    info = DatasetInfo(
        name=real.dataset["name"],
        class_names=real.class_names,
        class_counts=[real.ipc] * len(real.class_names),
        test_count=0,
        channels=channels,
        height=height,
        width=width,
        mean=real.mean.tolist(),
        std=real.std.tolist(),
        is_digits=real.dataset["is_digits"],
    )
    normalisation = Normalisation(info.mean, info.std, torch.device("cpu"))
    held = HeldImages(torch.from_numpy(real.images), torch.from_numpy(real.labels), normalisation)
    recipe = Recipe(network=network, epochs=EPOCHS, augment="none", info=info)
    trained = train(recipe, held, torch.arange(len(held))[None], [0]).eval().grouped
    assert isinstance(trained, FeatureNetwork)  # an ensemble of one uses the network itself
    return trained


@torch.inference_mode()
def _features(network: FeatureNetwork, images: Tensor) -> NDArray[np.float32]:
    last = len(network.map_shapes) - 1
    maps = [network.features(chunk, [last])[0].flatten(1) for chunk in torch.split(images, _CHUNK)]
    features: NDArray[np.float32] = torch.cat(maps).numpy()
    return features
