"""Make the files of a published set, a dataset repository as the Hugging Face Hub knows it::

README.md               the dataset card
synthetic.safetensors   the exact images; `load_set` reads it
data/train.parquet      8-bit copies of the training images; `datasets.load_dataset` reads it
croissant.json          Croissant metadata
preview.png
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cafe_core.synthetic_set.croissant import croissant
from cafe_core.synthetic_set.dataset_card import dataset_card
from cafe_core.synthetic_set.parquet import parquet_bytes
from cafe_core.synthetic_set.publication import Publication
from cafe_core.synthetic_set.relative_paths import relative_name, with_relative_paths
from cafe_core.synthetic_set.sources import SET_FILE
from cafe_core.synthetic_set.synthetic_set import SyntheticSet

PARQUET_FILE = "data/train.parquet"


def repository_files(
    synthetic: SyntheticSet, publication: Publication, result: Mapping[str, Any] | None = None
) -> dict[str, bytes]:
    """Return the files by name, with `/` as separator.

    result: the job's result.json, whose accuracies the card states.
    Raises MissingPackageError if pyarrow is not installed, and ValueError if `result` is not a job's result.
    """
    made = _without_absolute_paths(synthetic)
    files = {SET_FILE: made.to_safetensors_bytes(), PARQUET_FILE: parquet_bytes(made), "preview.png": made.preview_png()}
    card = dataset_card(made, publication, files, parquet_file=PARQUET_FILE, set_file=SET_FILE, result=result)
    metadata = croissant(made, publication, files, parquet_file=PARQUET_FILE, set_file=SET_FILE)
    return {**files, "README.md": card.encode(), "croissant.json": json.dumps(metadata, indent=2).encode()}


def _without_absolute_paths(synthetic: SyntheticSet) -> SyntheticSet:
    """Return the set without the absolute paths that sets of earlier versions may hold."""
    dataset = synthetic.dataset
    if isinstance(dataset.get("name"), str):
        dataset = dataset | {"name": relative_name(dataset["name"])}
    return replace(synthetic, dataset=dataset, spec=with_relative_paths(synthetic.spec))
