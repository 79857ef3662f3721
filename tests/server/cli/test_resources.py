"""Test the commands for datasets, the cluster and deletion, and what the command prints for programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cafe_core.data import sources
from cafe_core.spec.dataset import DatasetSpec
from server.cli.main import main
from server.settings import Settings
from tests.server.cli.test_cli import cafe, finish
from tests.server.conftest import SPEC, Api, FakeRay
from tests.server.kinds import EVALUATE, running_job


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image folder with two classes of two images."""
    for name in ("cat", "dog"):
        directory = tmp_path / "pets" / "train" / name
        directory.mkdir(parents=True)
        for level in (50, 150):
            Image.new("L", (8, 8), level).save(directory / f"{level}.png")
    return tmp_path / "pets"


@pytest.mark.parametrize("kind", ["folder", "zip", "npz"])
def test_upload_list_and_delete_a_dataset(api: Api, tmp_path: Path, folder: Path, kind: str) -> None:
    path = folder
    if kind == "zip":
        path = tmp_path / "pets.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.rglob("*.png")):
                archive.write(file, file.relative_to(folder))
    elif kind == "npz":
        path = tmp_path / "pets.npz"
        np.savez(path, images=np.zeros((4, 8, 8), np.uint8), labels=np.array([0, 1, 0, 1]))
    uploaded = cafe(api, "upload", str(path), "--name", "my pets")
    assert uploaded.exit_code == 0, uploaded.stderr
    identifier = uploaded.stdout.strip()
    listed = cafe(api, "datasets").stdout.splitlines()
    assert listed[-1].split() == [identifier, "uploaded", "2", "4", "0", "1×8×8", "my", "pets"]
    assert [row["id"] for row in json.loads(cafe(api, "datasets", "--json").stdout)][-1] == identifier
    assert cafe(api, "delete", identifier).exit_code == 0
    assert identifier not in cafe(api, "datasets").stdout
    missing = cafe(api, "delete", identifier)
    assert missing.exit_code == 2
    assert identifier in missing.stderr
    assert f"there is no job {identifier!r}" in cafe(api, "status", identifier).stderr


def test_upload_of_a_folder_is_named_after_it(api: Api, folder: Path) -> None:
    assert json.loads(cafe(api, "upload", str(folder), "--json").stdout)["name"] == "pets"


@pytest.mark.parametrize(("name", "message"), [("pets.tar", ".zip"), ("no-such-file.zip", "no-such-file.zip")])
def test_refused_upload(api: Api, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "pets.tar").write_bytes(b"x")
    refused = cafe(api, "upload", str(tmp_path / name))
    assert refused.exit_code == 2
    assert message in refused.stderr


def test_upload_names_a_file_whose_name_is_not_utf_8(api: Api, folder: Path) -> None:
    (folder / "train" / "cat" / os.fsdecode(b"bad\xff.png")).write_bytes(b"x")
    refused = cafe(api, "upload", str(folder))
    assert refused.exit_code == 2
    assert "bad\\udcff.png" in refused.stderr


def test_upload_mean(api: Api, settings: Settings, tmp_path: Path) -> None:
    """The mean and std of an upload are absent until a job has decoded its images, and then the measured ones."""
    images = np.full((4, 8, 8), 51, np.uint8)
    images[2:] = 153
    np.savez(tmp_path / "grey.npz", images=images, labels=np.array([0, 1, 0, 1]))
    dataset = json.loads(cafe(api, "upload", str(tmp_path / "grey.npz"), "--json").stdout)
    spec = {"dataset": {"id": dataset["id"]}, "ipc": 1}
    dry_run = api.post("/v1/jobs?dry_run=true", json=spec).json()["dataset"]
    for info in (dataset["info"], dry_run, api.get(f"/v1/datasets/{dataset['id']}").json()["info"]):
        assert info["class_counts"] == [2, 2]
        assert not {"mean", "std"} & set(info)
    sources.open_store(DatasetSpec(id=dataset["id"]), settings.roots)
    for info in (
        api.get(f"/v1/datasets/{dataset['id']}").json()["info"],
        api.post("/v1/jobs?dry_run=true", json=spec).json()["dataset"],
    ):
        assert info["mean"] == pytest.approx([0.4])
        assert info["std"] == pytest.approx([0.2])


def test_delete_jobs(api: Api) -> None:
    jobs = [api.make()["id"] for _ in range(2)]
    refused = cafe(api, "delete", jobs[0])
    assert refused.exit_code == 2
    assert "cancel" in refused.stderr
    for job_id in jobs:
        api.post(f"/v1/jobs/{job_id}/cancel")
        api.await_status(job_id, "cancelled")
    assert cafe(api, "delete", *jobs).stdout == "".join(f"{job_id} is deleted\n" for job_id in jobs)
    assert api.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize("identifier", ["../datasets", "job_../../datasets", "job_a?wait=1", "..", "", "ds_../jobs"])
@pytest.mark.parametrize("command", ["status", "watch", "cancel", "resume", "trials", "logs", "download", "delete"])
def test_text_that_is_no_id_names_no_other_path(tmp_path: Path, command: str, identifier: str) -> None:
    out = tmp_path / "out"
    arguments = ["--url", "http://127.0.0.1:9", command, identifier]  # without a server: a request would exit with 3
    result = CliRunner().invoke(main, [*arguments, *(["--out", str(out)] if command == "download" else [])])
    assert result.exit_code == 2
    kind = "dataset" if command == "delete" and identifier.startswith("ds_") else "job"
    assert f"there is no {kind} {identifier!r}" in result.stderr
    assert result.stdout == ""
    assert not out.exists()


def test_cluster(api: Api) -> None:
    lines = cafe(api, "cluster").stdout.splitlines()
    assert lines[0].startswith("Ray 2.60.0, dashboard http://")
    assert lines[1].split() == ["127.0.0.1", "4/4", "0/0", "8.0", "GiB"]
    assert json.loads(cafe(api, "cluster", "--json").stdout) == api.get("/v1/cluster").json()


def test_json_of_jobs_trials_and_keys(api: Api, ray: FakeRay, tmp_path: Path) -> None:
    job_id = running_job(api, ray, EVALUATE)
    assert json.loads(cafe(api, "list", "--json").stdout) == api.get("/v1/jobs").json()["data"]
    assert json.loads(cafe(api, "trials", job_id, "--json").stdout) == []
    data = ["--data-dir", str(tmp_path / "other")]
    CliRunner().invoke(main, ["keys", "create", "somebody", "--scope", "read", *data], catch_exceptions=False)
    [key] = json.loads(CliRunner().invoke(main, ["keys", "list", "--json", *data], catch_exceptions=False).stdout)
    assert (key["name"], key["scopes"], key["revoked_at"]) == ("somebody", "read", None)


def test_json_of_submitted_cancelled_and_downloaded_jobs(api: Api, ray: FakeRay, settings: Settings, tmp_path: Path) -> None:
    submitted = json.loads(cafe(api, "submit", "-", "--json", input=json.dumps(SPEC).encode()).stdout)
    finish(api, ray, settings, submitted["id"])
    api.await_status(submitted["id"], "succeeded")
    downloaded = cafe(api, "download", submitted["id"], "--json", "--out", str(tmp_path / "out"))
    assert json.loads(downloaded.stdout) == [str(tmp_path / "out" / "result.json")]
    other = api.make()["id"]
    assert json.loads(cafe(api, "cancel", other, "--json").stdout)["id"] == other
    api.await_status(other, "cancelled")
    assert json.loads(cafe(api, "resume", other, "--json").stdout)["status"] == "queued"


def test_dry_run_submits_nothing(api: Api) -> None:
    answer = cafe(api, "submit", "--dry-run", "-", input=b"dataset: digits\nipc: 1\n")
    assert json.loads(answer.stdout)["estimates"]["memory_bytes"] > 0
    assert api.get("/v1/jobs").json()["data"] == []


def test_module_and_version() -> None:
    """`python -m server.cli` is the command, also with an output that cannot show every character."""
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "server.cli", "--version"]
    shown = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=True).stdout
    assert shown.startswith("cafe, version 0.")


def test_names_that_the_output_cannot_show(api: Api) -> None:
    api.make(name="Größe 像")
    environ = os.environ | {"CAFE_URL": str(api.base_url), "PYTHONIOENCODING": "latin-1"}
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "server.cli", "list"]
    listed = subprocess.run(command, cwd=root, env=environ, capture_output=True, timeout=60, check=True).stdout
    assert "Größe \\u50cf" in listed.decode("latin-1")
