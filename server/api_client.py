"""A client of the REST API, for the `cafe` command.

::

    ClientError
    ├── UnreachableError        no answer, or the server cannot serve now
    └── RefusedError            the server refused: status, detail, errors [{loc, msg}]
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

ENDED = ("succeeded", "failed", "cancelled")
PATIENCE_S = 60.0
"""How long following a job outlasts a server that does not answer: it may be restarting."""


class ClientError(Exception):
    """A request that came to nothing."""


class UnreachableError(ClientError):
    """The server does not answer, or says that it cannot serve."""


class RefusedError(ClientError):
    """The server refused the request."""

    def __init__(self, status: int, detail: str, errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors


class ApiClient:
    """Requests to the server at `url`. Methods raise ClientError."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._url = url
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=60)
        except httpx.InvalidURL as error:
            raise RefusedError(0, f"{url!r} is not a URL: {error}") from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(self, spec: dict[str, Any], idempotency_key: str | None = None) -> dict[str, Any]:
        """POST a job."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self.post("/v1/jobs", json=spec, headers=headers)

    def post(self, path: str, **options: Any) -> dict[str, Any]:
        """POST, answered with JSON."""
        answer: dict[str, Any] = self._request("POST", path, **options).json()
        return answer

    def job(self, job_id: str) -> dict[str, Any]:
        """A job."""
        return self._get(f"/v1/jobs/{job_id}")

    def jobs(self, status: str | None, labels: tuple[str, ...], limit: int) -> list[dict[str, Any]]:
        """Jobs, newest first."""
        query = httpx.QueryParams([*(("label", label) for label in labels), ("limit", str(limit))])
        page = self._get("/v1/jobs", params=query.set("status", status) if status else query)
        found: list[dict[str, Any]] = page["data"]
        return found

    def logs(self, job_id: str, attempt: int | None, tail: int | None) -> str:
        """What an attempt printed."""
        params = {name: value for name, value in (("attempt", attempt), ("tail", tail)) if value is not None}
        return self._request("GET", f"/v1/jobs/{job_id}/logs", params=params).text

    def follow(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The events of a job's current attempt, as they happen, until it ends. Outlasts a restart of the server."""
        after, etag = 0, ""
        attempt = self.job(job_id)["attempt"]
        while True:
            job, etag = self._patiently(lambda: self._changed(job_id, etag))  # noqa: B023
            while (page := self._patiently(lambda: self._events(job_id, after)))["data"]:  # noqa: B023
                yield from (event for event in page["data"] if event["attempt"] >= attempt)
                after = page["next_after"]
            if job["status"] in ENDED:
                return

    def _changed(self, job_id: str, etag: str) -> tuple[dict[str, Any], str]:
        """The job once it differs from what had `etag`, and its ETag."""
        while True:
            response = self._request(
                "GET", f"/v1/jobs/{job_id}", params={"wait": 20}, headers={"If-None-Match": etag} if etag else {}
            )
            if response.status_code != httpx.codes.NOT_MODIFIED:
                return response.json(), response.headers["ETag"]

    def _events(self, job_id: str, after: int) -> dict[str, Any]:
        return self._get(f"/v1/jobs/{job_id}/events", params={"after": after, "limit": 1000})

    def _patiently(self, ask: Any) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return ask()
            except UnreachableError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def download(self, job_id: str, out: Path) -> Iterator[Path]:
        """Fetch a job's artifacts, checking their hashes; before it has any, its latest synthetic set and preview."""
        out.mkdir(parents=True, exist_ok=True)
        artifacts = self._get(f"/v1/jobs/{job_id}/artifacts")["data"]
        for artifact in artifacts:
            yield self._fetch(artifact["href"], out / Path(artifact["name"]).name, artifact["sha256"])
        if not artifacts:
            yield self._fetch(f"/v1/jobs/{job_id}/synthetic", out / "synthetic.safetensors")
            yield self._fetch(f"/v1/jobs/{job_id}/preview.png", out / "preview.png")

    def _fetch(self, href: str, path: Path, sha256: str | None = None) -> Path:
        """Download beside, check, move into place."""
        beside = path.with_name(f".{path.name}.{os.getpid()}.part")
        digest = hashlib.sha256()
        try:
            with self._reached(), self._http.stream("GET", href) as response:
                if response.is_error:
                    response.read()
                self._check(response)
                with beside.open("wb") as file:
                    for chunk in response.iter_bytes():
                        digest.update(chunk)
                        file.write(chunk)
            if sha256 is not None and digest.hexdigest() != sha256:
                raise UnreachableError(f"{path.name} arrived damaged: its SHA-256 is not {sha256}; download it again")
            return beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    def _get(self, path: str, **options: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._request("GET", path, **options).json()
        return answer

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        with self._reached():
            response = self._http.request(method, path, **options)
        self._check(response)
        return response

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (httpx.TransportError, httpx.UnsupportedProtocol) as error:
            raise UnreachableError(f"the server at {self._url} cannot be reached: {error or type(error).__name__}") from error

    def _check(self, response: httpx.Response) -> None:
        if not response.is_error:
            return
        try:
            problem = response.json()
            detail, errors = problem["detail"], problem.get("errors")
        except (ValueError, KeyError, TypeError):
            detail, errors = response.text[:500] or response.reason_phrase, None
        if response.is_server_error:
            raise UnreachableError(f"the server at {self._url} answered {response.status_code}: {detail}")
        raise RefusedError(response.status_code, detail, errors)
