"""Write the dataset card of a synthetic set: a README.md that people read, with a YAML header that the Hugging Face Hub reads.

Format: https://huggingface.co/docs/hub/datasets-cards
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from cafe_core.synthetic_set.publication import Publication
from cafe_core.synthetic_set.quantisation import quantisation
from cafe_core.synthetic_set.synthetic_set import SyntheticSet

_SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
"""Names of the Hub for numbers of images below a limit."""


def dataset_card(
    synthetic: SyntheticSet,
    publication: Publication,
    files: Mapping[str, bytes],
    *,
    parquet_file: str,
    set_file: str,
    result: Mapping[str, Any] | None = None,
) -> str:
    """Return the card.

    files: the published files by name, whose hashes the card states. parquet_file, set_file: the names of two of them.
    result: the job's result.json, with an evaluation; without it, the card states no accuracies.
    Raises ValueError if `result` is not a job's result.
    """
    header = yaml.safe_dump(_header(synthetic, publication, parquet_file), sort_keys=False)
    sections = [
        f"---\n{header}---\n\n# {publication.name}\n",
        _summary(synthetic, publication),
        _loading(parquet_file, set_file),
        _accuracies(result),
        f"## Classes\n\nIn the order of their labels, from 0:\n\n{_json_block(synthetic.class_names)}",
        _images(synthetic),
        f"## Spec\n\nThe resolved spec of the job that made the set:\n\n{_json_block(synthetic.spec)}",
        _hashes(synthetic, files),
    ]
    return _encodable("\n".join(section for section in sections if section))


def _header(synthetic: SyntheticSet, publication: Publication, parquet_file: str) -> dict[str, Any]:
    count = len(synthetic.class_names) * synthetic.training_images_per_class
    size = next((name for limit, name in _SIZE_CATEGORIES if count < limit), "n>1M")
    identifier = publication.license.lower()
    is_url = publication.license == publication.license_url
    license_fields = {"license": "other", "license_link": publication.license} if is_url else {"license": identifier}
    return {
        "pretty_name": publication.name,
        **license_fields,
        "task_categories": ["image-classification"],
        "size_categories": [size],
        "tags": ["dataset-condensation", "dataset-distillation"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": parquet_file}]}],
    }


def _summary(synthetic: SyntheticSet, publication: Publication) -> str:
    channels, height, width = synthetic.images.shape[1:]
    classes, per_class = len(synthetic.class_names), synthetic.training_images_per_class
    lines = [
        f"A small training set, made from the training images of {_code(synthetic.dataset.get('name'))}, for networks that "
        "classify real images.",
        "",
        f"- Images: {classes * per_class} of {height}×{width} pixels, {'grey' if channels == 1 else 'RGB'}; "
        f"{classes} classes, {per_class} images per class",
    ]
    if synthetic.decode is not None:
        factor = synthetic.decode.factor
        lines.append(f"- Stored images per class: {synthetic.ipc}; each holds {factor} × {factor} training images")
    lines += [
        f"- Labels: {'probabilities of the classes' if synthetic.labels.ndim == 2 else 'class numbers'}",
        f"- Method: {_code(_method(synthetic.spec))}, {synthetic.iteration} iterations",
        f"- Made with: {_code(', '.join(f'{name} {version}' for name, version in sorted(synthetic.versions.items())))}",
        f"- Published: {publication.day} by {publication.creator}, {publication.url}",
        f"- Licence: [{publication.license}]({publication.license_url})",
        "",
    ]
    return "\n".join(lines)


def _method(spec: Mapping[str, Any]) -> Any:
    method = spec.get("method")
    return method.get("name", "unknown") if isinstance(method, dict) else "unknown"


def _loading(parquet_file: str, set_file: str) -> str:
    return f"""## Load it

The exact images, as a torch dataset (`pip install cafe-service`):

```python
from cafe_core import load_set

train = load_set("{set_file}")
```

8-bit images, with Hugging Face `datasets`:

```python
from datasets import load_dataset

train = load_dataset("parquet", data_files="{parquet_file}", split="train")
```
"""


def _accuracies(result: Mapping[str, Any] | None) -> str:
    """Return the section with the accuracies of a result; empty if it has no evaluation."""
    if result is None:
        return ""
    try:
        evaluation = result if "networks" in result else result.get("evaluation")
        rows = [] if evaluation is None else list(_accuracy_rows(evaluation))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"the result is not the result.json of a job ({type(error).__name__}: {error})") from error
    if not rows:
        return ""
    table = ["| trained on | network | accuracy (%) | networks trained |", "|---|---|---|---|", *rows]
    explanation = (
        "Test accuracy of fresh networks, mean ± standard deviation. Those of this set were trained on the exact images."
    )
    return "\n".join(["## Accuracies", "", explanation, "", *table, ""])


def _accuracy_rows(evaluation: Mapping[str, Any]) -> Iterator[str]:
    measured = {"this set": evaluation, **evaluation.get("baselines", {})}
    for trained_on, networks in measured.items():
        for row in networks["networks"]:
            yield f"| {_code(trained_on)} | {_code(row['name'])} | {row['mean']:.1f} ± {row['std']:.1f} | {row['n']} |"


def _images(synthetic: SyntheticSet) -> str:
    lost = quantisation(synthetic)
    mean, std = ([round(float(value), 6) for value in channel] for channel in (synthetic.mean, synthetic.std))
    return f"""## Normalisation and 8-bit images

The exact images are normalised with mean {mean} and std {std} per channel of pixel values in [0, 1]. Normalise real images in the
same way before a network sees them.

The 8-bit images differ from the exact ones by at most {lost.largest_error:.4f} and on average {lost.mean_error:.5f} (1 is white):
they are rounded to 256 levels, and {100 * lost.clipped:.1f} % of the values are outside [0, 1] and were clipped.
"""


def _hashes(synthetic: SyntheticSet, files: Mapping[str, bytes]) -> str:
    lines = ["## Hashes", "", "SHA-256 of the files:", ""]
    lines += [f"- `{name}`: `{hashlib.sha256(content).hexdigest()}`" for name, content in sorted(files.items())]
    if synthetic.class_sha256 is not None:
        real = dict(zip(synthetic.class_names, synthetic.class_sha256, strict=True))
        lines += ["", "SHA-256 of the real images of each class:", "", _json_block(real).rstrip("\n")]
    return "\n".join([*lines, ""])


def _json_block(value: Any) -> str:
    """Return a code block. No line of indented JSON starts with a backtick, so the value cannot end the block."""
    return f"```json\n{json.dumps(value, indent=2, ensure_ascii=False)}\n```\n"


def _code(value: Any) -> str:
    """Return a short text, such as the name of a dataset, as inline code that it cannot leave."""
    text = "".join(character if character.isprintable() else " " for character in str(value))
    return "`" + text.translate({ord("`"): "'", ord("|"): "/"}) + "`"


def _encodable(text: str) -> str:
    """Return the text with what UTF-8 cannot encode (unpaired surrogates, in file names) escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
