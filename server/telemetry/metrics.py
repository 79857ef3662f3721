"""What this server process counts, and the registry that /metrics shows. docs/metrics.md lists every metric.

Counters and histograms are this process's own: Prometheus adds up those of several servers. What is read from the database
(:mod:`server.telemetry.job_metrics`) and what is asked of others (:mod:`server.telemetry.scraping`) is the same on every server.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

REQUEST_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 35, 60)
"""35: a GET that waits for a change answers within 30 s."""
JOB_BUCKETS_S = (10, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 86400, 3 * 86400, 7 * 86400)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods that have a label value of their own: what a client makes up is OTHER."""

# Of a second series for each counter, which says when the process started.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The counters of one app. Each app has a registry of its own: a process may have several."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        build = Gauge("cafe_build_info", "Always 1; the label tells the version.", ["version"], registry=self.registry)
        build.labels(version).set(1)
        self._requests = Counter(
            "cafe_http_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "cafe_http_request_seconds",
            "Time from a request to the end of its answer, event streams left out.",
            ["method", "route"],
            buckets=REQUEST_BUCKETS_S,
            registry=self.registry,
        )
        self.in_flight = Gauge("cafe_http_requests_in_flight", "Requests being answered.", registry=self.registry)
        self.event_streams = Gauge("cafe_event_streams", "Open event streams.", registry=self.registry)
        self._finished = Counter(
            "cafe_jobs_finished", "Jobs that this process saw end.", ["kind", "status"], registry=self.registry
        )
        self._job_seconds = Histogram(
            "cafe_job_seconds",
            "Time from a job's first start to its end.",
            ["kind", "status"],
            buckets=JOB_BUCKETS_S,
            registry=self.registry,
        )
        self.attempts_lost = Counter(
            "cafe_attempts_lost", "Attempts that were lost with Ray, their node or their driver.", registry=self.registry
        )
        self._webhooks = Counter("cafe_webhooks", "Tries to deliver a webhook.", ["outcome"], registry=self.registry)
        for outcome in ("delivered", "failed", "given_up"):
            self._webhooks.labels(outcome)

    def request(self, method: str, route: str, status: int, seconds: float, *, stream: bool) -> None:
        """Count an answered request. route: its template, as paths are without bound; stream: it lasted as long as its client."""
        method = method if method in METHODS else "OTHER"
        self._requests.labels(method, route, status).inc()
        if not stream:
            self._seconds.labels(method, route).observe(seconds)

    def job_ended(self, kind: str, status: str, seconds: float | None) -> None:
        """Count a job that has ended; seconds: since it was first started, None where it never was."""
        self._finished.labels(kind, status).inc()
        if seconds is not None:
            self._job_seconds.labels(kind, status).observe(seconds)

    def webhook(self, outcome: str) -> None:
        """Count a try to deliver: `delivered`, `failed` (it will be tried again) or `given_up`."""
        self._webhooks.labels(outcome).inc()
