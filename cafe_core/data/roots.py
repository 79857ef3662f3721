"""The directories where real images are looked for."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class DataRoots(BaseModel):
    """Where images are looked for, on every machine that runs a driver or a worker."""

    model_config = ConfigDict(extra="forbid")

    datasets: Path
    """The dataset root: `dataset.path` is relative to it and may not leave it."""
    uploads: Path
    """Uploaded datasets: `<uploads>/<dataset id>/`."""
    downloads: Path
    """torchvision's root: MNIST/raw/…, cifar-10-batches-py/…; downloaded to where there is a network."""
    cache: Path
    """Class stores made from the above."""

    @property
    def artifacts(self) -> Path:
        """What methods make from a dataset before their loops, such as pools of networks; a part of the cache."""
        return self.cache / "artifacts"
