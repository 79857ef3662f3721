"""Define the spec of the random choice, which has no fields of its own."""

from __future__ import annotations

from typing import Literal

from cafe_core.spec.method import SelectionMethodSpec, Sizes


class RandomMethod(SelectionMethodSpec):
    """Random real images of each class."""

    name: Literal["random"]
    """Random real images."""

    def statistics_bytes(self, sizes: Sizes) -> int:  # noqa: ARG002
        """Return 0: nothing is held besides the images."""
        return 0
