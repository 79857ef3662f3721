"""Test that class stores return the images they were built from, and that a failed build leaves no store."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cafe_core.data import class_store, image_source, sources
from cafe_core.data.class_store import ClassStore, build, build_from_arrays
from cafe_core.data.image_source import ArraySource, Images
from cafe_core.data.roots import DataRoots
from cafe_core.data.sources import open_store, prepare
from cafe_core.errors import DatasetError, DiskFullError
from cafe_core.spec.dataset import DatasetSpec


def _arrays(seed: int = 0) -> tuple[Images, np.ndarray]:
    """Return 29 images in random order, and their labels: three classes of 4, 20 and 5 images."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat([0, 1, 2], [4, 20, 5]))
    return rng.integers(0, 256, (29, 3, 5, 6), dtype=np.uint8), labels


def test_store_returns_images_by_class(tmp_path: Path) -> None:
    images, labels = _arrays()
    store = build_from_arrays(tmp_path / "s", images=images, labels=labels, test_images=images[:7], test_labels=labels[:7])
    for k in range(3):
        np.testing.assert_array_equal(store.images(k), images[labels == k])
    np.testing.assert_array_equal(store.test_images, images[:7])
    np.testing.assert_array_equal(store.test_labels, labels[:7])
    assert store.test_labels.dtype == np.int64
    assert (store.info.class_counts, store.info.test_count, store.info.shape) == ([4, 20, 5], 7, (3, 5, 6))


def test_images_of_a_class_are_a_view_of_a_read_only_memory_map(tmp_path: Path) -> None:
    images, labels = _arrays()
    store = build_from_arrays(tmp_path / "s", images=images, labels=labels)
    first = store.images(0)
    assert isinstance(first, np.memmap)
    assert not first.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0


@pytest.mark.parametrize("k", [-1, 3])
def test_class_out_of_range_raises_index_error(tmp_path: Path, k: int) -> None:
    images, labels = _arrays()
    with pytest.raises(IndexError):
        build_from_arrays(tmp_path / "s", images=images, labels=labels).images(k)


def test_chunk_size_does_not_change_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = _arrays()
    arrays = {"images": images, "labels": labels, "test_images": images, "test_labels": labels}
    build_from_arrays(tmp_path / "one", **arrays)
    monkeypatch.setattr(image_source, "_CHUNK_BYTES", 3 * 90)  # three images
    build_from_arrays(tmp_path / "many", **arrays)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "many" / file.name).read_bytes()


def test_mean_and_std_are_computed_from_training_images(tmp_path: Path) -> None:
    images, labels = _arrays()
    info = build_from_arrays(tmp_path / "s", images=images, labels=labels, test_images=images * 0, test_labels=labels).info
    np.testing.assert_allclose(info.mean, (images / 255).mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(info.std, (images / 255).std(axis=(0, 2, 3)), rtol=1e-12)


def test_constant_channel_has_nonzero_std(tmp_path: Path) -> None:
    info = build_from_arrays(tmp_path / "s", images=np.full((4, 1, 4, 4), 7, np.uint8), labels=np.array([0, 1, 0, 1])).info
    assert info.mean == pytest.approx([7 / 255])
    assert info.std == [1 / 255]


def test_store_may_have_no_test_images(tmp_path: Path) -> None:
    images, labels = _arrays()
    store = build_from_arrays(tmp_path / "s", images=images, labels=labels)
    assert store.test_images.shape == (0, 3, 5, 6)
    assert store.test_labels.shape == (0,)


class _FailingSource(ArraySource):
    """A source that fails in its second class."""

    def train(self, k: int) -> Iterator[Images]:
        if k == 1:
            raise self.error
        yield from super().train(k)

    error: Exception


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (DatasetError("x.png is damaged"), DatasetError),
        (OSError(errno.ENOSPC, "No space left on device"), DiskFullError),
        (OSError(errno.EIO, "Input/output error"), OSError),
    ],
)
def test_failed_build_leaves_no_files(tmp_path: Path, error: Exception, raised: type[Exception]) -> None:
    images, labels = _arrays()
    source = _FailingSource("made", ["a", "b", "c"], images, labels, images[:0], labels[:0])
    object.__setattr__(source, "error", error)
    with pytest.raises(raised):
        build(tmp_path / "s", source)
    assert list(tmp_path.iterdir()) == []


def test_insufficient_disk_space_is_detected_before_building(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = _arrays()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=29 * 90 - 1))
    with pytest.raises(DiskFullError, match="free some space"):
        build_from_arrays(tmp_path / "s", images=images, labels=labels)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=29 * 90))
    build_from_arrays(tmp_path / "s", images=images, labels=labels)


def _remove_info(store: Path) -> None:
    (store / "info.json").unlink()


def _truncate_images(store: Path) -> None:
    os.truncate(store / "train-images.u8", 100)


def _truncate_labels(store: Path) -> None:
    os.truncate(store / "test-labels.i64", 8)


def _truncate_info(store: Path) -> None:
    os.truncate(store / "info.json", 40)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_info, "info.json is missing"),
        (_truncate_info, "info.json is damaged"),
        (_truncate_images, "train-images.u8 has 100 bytes, expected 2610"),
        (_truncate_labels, "test-labels.i64 is damaged"),
    ],
)
def test_damaged_store_is_not_opened(tmp_path: Path, damage, message: str) -> None:
    images, labels = _arrays()
    build_from_arrays(tmp_path / "s", images=images, labels=labels, test_images=images, test_labels=labels)
    damage(tmp_path / "s")
    with pytest.raises(DatasetError, match=message):
        ClassStore.open(tmp_path / "s")


# -- prepare


def test_store_is_built_once(roots: DataRoots) -> None:
    spec = DatasetSpec(name="digits")
    path = prepare(spec, roots)
    made = (path / "info.json").stat().st_mtime_ns
    assert prepare(spec, roots) == path
    assert (path / "info.json").stat().st_mtime_ns == made


def test_each_image_size_and_channel_count_has_its_own_store(roots: DataRoots) -> None:
    specs = [DatasetSpec(name="digits"), DatasetSpec(name="digits", image_size=16), DatasetSpec(name="digits", channels=3)]
    stores = [open_store(spec, roots) for spec in specs]
    assert [store.info.shape for store in stores] == [(1, 8, 8), (1, 16, 16), (3, 8, 8)]
    np.testing.assert_array_equal(stores[2].images(4), stores[0].images(4).repeat(3, axis=1))


def _write_npz(path: Path, seed: int) -> None:
    images, labels = _arrays(seed)
    np.savez(path, images=images.transpose(0, 2, 3, 1), labels=labels)


def test_changed_files_get_a_new_store(roots: DataRoots) -> None:
    spec = DatasetSpec(path="a.npz")
    _write_npz(roots.datasets / "a.npz", seed=1)
    first = open_store(spec, roots)
    _write_npz(roots.datasets / "a.npz", seed=2)
    second = open_store(spec, roots)
    assert first.path != second.path
    assert not np.array_equal(first.images(1), second.images(1))


def _prepare_together(roots: DataRoots, barrier: Barrier, notes: Queue[str]) -> None:
    def build_slowly(*args: Any, **kwargs: Any) -> ClassStore:
        notes.put("built")
        time.sleep(0.2)
        return build(*args, **kwargs)

    sources.build = build_slowly
    barrier.wait(60)
    prepare(DatasetSpec(path="a.npz"), roots)
    notes.put("ready")


def test_concurrent_builders_wait_for_each_other(roots: DataRoots) -> None:
    _write_npz(roots.datasets / "a.npz", seed=1)
    context = multiprocessing.get_context("spawn")
    barrier, notes = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_prepare_together, args=(roots, barrier, notes)) for _ in range(2)]
    for process in processes:
        process.start()
    received = sorted(notes.get(timeout=60) for _ in range(3))
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert received == ["built", "ready", "ready"]


def _build_and_hang(roots: DataRoots) -> None:
    write_test = class_store._write_test

    def write_then_hang(directory: Path, source: image_source.ImageSource) -> None:
        write_test(directory, source)
        (roots.uploads / "hanging").touch()
        time.sleep(600)

    class_store._write_test = write_then_hang
    prepare(DatasetSpec(path="a.npz"), roots)


def test_killed_builder_leaves_no_store_that_looks_complete(roots: DataRoots) -> None:
    _write_npz(roots.datasets / "a.npz", seed=1)
    process = multiprocessing.get_context("spawn").Process(target=_build_and_hang, args=(roots,))
    process.start()
    deadline = time.monotonic() + 60
    while not (roots.uploads / "hanging").exists():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join(10)
    left = [path.name for path in roots.cache.iterdir() if path.is_dir()]
    assert len(left) == 1
    assert left[0].endswith(".tmp")

    store = open_store(DatasetSpec(path="a.npz"), roots)
    assert store.info.class_counts == [4, 20, 5]
    assert [path for path in roots.cache.iterdir() if path.is_dir()] == [store.path]  # the next builder has removed the leftovers


def test_files_changed_during_the_build_are_refused(roots: DataRoots, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_npz(roots.datasets / "a.npz", seed=1)

    def build_and_touch(*args: Any, **kwargs: Any) -> ClassStore:
        store = build(*args, **kwargs)
        os.utime(roots.datasets / "a.npz", ns=(0, 0))
        return store

    monkeypatch.setattr(sources, "build", build_and_touch)
    with pytest.raises(DatasetError, match="was changed while it was read"):
        prepare(DatasetSpec(path="a.npz"), roots)
    assert [path for path in roots.cache.iterdir() if path.is_dir()] == []
