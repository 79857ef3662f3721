"""What an operator sets: from the environment (`CAFE_*`), overridden by the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from cafe_core.data.roots import DataRoots
from cafe_core.jobs.jobdir import JobDir


class SecretFileError(Exception):
    """The file that a secret is said to be in cannot be read."""


class Settings(BaseModel):
    """Each field is read from `CAFE_<FIELD>`, e.g. CAFE_DATA_DIR; a secret also from the file that `CAFE_<FIELD>_FILE` names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_dir: Path = Path("cafe-data")
    """The database, the jobs' directories, uploads and caches. Drivers on other machines see the same path."""
    database_url: SecretStr | None = None
    """`postgresql://USER:PASSWORD@HOST/DATABASE`, which several servers may share. Default: SQLite in the data directory."""
    dataset_root: Path | None = None
    """Where `dataset.path` is looked for, by everybody. Default: `datasets` in the data directory."""
    torchvision_root: Path | None = None
    """torchvision's root, e.g. with MNIST/raw/…. Default: `downloads` in the data directory."""
    ray_address: str | None = None
    """Ray's dashboard, e.g. http://10.0.0.1:8265. Default: a local Ray is started and stopped with the server."""
    ray_token: SecretStr | None = None
    """Ray's authentication token. Default: RAY_AUTH_TOKEN, or the file RAY_AUTH_TOKEN_PATH names."""
    num_cpus: Annotated[int, Field(ge=1)] | None = None
    """CPUs that a local Ray is given. Default: the machine's."""
    python: str = sys.executable
    """The interpreter of drivers, as the cluster's head sees it."""
    max_active_jobs: Annotated[int, Field(ge=1)] = 8
    """Jobs with a driver at a time; further ones stay queued, first come, first served."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """Times an attempt's workers are started again after one died or hung."""
    collective_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """How long a silent worker is waited for."""
    driver_silence_s: Annotated[float, Field(ge=10)] = 300.0
    """How long a driver that shows no life is waited for, before Ray is asked to end it; it shows some every 2 s."""
    max_upload_bytes: Annotated[int, Field(ge=1)] = 4 * 2**30
    """The largest dataset that can be uploaded. An API key's own limit wins."""
    max_lost_attempts: Annotated[int, Field(ge=0)] = 3
    """New attempts made by the server itself, in a row without progress, for attempts that were lost with Ray, node or driver."""
    driver_cpus: Annotated[float, Field(ge=0)] = 0.0
    """CPUs that Ray reserves for a driver. Above 0 no driver is placed on a node without CPUs, as a head of its own is."""
    autoscaled_nodes: Annotated[int, Field(ge=0)] = 0
    """Worker nodes, those present included, that Ray's autoscaler may make: a job that fits them is taken, and waits for them."""
    autoscaled_node_cpus: Annotated[float, Field(gt=0)] | None = None
    """CPUs of each; needed with autoscaled_nodes."""
    autoscaled_node_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of each."""
    autoscaled_node_memory_bytes: Annotated[int, Field(ge=1)] | None = None
    """Memory of each; needed with autoscaled_nodes."""
    autoscaled_node_gpu_memory_bytes: Annotated[int, Field(ge=1)] | None = None
    """Memory of each GPU. Default: not known, so the node's memory is what a job's workers are held against."""
    max_running_jobs: Annotated[int, Field(ge=1)] | None = None
    """Jobs of one API key with a driver at a time. Default: as many as of all. A key's own limit wins, here and below."""
    max_queued_jobs: Annotated[int, Field(ge=1)] = 1000
    """Jobs of one API key that wait."""
    requests_per_minute: Annotated[int, Field(ge=1)] = 600
    """Of one API key to one server process. So many may come at once."""
    max_stored_bytes: Annotated[int, Field(ge=1)] = 256 * 2**30
    """Of one API key: its uploads, and its jobs with all their files. Beyond it nothing is uploaded, submitted or resumed.

    A job counts by what its submission wrote (the set that an evaluation judges), and from the end of an attempt, however it
    ended, by all that is in its directory then. What a running attempt has written so far does not count, nor do the copies of
    uploads' images under `cache/`.
    """
    metrics_token: SecretStr | None = None
    """A Bearer token that /metrics takes besides keys of scope admin: Prometheus's."""
    webhook_secret: SecretStr | None = None
    """What webhooks' signing secrets are derived from. Default: made once, `webhook-secret` in the data directory."""
    webhook_allow_private: bool = False
    """Whether webhooks may go to private addresses: for closed networks only."""
    log_format: Literal["json", "text"] | None = None
    """Of the server's log. Default: text on a terminal, json elsewhere."""

    @model_validator(mode="after")
    def _autoscaled_nodes_have_a_size(self) -> Settings:
        if self.autoscaled_nodes and (self.autoscaled_node_cpus is None or self.autoscaled_node_memory_bytes is None):
            raise ValueError("autoscaled_nodes needs autoscaled_node_cpus and autoscaled_node_memory_bytes")
        return self

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ, *, with_ray_token: bool = True, **overrides: Any) -> Settings:
        """From `environ`; an override that is not None wins. Ray's token is looked for only `with_ray_token`.

        Raises pydantic.ValidationError naming the field, SecretFileError where a secret's file cannot be read.
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
        """Where images are looked for, as absolute paths."""
        data = self.data_dir.absolute()
        return DataRoots(
            datasets=(self.dataset_root or data / "datasets").absolute(),
            uploads=data / "uploads",
            downloads=(self.torchvision_root or data / "downloads").absolute(),
            cache=data / "cache",
        )

    def check_dataset_root(self) -> None:
        """Raises ValueError where `dataset.path` would lead to the jobs, the uploads or the secrets of others."""
        root, data = self.roots.datasets.resolve(), self.data_dir.resolve()
        own = [path.resolve() for path in (self.roots.uploads, self.roots.cache, data / "jobs")]  # any may be a link
        holds = any(path.is_relative_to(root) for path in (data, *own))
        is_inside = root.is_relative_to(data) and not root.is_relative_to(data / "datasets")
        if holds or is_inside or any(root.is_relative_to(path) for path in own):
            raise ValueError(
                f"dataset_root (CAFE_DATASET_ROOT): {root} and the data directory {data} must not contain each other: everybody "
                f"could read the uploads and jobs that are kept there. Name another directory, or {data / 'datasets'}"
            )

    @property
    def database(self) -> str:
        """The database's URL, which may have a password in it."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.data_dir.absolute() / 'cafe.sqlite3'}"

    def job_dir(self, job_id: str) -> JobDir:
        """The directory of a job."""
        return JobDir(self.data_dir.absolute() / "jobs" / job_id)


def _secret(key: str, environ: Mapping[str, str]) -> str | None:
    """The variable `key`, or what the file that `<key>_FILE` names holds. Raises SecretFileError."""
    value, path = environ.get(key), environ.get(f"{key}_FILE")
    if not path:
        return value
    if value:
        raise SecretFileError(f"{key} and {key}_FILE are both set; unset one of them")
    return _read_secret(f"{key}_FILE", path)


def ray_token_from(environ: Mapping[str, str]) -> str | None:
    """Ray's token where Ray itself looks for it in the environment: RAY_AUTH_TOKEN, then the file RAY_AUTH_TOKEN_PATH.

    Raises SecretFileError when that file cannot be read.
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
        raise SecretFileError(f"{variable}: {path} cannot be read: {why}; correct or unset it") from error
    if not secret:
        raise SecretFileError(f"{variable}: {path} is empty; correct or unset it")
    return secret
