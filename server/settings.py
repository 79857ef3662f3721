"""What an operator sets: from the environment (`CAFE_*`), overridden by the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from cafe_core.jobdir import DataRoots, JobDir


class RayTokenError(Exception):
    """The file that Ray's token is said to be in cannot be read."""


class Settings(BaseModel):
    """Each field is read from `CAFE_<FIELD>`, e.g. CAFE_DATA_DIR."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    data_dir: Path = Path("cafe-data")
    """The database, the jobs' directories, uploads and caches. Drivers on other machines see the same path."""
    dataset_root: Path | None = None
    """Where `dataset.path` is looked for. Default: `datasets` in the data directory."""
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
    max_upload_bytes: Annotated[int, Field(ge=1)] = 4 * 2**30
    """The largest dataset that can be uploaded."""

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ, *, with_ray_token: bool = True, **overrides: Any) -> Settings:
        """From `environ`; an override that is not None wins. Ray's token is looked for only `with_ray_token`.

        Raises pydantic.ValidationError naming the field, RayTokenError where the token's file cannot be read.
        """
        values: dict[str, Any] = {name: environ[key] for name in cls.model_fields if (key := f"CAFE_{name.upper()}") in environ}
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

    @property
    def database_url(self) -> str:
        """SQLAlchemy's URL."""
        return f"sqlite:///{self.data_dir.absolute() / 'cafe.sqlite3'}"

    def job_dir(self, job_id: str) -> JobDir:
        """The directory of a job."""
        return JobDir(self.data_dir.absolute() / "jobs" / job_id)


def ray_token_from(environ: Mapping[str, str]) -> str | None:
    """Ray's token where Ray itself looks for it in the environment: RAY_AUTH_TOKEN, then the file RAY_AUTH_TOKEN_PATH.

    Raises RayTokenError when that file cannot be read.
    """
    if token := environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    if path := environ.get("RAY_AUTH_TOKEN_PATH"):
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise RayTokenError(f"RAY_AUTH_TOKEN_PATH: {path} cannot be read: {why}; correct or unset it") from error
    return None
