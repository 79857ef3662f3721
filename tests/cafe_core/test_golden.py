"""Check that the specs and seeds of version 0.1.0 (commit 8c782fe) still give the same synthetic sets.

`golden/digits.npz` holds the images of each run, computed by that commit with one thread. On the machine that computed them, the
images were still byte-identical after the code had been reorganised. Other CPUs round differently, so the test has a tolerance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cafe_core.data.roots import DataRoots
from cafe_core.jobs import local
from cafe_core.synthetic_set.synthetic_set import SyntheticSet

GOLDEN = Path(__file__).with_name("golden") / "digits.npz"
BASE: dict[str, Any] = {
    "dataset": {"name": "digits"},
    "ipc": 2,
    "seed": 7,
    "precision": "float64",
    "network": {"width": 8, "depth": 2},
}
FEW = {"batch_real": 32}
SPECS: dict[str, dict[str, Any]] = {
    "cafe": {"iterations": 2, "method": {"name": "cafe", **FEW, "max_outer": 2, "max_inner": 6}},
    "cafe_fixed_dsa": {
        "iterations": 2,
        "method": {"name": "cafe", **FEW, "augment": "dsa", "bilevel": "fixed", "max_outer": 2, "max_inner": 2},
    },
    "cafe_reference": {
        "iterations": 1,
        "method": {
            "name": "cafe",
            "preset": "reference",
            **FEW,
            "query_per_class": 16,
            "gamma": 2,
            "max_outer": 3,
            "max_inner": 3,
        },
    },
    "dc": {"iterations": 2, "method": {"name": "dc", **FEW}},
    "dsa": {"iterations": 2, "method": {"name": "dc", **FEW, "augment": "dsa"}},
    "dm": {"iterations": 3, "method": {"name": "dm", **FEW}},
    "random": {"method": {"name": "random"}},
    **{name: {"method": {"name": name, "network_epochs": 2}} for name in ("herding", "k_center", "forgetting", "kmeans")},
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", SPECS)
def test_spec_gives_the_images_of_version_0_1(name: str, tmp_path: Path, cache: Path) -> None:
    roots = DataRoots(datasets=tmp_path, uploads=tmp_path, downloads=tmp_path, cache=cache)
    job = local.prepare(BASE | SPECS[name], tmp_path / "out", roots)
    job.run(lambda *_, **__: None)
    made = SyntheticSet.load(job.directory.attempt(1).synthetic_file)
    with np.load(GOLDEN) as golden:
        np.testing.assert_allclose(made.images, golden[name], rtol=1e-5, atol=1e-6)
