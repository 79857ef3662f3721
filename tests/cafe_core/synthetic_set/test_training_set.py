"""Test that `load_set` gives the images and labels of a set as a torch dataset, from every kind of source."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cafe_core import TrainingSet, load_set
from cafe_core.errors import SyntheticSetError
from cafe_core.synthetic_set.decode import Decode
from cafe_core.synthetic_set.sources import SetSource
from cafe_core.synthetic_set.synthetic_set import SyntheticSet
from tests.cafe_core.synthetic_set.made_sets import make_set

_SOFT = np.array([[0.5, 0.25, 0.25], [0, 1, 0], [0.1, 0.9, 0], [0.2, 0.3, 0.5], [0, 0, 1], [0.25, 0.25, 0.5]], np.float32)


def _file(made: SyntheticSet, path: Path) -> Path:
    made.save(path)
    return path


def _npz(made: SyntheticSet, path: Path) -> Path:
    path.write_bytes(made.to_npz_bytes())
    return path


def _directory(made: SyntheticSet, path: Path) -> Path:
    path.mkdir()
    made.save(path / "synthetic.safetensors")
    return path


@pytest.mark.parametrize(
    "store",
    [
        lambda made, path: _file(made, path / "s.safetensors"),
        lambda made, path: str(_file(made, path / "s.safetensors")),
        lambda made, path: _npz(made, path / "s.npz"),
        lambda made, path: _directory(made, path / "set"),
        lambda made, path: str(_directory(made, path / "set")),
        lambda made, _: made.to_safetensors_bytes(),
        lambda made, _: made.to_npz_bytes(),
    ],
    ids=["safetensors", "text", "npz", "directory", "directory as text", "bytes", "npz bytes"],
)
def test_loads_every_kind_of_source(tmp_path: Path, store: Callable[[SyntheticSet, Path], SetSource]) -> None:
    made = make_set()
    loaded = load_set(store(made, tmp_path))
    images, labels = loaded.tensors()
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    np.testing.assert_array_equal(images, made.images)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert loaded.classes == ["class 0", "class 1", "class 2"]
    np.testing.assert_array_equal(loaded.mean, made.mean)
    np.testing.assert_array_equal(loaded.std, made.std)
    assert len(loaded) == 6
    assert not loaded.soft


def test_items_are_one_image_and_its_label() -> None:
    made = make_set()
    loaded = load_set(made.to_safetensors_bytes())
    image, label = loaded[-1]
    np.testing.assert_array_equal(image, made.images[5])
    assert label.shape == ()
    assert label.item() == 2
    assert len(list(loaded)) == 6, "iterating ends at the last item"


def test_decodes_stored_images_to_training_images() -> None:
    made = make_set(decode=Decode(2))
    content = made.to_safetensors_bytes()
    images, labels = load_set(content).tensors()
    np.testing.assert_array_equal(images, made.decoded().images)
    assert labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    stored, stored_labels = load_set(content, decode=False).tensors()
    np.testing.assert_array_equal(stored, made.images)
    assert stored_labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_soft_labels_are_distributions_over_the_classes() -> None:
    loaded = load_set(make_set(labels=_SOFT).to_safetensors_bytes())
    assert loaded.soft
    _, labels = loaded.tensors()
    assert labels.dtype == torch.float32
    np.testing.assert_array_equal(labels, _SOFT)
    assert loaded[3][1].tolist() == _SOFT[3].tolist()
    assert loaded.as_dataset_dict()["label"] == _SOFT.tolist()
    assert loaded.as_dataset_dict()["class_name"] == [f"class {k}" for k in (0, 0, 1, 1, 2, 2)]


@pytest.mark.parametrize("labels", [None, _SOFT], ids=["hard", "soft"])
def test_data_loader_with_a_worker_gives_the_same_batches(labels: np.ndarray | None) -> None:
    made = make_set() if labels is None else make_set(labels=labels)
    loaded = load_set(made.to_safetensors_bytes())
    batches = list(DataLoader(loaded, batch_size=4, num_workers=1))
    assert [len(images) for images, _ in batches] == [4, 2]
    assert torch.equal(torch.cat([images for images, _ in batches]), loaded.images)
    assert torch.equal(torch.cat([batch for _, batch in batches]), loaded.labels)
    for images, targets in batches:
        torch.nn.functional.cross_entropy(torch.zeros(len(images), 3), targets)  # accepts both kinds of labels


def test_set_can_be_sent_to_a_spawned_worker() -> None:
    loaded = load_set(make_set().to_safetensors_bytes())
    copy = pickle.loads(pickle.dumps(loaded))
    assert isinstance(copy, TrainingSet)
    assert torch.equal(copy.images, loaded.images)
    assert copy.classes == loaded.classes


@pytest.mark.parametrize("shape", [(1, 8, 6), (3, 8, 6)])
def test_denormalised_images_and_pictures_agree_with_the_pixels_of_the_set(shape: tuple[int, int, int]) -> None:
    made = make_set(shape=shape)
    loaded = load_set(made.to_safetensors_bytes())
    shown = loaded.denormalise(loaded.images)
    assert shown.min() >= 0
    assert shown.max() <= 1
    np.testing.assert_array_equal((shown * 255).round().to(torch.uint8), made.pixels())
    np.testing.assert_array_equal(loaded.denormalise(loaded.images[2]), shown[2])
    picture = loaded.to_pil(2)
    assert (picture.mode, picture.size) == ("L" if shape[0] == 1 else "RGB", (6, 8))
    np.testing.assert_array_equal(np.asarray(picture).reshape(8, 6, -1).transpose(2, 0, 1), made.pixels()[2])


def test_dataset_dict_has_columns_of_equal_length() -> None:
    loaded = load_set(make_set().to_safetensors_bytes())
    columns = loaded.as_dataset_dict()
    assert {name: len(column) for name, column in columns.items()} == {"image": 6, "label": 6, "class_name": 6}
    assert columns["label"] == [0, 0, 1, 1, 2, 2]
    assert columns["class_name"][2] == "class 1"
    np.testing.assert_array_equal(np.asarray(columns["image"][4]), np.asarray(loaded.to_pil(4)))
    np.testing.assert_array_equal(np.stack(loaded.as_dataset_dict(exact=True)["image"]), loaded.images)


@pytest.mark.parametrize(
    ("store", "message"),
    [
        (lambda path: path / "missing", r"missing does not exist; give the directory or the file of a synthetic set"),
        (lambda path: path, r"holds no synthetic\.safetensors; give the directory or the file"),
        (lambda _: b"", r"bytes\.safetensors: not a readable safetensors file"),
        (lambda _: b"PK\x03\x04 and nothing", r"bytes\.npz: not a readable \.npz file"),
        (lambda _: pickle.dumps([1, 2]), r"not a readable safetensors file"),
        (lambda path: _written(path / "photo.png", b"\x89PNG"), r"photo\.png must be a \.safetensors or \.npz file"),
    ],
    ids=["missing", "empty directory", "no bytes", "damaged zip", "pickle", "other file"],
)
def test_other_sources_are_refused(tmp_path: Path, store: Callable[[Path], SetSource], message: str) -> None:
    with pytest.raises(SyntheticSetError, match=message):
        load_set(store(tmp_path))


def test_weights_of_a_network_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "network.safetensors")
    with pytest.raises(SyntheticSetError, match="array images is missing; a synthetic set has images, labels, mean, std"):
        load_set(tmp_path / "network.safetensors")


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, cafe_core; sys.exit(bool({'torch', 'numpy', 'pydantic'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(ImportError, match="nothing_of_this_name"):
        exec("from cafe_core import nothing_of_this_name")
