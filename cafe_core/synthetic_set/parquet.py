"""Export a synthetic set as a parquet file in the form of Hugging Face `datasets`.

Columns: `image`, a struct of `bytes` (a PNG file) and `path`; and `label`, an int64 class number, or K float32 probabilities if
the labels are soft. The schema's metadata tells `datasets` that they are images and named classes.
Format: https://huggingface.co/docs/datasets/image_dataset and https://huggingface.co/docs/datasets/about_dataset_features

pyarrow is optional: `pip install 'cafe-service[export]'`.
"""

from __future__ import annotations

import io
import json
from typing import Any

from cafe_core.errors import MissingPackageError
from cafe_core.synthetic_set.images import png_bytes
from cafe_core.synthetic_set.synthetic_set import SyntheticSet


def parquet_bytes(synthetic: SyntheticSet) -> bytes:
    """Return a parquet file of the training images, as 8-bit PNGs, and their labels.

    Equal sets give equal bytes with the same version of pyarrow. :mod:`cafe_core.synthetic_set.quantisation` measures what 8 bits
    lose. Raises MissingPackageError if pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingPackageError("parquet files need pyarrow; run: pip install 'cafe-service[export]'") from error

    training = synthetic.decoded()
    soft = training.labels.ndim == 2
    schema = pa.schema(
        {
            "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            "label": pa.list_(pa.float32(), len(training.class_names)) if soft else pa.int64(),
        },
        metadata={"huggingface": json.dumps({"info": {"features": _features(training.class_names, soft=soft)}})},
    )
    images = [{"bytes": png_bytes(pixels), "path": f"{row:06d}.png"} for row, pixels in enumerate(training.pixels())]
    table = pa.table({"image": images, "label": training.labels.tolist()}, schema=schema)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _features(class_names: list[str], *, soft: bool) -> dict[str, Any]:
    """Return the columns' features as `datasets` writes them. Its older and newer versions read `Sequence`."""
    probabilities = {"feature": {"dtype": "float32", "_type": "Value"}, "length": len(class_names), "_type": "Sequence"}
    return {"image": {"_type": "Image"}, "label": probabilities if soft else {"names": class_names, "_type": "ClassLabel"}}
