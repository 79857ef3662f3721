"""Expand a sweep into its trials, all resolved and checked before the first one starts. This module does not import torch.

Trials are numbered in the order of the grid, whose first field changes slowest. The `samples` of a point follow each other.
A random value is addressed by (the sweep's seed, trial, field), so the same spec always gives the same trials.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cafe_core.counters import counter_seed
from cafe_core.errors import SpecError
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset import DatasetSpec, dataset_written_out
from cafe_core.spec.dataset_facts import DatasetFacts
from cafe_core.spec.overrides import setting, shown
from cafe_core.spec.plain_names import named
from cafe_core.spec.refusal import named_field, refused_field
from cafe_core.spec.resolution import resolve
from cafe_core.spec.sweep import DimensionSpec, SweepSpec


@dataclass(frozen=True)
class Trial:
    """One setting of a sweep."""

    number: int
    """0, 1, …"""
    overrides: dict[str, Any]
    """The value of each field in the space."""
    spec: CondenseSpec
    """The condense job that the trial runs. Resolved."""


def datasets_of(sweep: SweepSpec) -> list[DatasetSpec]:
    """Return the datasets to describe before :func:`trials`: the base's, and every one that the space sets.

    A value that is not a valid dataset is left out, because :func:`trials` rejects it.
    """
    found = {"": sweep.base.dataset}
    if any(_sets_dataset(path) for path in sweep.space):
        sent = sweep.base.model_dump(exclude_unset=True)
        points = settings(sweep)
        for overrides in itertools.chain((points[0] | end for end in _range_ends(sweep)), points):
            dataset_overrides = {path: value for path, value in overrides.items() if _sets_dataset(path)}
            key = json.dumps(dataset_overrides)
            if key not in found:
                with suppress(SpecError):
                    found[key] = _validated(sent, dataset_overrides, sweep.base.resources.gpus_per_worker).dataset
    return list(found.values())


def _sets_dataset(path: str) -> bool:
    return path.split(".")[0] == "dataset"


def trials(sweep: SweepSpec, datasets: DatasetFacts) -> list[Trial]:
    """Return all trials of a resolved sweep. `datasets` covers those of :func:`datasets_of`.

    Raises SpecError, which names the field of the space and its value.
    """
    sent = sweep.base.model_dump(exclude_unset=True)
    gpus_per_worker = sweep.base.resources.gpus_per_worker
    for path in sweep.space:
        if path.split(".")[0] in ("kind", "name", "labels", "webhook"):
            raise SpecError("a sweep cannot vary this field; use a field that affects the result", loc=f"space.{path}")

    def resolved(overrides: dict[str, Any]) -> CondenseSpec:
        spec = _validated(sent, overrides, gpus_per_worker)
        try:
            return resolve(spec, datasets.described(spec.dataset, "dataset"))
        except ValueError as error:
            raise _refusal(overrides, *named_field(str(error))) from error
        except SpecError as error:  # a dataset that the overrides set; the base's was described before
            raise _refusal(overrides, error.loc, error.message) from error

    found = settings(sweep)
    for end in _range_ends(sweep):  # refuse a range that exceeds the limits even if no draw does
        resolved(found[0] | end)
    planned = [Trial(number, overrides, resolved(overrides)) for number, overrides in enumerate(found)]
    _check_comparable(sweep, planned)
    return planned


def _check_comparable(sweep: SweepSpec, planned: list[Trial]) -> None:
    """Raise SpecError if the trials would be compared by different kinds of accuracy."""
    first = planned[0].spec
    for trial in planned:
        spec = trial.spec
        if (spec.validation is None) != (first.validation is None):
            raise _refusal(
                trial.overrides,
                "validation",
                "trials are compared by validation: give all trials one, or none",
            )
        if spec.validation is None and sweep.scheduler == "asha":
            raise _refusal(
                trial.overrides,
                "validation",
                "asha stops trials by their validations, so each trial needs one",
            )
        if spec.validation is None and spec.evaluation is None:
            raise _refusal(
                trial.overrides,
                "evaluation",
                "a trial without a validation needs an evaluation to be compared by",
            )


def _range_ends(sweep: SweepSpec) -> Iterator[dict[str, Any]]:
    """Yield one override for each end of a random range and each choice."""
    for path, d in sweep.space.items():
        for value in d.uniform or d.loguniform or d.integers or d.choice or []:
            yield {path: value}


def settings(sweep: SweepSpec) -> list[dict[str, Any]]:
    """Return the overrides of each trial, by number. They depend only on the spec, not on the data."""
    grids = [[(path, value) for value in d.grid] for path, d in sweep.space.items() if d.grid is not None]
    points = [dict(point) for point in itertools.product(*grids) for _ in range(sweep.samples)]
    # Keep the order of the space, which is also the order of a table's columns.
    return [
        {
            path: point[path] if d.grid is not None else _draw(d, counter_seed(sweep.seed, f"sweep {path}", number))
            for path, d in sweep.space.items()
        }
        for number, point in enumerate(points)
    ]


def _draw(dimension: DimensionSpec, seed: int) -> Any:
    draws = random.Random(seed)
    if dimension.choice is not None:
        return draws.choice(dimension.choice)
    if dimension.integers is not None:
        return draws.randint(*dimension.integers)
    if dimension.uniform is not None:
        return draws.uniform(*dimension.uniform)
    assert dimension.loguniform is not None
    low, high = dimension.loguniform
    return math.exp(draws.uniform(math.log(low), math.log(high)))


def _validated(sent: dict[str, Any], overrides: dict[str, Any], gpus_per_worker: float | None) -> CondenseSpec:
    """Return the base with the overrides applied. Raises SpecError.

    gpus_per_worker: the base's. It applies even if an override replaces all of `resources`, because the default depends on the
    cluster.
    """
    fields = copy.deepcopy(sent)
    for path, value in sorted(overrides.items(), key=_depth):
        _set(fields, path, value)
    resources = fields.get("resources")
    if isinstance(resources, dict) and resources.get("gpus_per_worker") is None:
        resources["gpus_per_worker"] = gpus_per_worker
    try:
        return CondenseSpec.model_validate(fields)
    except ValidationError as error:
        raise _refusal(overrides, *refused_field(error.errors()[0])) from error


def _depth(override: tuple[str, Any]) -> int:
    """Return how deep a path is: `method` is set before `method.beta`, which is part of it."""
    return override[0].count(".")


_WRITTEN_OUT = {"dataset": dataset_written_out, "method": named, "network": named}


def _set(fields: dict[str, Any], path: str, value: Any) -> None:
    """Set the field at `path` (`method.beta`, `evaluation.networks.0.width`). Raises SpecError if there is no such field."""
    parts = path.split(".")
    inner: Any = fields
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        if isinstance(inner, list):
            if not part.isdecimal() or int(part) >= len(inner):
                raise SpecError(f"base has no field {path}: the list has no item {part}", loc=f"space.{path}")
            key: Any = int(part)
        elif isinstance(inner, dict):
            key = part
        else:
            raise SpecError(f"base has no field {path}: a plain value has no field {part}", loc=f"space.{path}")
        if following is None:
            inner[key] = copy.deepcopy(value)
        elif part in _WRITTEN_OUT and isinstance(inner, dict) and isinstance(inner.get(key), str):
            inner[key] = _WRITTEN_OUT[part](inner[key])  # another override set it to a plain string
            inner = inner[key]
        elif isinstance(inner, dict) and inner.get(key) is None:
            inner[key] = {}
            inner = inner[key]
        else:
            inner = inner[key]


def _refusal(overrides: dict[str, Any], field: str, message: str) -> SpecError:
    """Return the error for the override of the refused field or, without one, for the base's field under all overrides."""
    for path, value in overrides.items():
        if field == path or field.startswith(f"{path}.") or path.startswith(f"{field}."):
            return SpecError(f"{shown(value)}: {message}", loc=f"space.{path}")
    return SpecError(f"with {setting(overrides)}: {message}", loc=f"base.{field}" if field else "space")
