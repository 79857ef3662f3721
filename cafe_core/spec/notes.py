"""Collect what the user of a job should know about its images, for dry runs, events and results."""

from __future__ import annotations

from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset import DatasetInfo, DatasetNote
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.method import SelectionMethodSpec

_CLASSES_SHOWN = 5


def job_notes(spec: CondenseSpec | EvaluateSpec, dataset: DatasetInfo) -> list[DatasetNote]:
    """Return the notes about the dataset, and a note if a method has to choose images several times."""
    ipc = _selected_per_class(spec)
    small = [
        f"{name!r} has {count}"
        for name, count in zip(dataset.class_names, dataset.class_counts, strict=True)
        if ipc is not None and count < ipc
    ]
    if not small:
        return dataset.notes
    shown = ", ".join(small[:_CLASSES_SHOWN]) + (", …" if len(small) > _CLASSES_SHOWN else "")
    message = f"ipc is {ipc}, but {len(small)} of {dataset.num_classes} classes have fewer images, which are repeated: {shown}"
    return [*dataset.notes, DatasetNote(code="repeated", message=message)]


def _selected_per_class(spec: CondenseSpec | EvaluateSpec) -> int | None:
    """Return how many real images per class a method that chooses real images has to choose; None for other methods."""
    if isinstance(spec, CondenseSpec):
        return spec.ipc if isinstance(spec.method, SelectionMethodSpec) else None
    return spec.synthetic.ipc if spec.synthetic.selection not in (None, "random", "whole") else None
