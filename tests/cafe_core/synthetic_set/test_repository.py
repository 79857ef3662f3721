"""Test the files of a published set: the dataset card, the Croissant metadata, and the hashes that both state."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import date
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import yaml

from cafe_core import load_set
from cafe_core.synthetic_set.decode import Decode
from cafe_core.synthetic_set.parquet import parquet_bytes
from cafe_core.synthetic_set.publication import Publication
from cafe_core.synthetic_set.repository import repository_files
from tests.cafe_core.synthetic_set.made_sets import make_set

pytestmark = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed (extra `export`)")

PUBLICATION: dict[str, Any] = {
    "name": "Three classes",
    "url": "https://example.org/three",
    "license": "CC-BY-4.0",
    "creator": "Ada",
    "published": date(2026, 11, 28),
}
RESULT = {
    "evaluation": {
        "networks": [{"name": "convnet", "mean": 88.31, "std": 0.84, "n": 5, "accuracies": [88.3] * 5}],
        "baselines": {"random": {"networks": [{"name": "convnet", "mean": 69.4, "std": 1.9, "n": 5, "accuracies": [69.4] * 5}]}},
    }
}
SOFT = np.full((6, 3), 1 / 3, np.float32)


def _card(result: Any = None, **parts: Any) -> str:
    return repository_files(make_set(**parts), Publication(**PUBLICATION), result)["README.md"].decode()


def _metadata(**parts: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = json.loads(repository_files(make_set(**parts), Publication(**PUBLICATION))["croissant.json"])
    return metadata


# -- files


def test_repository_holds_the_exact_and_the_8_bit_images() -> None:
    made = make_set(decode=Decode(2))
    files = repository_files(made, Publication(**PUBLICATION))
    assert sorted(files) == ["README.md", "croissant.json", "data/train.parquet", "preview.png", "synthetic.safetensors"]
    np.testing.assert_array_equal(load_set(files["synthetic.safetensors"]).images, made.decoded().images)
    assert files["data/train.parquet"] == parquet_bytes(made)


def test_absolute_paths_of_sets_of_earlier_versions_are_left_out() -> None:
    dataset, spec = {"name": "/home/ada/three", "is_digits": False}, {"dataset": {"path": "/home/ada/three"}, "ipc": 2}
    for name, content in repository_files(make_set(dataset=dataset, spec=spec), Publication(**PUBLICATION)).items():
        assert b"/home/ada" not in content, name


# -- card


def test_header_of_the_card_is_what_the_hub_reads() -> None:
    _, header, _ = _card().split("---\n", 2)
    fields = yaml.safe_load(header)
    assert fields["license"] == "cc-by-4.0"
    assert fields["pretty_name"] == "Three classes"
    assert fields["task_categories"] == ["image-classification"]
    assert fields["size_categories"] == ["n<1K"]
    assert fields["configs"][0]["data_files"] == [{"split": "train", "path": "data/train.parquet"}]


def test_licence_may_be_a_url() -> None:
    publication = Publication(**PUBLICATION | {"license": "https://example.org/terms"})
    files = repository_files(make_set(), publication)
    fields = yaml.safe_load(files["README.md"].decode().split("---\n", 2)[1])
    assert (fields["license"], fields["license_link"]) == ("other", "https://example.org/terms")
    assert json.loads(files["croissant.json"])["license"] == "https://example.org/terms"


def test_card_states_method_spec_and_classes() -> None:
    spec = {"ipc": 2, "method": {"name": "dance", "factor": 2}}
    card = _card(spec=spec, decode=Decode(2), class_names=["cat", "犬", "```\n# end"])
    assert "- Method: `dance`, 7 iterations" in card
    assert "3 classes, 8 images per class" in card
    blocks = [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)]
    assert ["cat", "犬", "```\n# end"] in blocks
    assert spec in blocks


def test_card_states_the_hashes_of_the_files_and_of_the_real_images() -> None:
    hashes = ["0" * 64, "1" * 64, "2" * 64]
    files = repository_files(make_set(class_sha256=hashes), Publication(**PUBLICATION))
    card = files["README.md"].decode()
    for name in ("synthetic.safetensors", "data/train.parquet", "preview.png"):
        assert f"- `{name}`: `{hashlib.sha256(files[name]).hexdigest()}`" in card
    assert f'"class 2": "{hashes[2]}"' in card


@pytest.mark.parametrize("result", [RESULT, RESULT["evaluation"]], ids=["condense job", "evaluate job"])
def test_card_states_the_accuracies_of_a_result(result: dict[str, Any]) -> None:
    card = _card(result)
    assert "| `this set` | `convnet` | 88.3 ± 0.8 | 5 |" in card
    assert "| `random` | `convnet` | 69.4 ± 1.9 | 5 |" in card


def test_card_of_a_result_without_evaluation_states_no_accuracies() -> None:
    for result in (None, {"images": 6}, {"evaluation": None}):
        assert "## Accuracies" not in _card(result)


def test_other_results_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the result is not the result\.json of a job"):
        _card({"networks": [{"name": "convnet"}]})


def test_texts_of_a_set_cannot_leave_their_place_in_the_card() -> None:
    card = _card(dataset={"name": "three`\n# injected\n|", "is_digits": False}, class_names=["a", "b", "\ud800"])
    assert "\n# injected" not in card
    assert "`three' # injected /`" in card
    assert "\\ud800" in card


# -- Croissant


def test_metadata_has_the_required_properties_of_croissant() -> None:
    """https://docs.mlcommons.org/croissant/docs/croissant-spec.html#required and #modified-and-added-properties"""
    metadata = _metadata()
    required = ["@context", "@type", "conformsTo", "name", "description", "license", "url", "creator", "datePublished"]
    assert [name for name in [*required, "distribution"] if not metadata.get(name)] == []
    context = metadata["@context"]
    assert metadata["@type"] == "sc:Dataset"
    assert context["sc"] == "https://schema.org/"
    assert (context["conformsTo"], context["dct"]) == ("dct:conformsTo", "http://purl.org/dc/terms/")
    assert metadata["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert metadata["license"] == "https://spdx.org/licenses/CC-BY-4.0.html"
    assert metadata["creator"] == {"@type": "sc:Person", "name": "Ada"}
    assert metadata["datePublished"] == "2026-11-28"


def test_every_term_is_defined_by_the_context() -> None:
    """Terms of Croissant that the context does not define would be read as terms of schema.org."""
    metadata = _metadata()
    of_schema_org = {"name", "description", "url", "license", "creator", "datePublished", "version", "keywords"}
    of_schema_org |= {"distribution", "contentUrl", "contentSize", "encodingFormat", "sha256"}
    assert _terms(metadata) - of_schema_org <= metadata["@context"].keys()


def _terms(value: Any) -> set[str]:
    """Return the terms of a JSON-LD value, without its context and embedded data."""
    if isinstance(value, list):
        return set().union(*map(_terms, value))
    if not isinstance(value, dict):
        return set()
    inner = {key: part for key, part in value.items() if key not in ("@context", "data")}
    return {key for key in value if not key.startswith("@")}.union(*map(_terms, inner.values()))


def test_resources_state_where_and_what_the_files_are() -> None:
    files = repository_files(make_set(), Publication(**PUBLICATION))
    distribution = json.loads(files["croissant.json"])["distribution"]
    assert [resource["contentUrl"] for resource in distribution] == ["data/train.parquet", "synthetic.safetensors"]
    for resource in distribution:
        content = files[resource["contentUrl"]]
        assert resource["@type"] == "cr:FileObject"
        assert resource["encodingFormat"]
        assert resource["contentSize"] == f"{len(content)} B"
        assert resource["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("labels", [np.repeat(np.arange(3), 2), SOFT], ids=["hard", "soft"])
def test_records_refer_to_columns_and_fields_that_exist(labels: np.ndarray) -> None:
    metadata = _metadata(labels=labels)
    classes, images = metadata["recordSet"]
    identifiers = [resource["@id"] for resource in metadata["distribution"]]
    identifiers += [part["@id"] for records in (classes, images) for part in (records, *records["field"])]
    assert len(set(identifiers)) == len(identifiers), "ids are unique"
    for field in images["field"]:
        assert field["source"]["fileObject"]["@id"] in identifiers
        assert field["source"]["extract"]["column"] in ("image", "label")
    assert classes["data"] == [{"classes/label": k, "classes/name": f"class {k}"} for k in range(3)]
    references = images["field"][1].get("references")
    assert references == ({"field": {"@id": "classes/label"}} if labels.ndim == 1 else None)
    assert images["field"][1]["dataType"] == ["sc:Integer" if labels.ndim == 1 else "sc:Float", "cr:Label"]


# -- publication


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", " "),
        ("name", "two\nlines"),
        ("creator", ""),
        ("url", "three"),
        ("url", "file:///home/ada"),
        ("license", "free for all"),
        ("creator_type", "Robot"),
    ],
)
def test_unusable_fields_of_a_publication_are_refused(field: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be"):
        Publication(**PUBLICATION | {field: value})
