"""The server's only door to Ray: its Jobs REST API and the dashboard's REST, over httpx.

No ray and no torch are imported, so the server restarts without Ray and Ray without the server. What of Ray's REST
is used (Ray 2.60, `ray/dashboard/modules/job/job_head.py`, `.../node/node_head.py`, `.../reporter/reporter_head.py`):
`/api/jobs/`, `/api/version`, `/nodes?view=summary` (nodes, total resources, GPUs), `/api/cluster_status` (what is in
use; refreshed by Ray every 5 s). Requests carry Ray's token (`RAY_AUTH_MODE=token`) as a Bearer header.

::

    RayError                    Ray could not do it
    ├── RayUnreachableError     no answer: try again later
    └── RayRefusedError         it answered with an error: status, text
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
    """Ray could not do what was asked."""


class RayUnreachableError(RayError):
    """No answer from Ray's dashboard."""


class RayRefusedError(RayError):
    """Ray answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        lines = [line for line in text.strip().splitlines() if line.strip(" .")]
        super().__init__(f"Ray answered {status}: {lines[-1] if lines else ''}")
        self.status = status
        self.text = text


class RayJobState(StrEnum):
    """Ray's own states of a submitted job."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @property
    def ended(self) -> bool:
        """Whether its driver has ended."""
        return self in (RayJobState.STOPPED, RayJobState.SUCCEEDED, RayJobState.FAILED)


@dataclass(frozen=True)
class RayJob:
    """What Ray says about a submitted job."""

    state: RayJobState
    message: str
    exit_code: int | None = None


@dataclass(frozen=True)
class RayNode:
    """A living node. Memory in bytes, GPU memory of its smallest GPU."""

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
    """The cluster as a whole."""

    ray_version: str
    nodes: list[RayNode]

    @property
    def cpus(self) -> float:
        """CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)


def submission_id(job_id: str, attempt: int) -> str:
    """Ray's name of an attempt: the same whenever it is asked for, so a submission is never made twice."""
    return f"{job_id}-{attempt}"


def entrypoint(job_dir: Path, attempt: int, python: str = sys.executable) -> str:
    """The driver's command line. No text of a user is on it: ids and the operator's directory only, quoted."""
    return shlex.join([python, "-m", "workers", "run", "--job-dir", str(job_dir), "--attempt", str(attempt)])


class RayClient:
    """Ray's Jobs REST API at `address`, e.g. http://127.0.0.1:8265. Close it, or use it as an async context manager."""

    def __init__(self, address: str, token: str | None = None, *, timeout_s: float = 30.0) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.address = address.rstrip("/")
        uses_tls = not self.address.lower().startswith("http:")  # else the certificates need not be read, which takes a while
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
        """Submit an attempt. One that Ray has already is adopted.

        cpus: reserved for its driver. With none Ray starts the driver on the head, or, where the head is told so by
        RAY_JOB_ALLOW_DRIVER_ON_WORKER_NODES=1, anywhere; with some on any node that has them, so never on a head without CPUs
        (`_get_label_selector` in Ray 2.60's dashboard/modules/job/job_manager.py). Ray fails an attempt that finds no room
        within 15 minutes.
        Raises RayUnreachableError, or RayRefusedError when Ray does not take it.
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
        """What Ray knows of an attempt; None when it knows nothing of it. Raises RayError."""
        try:
            response = await self._request("GET", f"/api/jobs/{submission_id(job_id, attempt)}")
        except RayRefusedError as error:
            if error.status == httpx.codes.NOT_FOUND:
                return None
            raise
        data = response.json()
        return RayJob(RayJobState(data["status"]), data.get("message") or "", data.get("driver_exit_code"))

    async def stop(self, job_id: str, attempt: int) -> bool:
        """Ask Ray to stop an attempt (SIGTERM to its driver). One that has ended or is unknown is left. Raises RayError.

        False when nothing heard it: the attempt has ended, or Ray has yet to start what is to run its driver; ask again then.
        """
        response = await self._request("POST", f"/api/jobs/{submission_id(job_id, attempt)}/stop", missing_ok=True)
        return response.is_success and bool(response.json()["stopped"])

    async def delete(self, job_id: str, attempt: int) -> None:
        """Make Ray forget an ended attempt. An unknown one is left. Raises RayError."""
        await self._request("DELETE", f"/api/jobs/{submission_id(job_id, attempt)}", missing_ok=True)

    async def logs(self, job_id: str, attempt: int) -> str | None:
        """What an attempt's driver and workers printed; None when Ray knows nothing of it. Raises RayError."""
        response = await self._request("GET", f"/api/jobs/{submission_id(job_id, attempt)}/logs", missing_ok=True)
        return None if response.status_code == httpx.codes.NOT_FOUND else str(response.json()["logs"])

    async def ready(self) -> bool:
        """Whether jobs can be submitted: the jobs API answers and a node is there. Raises RayError."""
        await self._request("GET", "/api/jobs/")
        return bool((await self.cluster()).nodes)

    async def cluster(self) -> RayCluster:
        """Nodes, their resources and what of these is free. Raises RayError."""
        version = (await self._request("GET", "/api/version")).json()["ray_version"]
        summary = (await self._request("GET", "/nodes", params={"view": "summary"})).json()["data"]["summary"]
        status = (await self._request("GET", "/api/cluster_status")).json()["data"]["clusterStatus"]
        usage = (status or {}).get("loadMetricsReport") or {}
        return parse_cluster(version, summary, usage.get("usageByNode") or {})

    async def read(self, method: str, path: str, query: str, headers: Mapping[str, str]) -> httpx.Response:
        """What the dashboard answers to a GET or HEAD, errors included; its body is not read yet: close it. Raises RayError."""
        assert method in ("GET", "HEAD")
        target = f"{path}?{query}" if query else path
        request = self._http.build_request(method, self.address + target, headers=headers)
        request.headers.pop("cookie", None)  # one that Ray has set before: its own, but nobody's here
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
    """The living nodes of `/nodes?view=summary` with what `/api/cluster_status` says is in use ({node: {CPU: [used, total]}}).

    A node that has just joined has not measured itself yet: then its memory is what Ray hands out of it.
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
