"""OpenTelemetry traces: FastAPI's spans of requests, and spans of the steps of a job.

`OTEL_EXPORTER_OTLP_ENDPOINT` (or `…_TRACES_ENDPOINT`) or `OTEL_TRACES_EXPORTER` enables them; the SDK's other variables
(`OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`, …) have their usual meaning. While traces are disabled, the SDK is not imported.
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

REQUEST_TELEMETRY = TelemetryConfig(tracing=True, metrics=False, logs=False, operation_spans=False, auto_configure=False)
"""FastAPI's telemetry: spans only. Metrics and logs are made by this package. No spans are made without a provider."""


def configure(environ: Mapping[str, str]) -> None:
    """Export spans as configured by environment variables, in the background and at exit.

    Logs a warning and exports nothing if the exporter's package is missing.
    """
    name = _exporter_name(environ)
    if name is None:
        return
    exporters = {entry.name: entry for entry in entry_points(group="opentelemetry_traces_exporter")}
    wanted = [each for each in (name, f"{name}_proto_http") if each in exporters]
    if not wanted:
        log.warning(
            "traces disabled: OpenTelemetry exporter %r is not installed; install opentelemetry-exporter-otlp-proto-http", name
        )
        return
    export_to(exporters[wanted[0]].load()(), environ)


def export_to(exporter: SpanExporter, environ: Mapping[str, str]) -> None:
    """Export spans to `exporter`. Call it once: a process has one provider."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {} if environ.get("OTEL_SERVICE_NAME") else {"service.name": "cafe"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


@contextmanager
def step(name: str, job_id: str, attempt: int) -> Iterator[None]:
    """Trace a step of a job, e.g. its submission. An exception marks the span as an error."""
    with trace.get_tracer("cafe").start_as_current_span(name, attributes={"cafe.job_id": job_id, "cafe.attempt": attempt}):
        yield


def _exporter_name(environ: Mapping[str, str]) -> str | None:
    """Return the name of the configured exporter; None if traces are disabled."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    name = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    has_endpoint = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if name == "none" or not (name or has_endpoint):
        return None
    return name or "otlp"
