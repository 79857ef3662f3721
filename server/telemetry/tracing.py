"""OpenTelemetry traces, where the environment asks for them: FastAPI's own spans of requests, and spans of a job's steps.

`OTEL_EXPORTER_OTLP_ENDPOINT` (or `…_TRACES_ENDPOINT`), or `OTEL_TRACES_EXPORTER` turns them on; the SDK's other variables
(`OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`, …) count as everywhere. While they are off nothing of the SDK is imported, and
FastAPI answers requests without a thought of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger(__name__)

OF_REQUESTS = TelemetryConfig(tracing=True, metrics=False, logs=False, operation_spans=False, auto_configure=False)
"""For FastAPI. Only spans: metrics and logs have ways of their own. There are none until there is a provider."""


def configure(environ: Mapping[str, str]) -> None:
    """Send this process's spans where the environment asks for; they are sent in the background, the last ones at exit.

    Where a package is missing for it there are no spans, and a warning that says so.
    """
    name = _exporter_name(environ)
    if name is None:
        return
    exporters = {entry.name: entry for entry in entry_points(group="opentelemetry_traces_exporter")}
    wanted = [each for each in (name, f"{name}_proto_http") if each in exporters]
    if not wanted:
        log.warning("no traces: there is no OpenTelemetry exporter %r; install opentelemetry-exporter-otlp-proto-http", name)
        return
    export_to(exporters[wanted[0]].load()(), environ)


def export_to(exporter: SpanExporter, environ: Mapping[str, str]) -> None:
    """Send this process's spans to an exporter. Once: a process has one provider."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {} if environ.get("OTEL_SERVICE_NAME") else {"service.name": "cafe"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


@contextmanager
def step(name: str, job_id: str, attempt: int) -> Iterator[None]:
    """The span of a step of a job, e.g. its submission. An exception ends it as an error."""
    with trace.get_tracer("cafe").start_as_current_span(name, attributes={"cafe.job_id": job_id, "cafe.attempt": attempt}):
        yield


def _exporter_name(environ: Mapping[str, str]) -> str | None:
    """The name of the exporter that is asked for; None: none is."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    name = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    has_endpoint = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if name == "none" or not (name or has_endpoint):
        return None
    return name or "otlp"
