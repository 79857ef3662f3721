"""What is known about a dataset without decoding it: the built-in ones' facts, and `describe` for the API.

Mean and std of the built-in datasets are those that the dataset-condensation papers use (method.md, "Data facts"),
of images scaled to [0, 1]; those of `digits` are measured over the training split of `cafe_core.data.digits`.
"""

from __future__ import annotations

from cafe_core.config import DatasetInfo, DatasetName, DatasetSpec
from cafe_core.data.class_store import ImageSource
from cafe_core.data.pixels import fitted_shape
from cafe_core.data.readers import read
from cafe_core.data.store_path import store_path
from cafe_core.errors import DatasetError
from cafe_core.jobdir import DataRoots

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


#: The built-in datasets as they are, without image_size or channels. SVHN's training images are its `train` split.
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

#: Weights of red, green and blue in grey (ITU-R BT.601), as Pillow converts.
_GREY_WEIGHTS = (0.299, 0.587, 0.114)
_PLACEHOLDER_MEAN, _PLACEHOLDER_STD = 0.5, 0.25


def list_builtin() -> list[DatasetInfo]:
    """The built-in datasets, for `GET /v1/datasets`."""
    return list(BUILTIN.values())


def describe(spec: DatasetSpec, roots: DataRoots) -> DatasetInfo:
    """The facts about the dataset behind `spec`, quickly: for the API when a job is posted.

    Where the class store is built already, they are the store's. Else they come from the catalogue, or from the
    files' names and the first image, or from an .npz's headers and labels; then `mean` and `std` of own data are
    placeholders and those of a converted built-in dataset estimates: the store that the driver prepares has the
    true ones. Raises SpecError and DatasetError for everything that shows without decoding all images.
    """
    info_file = store_path(spec, roots) / "info.json"
    if info_file.exists():
        return DatasetInfo.model_validate_json(info_file.read_bytes())
    if spec.name is not None:
        return _converted(BUILTIN[spec.name], spec)
    return _undecoded(read(spec, roots))


def is_native(spec: DatasetSpec) -> bool:
    """Whether the spec takes a built-in dataset as it is: no other size, no other channels."""
    if spec.name is None:
        return False
    shape = BUILTIN[spec.name].shape
    return fitted_shape(shape, spec.image_size, spec.channels) == shape


def check_counts(name: DatasetName, source: ImageSource) -> None:
    """Raises DatasetError where a built-in dataset, as found, has not the images that it is known to have."""
    known = BUILTIN[name]
    if (source.class_counts, source.test_count, source.shape) != (known.class_counts, known.test_count, known.shape):
        raise DatasetError(
            f"dataset {name}: found {sum(source.class_counts)} training and {source.test_count} test images of "
            f"{source.shape} (C, H, W) where {sum(known.class_counts)}, {known.test_count} and {known.shape} are known, "
            "or the classes differ: its files are damaged or changed; put the original ones there"
        )


def _converted(info: DatasetInfo, spec: DatasetSpec) -> DatasetInfo:
    """The facts after the spec's image_size and channels."""
    channels, height, width = fitted_shape(info.shape, spec.image_size, spec.channels)
    mean, std = info.mean, info.std
    if channels > info.channels:
        mean, std = mean * channels, std * channels
    elif channels < info.channels:
        mean = [sum(w * m for w, m in zip(_GREY_WEIGHTS, mean, strict=True))]
        std = [sum(w * s for w, s in zip(_GREY_WEIGHTS, std, strict=True))]  # exact where the colours rise and fall together
    return info.model_copy(update={"channels": channels, "height": height, "width": width, "mean": mean, "std": std})


def _undecoded(source: ImageSource) -> DatasetInfo:
    channels, height, width = source.shape
    return DatasetInfo(
        name=source.name,
        class_names=source.class_names,
        class_counts=source.class_counts,
        test_count=source.test_count,
        channels=channels,
        height=height,
        width=width,
        mean=[_PLACEHOLDER_MEAN] * channels,
        std=[_PLACEHOLDER_STD] * channels,
        is_digits=source.is_digits,
    )
