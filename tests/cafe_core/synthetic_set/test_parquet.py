"""Test that exported parquet files hold the training images and labels in the form that Hugging Face `datasets` reads."""

from __future__ import annotations

import io
import json
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cafe_core.errors import MissingPackageError
from cafe_core.synthetic_set.decode import Decode
from cafe_core.synthetic_set.parquet import parquet_bytes
from cafe_core.synthetic_set.quantisation import quantisation
from tests.cafe_core.synthetic_set.made_sets import make_set

SOFT = np.array([[0.5, 0.25, 0.25], [0, 1, 0], [0.1, 0.9, 0], [0.2, 0.3, 0.5], [0, 0, 1], [0.25, 0.25, 0.5]], np.float32)

needs_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed (extra `export`)")


def _read(content: bytes) -> tuple[list[dict[str, Any]], Any]:
    """Return the rows and the schema."""
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(content))
    return table.to_pylist(), table.schema


def _features(schema: Any) -> Any:
    return json.loads(schema.metadata[b"huggingface"])["info"]["features"]


@needs_pyarrow
@pytest.mark.parametrize("shape", [(1, 8, 6), (3, 8, 6)])
def test_rows_hold_the_pixels_as_png_and_the_label(shape: tuple[int, int, int]) -> None:
    made = make_set(shape=shape, class_names=["cat", "犬", "\ud800"])
    rows, schema = _read(parquet_bytes(made))
    assert [row["label"] for row in rows] == [0, 0, 1, 1, 2, 2]
    for row, pixels in zip(rows, made.pixels(), strict=True):
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image).reshape(8, 6, -1).transpose(2, 0, 1), pixels)
    assert [str(schema.field(name).type) for name in schema.names] == ["struct<bytes: binary, path: string>", "int64"]
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "犬", "\ud800"], "_type": "ClassLabel"}}
    assert _features(schema) == features


@needs_pyarrow
def test_stored_images_are_decoded() -> None:
    made = make_set(decode=Decode(2))
    rows, _ = _read(parquet_bytes(made))
    assert [row["label"] for row in rows] == [0] * 8 + [1] * 8 + [2] * 8
    assert parquet_bytes(made) == parquet_bytes(made.decoded())


@needs_pyarrow
def test_soft_labels_are_lists_of_probabilities() -> None:
    rows, schema = _read(parquet_bytes(make_set(labels=SOFT)))
    np.testing.assert_array_equal(np.array([row["label"] for row in rows], np.float32), SOFT)
    assert _features(schema)["label"]["length"] == 3


def test_absent_pyarrow_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'cafe-service\[export\]'") as raised:
        parquet_bytes(make_set())
    assert raised.value.code == "missing_package"


def test_quantisation_is_the_error_of_the_8_bit_images() -> None:
    one = np.ones(1, np.float32)
    images = np.array([0.25, 0.5, 1.5, -0.1], np.float32).reshape(4, 1, 1, 1)
    measured = quantisation(make_set(2, 2, (1, 1, 1), images=images, mean=0 * one, std=one))
    errors = [abs(0.25 - 64 / 255), abs(0.5 - 128 / 255), 0.5, 0.1]
    assert measured.largest_error == 0.5
    assert measured.mean_error == pytest.approx(sum(errors) / 4, rel=1e-5)
    assert measured.clipped == 0.5


def test_images_within_the_range_lose_less_than_half_a_level() -> None:
    made = make_set(images=np.random.default_rng(0).uniform(-0.5, 0.5, (6, 3, 5, 4)).astype(np.float32))
    measured = quantisation(made)
    assert measured.clipped == 0
    assert 0 < measured.mean_error < measured.largest_error <= 1 / 510 + 1e-6


def test_decoded_images_are_measured_and_are_within_the_range() -> None:
    made = make_set(decode=Decode(2))
    assert quantisation(made) == quantisation(made.decoded())
    assert quantisation(made).clipped == 0
    assert quantisation(make_set()).clipped > 0
