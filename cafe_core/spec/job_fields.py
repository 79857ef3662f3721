"""Define the fields of every job: its name, labels and webhook."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, HttpUrl, StringConstraints, TypeAdapter, UrlConstraints

from cafe_core.spec.base import SpecModel, max_entries


def _printable(text: str) -> str:
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError("control characters are not allowed")
    return text


Label = Annotated[str, StringConstraints(max_length=128), AfterValidator(_printable)]


def _webhook(text: str) -> str:
    """Return the URL normalised and in ASCII, so that all parsers read it in the same way."""
    url = _URL.validate_python(text)
    if url.username is not None or url.password is not None:
        raise ValueError("the URL must not contain credentials; deliveries are signed instead")
    return str(url)


_URL = TypeAdapter(Annotated[HttpUrl, UrlConstraints(max_length=2048)])


WebhookUrl = Annotated[str, StringConstraints(max_length=2048), AfterValidator(_webhook)]


class JobFields(SpecModel):
    """The fields that every job has."""

    name: Label | None = None
    """A name for display."""
    labels: Annotated[dict[Label, Label], Field(max_length=64), max_entries(64)] = {}
    """Key-value pairs to find the job by."""
    webhook: WebhookUrl | None = None
    """An https URL to which the server POSTs the job when it has ended; see docs/webhooks.md."""
