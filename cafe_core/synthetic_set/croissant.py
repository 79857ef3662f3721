"""Describe a synthetic set in the Croissant format, version 1.0, so that search engines and loaders of datasets understand it.

Specification: https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from cafe_core.synthetic_set.publication import Publication
from cafe_core.synthetic_set.synthetic_set import SyntheticSet

CONFORMS_TO = "http://mlcommons.org/croissant/1.0"
_CR_TERMS = (
    "citeAs",
    "column",
    "equivalentProperty",
    "extract",
    "field",
    "fileProperty",
    "fileObject",
    "fileSet",
    "format",
    "includes",
    "isLiveDataset",
    "jsonPath",
    "key",
    "md5",
    "parentField",
    "path",
    "recordSet",
    "references",
    "regex",
    "repeated",
    "replace",
    "samplingRate",
    "separator",
    "source",
    "subField",
    "transform",
)
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in _CR_TERMS},
}
"""The JSON-LD context of Appendix 1, with the prefixes and the other terms that it uses."""


def croissant(
    synthetic: SyntheticSet, publication: Publication, files: Mapping[str, bytes], *, parquet_file: str, set_file: str
) -> dict[str, Any]:
    """Return the metadata as a JSON-LD object: the files, the images and labels of the parquet file, and the class names.

    files: the published files by name, whose sizes and hashes the metadata states. parquet_file, set_file: the names of two of
    them; paths relative to the metadata's own file.
    """
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": publication.name,
        "description": _description(synthetic),
        "url": publication.url,
        "license": publication.license_url,
        "creator": {"@type": f"sc:{publication.creator_type}", "name": publication.creator},
        "datePublished": publication.day,
        "version": "1.0.0",
        "keywords": ["dataset condensation", "dataset distillation", "image classification"],
        "distribution": [
            _file("parquet", parquet_file, files[parquet_file], "application/x-parquet", "The training images as 8-bit PNGs."),
            _file("safetensors", set_file, files[set_file], "application/octet-stream", "The exact images, normalised."),
        ],
        "recordSet": [_classes(synthetic.class_names), _images(soft=synthetic.labels.ndim == 2)],
    }


def _description(synthetic: SyntheticSet) -> str:
    classes, per_class = len(synthetic.class_names), synthetic.training_images_per_class
    return (
        f"A small training set, made from the training images of {synthetic.dataset.get('name')}, for networks that classify "
        f"real images: {classes} classes, {per_class} images per class."
    )


def _file(identifier: str, name: str, content: bytes, encoding: str, description: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": identifier,
        "name": name,
        "description": description,
        "contentUrl": name,
        "contentSize": f"{len(content)} B",
        "encodingFormat": encoding,
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def _classes(class_names: list[str]) -> dict[str, Any]:
    """Return the enumeration of the classes, with its data."""
    return {
        "@type": "cr:RecordSet",
        "@id": "classes",
        "name": "classes",
        "description": "The name of each class.",
        "dataType": "sc:Enumeration",
        "key": {"@id": "classes/label"},
        "field": [
            {"@type": "cr:Field", "@id": "classes/label", "name": "label", "dataType": "sc:Integer"},
            {"@type": "cr:Field", "@id": "classes/name", "name": "name", "dataType": "sc:Text"},
        ],
        "data": [{"classes/label": k, "classes/name": name} for k, name in enumerate(class_names)],
    }


def _images(*, soft: bool) -> dict[str, Any]:
    """Return the records of the parquet file. Soft labels are lists of numbers, which refer to no single class.

    `references` has the form that mlcroissant reads; it refuses the shorter one of the specification's examples.
    """
    label: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": "images/label",
        "name": "label",
        "description": "The probability of each class." if soft else "The class number.",
        "dataType": ["sc:Float" if soft else "sc:Integer", "cr:Label"],
        "source": _column("label"),
    }
    label |= {"repeated": True} if soft else {"references": {"field": {"@id": "classes/label"}}}
    image = {
        "@type": "cr:Field",
        "@id": "images/image",
        "name": "image",
        "description": "A training image.",
        "dataType": "sc:ImageObject",
        "source": _column("image") | {"transform": {"jsonPath": "bytes"}},
    }
    return {
        "@type": "cr:RecordSet",
        "@id": "images",
        "name": "images",
        "description": "The training images and their labels.",
        "field": [image, label],
    }


def _column(name: str) -> dict[str, Any]:
    return {"fileObject": {"@id": "parquet"}, "extract": {"column": name}}
