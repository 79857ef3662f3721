"""Define the fields of forgetting."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from cafe_core.spec.method import NetworkSelectionSpec, Sizes


class ForgettingMethod(NetworkSelectionSpec):
    """Forgetting (Toneva et al., ICLR 2019): the images that a network forgets most often while it is trained."""

    name: Literal["forgetting"]
    """Most forgotten images."""

    @model_validator(mode="after")
    def _two_epochs(self) -> ForgettingMethod:
        if self.network_epochs < 2:
            raise ValueError(
                "method.network_epochs: forgetting counts changes from one epoch to the next; it must be at least 2, "
                f"got {self.network_epochs}"
            )
        return self

    def statistics_bytes(self, sizes: Sizes) -> int:  # noqa: ARG002
        """Return 0: a few numbers per image are held, no features."""
        return 0
