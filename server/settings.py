"""Settings of the server, from environment variables (`CAFE_*`). The command line takes precedence.

This module does not use pydantic-settings, which has no `_FILE` variables and reads the environment on every construction: it
would not save any code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from cafe_core.data.roots import DataRoots
from cafe_core.jobs.jobdir import JobDir
from server.http.root_path import normalized


class SecretFileError(Exception):
    """The file of a secret cannot be read."""


class Settings(BaseModel):
    """Settings; each field is read from `CAFE_<FIELD>`, and a secret also from the file named by `CAFE_<FIELD>_FILE`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_dir: Path = Path("cafe-data")
    """Directory of the database, jobs, uploads and caches. Drivers on other machines must see it at the same path."""
    database_url: SecretStr | None = None
    """`postgresql://USER:PASSWORD@HOST/DATABASE`; several servers may share it. Default: SQLite in the data directory."""
    dataset_root: Path | None = None
    """Root of `dataset.path` for all clients. Default: `datasets` in the data directory."""
    torchvision_root: Path | None = None
    """Root of torchvision's datasets, e.g. with MNIST/raw/…. Default: `downloads` in the data directory."""
    ray_address: str | None = None
    """URL of Ray's dashboard, e.g. http://10.0.0.1:8265. Default: start a local Ray and stop it with the server."""
    ray_token: SecretStr | None = None
    """Ray's authentication token. Default: RAY_AUTH_TOKEN, or the file named by RAY_AUTH_TOKEN_PATH."""
    num_cpus: Annotated[int, Field(ge=1)] | None = None
    """CPUs of a local Ray. Default: all CPUs of the machine."""
    python: str = sys.executable
    """Path of the Python interpreter of drivers on the cluster's head."""
    max_active_jobs: Annotated[int, Field(ge=1)] = 8
    """Maximum number of jobs with a driver; further jobs stay queued. API keys take turns."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How often an attempt's workers are restarted after one died or hung, or its GPU ran out of memory."""
    collective_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """Timeout of a worker that does not respond, in seconds."""
    driver_silence_s: Annotated[float, Field(ge=10)] = 300.0
    """Timeout of a driver that stopped sending heartbeats (one every 2 s), before Ray is asked to stop it, in seconds."""
    max_upload_bytes: Annotated[int, Field(ge=1)] = 4 * 2**30
    """Maximum size of an uploaded dataset. An API key's own limit takes precedence."""
    max_lost_attempts: Annotated[int, Field(ge=0)] = 3
    """How many times in a row, without progress, the server starts a new attempt after losing Ray, a node or the driver."""
    driver_cpus: Annotated[float, Field(ge=0)] = 0.0
    """CPUs that Ray reserves for a driver. If above 0, drivers are not placed on nodes without CPUs, e.g. a dedicated head."""
    autoscaled_nodes: Annotated[int, Field(ge=0)] = 0
    """Maximum number of worker nodes with Ray's autoscaler, including existing ones. Jobs that fit them are accepted and wait."""
    autoscaled_node_cpus: Annotated[float, Field(gt=0)] | None = None
    """CPUs of each autoscaled node; required with autoscaled_nodes."""
    autoscaled_node_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of each autoscaled node."""
    autoscaled_node_memory_bytes: Annotated[int, Field(ge=1)] | None = None
    """Memory of each autoscaled node; required with autoscaled_nodes."""
    autoscaled_node_gpu_memory_bytes: Annotated[int, Field(ge=1)] | None = None
    """Memory of each GPU. Default: unknown; a job's estimate is then compared with the node's memory."""
    max_running_jobs: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of jobs of one API key with a driver. Default: max_active_jobs. A key may have its own limit."""
    max_queued_jobs: Annotated[int, Field(ge=1)] = 1000
    """Maximum number of queued jobs of one API key."""
    requests_per_minute: Annotated[int, Field(ge=1)] = 600
    """Rate limit of one API key per server process, which is also the size of a burst."""
    max_stored_bytes: Annotated[int, Field(ge=1)] = 256 * 2**30
    """Storage quota of one API key: its uploads and its jobs' files. Beyond it, uploads, submissions and resumes fail.

    A job's usage includes the file that its submission wrote (the synthetic set to evaluate) and, after each attempt, all files
    in its directory. Files of a running attempt are counted when it ends. Copies of images under `cache/` are never counted.
    """
    metrics_token: SecretStr | None = None
    """Bearer token for /metrics, as an alternative to a key of scope admin."""
    webhook_secret: SecretStr | None = None
    """Secret from which webhooks' signing secrets are derived. Default: `webhook-secret` in the data directory, created once."""
    webhook_allow_private: bool = False
    """Allow webhooks to private addresses. For closed networks only."""
    root_path: Annotated[str, AfterValidator(normalized)] = ""
    """Path prefix that a reverse proxy puts in front of the server, e.g. /cafe. All links, redirects and /docs begin with it."""
    trust_forwarded_prefix: bool = False
    """Take the prefix from X-Forwarded-Prefix. Only if a proxy sets or removes this header in every request."""
    log_format: Literal["json", "text"] | None = None
    """Format of the server's log. Default: text on a terminal, json elsewhere."""

    @model_validator(mode="after")
    def _autoscaled_nodes_have_a_size(self) -> Settings:
        if self.autoscaled_nodes and (self.autoscaled_node_cpus is None or self.autoscaled_node_memory_bytes is None):
            raise ValueError("autoscaled_nodes needs autoscaled_node_cpus and autoscaled_node_memory_bytes")
        return self

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ, *, with_ray_token: bool = True, **overrides: Any) -> Settings:
        """Load settings from `environ`; overrides that are not None have precedence. Reads Ray's token only `with_ray_token`.

        Raises pydantic.ValidationError that names the field, and SecretFileError if the file of a secret cannot be read.
        """
        values: dict[str, Any] = {}
        for name, field in cls.model_fields.items():
            key = f"CAFE_{name.upper()}"
            if name == "ray_token" and not with_ray_token:
                continue
            value = _secret(key, environ) if field.annotation == SecretStr | None else environ.get(key)
            if value:
                values[name] = value
        if with_ray_token and "ray_token" not in values and (token := ray_token_from(environ)):
            values["ray_token"] = token
        values |= {name: value for name, value in overrides.items() if value is not None}
        return cls.model_validate(values)

    @property
    def roots(self) -> DataRoots:
        """Return the roots of datasets as absolute paths."""
        data = self.data_dir.absolute()
        return DataRoots(
            datasets=(self.dataset_root or data / "datasets").absolute(),
            uploads=data / "uploads",
            downloads=(self.torchvision_root or data / "downloads").absolute(),
            cache=data / "cache",
        )

    def check_dataset_root(self) -> None:
        """Raise ValueError if `dataset.path` could reach jobs, uploads or secrets of other clients."""
        root, data = self.roots.datasets.resolve(), self.data_dir.resolve()
        own = [path.resolve() for path in (self.roots.uploads, self.roots.cache, data / "jobs")]  # each may be a symbolic link
        holds = any(path.is_relative_to(root) for path in (data, *own))
        is_inside = root.is_relative_to(data) and not root.is_relative_to(data / "datasets")
        if holds or is_inside or any(root.is_relative_to(path) for path in own):
            raise ValueError(
                f"dataset_root (CAFE_DATASET_ROOT): {root} and the data directory {data} must not contain each other: all "
                f"clients could read uploads and jobs through dataset.path. Use another directory, or {data / 'datasets'}"
            )

    @property
    def database(self) -> str:
        """Return the URL of the database, which may contain a password."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.data_dir.absolute() / 'cafe.sqlite3'}"

    def job_dir(self, job_id: str) -> JobDir:
        """Return the directory of a job."""
        return JobDir(self.data_dir.absolute() / "jobs" / job_id)


def _secret(key: str, environ: Mapping[str, str]) -> str | None:
    """Return the variable `key`, or the content of the file named by `<key>_FILE`. Raises SecretFileError."""
    value, path = environ.get(key), environ.get(f"{key}_FILE")
    if not path:
        return value
    if value:
        raise SecretFileError(f"{key} and {key}_FILE are both set; unset one")
    return _read_secret(f"{key}_FILE", path)


def ray_token_from(environ: Mapping[str, str]) -> str | None:
    """Return Ray's token as Ray itself finds it: from RAY_AUTH_TOKEN, then from the file named by RAY_AUTH_TOKEN_PATH.

    Raises SecretFileError if the file cannot be read.
    """
    if token := environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    if path := environ.get("RAY_AUTH_TOKEN_PATH"):
        return _read_secret("RAY_AUTH_TOKEN_PATH", path)
    return None


def _read_secret(variable: str, path: str) -> str:
    try:
        secret = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise SecretFileError(f"{variable}: {path} cannot be read: {why}; fix or unset the variable") from error
    if not secret:
        raise SecretFileError(f"{variable}: {path} is empty; fix or unset the variable")
    return secret
