"""Configure the directories of real images."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class DataRoots(BaseModel):
    """Directories of real images, the same on every machine that runs a driver or a worker."""

    model_config = ConfigDict(extra="forbid")

    datasets: Path
    """The dataset root: `dataset.path` is relative to it and must not leave it."""
    uploads: Path
    """Uploaded datasets: `<uploads>/<dataset id>/`."""
    downloads: Path
    """torchvision's root: MNIST/raw/…, cifar-10-batches-py/…. Missing files are downloaded to it if there is a network."""
    cache: Path
    """Class stores built from the above."""
    working_directory: Path | None = None
    """Set by `cafe run`, whose user may read any file: paths that are not under the dataset root are relative to this directory,
    and may lead anywhere."""

    @property
    def boundary(self) -> Path:
        """Return the directory that paths and links must not leave."""
        return self.datasets if self.working_directory is None else Path("/")

    @property
    def artifacts(self) -> Path:
        """Return the directory of artifacts that methods make from a dataset, such as pools of networks; part of the cache."""
        return self.cache / "artifacts"
