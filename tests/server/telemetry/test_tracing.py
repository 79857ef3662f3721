"""Test traces. Tests that make spans or look for the SDK serve in their own process, because a process has one provider."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.telemetry import tracing

ROOT = Path(__file__).parents[3]

SERVE = """
import json, os, sys
from pathlib import Path
from server.telemetry import tracing
from server.settings import Settings
from tests.server.conftest import FakeRay, running
from opentelemetry import trace

exporter = None
if "in-memory" in sys.argv:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    tracing.export_to(exporter := InMemorySpanExporter(), os.environ)
else:
    tracing.configure(os.environ)
ray = FakeRay()
with running(Settings(data_dir=Path(sys.argv[1])), ray) as api:
    job = api.make()["id"]
    api.get("/no/such/thing")
    api.await_job(job, lambda _: bool(ray.submissions))
    api.post(f"/v1/jobs/{job}/cancel")
    api.await_status(job, "cancelled")
provider = trace.get_tracer_provider()
if exporter is not None:
    provider.force_flush()
    for span in exporter.get_finished_spans():
        print(json.dumps({"name": span.name, "job": job, "service": span.resource.attributes["service.name"], **span.attributes}))
else:
    print(json.dumps({"sdk": "opentelemetry.sdk.trace" in sys.modules, "provider": type(provider).__name__}))
"""


def serve(path: Path, *arguments: str, **environment: str) -> tuple[list[dict[str, Any]], str]:
    """Serve some requests in a process; return its standard output and standard error."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", SERVE, str(path), *arguments],
        cwd=ROOT,
        env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], done.stderr


def test_requests_and_job_steps_have_spans(tmp_path: Path) -> None:
    spans, _ = serve(tmp_path, "in-memory", OTEL_SERVICE_NAME="my-cafe")
    by_name: dict[str, list[dict[str, Any]]] = {}
    for span in spans:
        by_name.setdefault(span["name"], []).append(span)
    assert by_name["POST /v1/jobs"][0]["http.response.status_code"] == 201
    assert by_name["GET"][0]["http.response.status_code"] == 404  # no route
    assert "GET /v1/jobs/{job_id}" in by_name
    [submission] = by_name["submit attempt"]
    assert (submission["cafe.job_id"], submission["cafe.attempt"]) == (submission["job"], 1)
    assert {span["service"] for span in spans} == {"my-cafe"}


def test_sdk_is_not_loaded_by_default(tmp_path: Path) -> None:
    [said], _ = serve(tmp_path)
    assert said == {"sdk": False, "provider": "ProxyTracerProvider"}


@pytest.mark.parametrize(
    "environment",
    [{"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "console"}],
)
def test_traces_can_be_disabled(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "export_to", lambda *_: pytest.fail("traces are exported"))
    tracing.configure(environment)
    assert not caplog.records  # no exporter is looked for


def test_missing_exporter_logs_warning(tmp_path: Path) -> None:
    [said], errors = serve(tmp_path, OTEL_TRACES_EXPORTER="zipkin")
    assert said["provider"] == "ProxyTracerProvider"
    assert "exporter 'zipkin'" in errors
