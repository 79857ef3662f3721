"""Hold facts about the datasets that a spec names, gathered once and passed on as data. This module does not import torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TypeAlias, get_args

from cafe_core.errors import DatasetError, SpecError
from cafe_core.spec.dataset import DatasetInfo, DatasetName, DatasetSpec
from cafe_core.spec.wording import did_you_mean

_NAMES_A_DATASET_FIELD = re.compile(rf"dataset\.({'|'.join(DatasetSpec.model_fields)}): ")

DatasetFact: TypeAlias = DatasetInfo | SpecError | DatasetError
"""A dataset's description, or the error that describing it raised."""


class DatasetFacts:
    """Hold a fact about each dataset that a spec names."""

    def __init__(self, found: Iterable[tuple[DatasetSpec, DatasetFact]]) -> None:
        self._found = {dataset.model_dump_json(): fact for dataset, fact in found}

    @classmethod
    def gather(cls, datasets: Iterable[DatasetSpec], describe: Callable[[DatasetSpec], DatasetInfo]) -> DatasetFacts:
        """Describe each dataset once. Keep SpecError and DatasetError as facts: :meth:`described` raises them."""

        def fact(dataset: DatasetSpec) -> DatasetFact:
            try:
                return describe(dataset)
            except (SpecError, DatasetError) as error:
                return error

        distinct = {dataset.model_dump_json(): dataset for dataset in datasets}
        return cls((dataset, fact(dataset)) for dataset in distinct.values())

    def described(self, dataset: DatasetSpec, field: str) -> DatasetInfo:
        """Return the description of `dataset`, which is the value of `field` of the spec.

        Raises SpecError for that field, or for one inside it, if the dataset could not be described.
        """
        found = self._found[dataset.model_dump_json()]
        if isinstance(found, DatasetInfo):
            return found
        message = found.message + _builtin_meant(dataset)
        if isinstance(found, SpecError):
            raise SpecError(message, loc=found.loc.replace("dataset", field, 1)) from found
        named = _NAMES_A_DATASET_FIELD.match(message)
        if named is None:
            raise SpecError(message, loc=field) from found
        raise SpecError(message[named.end() :], loc=f"{field}.{named[1]}") from found


def _builtin_meant(dataset: DatasetSpec) -> str:
    """Return the suggestion of a built-in dataset for a path that cannot be used and is almost its name."""
    return did_you_mean(dataset.path or "", get_args(DatasetName), cutoff=0.8)
