"""Define the error of an image that cannot be used, so that several can be reported together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cafe_core.errors import DatasetError

MOST_NAMED = 10
"""How many images an error names."""


class ImageError(DatasetError):
    """An image that cannot be used."""

    def __init__(self, where: str, reason: str, fix: str = "replace or remove it") -> None:
        """where: name of the image in messages."""
        super().__init__(f"{where} {reason}; {fix}")
        self.where, self.reason, self.fix = where, reason, fix

    def __reduce__(self) -> tuple[Any, ...]:
        return DatasetError, (self.message,)


def together(label: str, errors: Sequence[ImageError]) -> DatasetError:
    """Return one error for those of several images. label: name of the dataset."""
    if len(errors) == 1:
        return errors[0]
    count = f"at least {len(errors)}" if len(errors) == MOST_NAMED else str(len(errors))
    listed = "; ".join(f"{error.where.removeprefix(f'{label}: ')} {error.reason}" for error in errors)
    fixes = ", or ".join(dict.fromkeys(error.fix for error in errors))
    return DatasetError(f"{label}: {count} images cannot be used: {listed}; for each: {fixes}")
