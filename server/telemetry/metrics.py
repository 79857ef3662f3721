"""Counters of this server process, and the registry of /metrics. docs/metrics.md lists every metric.

Counters and histograms belong to the process; Prometheus adds up those of several servers. Metrics from the database
(:mod:`server.telemetry.job_metrics`) and from other services (:mod:`server.telemetry.scraping`) are the same on every server.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

REQUEST_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 35, 60)
"""Includes 35, because a long poll takes up to 30 s."""
JOB_BUCKETS_S = (10, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 86400, 3 * 86400, 7 * 86400)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods with their own label value. All others are counted as OTHER, which bounds the number of series."""

# Do not export a `_created` series for each counter.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The counters of one app. Each app has its own registry, since a process may have several apps."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        build = Gauge("cafe_build_info", "Always 1; the label is the version.", ["version"], registry=self.registry)
        build.labels(version).set(1)
        self._requests = Counter(
            "cafe_http_requests", "Number of responses.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "cafe_http_request_seconds",
            "Time from a request to the end of its response, without event streams.",
            ["method", "route"],
            buckets=REQUEST_BUCKETS_S,
            registry=self.registry,
        )
        self.in_flight = Gauge("cafe_http_requests_in_flight", "Requests in progress.", registry=self.registry)
        self.event_streams = Gauge("cafe_event_streams", "Open event streams.", registry=self.registry)
        self._finished = Counter("cafe_jobs_finished", "Jobs that ended.", ["kind", "status"], registry=self.registry)
        self._job_seconds = Histogram(
            "cafe_job_seconds",
            "Time from a job's first start to its end.",
            ["kind", "status"],
            buckets=JOB_BUCKETS_S,
            registry=self.registry,
        )
        self.attempts_lost = Counter(
            "cafe_attempts_lost", "Attempts lost with Ray, their node or their driver.", registry=self.registry
        )
        self._webhooks = Counter("cafe_webhooks", "Attempts to deliver a webhook.", ["outcome"], registry=self.registry)
        for outcome in ("delivered", "failed", "given_up"):
            self._webhooks.labels(outcome)

    def request(self, method: str, route: str, status: int, seconds: float, *, stream: bool) -> None:
        """Count a request. route: its path template; stream: an event stream, whose duration is not observed."""
        method = method if method in METHODS else "OTHER"
        self._requests.labels(method, route, status).inc()
        if not stream:
            self._seconds.labels(method, route).observe(seconds)

    def job_ended(self, kind: str, status: str, seconds: float | None) -> None:
        """Count a job that has ended. seconds: since its first start; None if it never started."""
        self._finished.labels(kind, status).inc()
        if seconds is not None:
            self._job_seconds.labels(kind, status).observe(seconds)

    def webhook(self, outcome: str) -> None:
        """Count an attempt to deliver: `delivered`, `failed` (will be retried) or `given_up`."""
        self._webhooks.labels(outcome).inc()
