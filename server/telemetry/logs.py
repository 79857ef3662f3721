"""The server's log: one line per record, as JSON or text, with the ids of its request and job.

Secrets are never logged on purpose; the formatters redact them as a second line of defence.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from pydantic import SecretStr
from sqlalchemy.engine import make_url

from server.http.request_id import request_id
from server.settings import Settings

REDACTED = "[redacted]"
SHORTEST_SECRET = 6
"""Shorter values are not redacted, because they would match too often."""

job_id: ContextVar[str | None] = ContextVar("job_id", default=None)
"""The job that the current task works on."""

_SECRET_PATTERNS = (
    # (text that every match contains, pattern, replacement): searching the text first is fast.
    ("cafe_", re.compile(r"cafe_[a-z0-9_-]{43}(?![a-z0-9_-])", re.IGNORECASE), REDACTED),  # API keys
    ("bearer", re.compile(r"(bearer\s+)[a-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1{REDACTED}"),
    ("basic", re.compile(r"(basic\s+)[a-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1{REDACTED}"),
    (
        "://",
        re.compile(r"(\b[a-z][a-z0-9+.-]{0,20}://[^\s:/?#@\"\\]{0,256}:)[^\s/?#\"\\]{1,1024}(?=@)", re.IGNORECASE),
        rf"\1{REDACTED}",
    ),  # passwords in URLs; each part is bounded, so that matching takes linear time
)


class Redaction:
    """Redact secrets in texts: the given values, and everything that looks like a key, a token or a password in a URL."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        long = {value for value in values if len(value) >= SHORTEST_SECRET}
        quoted = {quote(value)[1:-1] for value in long for quote in (json.dumps, repr)}
        self._values = sorted(long | quoted, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return the text, which may be JSON, without secrets."""
        for value in self._values:
            text = text.replace(value, REDACTED)
        lower = text.lower()
        for part, pattern, replacement in _SECRET_PATTERNS:
            if part in lower:
                text = pattern.sub(replacement, text)
        return text


class JsonFormatter(logging.Formatter):
    """Format a record as one line of JSON: time, level, logger, message, and if present request_id, job_id and exception.

    `extra={"fields": {...}}` adds fields.
    """

    def __init__(self, redact: Redaction) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        line: dict[str, Any] = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in (("request_id", request_id.get()), ("job_id", job_id.get())):
            if value is not None:
                line[name] = value
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        return self._redact(json.dumps(line, default=str))


class TextFormatter(logging.Formatter):
    """Format a record as one line of text."""

    def __init__(self, redact: Redaction) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of text, followed by its traceback if it has one."""
        about = {"request_id": request_id.get(), "job_id": job_id.get()} | getattr(record, "fields", {})
        shown = " ".join(f"{name}={value}" for name, value in about.items() if value is not None)
        line = f"{_time_of(record)} {record.levelname} {record.name}: {record.getMessage()}"
        if shown:
            line += f" [{shown}]"
        # One line per record, so that a client cannot forge one. Tracebacks have their own lines.
        line = line.replace("\r", "\\r").replace("\n", "\\n")
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        return self._redact(line)


def configure(form: Literal["json", "text"] | None, secrets: Iterable[str] = (), stream: TextIO | None = None) -> None:
    """Write the log of this process, including uvicorn's, to `stream` (default: standard error).

    form: default text on a terminal, json elsewhere. secrets: values to redact.
    """
    stream = stream or sys.stderr
    form = form or ("text" if stream.isatty() else "json")
    redact = Redaction(secrets)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(redact) if form == "json" else TextFormatter(redact))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    for name in ("httpx", "httpcore", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)  # otherwise one line per request to Ray


def secrets_of(settings: Settings) -> list[str]:
    """Return the secret values of the settings, including the password in the database URL."""
    values = [value.get_secret_value() for _, value in settings if isinstance(value, SecretStr)]
    if settings.database_url is not None and (password := make_url(settings.database_url.get_secret_value()).password):
        values.append(password)
    return values


def _time_of(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
