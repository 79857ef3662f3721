from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image
from sqlalchemy import text

from cafe_core.errors import DatasetError, DiskFullError
from cafe_core.evaluation.tasks import EvaluationTask
from cafe_core.jobs import local
from cafe_core.jobs.backend import TrialOutcome
from cafe_core.jobs.job import write_manifest
from cafe_core.jobs.jobdir import JobDir
from server.cli.main import main
from server.client import client as api_client
from server.settings import Settings
from server.store.database import Database
from tests.server.conftest import SPEC, Api, FakeRay, attempt_dir, driver_of
from tests.server.kinds import EVALUATE, SWEEP, end_trial, running_job, trained
from workers.client import RayJob, RayJobState


def cafe(api: Api, *arguments: str, input: bytes | None = None, **environ: str) -> Result:
    """Run `cafe ARGUMENTS` against the server."""
    runner = CliRunner(env={"CAFE_URL": str(api.base_url)} | environ)
    return runner.invoke(main, list(arguments), input=input, catch_exceptions=False)


@pytest.fixture
def spec_file(tmp_path: Path) -> str:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(SPEC | {"name": "from yaml"}))
    return str(path)


def finish(api: Api, ray: FakeRay, settings: Settings, job_id: str) -> None:
    """Do what driver and Ray do when a job succeeds."""
    api.await_job(job_id, lambda _: (job_id, 1) in ray.submissions)
    directory = attempt_dir(settings, job_id)
    directory.artifacts.mkdir(parents=True)
    directory.result_file.write_text('{"images": 10}')
    write_manifest(directory)
    with driver_of(settings, job_id) as report:
        report("phase", phase="condensing")
        report("iteration", iteration=10, total=10, feature_loss=1.5, query_accuracy=0.5, eta_s=0)
        report("finished", result={"images": 10})
    ray.jobs[job_id, 1] = RayJob(RayJobState.SUCCEEDED, "", 0)


def test_submit_status_list_watch_download(api: Api, ray: FakeRay, settings: Settings, spec_file: str, tmp_path: Path) -> None:
    submitted = cafe(api, "submit", spec_file)
    assert submitted.exit_code == 0, submitted.stderr
    job_id = submitted.stdout.strip()
    assert json.loads(cafe(api, "status", job_id).stdout)["name"] == "from yaml"
    assert job_id in cafe(api, "list", "--kind", "condense").stdout
    assert cafe(api, "list", "--label", "a=b").stdout == ""

    finish(api, ray, settings, job_id)
    watched = cafe(api, "watch", job_id)
    assert watched.exit_code == 0
    assert "iteration 10/10  loss 1.5  query accuracy 0.500" in watched.stderr
    assert "succeeded" in watched.stderr
    assert json.loads(watched.stdout) == {"images": 10}
    assert cafe(api, "logs", job_id, "--tail", "1").stdout == "three\n"

    out = tmp_path / "out"
    downloaded = cafe(api, "download", job_id, "--out", str(out))
    assert downloaded.stdout.splitlines() == [str(out / "result.json")]
    assert (out / "result.json").read_text() == '{"images": 10}'
    assert [path.name for path in out.iterdir()] == ["result.json"]


def test_trials_and_kinds_are_shown(api: Api, ray: FakeRay, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_client, "TRIALS_PER_PAGE", 700)
    evaluation, sweep = running_job(api, ray, EVALUATE), running_job(api, ray, SWEEP)
    for repeat in range(1500):  # three pages
        trained(settings.job_dir(evaluation), "a", EvaluationTask("synthetic", 0, "none", repeat), 70.0)
    end_trial(settings.job_dir(sweep), TrialOutcome(1, "succeeded", 80.0, 10, 2.0))
    lines = cafe(api, "trials", evaluation).stdout.splitlines()
    assert len(lines) == 1500
    assert lines[-1].split() == ["synthetic", "convnet", "0", "none", "1499", "70.00", "%"]
    table = cafe(api, "trials", sweep)
    assert table.exit_code == 0
    assert table.stdout.splitlines()[1] == "1      succeeded  80.00 %   10          2.0      method.beta = 0.5, seed = 1"
    csv = cafe(api, "trials", sweep, "--csv").stdout
    assert csv.splitlines()[:3:2] == [
        "trial,method.beta,seed,status,metric,iterations,seconds,error",
        "1,0.5,1,succeeded,80.0,10,2.0,",
    ]
    assert len(cafe(api, "trials", evaluation, "--csv").stdout.splitlines()) == 1501

    listed = cafe(api, "list", "--kind", "sweep").stdout
    assert sweep in listed
    assert "  sweep  " in listed
    assert evaluation not in listed
    refused = cafe(api, "trials", api.make()["id"])
    assert refused.exit_code == 2
    assert "without an evaluation" in refused.stderr


def test_a_sweep_is_watched(api: Api, ray: FakeRay, settings: Settings) -> None:
    job_id = running_job(api, ray, SWEEP)
    directory = attempt_dir(settings, job_id)
    directory.artifacts.mkdir(parents=True)
    directory.result_file.write_text('{"metric": "evaluation"}')
    write_manifest(directory)
    with driver_of(settings, job_id) as report:
        report("phase", phase="sweeping")
        report("trials", done=3, total=4)
        report("trial_started", number=3, overrides={"method.beta": 1.0, "seed": 1})
        outcome = asdict(TrialOutcome(3, "succeeded", 80.0, 10, 1.0))
        report("trial", **outcome, overrides={"method.beta": 1.0, "seed": 1}, done=4, total=4)
        report("finished", result={})
    ray.jobs[job_id, 1] = RayJob(RayJobState.SUCCEEDED, "", 0)
    watched = cafe(api, "watch", job_id)
    assert watched.exit_code == 0
    assert "trial 3 starts: method.beta = 1.0, seed = 1" in watched.stderr
    assert "done 4/4  trial 3 succeeded: 80.00 %" in watched.stderr
    assert json.loads(watched.stdout) == {"metric": "evaluation"}


def test_submit_and_wait_follows_a_job_to_its_failure(api: Api, ray: FakeRay, settings: Settings, spec_file: str) -> None:
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(cafe(api, "submit", spec_file, "--wait")))
    thread.start()
    while not ray.submissions:
        assert thread.is_alive()
    (job_id, _), *_ = ray.submissions
    with driver_of(settings, job_id) as report:
        report("phase", phase="preparing")
        report("failed", error={"code": "disk_full", "message": "no space on the disk", "retryable": True})
    ray.jobs[job_id, 1] = RayJob(RayJobState.FAILED, "", 1)
    thread.join(30)
    assert results[0].exit_code == 1
    assert "no space on the disk" in results[0].stderr


def test_cancel_and_resume(api: Api, ray: FakeRay) -> None:
    job_id = api.make()["id"]
    api.await_job(job_id, lambda _: ray.submissions != [])
    assert cafe(api, "cancel", job_id).stdout == "cancelling\n"
    api.await_status(job_id, "cancelled")
    assert cafe(api, "resume", job_id).stdout == "queued\n"
    refused = cafe(api, "resume", job_id)
    assert refused.exit_code == 2
    assert "only failed and cancelled jobs" in refused.stderr


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        ('{"dataset": {"name": "digits"}, "ipc": 0, "surprise": 1}', ["ipc: Input should be", "surprise: unknown field"]),
        ('{"dataset": {"name": "digits"}, "ipc": 1, "resources": {"workers": 9}}', ["resources: 9 workers", "at most 4"]),
        ("{", ["line 1, column 2"]),
        ("[]", ["must be a mapping"]),
    ],
)
def test_refused_spec_names_each_field_and_exits_with_2(api: Api, tmp_path: Path, content: str, messages: list[str]) -> None:
    path = tmp_path / "spec.json"
    path.write_text(content)
    result = cafe(api, "submit", str(path))
    assert result.exit_code == 2
    for message in messages:
        assert message in result.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("spec.yaml", b"name: caf\xe9\n", "spec.yaml: line 1: byte 0xe9"),
        ("spec.json", b'{"name": "caf\xe9"}', "spec.json: line 1: byte 0xe9"),
        ("spec.yaml", b"ipc: 1\nmethod: {beta: .nan}\n", "line 2, column 16: .nan"),
        ("spec.json", b'{"method": {"beta": Infinity}}', "line 1, column 21: Infinity"),
        ("spec.yaml", b"labels: &a {self: *a}\n", "line 1, column 9: an alias"),
        ("spec.json", b"[" * 9_000, "spec.json: lists and objects are nested too deeply"),
    ],
)
@pytest.mark.parametrize("command", [["submit"], ["run", "--out", "out"]])
def test_refuses_values_that_json_does_not_have(
    tmp_path: Path, command: list[str], name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    result = CliRunner().invoke(main, [*command, str(path)], catch_exceptions=False)
    assert result.exit_code == 2
    assert message in result.stderr


def test_refuses_dataset_root_that_overlaps_data_directory(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["serve", "--data-dir", str(tmp_path / "data"), "--dataset-root", str(tmp_path)])
    assert result.exit_code == 2
    assert "must not contain each other" in result.stderr


def test_refuses_database_of_newer_version(tmp_path: Path) -> None:
    """Refused before Ray is started or the port is bound. Runs in its own process, as for an operator."""
    settings = Settings(data_dir=tmp_path)
    database = Database(settings.database)
    database.migrate()
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    serve = [
        sys.executable,
        "-c",
        "from server.cli.main import main; main()",
        "serve",
        "--port",
        "0",
        "--data-dir",
        str(tmp_path),
    ]
    refused = subprocess.run(serve, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=120)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1, refused.stderr
    assert "revision 9999" in refused.stderr
    assert "upgrade the server" in refused.stderr


def test_unreachable_database_is_reported_in_one_line(tmp_path: Path) -> None:
    environ = {"CAFE_DATABASE_URL": "postgresql://cafe:hidden@127.0.0.1:1/cafe"}
    result = CliRunner(env=environ).invoke(main, ["serve", "--data-dir", str(tmp_path), "--ray-address", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "the database does not" in result.stderr
    assert "hidden" not in result.stderr


def test_external_ray_requires_token(tmp_path: Path) -> None:
    environ = {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "", "CAFE_RAY_TOKEN": ""}
    result = CliRunner(env=environ).invoke(main, ["serve", "--data-dir", str(tmp_path), "--ray-address", "http://127.0.0.1:9"])
    assert result.exit_code == 2
    assert "--ray-address needs Ray's token" in result.stderr


@pytest.mark.parametrize(
    ("environ", "command", "message"),
    [
        ({"CAFE_NUM_CPUS": "x"}, ["serve"], "num_cpus (CAFE_NUM_CPUS): Input should be"),
        ({"CAFE_NUM_CPUS": "x"}, ["run", "SPEC", "--out", "out"], "num_cpus (CAFE_NUM_CPUS): Input should be"),
        ({"CAFE_ROOT_PATH": "a b"}, ["serve"], "Error: root_path (CAFE_ROOT_PATH): 'a b' is not a path prefix"),
        ({"CAFE_ROOT_PATH": "/a"}, ["serve", "--root-path", "a b"], "Error: --root-path: 'a b' is not a path prefix"),
        ({}, ["serve", "--collective-timeout", "0"], "Error: --collective-timeout: Input should be greater than 0"),
        ({"CAFE_AUTOSCALED_NODES": "1"}, ["serve"], "Error: autoscaled_nodes needs autoscaled_node_cpus"),
        ({"RAY_AUTH_TOKEN_PATH": "/no/such"}, ["serve"], "RAY_AUTH_TOKEN_PATH: /no/such cannot be read"),
    ],
)
def test_invalid_setting_is_named(spec_file: str, environ: dict[str, str], command: list[str], message: str) -> None:
    arguments = [spec_file if argument == "SPEC" else argument for argument in command]
    result = CliRunner(env=environ).invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [("submit", "no-such-file.json"), ("frobnicate",), ("status",), ("status", "job_unknown"), ("list", "--limit", "0")],
)
def test_wrong_usage_exits_with_2(api: Api, arguments: tuple[str, ...]) -> None:
    assert cafe(api, *arguments).exit_code == 2


def test_unreachable_server_exits_with_3(spec_file: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: refused
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        for arguments in (["submit", spec_file], ["list"], ["status", "job_a"]):
            result = CliRunner().invoke(main, ["--url", url, *arguments])
            assert result.exit_code == 3
            assert url in result.stderr


def test_server_without_ray_exits_with_3(api: Api, ray: FakeRay, spec_file: str) -> None:
    ray.down = True
    assert cafe(api, "submit", spec_file).exit_code == 3


@pytest.mark.parametrize(
    ("spec", "artifacts"),
    [
        (
            EVALUATE | {"networks": [{"name": "mlp", "width": 8}], "repeats": 2, "epochs": 2},
            {"accuracies.csv", "evaluation.json", "manifest.json", "result.json"},
        ),
        (
            {
                "kind": "sweep",
                "base": SPEC
                | {
                    "iterations": 1,
                    "method": {"batch_real": 8},
                    "evaluation": {"networks": [{"name": "mlp", "width": 8}], "repeats": 1, "epochs": 2},
                },
                "space": {"method.beta": {"grid": [0.5, 1.0]}},
            },
            {"manifest.json", "preview.png", "result.json", "synthetic.safetensors", "trials.csv", "trials.json"},
        ),
    ],
    ids=["evaluate", "sweep"],
)
def test_run_of_each_kind(tmp_path: Path, spec: dict[str, Any], artifacts: set[str]) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(spec))
    arguments = ["run", str(path), "--out", str(tmp_path / "out"), "--data-dir", str(tmp_path / "data")]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    kept = JobDir(tmp_path / "out").attempt(1).artifacts
    assert {file.name for file in kept.iterdir()} == artifacts
    assert json.loads(result.stdout) == json.loads((kept / "result.json").read_text())
    for file in artifacts - {"manifest.json"}:
        assert (tmp_path / "out" / file).read_bytes() == (kept / file).read_bytes()
    assert "accuracy of fresh networks on the test images, in percent:\n  mlp: " in result.stderr
    done = "network 2/2" if spec["kind"] == "evaluate" else "done 2/2  trial 1 succeeded"
    assert done in result.stderr


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (SWEEP | {"scheduler": "asha"}, "scheduler: asha compares trials that run at the same time"),
        (EVALUATE | {"synthetic": {"job_id": "job_a"}}, "synthetic.job_id: job_a is a job of a server"),
        (SWEEP | {"space": {"method.betta": {"grid": [1]}}}, "space.method.betta: 1: unknown field"),
        (SWEEP | {"space": {"seed": {"grid": [1]}}, "base": SPEC}, "base.evaluation: a sweep compares accuracies"),
    ],
)
def test_run_refuses_invalid_specs_and_specs_that_need_a_server(tmp_path: Path, spec: dict[str, Any], message: str) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(spec))
    result = CliRunner().invoke(main, ["run", str(path), "--out", str(tmp_path / "out"), "--data-dir", str(tmp_path / "data")])
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_run_reads_paths_relative_to_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x", "y"):
        (tmp_path / "here" / "mine" / name).mkdir(parents=True)
        Image.linear_gradient("L").resize((8, 8)).save(tmp_path / "here" / "mine" / name / "0.png")
    monkeypatch.chdir(tmp_path / "here")
    Path("spec.json").write_text(json.dumps({"dataset": {"path": "./mine"}, "ipc": 2, "method": {"name": "random"}}))
    arguments = ["run", "spec.json", "--out", str(tmp_path / "out"), "--data-dir", str(tmp_path / "data")]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    assert [note["code"] for note in json.loads(result.stdout)["notes"]] == ["repeated"]
    assert "note: ipc is 2, but 2 of 2 classes have fewer images" in result.stderr


def test_run_without_a_server(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(SPEC | {"iterations": 2, "method": {"batch_real": 8}}))
    arguments = ["run", str(spec), "--out", str(tmp_path / "out"), "--data-dir", str(tmp_path / "data")]
    without_ray = {"RAY_AUTH_TOKEN_PATH": "/no/such"}
    result = CliRunner(env=without_ray).invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["images"] == 10
    assert "iteration 2/2" in result.stderr
    assert f"{tmp_path / 'out' / 'synthetic.safetensors'}: 10 images" in result.stderr
    assert (tmp_path / "out" / "preview.png").exists()

    spec.write_text(json.dumps(SPEC | {"resources": {"workers": 11}}))
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 2
    assert "resources.workers: 11 workers for 10 classes" in refused.stderr


@pytest.mark.parametrize(
    ("raised", "shown"),
    [(ValueError("shapes differ"), ValueError), (DiskFullError("no space"), SystemExit), (DatasetError("changed"), SystemExit)],
)
def test_failure_of_run_exits_with_1(
    tmp_path: Path, spec_file: str, monkeypatch: pytest.MonkeyPatch, raised: Exception, shown: type[BaseException]
) -> None:
    """A failure of the job exits with 1; any other exception is a bug and shows a traceback."""

    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(local, "run_job", fail)
    arguments = ["run", spec_file, "--out", str(tmp_path / "out"), "--data-dir", str(tmp_path / "data")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert type(result.exception) is shown
    if shown is SystemExit:
        assert f"failed: {raised}" in result.stderr
