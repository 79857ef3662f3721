"""Test that synthetic sets are saved and loaded without loss, and that damaged and malicious files are refused."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from cafe_core.data.builtin import BUILTIN
from cafe_core.data.roots import DataRoots
from cafe_core.data.sources import open_store
from cafe_core.errors import SyntheticSetError
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset import DatasetInfo, DatasetSpec
from cafe_core.spec.resolution import resolve
from cafe_core.synthetic_set import preview
from cafe_core.synthetic_set.decode import Decode
from cafe_core.synthetic_set.images import folder_names
from cafe_core.synthetic_set.synthetic_set import SyntheticSet, from_checkpoint
from tests.cafe_core.synthetic_set.made_sets import make_set


def _assert_equal(a: SyntheticSet, b: SyntheticSet) -> None:
    for name in ("images", "labels", "mean", "std"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == getattr(b, name).dtype
    for name in ("class_names", "dataset", "spec", "iteration", "versions"):
        assert getattr(a, name) == getattr(b, name)


_SOFT = np.array([[0.5, 0.25, 0.25], [0, 1, 0], [0.1, 0.9, 0], [0.2, 0.3, 0.5], [0, 0, 1], [0.25, 0.25, 0.5]], np.float32)
"""Soft labels of six images of three classes; the second image's most probable class is not its own."""


# -- round trips


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 4)])
@pytest.mark.parametrize("names", [["a", "b", "c"], ["naïve", "T-shirt/top", "犬\n"]])
def test_both_formats_load_what_was_saved(tmp_path: Path, shape: tuple[int, int, int], names: list[str]) -> None:
    made = make_set(shape=shape, class_names=names)
    made.save(tmp_path / "s.safetensors")
    (tmp_path / "s.npz").write_bytes(made.to_npz_bytes())
    for file in ("s.safetensors", "s.npz"):
        _assert_equal(SyntheticSet.load(tmp_path / file), made)


def test_soft_labels_are_saved_loaded_and_decoded(tmp_path: Path) -> None:
    made = make_set(labels=_SOFT, decode=Decode(2))
    made.save(tmp_path / "s.safetensors")
    (tmp_path / "s.npz").write_bytes(made.to_npz_bytes())
    for file in ("s.safetensors", "s.npz"):
        _assert_equal(SyntheticSet.load(tmp_path / file), made)
    np.testing.assert_array_equal(made.decoded().labels, np.repeat(_SOFT, 4, axis=0))
    np.testing.assert_array_equal(made.decoded().classes, np.repeat([0, 1, 2], 8))


def test_safetensors_library_reads_the_file(tmp_path: Path) -> None:
    made = make_set()
    made.save(tmp_path / "s.safetensors")
    with safe_open(tmp_path / "s.safetensors", framework="numpy") as file:
        assert sorted(file.keys()) == ["images", "labels", "mean", "std"]
        np.testing.assert_array_equal(file.get_tensor("images"), made.images)
        assert file.get_tensor("labels").dtype == np.int64
        assert file.get_tensor("mean").dtype == file.get_tensor("std").dtype == np.float32
        metadata = {name: json.loads(text) for name, text in file.metadata().items()}
    assert metadata == {name: getattr(made, name) for name in ("class_names", "dataset", "spec", "iteration", "versions")}


def test_numpy_reads_the_npz_without_pickle() -> None:
    made = make_set()
    arrays = np.load(io.BytesIO(made.to_npz_bytes()), allow_pickle=False)
    np.testing.assert_array_equal(arrays["images"], made.images)
    assert json.loads(str(arrays["class_names"])) == made.class_names


def test_equal_sets_give_equal_bytes() -> None:
    made = make_set()
    # the same content in another memory order and key order
    other = make_set(images=np.asfortranarray(made.images), spec=dict(reversed(made.spec.items())))
    assert other.to_safetensors_bytes() == made.to_safetensors_bytes()
    assert other.to_npz_bytes() == made.to_npz_bytes()
    assert other.to_zip_bytes() == made.to_zip_bytes()
    assert replace(made, iteration=8).to_safetensors_bytes() != made.to_safetensors_bytes()


def test_arrays_are_aligned_in_the_file() -> None:
    content = make_set(shape=(1, 5, 5), classes=3, ipc=1).to_safetensors_bytes()  # 75 floats: an odd number of 4 bytes
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for name, entry in header.items():
        if name != "__metadata__":
            assert (8 + length + entry["data_offsets"][0]) % (8 if entry["dtype"] == "I64" else 4) == 0


# -- images


def test_pixels_are_denormalised_and_clipped() -> None:
    images = np.array([-9, 0, 1, 9], dtype=np.float32).reshape(4, 1, 1, 1)
    made = make_set(2, 2, (1, 1, 1), images=images, mean=np.array([0.5], np.float32), std=np.array([0.25], np.float32))
    assert made.pixels().ravel().tolist() == [0, 128, 191, 255]


def test_zip_and_preview_ignore_soft_labels() -> None:
    hard = make_set()
    soft = replace(hard, labels=_SOFT)
    assert soft.to_zip_bytes() == hard.to_zip_bytes()
    assert soft.preview_png() == hard.preview_png()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 6)])
def test_zip_can_be_read_as_a_dataset(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    made = make_set(shape=shape, class_names=["cat", "dog/puppy", "eel"])
    (tmp_path / "set.zip").write_bytes(made.to_zip_bytes())
    roots = DataRoots(datasets=tmp_path, uploads=tmp_path, downloads=tmp_path, cache=tmp_path / "cache")
    store = open_store(DatasetSpec(path="set.zip"), roots)
    assert store.info.class_names == ["cat", "dog_puppy", "eel"]
    for k in range(3):
        np.testing.assert_array_equal(store.images(k), made.pixels()[2 * k : 2 * k + 2])
    assert zipfile.ZipFile(tmp_path / "set.zip").namelist()[:2] == ["train/cat/0000.png", "train/cat/0001.png"]


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["cat", "dog"], ["cat", "dog"]),
        (["../../etc", "/root"], ["_.._etc", "_root"]),
        (["..", ".", ""], ["class", "class_1", "class_2"]),
        (["a/b", "a:b", "A_B"], ["a_b", "a_b_1", "A_B_2"]),
        (["__MACOSX", ".hidden"], ["class___MACOSX", "hidden"]),
        (["猫", "x" * 200], ["猫", "x" * 80]),
        (["a_2", "b", "a/2"], ["a_2", "b", "a_2_2"]),
        (["tab\there", "nul\0"], ["tab_here", "nul_"]),
    ],
)
def test_folder_names_are_valid_and_unique(names: list[str], folders: list[str]) -> None:
    assert folder_names(names) == folders


@pytest.mark.parametrize("channels", [1, 3])
def test_preview_shows_the_set(channels: int) -> None:
    made = make_set(3, 4, (channels, 8, 8))
    image = Image.open(io.BytesIO(made.preview_png()))
    page = preview.plan_page(made.class_names, 4, 8, 8)
    expected = preview.draw_page(page, made.pixels().reshape(3, 4, channels, 8, 8))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    assert image.info["Description"] == "3 classes, 4 images of each"


# -- checkpoints


def _job(ipc: int = 2) -> tuple[DatasetInfo, CondenseSpec]:
    info = BUILTIN["digits"]
    return info, resolve(CondenseSpec(dataset=DatasetSpec(name="digits"), ipc=ipc), info)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_set_is_read_from_a_checkpoint(tmp_path: Path, dtype: Any) -> None:
    info, spec = _job()
    images = np.random.default_rng(0).normal(size=(20, 1, 8, 8)).astype(dtype)
    save_file({"images": images, "momentum": images * 0}, tmp_path / "c.safetensors", {"iteration": "50", "spec_digest": "x"})
    made = from_checkpoint(tmp_path / "c.safetensors", info, spec, tmp_path)
    np.testing.assert_array_equal(made.images, images.astype(np.float32))
    assert made.labels.tolist() == [k for k in range(10) for _ in range(2)]
    assert (made.iteration, made.ipc, made.class_names) == (50, 2, info.class_names)
    assert made.dataset == {"name": "digits", "is_digits": True}
    assert CondenseSpec.model_validate(made.spec) == spec
    np.testing.assert_array_equal(made.mean, np.array(info.mean, np.float32))
    made.save(tmp_path / "s.safetensors")
    _assert_equal(SyntheticSet.load(tmp_path / "s.safetensors"), made)


def test_unusable_checkpoints_are_refused(tmp_path: Path) -> None:
    info, spec = _job()
    path = tmp_path / "c.safetensors"
    with pytest.raises(SyntheticSetError, match="was replaced by a newer checkpoint"):
        from_checkpoint(path, info, spec, tmp_path)
    save_file({"images": np.zeros((10, 1, 8, 8), np.float32)}, path, {"iteration": "1"})
    with pytest.raises(SyntheticSetError, match=r"images have shape \(10, 1, 8, 8\); this job needs \(20, 1, 8, 8\)"):
        from_checkpoint(path, info, spec, tmp_path)
    save_file({"momentum": np.zeros((20, 1, 8, 8), np.float32)}, path, {"iteration": "1"})
    with pytest.raises(SyntheticSetError, match="not a readable checkpoint"):
        from_checkpoint(path, info, spec, tmp_path)
    save_file({"images": np.zeros((20, 1, 8, 8), np.float32)}, path)
    with pytest.raises(SyntheticSetError, match="not a readable checkpoint"):
        from_checkpoint(path, info, spec, tmp_path)
    save_file({"images": np.zeros((20, 1, 8, 8), np.float32)}, path, {"iteration": "1"})
    assert from_checkpoint(path, info, spec, tmp_path).iteration == 1
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SyntheticSetError, match="not a readable checkpoint"):
        from_checkpoint(path, info, spec, tmp_path)


# -- invalid sets and files

_NAN = np.full((6, 3, 5, 4), np.nan, np.float32)

WRONG_PARTS = [
    ({"images": np.zeros((6, 3, 5, 4))}, "images is float64; it must be float32"),
    ({"images": _NAN}, "images holds NaN or infinite values"),
    ({"images": np.zeros((6, 5, 4), np.float32)}, r"images have shape \(6, 5, 4\)"),
    ({"images": np.zeros((6, 2, 5, 4), np.float32)}, r"with C 1 or 3"),
    ({"images": np.zeros((0, 3, 5, 4), np.float32), "labels": np.zeros(0, np.int64)}, "images have shape"),
    ({"images": np.zeros((7, 3, 5, 4), np.float32)}, "must be a multiple of the 3 classes in class_names; got 7"),
    ({"labels": np.array([0, 1, 2, 0, 1, 2])}, "labels must be 0 to 2 in order, 2 times each"),
    ({"labels": np.array([0, 0, 1, 1, 2])}, "labels must be 0 to 2 in order"),
    ({"labels": np.array([0, 0, 1, 1, 2, 2], np.int32)}, "labels is int32; it must be int64 or float32"),
    ({"labels": _SOFT[:, :2]}, r"soft labels have shape \(6, 2\); 6 images of 3 classes need \(6, 3\)"),
    ({"labels": np.zeros(6, np.float32)}, r"soft labels have shape \(6,\)"),
    ({"labels": _SOFT * np.float32(1.01)}, "each soft label must be a distribution"),
    ({"labels": _SOFT - np.array([[0.3, -0.3, 0]], np.float32)}, "no value below 0, and a sum of 1"),
    ({"labels": np.full((6, 3), np.nan, np.float32)}, "labels holds NaN or infinite values"),
    ({"mean": np.zeros(1, np.float32)}, r"mean has shape \(1,\); images of 3 channels need \(3,\)"),
    ({"std": np.array([0.1, 0, 0.1], np.float32)}, "std must be greater than 0"),
    ({"std": np.array([0.1, np.inf, 0.1], np.float32)}, "std holds NaN or infinite"),
    ({"class_names": []}, "metadata class_names must be a non-empty list of unique names"),
    ({"class_names": ["a", "b", "b"]}, "metadata class_names must be a non-empty list of unique names"),
    ({"class_names": ["a", "b", 3]}, "metadata class_names must be"),
    ({"class_names": "abc"}, "metadata class_names must be"),
    ({"iteration": -1}, "metadata iteration must be an integer, 0 or more"),
    ({"iteration": True}, "metadata iteration must be an integer"),
    ({"iteration": 2.0}, "metadata iteration must be an integer"),
    ({"dataset": "digits"}, "metadata dataset must be a JSON object"),
    ({"spec": {"beta": float("nan")}}, "metadata spec must be JSON"),
    ({"versions": []}, "metadata versions must be a JSON object"),
]


@pytest.mark.parametrize(("parts", "message"), WRONG_PARTS, ids=[f"{next(iter(p))}: {m[-30:]}" for p, m in WRONG_PARTS])
def test_invalid_parts_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(SyntheticSetError, match=message):
        make_set(**parts)


def _contents(**changes: Any) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays and metadata of a valid file with these changes. None removes an entry."""
    made = make_set()
    arrays: dict[str, Any] = {name: getattr(made, name) for name in ("images", "labels", "mean", "std")}
    names = ("class_names", "dataset", "spec", "iteration", "versions")
    texts: dict[str, Any] = {name: json.dumps(getattr(made, name)) for name in names}
    for name, value in changes.items():
        (arrays if name in arrays else texts)[name] = value
    return tuple({k: v for k, v in part.items() if v is not None} for part in (arrays, texts))  # type: ignore[return-value]


WRONG_FILES = [
    ({"labels": None}, "labels is missing; a synthetic set has images, labels, mean, std"),
    ({"spec": None}, "spec is missing"),
    ({"class_names": "[not json"}, "metadata class_names is not JSON"),
    ({"class_names": "[" * 100_000}, "metadata class_names is not JSON"),
    ({"iteration": '"7"'}, "metadata iteration must be an integer"),
    ({"images": np.zeros((6, 3, 5, 4), np.uint8)}, "images is uint8; it must be float32"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_FILES, ids=[next(iter(c)) + m[-12:] for c, m in WRONG_FILES])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_files_with_invalid_content_are_refused(tmp_path: Path, changes: dict[str, Any], message: str, suffix: str) -> None:
    path = tmp_path / f"s{suffix}"
    arrays, texts = _contents(**changes)
    if suffix == ".npz":
        np.savez(path, **arrays, **{name: np.array(text) for name, text in texts.items()})
    else:
        save_file(arrays, path, texts)
    with pytest.raises(SyntheticSetError, match=rf"^s{suffix}: .*{message}"):
        SyntheticSet.load(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.npz", "does not exist"),
        ("s.pkl", "must be a .safetensors or .npz file"),
        ("folder.npz", "does not exist"),
    ],
)
def test_missing_and_unsupported_files_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "s.pkl").write_bytes(b"cos\nsystem\n")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(SyntheticSetError, match=message):
        SyntheticSet.load(tmp_path / name)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("kept", [0, 5, 60, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    made = make_set()
    content = made.to_npz_bytes() if suffix == ".npz" else made.to_safetensors_bytes()
    path = tmp_path / f"s{suffix}"
    path.write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else int(kept)])
    with pytest.raises(SyntheticSetError, match="not a readable"):
        SyntheticSet.load(path)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    arrays, texts = _contents(mean=np.array([0.1, 0.2, None], dtype=object))
    np.savez(tmp_path / "s.npz", **arrays, **{name: np.array(text) for name, text in texts.items()})
    with pytest.raises(SyntheticSetError, match="array mean holds pickled Python objects, which are never read"):
        SyntheticSet.load(tmp_path / "s.npz")
