"""Access Ray over HTTP: its Jobs REST API and the dashboard's REST API. The server uses Ray only through this module.

Neither ray nor torch is imported, so the server and Ray can restart independently. It uses these endpoints of Ray 2.60
(`ray/dashboard/modules/job/job_head.py`, `.../node/node_head.py`, `.../reporter/reporter_head.py`): `/api/jobs/`,
`/api/version`, `/nodes?view=summary` (nodes, total resources, GPUs) and `/api/cluster_status` (resources in use; Ray refreshes
them every 5 s). Requests carry Ray's token (`RAY_AUTH_MODE=token`) as a Bearer header.

::

    RayError                    the request to Ray failed
    ├── RayUnreachableError     no answer; try again later
    └── RayRefusedError         Ray answered with an error: status, text
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx


class RayError(Exception):
    """A request to Ray failed."""


class RayUnreachableError(RayError):
    """Ray's dashboard does not answer."""


class RayRefusedError(RayError):
    """Ray answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        lines = [line for line in text.strip().splitlines() if line.strip(" .")]
        super().__init__(f"Ray answered {status}: {lines[-1] if lines else ''}")
        self.status = status
        self.text = text


class RayJobState(StrEnum):
    """The states in which Ray reports a submitted job."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @property
    def ended(self) -> bool:
        """Return whether the job's driver has ended."""
        return self in (RayJobState.STOPPED, RayJobState.SUCCEEDED, RayJobState.FAILED)


@dataclass(frozen=True)
class RayJob:
    """Ray's record of a submitted job."""

    state: RayJobState
    message: str
    exit_code: int | None = None


@dataclass(frozen=True)
class RayNode:
    """A node that is alive. Memory in bytes; `gpu_memory_bytes` is that of its smallest GPU."""

    id: str
    ip: str
    is_head: bool
    cpus: float
    gpus: float
    cpus_free: float
    gpus_free: float
    memory_bytes: int
    gpu_memory_bytes: int | None = None
    gpu_names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RayCluster:
    """The nodes of the cluster."""

    ray_version: str
    nodes: list[RayNode]

    @property
    def cpus(self) -> float:
        """Return the CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """Return the GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)


def submission_id(job_id: str, attempt: int) -> str:
    """Return Ray's ID of an attempt. It is deterministic, so that no attempt is submitted twice."""
    return f"{job_id}-{attempt}"


def entrypoint(job_dir: Path, attempt: int, python: str = sys.executable) -> str:
    """Return the driver's command line, quoted. It contains IDs and the operator's directory, never text from a user."""
    return shlex.join([python, "-m", "workers", "run", "--job-dir", str(job_dir), "--attempt", str(attempt)])


class RayClient:
    """Client of the Ray dashboard at `address`, e.g. http://127.0.0.1:8265. Close it, or use it as an async context manager."""

    def __init__(self, address: str, token: str | None = None, *, timeout_s: float = 30.0) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.address = address.rstrip("/")
        uses_tls = not self.address.lower().startswith("http:")  # without TLS, skip reading the certificates, which is slow
        self._http = httpx.AsyncClient(
            base_url=self.address, headers=headers, timeout=timeout_s, trust_env=False, verify=uses_tls
        )

    async def __aenter__(self) -> RayClient:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def submit(self, job_dir: Path, job_id: str, attempt: int, *, python: str = sys.executable, cpus: float = 0.0) -> None:
        """Submit an attempt. Idempotent: an attempt that Ray already knows is kept.

        cpus: CPUs reserved for the driver. With 0, Ray starts the driver on the head node, or on any node if
        RAY_JOB_ALLOW_DRIVER_ON_WORKER_NODES=1 is set on the head. With more, Ray picks a node that has the CPUs, so never a head
        without CPUs (`_get_label_selector` in Ray 2.60's dashboard/modules/job/job_manager.py). Ray fails an attempt that it
        cannot place within 15 minutes.
        Raises RayUnreachableError, or RayRefusedError if Ray rejects the attempt.
        """
        body = {
            "submission_id": submission_id(job_id, attempt),
            "entrypoint": entrypoint(job_dir, attempt, python),
            "entrypoint_num_cpus": cpus,
            "runtime_env": {"env_vars": {"RAY_USAGE_STATS_ENABLED": "0"}},
            "metadata": {"cafe_job_id": job_id, "cafe_attempt": str(attempt)},
        }
        try:
            await self._request("POST", "/api/jobs/", json=body)
        except RayRefusedError:
            if await self.job(job_id, attempt) is None:
                raise

    async def job(self, job_id: str, attempt: int) -> RayJob | None:
        """Return Ray's record of an attempt, or None if Ray has none. Raises RayError."""
        try:
            response = await self._request("GET", f"/api/jobs/{submission_id(job_id, attempt)}")
        except RayRefusedError as error:
            if error.status == httpx.codes.NOT_FOUND:
                return None
            raise
        data = response.json()
        return RayJob(RayJobState(data["status"]), data.get("message") or "", data.get("driver_exit_code"))

    async def stop(self, job_id: str, attempt: int) -> bool:
        """Ask Ray to stop an attempt (SIGTERM to its driver). Idempotent. Raises RayError.

        Return False if nothing received the signal: the attempt has ended, is unknown, or its driver has not started yet. In the
        last case, ask again.
        """
        response = await self._request("POST", f"/api/jobs/{submission_id(job_id, attempt)}/stop", missing_ok=True)
        return response.is_success and bool(response.json()["stopped"])

    async def delete(self, job_id: str, attempt: int) -> None:
        """Delete Ray's record of an ended attempt. Idempotent. Raises RayError."""
        await self._request("DELETE", f"/api/jobs/{submission_id(job_id, attempt)}", missing_ok=True)

    async def logs(self, job_id: str, attempt: int) -> str | None:
        """Return the output of an attempt's driver and workers, or None if Ray has no record of it. Raises RayError."""
        response = await self._request("GET", f"/api/jobs/{submission_id(job_id, attempt)}/logs", missing_ok=True)
        return None if response.status_code == httpx.codes.NOT_FOUND else str(response.json()["logs"])

    async def ready(self) -> bool:
        """Return whether jobs can be submitted: the Jobs API answers and a node is alive. Raises RayError."""
        await self._request("GET", "/api/jobs/")
        return bool((await self.cluster()).nodes)

    async def cluster(self) -> RayCluster:
        """Return the nodes with their total and free resources. Raises RayError."""
        version = (await self._request("GET", "/api/version")).json()["ray_version"]
        summary = (await self._request("GET", "/nodes", params={"view": "summary"})).json()["data"]["summary"]
        status = (await self._request("GET", "/api/cluster_status")).json()["data"]["clusterStatus"]
        usage = (status or {}).get("loadMetricsReport") or {}
        return parse_cluster(version, summary, usage.get("usageByNode") or {})

    async def read(self, method: str, path: str, query: str, headers: Mapping[str, str]) -> httpx.Response:
        """Forward a GET or HEAD to the dashboard; return its response, even an error, unread. Close it. Raises RayError."""
        assert method in ("GET", "HEAD")
        target = f"{path}?{query}" if query else path
        request = self._http.build_request(method, self.address + target, headers=headers)
        request.headers.pop("cookie", None)  # drop cookies that Ray set in an earlier response
        try:
            return await self._http.send(request, stream=True)
        except httpx.TransportError as error:
            raise RayUnreachableError(f"Ray does not answer at {self.address}: {error or type(error).__name__}") from error

    async def _request(self, method: str, path: str, *, missing_ok: bool = False, **options: Any) -> httpx.Response:
        try:
            response = await self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise RayUnreachableError(f"Ray does not answer at {self.address}: {error or type(error).__name__}") from error
        if response.is_error and not (missing_ok and response.status_code == httpx.codes.NOT_FOUND):
            raise RayRefusedError(response.status_code, response.text)
        return response


def parse_cluster(version: str, summary: list[dict[str, Any]], usage_by_node: dict[str, dict[str, list[float]]]) -> RayCluster:
    """Combine `/nodes?view=summary` with the resources in use from `/api/cluster_status` ({node: {CPU: [used, total]}}).

    Only nodes that are alive are returned. A node that has just joined has not measured its memory yet; the memory that Ray
    schedules is used instead.
    """
    nodes = []
    for entry in summary:
        raylet = entry["raylet"]
        if raylet.get("state") != "ALIVE":
            continue
        total = raylet["resourcesTotal"]
        used = usage_by_node.get(raylet["nodeId"], {})
        gpus = entry.get("gpus") or []
        mebibytes = [gpu["memoryTotal"] for gpu in gpus if gpu.get("memoryTotal")]
        nodes.append(
            RayNode(
                id=raylet["nodeId"],
                ip=raylet["nodeManagerAddress"],
                is_head=bool(raylet.get("isHeadNode")),
                cpus=total.get("CPU", 0.0),
                gpus=total.get("GPU", 0.0),
                cpus_free=total.get("CPU", 0.0) - used.get("CPU", [0.0])[0],
                gpus_free=total.get("GPU", 0.0) - used.get("GPU", [0.0])[0],
                memory_bytes=int(entry["mem"][0] if "mem" in entry else total.get("memory", 0)),
                gpu_memory_bytes=min(mebibytes) * 2**20 if mebibytes else None,
                gpu_names=[gpu.get("name", "GPU") for gpu in gpus],
            )
        )
    return RayCluster(version, nodes)
