"""Describe the built-in datasets. This module does not import numpy, so that the server starts quickly.

Mean and std are those that the dataset-condensation papers use, for images scaled to [0, 1]; those of `digits` are
measured over the training split of `cafe_core.data.digits`.
"""

from __future__ import annotations

from cafe_core.spec.dataset import DatasetInfo, DatasetName

_DIGIT_NAMES = [str(digit) for digit in range(10)]
_CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_FASHION_NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
_CIFAR100_NAMES = [
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit",
    "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake",
    "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger",
    "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
]  # fmt: skip


def _facts(
    name: DatasetName, class_names: list[str], class_counts: list[int], test_count: int, shape: tuple[int, int, int],
    mean: list[float], std: list[float], *, is_digits: bool = False,
) -> DatasetInfo:  # fmt: skip
    channels, height, width = shape
    return DatasetInfo(
        name=name, class_names=class_names, class_counts=class_counts, test_count=test_count,
        channels=channels, height=height, width=width, mean=mean, std=std, is_digits=is_digits,
    )  # fmt: skip


#: The built-in datasets without image_size or channels applied. SVHN's training images are its `train` split.
BUILTIN: dict[DatasetName, DatasetInfo] = {
    "digits": _facts(
        "digits", _DIGIT_NAMES, [142, 146, 141, 147, 144, 146, 145, 143, 139, 144], 360, (1, 8, 8),
        [0.3058], [0.3761], is_digits=True,
    ),
    "mnist": _facts(
        "mnist", _DIGIT_NAMES, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949], 10_000, (1, 28, 28),
        [0.1307], [0.3081], is_digits=True,
    ),
    "fashion_mnist": _facts("fashion_mnist", _FASHION_NAMES, [6000] * 10, 10_000, (1, 28, 28), [0.2861], [0.3530]),
    "svhn": _facts(
        "svhn", _DIGIT_NAMES, [4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659], 26_032, (3, 32, 32),
        [0.4377, 0.4438, 0.4728], [0.1980, 0.2010, 0.1970], is_digits=True,
    ),
    "cifar10": _facts(
        "cifar10", _CIFAR10_NAMES, [5000] * 10, 10_000, (3, 32, 32), [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010],
    ),
    "cifar100": _facts(
        "cifar100", _CIFAR100_NAMES, [500] * 100, 10_000, (3, 32, 32), [0.5071, 0.4866, 0.4409], [0.2673, 0.2564, 0.2762],
    ),
}  # fmt: skip


def list_builtin() -> list[DatasetInfo]:
    """Return the built-in datasets, for `GET /v1/datasets`."""
    return list(BUILTIN.values())
