"""The client of the REST API that the `cafe` command uses."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import httpx_sse

from server.client.connection import RETRY_FOR_S, TIMEOUT_S, Connection, RefusedError, UnreachableError

_T = TypeVar("_T")

ENDED = ("succeeded", "failed", "cancelled")
TRIALS_PER_PAGE = 10_000
"""Large, because the server reads all trials of a job for each page."""
RECONNECT_S = 0.3
STREAM_SILENCE_S = 45.0
"""Timeout of a silent event stream: the server sends a comment every 15 s."""


_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


class _NoStreamError(Exception):
    """The server, or a proxy in front of it, does not stream events."""


def _job_path(job_id: str, *below: str) -> str:
    """Return the path of a job, or of something below it, e.g. `/v1/jobs/job_a/logs`. Raises RefusedError."""
    return "/".join(["/v1/jobs", _checked_id(job_id, "job"), *(quote(part, safe="") for part in below)])


def _checked_id(identifier: str, what: str) -> str:
    """Return an id. Raises RefusedError for text that cannot be one: `../datasets` would be the path of something else."""
    if not _ID.fullmatch(identifier):
        raise RefusedError(404, f"there is no {what} {identifier!r}")
    return identifier


class Client:
    """Send requests to the server at `url`. A context manager; without `with`, call :meth:`close`. Methods raise ClientError."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._connection = Connection(url, api_key)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def submit(self, spec: dict[str, Any], idempotency_key: str | None = None) -> dict[str, Any]:
        """Submit a job. The same idempotency key and spec return the same job again."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self.post("/v1/jobs", json=spec, headers=headers)

    def dry_run(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Return what submitting a job would do: the resolved spec and its estimates. Nothing is stored."""
        return self.post("/v1/jobs", json=spec, params={"dry_run": "true"})

    def post(self, path: str, **options: Any) -> dict[str, Any]:
        """Send a POST request and return the JSON of the response."""
        return self._connection.json("POST", path, **options)

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job."""
        return self._get(_job_path(job_id))

    def jobs(
        self, status: str | None = None, kind: str | None = None, labels: tuple[str, ...] = (), limit: int = 50
    ) -> list[dict[str, Any]]:
        """Return at most `limit` jobs, newest first. Reads several pages if jobs are large. labels: `KEY=VALUE` or `KEY`."""
        wanted = [(name, value) for name, value in (("status", status), ("kind", kind)) if value]
        query = httpx.QueryParams([*wanted, *(("label", label) for label in labels)])
        found: list[dict[str, Any]] = []
        while True:
            page = self._get("/v1/jobs", params=query.set("limit", str(limit - len(found))))
            found += page["data"]
            if page["next_cursor"] is None or len(found) >= limit:
                return found
            query = query.set("cursor", page["next_cursor"])

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job, and return it."""
        return self.post(_job_path(job_id, "cancel"))

    def resume(self, job_id: str) -> dict[str, Any]:
        """Resume a failed or cancelled job, and return it."""
        return self.post(_job_path(job_id, "resume"))

    def delete(self, identifier: str) -> None:
        """Delete a job that has ended, or an uploaded dataset, by its id."""
        is_dataset = identifier.startswith("ds_")
        path = f"/v1/datasets/{_checked_id(identifier, 'dataset')}" if is_dataset else _job_path(identifier)
        self._connection.request("DELETE", path)

    def upload(self, path: Path, name: str | None = None) -> dict[str, Any]:
        """Upload a dataset, a .zip or .npz file, and return it. The server answers after it has checked all images."""
        data = {} if name is None else {"name": name}
        with path.open("rb") as file:
            timeout = httpx.Timeout(TIMEOUT_S, read=None)
            return self.post("/v1/datasets", files={"file": (path.name, file)}, data=data, timeout=timeout)

    def datasets(self) -> list[dict[str, Any]]:
        """Return the built-in datasets, then the uploaded ones, newest first."""
        found: list[dict[str, Any]] = self._get("/v1/datasets")["data"]
        return found

    def cluster(self) -> dict[str, Any]:
        """Return the nodes of the cluster, its CPUs and GPUs, and Ray's version."""
        return self._get("/v1/cluster")

    def logs(self, job_id: str, attempt: int | None = None, tail: int | None = None) -> str:
        """Return the output of an attempt (default: the current one), or its last `tail` lines."""
        params = {name: value for name, value in (("attempt", attempt), ("tail", tail)) if value is not None}
        return self._connection.request("GET", _job_path(job_id, "logs"), params=params).text

    def trials(self, job_id: str) -> list[dict[str, Any]]:
        """Return all trials of a job."""
        rows: list[dict[str, Any]] = []
        while (page := self._get(_job_path(job_id, "trials"), params={"after": len(rows), "limit": TRIALS_PER_PAGE}))["data"]:
            rows += page["data"]
        return rows

    def trials_csv(self, job_id: str) -> str:
        """Return all trials of a job as CSV."""
        return self._connection.request("GET", _job_path(job_id, "trials"), params={"format": "csv"}).text

    def follow(self, job_id: str, attempt: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield the events of a job from an attempt on (default: the current one) as they happen, until the job ends.

        Each event is yielded once, in order. Survives restarts of the server. Falls back to polling if a proxy buffers streams.
        """
        first = self.job(job_id)["attempt"] if attempt is None else attempt
        after, streaming, deadline = 0, True, time.monotonic() + RETRY_FOR_S
        while streaming:
            silent = True
            try:
                for event in self._streamed(job_id, after):
                    silent = False
                    if event is not None:
                        after = event["id"]
                        if event["attempt"] >= first:
                            yield event
                ended = self.job(job_id)["status"] in ENDED
                if ended and not self._events(job_id, after)["data"]:  # otherwise the server is stopping
                    return
            except _NoStreamError:
                streaming = False
            except UnreachableError:
                if silent and time.monotonic() > deadline:
                    raise
                time.sleep(RECONNECT_S)
            if not silent:
                deadline = time.monotonic() + RETRY_FOR_S
        for event in self._polled(job_id, after):
            if event["attempt"] >= first:
                yield event

    def _streamed(self, job_id: str, after: int) -> Iterator[dict[str, Any] | None]:
        """Yield the events after `after` until the stream ends, and None for messages without data.

        Raises _NoStreamError when the response is not a stream, or a proxy buffers it.
        """
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after), "Cache-Control": "no-store"}
        timeout = httpx.Timeout(TIMEOUT_S, read=STREAM_SILENCE_S)
        heard = False
        try:
            with self._connection.stream("GET", _job_path(job_id, "events"), headers=headers, timeout=timeout) as response:
                if response.status_code == httpx.codes.NOT_ACCEPTABLE:
                    raise _NoStreamError
                self._connection.check(response)
                if response.status_code == httpx.codes.NO_CONTENT:
                    return
                if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
                    raise _NoStreamError
                for sent in httpx_sse.EventSource(response).iter_sse():
                    heard = True
                    yield json.loads(sent.data) if sent.data else None
        except UnreachableError as error:
            if not heard and isinstance(error.__cause__, httpx.ReadTimeout):
                raise _NoStreamError from error
            raise

    def _polled(self, job_id: str, after: int) -> Iterator[dict[str, Any]]:
        etag = ""
        while True:
            job, etag = self.with_retries(self._changed, job_id, etag)
            while (page := self.with_retries(self._events, job_id, after))["data"]:
                yield from page["data"]
                after = page["next_after"]
            if job["status"] in ENDED:
                return

    def events(self, job_id: str) -> Iterator[dict[str, Any]]:
        """Yield all events of a job so far, of all its attempts."""
        after = 0
        while (page := self._events(job_id, after))["data"]:
            yield from page["data"]
            after = page["next_after"]

    def _changed(self, job_id: str, etag: str) -> tuple[dict[str, Any], str]:
        """Wait until the job's ETag differs from `etag`; return the job and its ETag."""
        while True:
            response = self._connection.request(
                "GET", _job_path(job_id), params={"wait": 20}, headers={"If-None-Match": etag} if etag else {}
            )
            if response.status_code != httpx.codes.NOT_MODIFIED:
                return response.json(), response.headers["ETag"]

    def _events(self, job_id: str, after: int) -> dict[str, Any]:
        return self._get(_job_path(job_id, "events"), params={"after": after, "limit": 1000})

    def with_retries(self, ask: Callable[..., _T], *arguments: Any) -> _T:
        """Return `ask(*arguments)`, retried for RETRY_FOR_S while the server does not respond: it may be restarting."""
        deadline = time.monotonic() + RETRY_FOR_S
        while True:
            try:
                return ask(*arguments)
            except UnreachableError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def download(self, job_id: str, out: Path) -> Iterator[Path]:
        """Download a job's artifacts and check their hashes. If it has none yet, download its latest synthetic set and preview.

        Yields the path of each file.
        """
        artifacts = self._get(_job_path(job_id, "artifacts"))["data"]
        out.mkdir(parents=True, exist_ok=True)
        for artifact in artifacts:
            # not its `href`, which may have a prefix that the URL of this client has too
            href = _job_path(job_id, "artifacts", artifact["name"])
            yield self._fetch(href, out / Path(artifact["name"]).name, artifact["sha256"])
        if not artifacts:
            yield self._fetch(_job_path(job_id, "synthetic"), out / "synthetic.safetensors")
            yield self._fetch(_job_path(job_id, "preview.png"), out / "preview.png")

    def _fetch(self, href: str, path: Path, sha256: str | None = None) -> Path:
        """Download to a temporary file beside `path`, check the hash, and move the file into place."""
        beside = path.with_name(f".{path.name}.{os.getpid()}.part")
        digest = hashlib.sha256()
        try:
            with self._connection.stream("GET", href) as response:
                self._connection.check(response)
                with beside.open("wb") as file:
                    for chunk in response.iter_bytes():
                        digest.update(chunk)
                        file.write(chunk)
            if sha256 is not None and digest.hexdigest() != sha256:
                raise UnreachableError(f"{path.name} was damaged in transit: its SHA-256 is not {sha256}; download it again")
            return beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    def _get(self, path: str, **options: Any) -> dict[str, Any]:
        return self._connection.json("GET", path, **options)
