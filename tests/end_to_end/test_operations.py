"""Run the commands of docs/operations.md in order in a shell, as an operator would, and check its worked example."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset import DatasetInfo
from cafe_core.spec.estimate import Estimate, estimate, map_shapes
from cafe_core.spec.resolution import resolve
from server.ray.embedded import EmbeddedRay
from tests.cafe_core.made_data import make_info
from tests.postgres import ABSENT, binaries, postgres_cluster

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
JOB = {
    "kind": "condense",
    "dataset": {"name": "digits"},
    "ipc": 1,
    "iterations": 2,
    "network": {"width": 8, "depth": 2},
    "method": {"max_outer": 2, "max_inner": 1},
}
DOWNGRADED = "the tables are at revision 0001"
STOP_SERVER_AT_EXIT = """trap 'kill "$(cat server.pid)" && tail --pid="$(cat server.pid)" --follow /dev/null' EXIT\n"""


def commands(*labels: str) -> str:
    """Return the document's console blocks with one of these labels as one script. The label of most blocks is empty."""
    blocks = re.findall(r"^```console ?(\w*)\n(.*?)^```$", OPERATIONS, re.M | re.S)
    assert len(blocks) > 10
    return "".join(text for label, text in blocks if label in labels)


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.soak)])
def test_documented_commands_work(kind: str, embedded_ray: EmbeddedRay, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    port = _free_port()
    environment = _environment(tmp_path) | {
        "CAFE_URL": f"http://127.0.0.1:{port}",
        "CAFE_RAY_ADDRESS": embedded_ray.address,
        "CAFE_RAY_TOKEN": embedded_ray.token,
    }
    with ExitStack() as stack:
        if kind == "postgresql":
            if binaries() is None:
                pytest.skip(ABSENT)
            cluster = stack.enter_context(postgres_cluster())
            environment |= {"CAFE_DATABASE_URL": cluster.create("cafe"), "COPY_URL": cluster.url("copy")}
        printed = _run(STOP_SERVER_AT_EXIT + commands("", kind).replace("8000", str(port)), tmp_path, environment)
    before, _, after = printed.partition(DOWNGRADED)
    assert before
    assert '"status": "succeeded"' in after  # the job was restored from the backup


@pytest.mark.skipif(binaries() is None, reason=ABSENT)
def test_documented_commands_for_postgresql_work(tmp_path: Path) -> None:
    """Run only the commands for PostgreSQL: the soak tests run them with a server and a job."""
    with postgres_cluster() as cluster:
        environment = _environment(tmp_path)
        environment |= {"CAFE_DATABASE_URL": cluster.create("cafe"), "COPY_URL": cluster.url("copy")}
        created = _run(
            "cafe db upgrade; cafe keys create operator --scope admin; mkdir backup\n" + commands("postgresql"),
            tmp_path,
            environment,
        )
        assert DOWNGRADED in created
        assert "operator" in _run("cafe keys list", tmp_path, environment)  # the key was restored from the backup


def _environment(directory: Path) -> dict[str, str]:
    """Return the environment of an operator's shell whose data directory is in `directory`."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CAFE_")} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CAFE_DATA_DIR": str(directory / "data"),
    }


def _run(script: str, directory: Path, environment: dict[str, str]) -> str:
    """Run a script in a shell, check that it succeeds, and return its standard output."""
    done = subprocess.run(
        ["timeout", "240", "bash", "-euxo", "pipefail", "-c", script],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    log = directory / "server.log"
    assert done.returncode == 0, done.stderr[-4000:] + (log.read_text()[-2000:] if log.exists() else "")
    return done.stdout


@pytest.mark.skipif(not (ROOT / ".venv" / ".installed").exists(), reason="this project was not installed by make")
def test_make_setup_is_a_no_op_when_done() -> None:
    assert commands("setup").startswith("make setup\n")
    subprocess.run(["make", "--question", "setup"], cwd=ROOT, check=True)


def test_worked_example_matches_estimate() -> None:
    info = make_info([1281] * 1000, side=64)
    counts = [int(number) for number in re.findall(r"(\d+) worker", _line("| | 1 worker"))]
    assert counts == [1, 4, 8, 16]
    estimates = [_estimate(workers, info) for workers in counts]
    assert _numbers("memory per worker") == [round(e.memory_bytes / 2**20) for e in estimates]
    assert _numbers("… for images") == [round(e.synthetic_bytes / 2**20) for e in estimates]
    assert _numbers("… for statistics") == [round(e.statistics_bytes / 2**20) for e in estimates]
    assert _numbers("numbers sent per worker") == [e.numbers_per_outer_step for e in estimates]
    assert _numbers("the same in MiB") == [round(e.numbers_per_outer_step * 4 / 2**20, 1) for e in estimates]
    maps = map_shapes(_spec(1).network, info.shape)
    assert f"D = {_size(maps[-1])}, A = {sum(map(_size, maps)):,}" in OPERATIONS


def _spec(workers: int) -> CondenseSpec:
    return CondenseSpec.model_validate(
        {
            "dataset": {"path": "x"},
            "ipc": 10,
            "method": "cafe",
            "network": {"depth": 4},
            "resources": {"workers": workers, "gpus_per_worker": 0},
        }
    )


def _estimate(workers: int, info: DatasetInfo) -> Estimate:
    return estimate(resolve(_spec(workers), info), info)


def _size(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]


def _line(start: str) -> str:
    return next(line for line in OPERATIONS.splitlines() if line.startswith(start))


def _numbers(row: str) -> list[float]:
    return [float(cell.replace(",", "")) for cell in _line(f"| {row}").split("|")[2:-1]]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
