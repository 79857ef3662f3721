"""Describe the publication of a synthetic set: what the set itself does not say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import Literal

_URL = re.compile(r"https?://[^\s<>\"]+")
_SPDX_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")


@dataclass(frozen=True)
class Publication:
    """Where, by whom and under which licence a set is published. Raises ValueError if a field is unusable."""

    name: str
    """Name of the published set."""
    url: str
    """Its page, an http or https URL."""
    license: str
    """An SPDX identifier (https://spdx.org/licenses/), such as CC-BY-4.0, or the URL of a licence.

    Synthetic images are derived from real ones, so the licence of the real images may limit the choice."""
    creator: str
    """Name of the person or organization that made the set."""
    creator_type: Literal["Person", "Organization"] = "Person"
    published: date | None = None
    """The day of publication; None is today."""

    def __post_init__(self) -> None:
        for field in ("name", "creator"):
            text = getattr(self, field)
            if not text.strip() or not text.isprintable():
                raise ValueError(f"{field} must be printable text in one line; got {text!r}")
        if not _URL.fullmatch(self.url):
            raise ValueError(
                f"url must be an http or https URL, such as https://huggingface.co/datasets/ME/SET; got {self.url!r}"
            )
        if not _URL.fullmatch(self.license) and not _SPDX_IDENTIFIER.fullmatch(self.license):
            raise ValueError(
                f"license must be an SPDX identifier, such as CC-BY-4.0, or the URL of a licence; got {self.license!r}"
            )
        if self.creator_type not in ("Person", "Organization"):
            raise ValueError(f"creator_type must be Person or Organization; got {self.creator_type!r}")

    @property
    def license_url(self) -> str:
        """Return the URL of the licence."""
        return self.license if _URL.fullmatch(self.license) else f"https://spdx.org/licenses/{self.license}.html"

    @property
    def day(self) -> str:
        """Return the day of publication, such as 2026-11-28."""
        return (self.published or date.today()).isoformat()
