"""Extend a finished set: find the classes that are new or changed, and keep the images of the others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cafe_core.data.class_store import ClassStore
from cafe_core.jobs.backend import Condensation
from cafe_core.spec.dataset import CondensedDataset
from cafe_core.synthetic_set.relative_paths import relative_name, with_relative_paths
from cafe_core.synthetic_set.synthetic_set import SyntheticSet, versions

if TYPE_CHECKING:
    from cafe_core.algorithm.extension import Extension

_BLOCK = 16 << 20


def class_hashes(store: ClassStore) -> list[str]:
    """Return the SHA-256 of the real images of each class, as they are stored: 64 hexadecimal digits each."""
    return [_sha256(store, k) for k in range(store.info.num_classes)]


def _sha256(store: ClassStore, k: int) -> str:
    images, digest = store.images(k), hashlib.sha256()
    step = max(1, _BLOCK // max(1, images[:1].nbytes))
    for start in range(0, len(images), step):
        digest.update(images[start : start + step].tobytes())
    return digest.hexdigest()


def extended_dataset(dataset: CondensedDataset, base: SyntheticSet) -> CondensedDataset:
    """Return the facts about `dataset` with the normalisation of the set that is extended."""
    return dataset.model_copy(update={"mean": base.mean.astype(float).tolist(), "std": base.std.astype(float).tolist()})


def changed_classes(dataset: CondensedDataset, base: SyntheticSet) -> list[int]:
    """Return the classes that the set does not have, or whose real images have changed."""
    assert dataset.class_sha256 is not None
    assert base.class_sha256 is not None
    known = dict(zip(base.class_names, base.class_sha256, strict=True))
    now = zip(dataset.class_names, dataset.class_sha256, strict=True)
    return [k for k, (name, digest) in enumerate(now) if known.get(name) != digest]


def kept_set(condensation: Condensation, dataset_root: Path) -> SyntheticSet:
    """Return the set of an extend job that has nothing to condense: the dataset only has fewer classes, or another order.

    dataset_root: paths in the metadata are made relative to it.
    """
    assert condensation.base is not None
    made, info = SyntheticSet.load(condensation.base), ClassStore.open(condensation.store).info
    assert made.class_sha256 is not None
    known = dict(zip(made.class_names, made.class_sha256, strict=True))
    return replace(
        made,
        images=_images_of(made, info.class_names, learned=()),
        labels=np.repeat(np.arange(info.num_classes, dtype=np.int64), made.ipc),
        class_names=info.class_names,
        class_sha256=[known[name] for name in info.class_names],
        dataset=made.dataset | {"name": relative_name(info.name, dataset_root)},
        spec=with_relative_paths(condensation.spec.model_dump(mode="json", exclude_none=True), dataset_root),
        versions=versions(),
    )


def _images_of(made: SyntheticSet, class_names: Sequence[str], learned: Sequence[int]) -> NDArray[np.float32]:
    """Return the images of a set in the order of `class_names`, with zeros for the classes to learn."""
    by_class = made.images.reshape(len(made.class_names), made.ipc, *made.images.shape[1:])
    kept = np.zeros((len(class_names), *by_class.shape[1:]), np.float32)
    for k, name in enumerate(class_names):
        if k not in learned:
            kept[k] = by_class[made.class_names.index(name)]
    return kept.reshape(-1, *made.images.shape[1:])


def load_extension(condensation: Condensation, rank: int) -> Extension | None:
    """Return what the worker `rank` needs to extend a set; None for a condensation of all classes. Imports torch."""
    if condensation.base is None:
        return None
    import torch

    from cafe_core.algorithm.extension import Extension

    made, learned = SyntheticSet.load(condensation.base), condensation.learned
    kept = None
    if rank == 0:
        kept = torch.from_numpy(_images_of(made, ClassStore.open(condensation.store).info.class_names, learned))
    return Extension(learned, kept, made.mean.astype(float).tolist(), made.std.astype(float).tolist())
