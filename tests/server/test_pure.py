"""Small pure functions: events, capacity, ranges, settings, formatting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cafe_core.evaluation.tasks import all_tasks
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.evaluation_sources import judged_source
from cafe_core.spec.job import parse_job_spec
from cafe_core.spec.resources import ResourcesSpec
from server.cli.tables import trial_lines
from server.cli.watching import describe, duration
from server.errors import RangeError
from server.http.conditional import byte_range, matches
from server.ray.capacity import jobs_held, memory_per_worker, too_large, with_autoscaled_nodes, workers_on
from server.settings import SecretFileError, Settings
from server.store.models import new_id
from server.store.progress import DriverEvent, JobUpdate, job_update, total_of, whole_lines
from workers.client import RayCluster, RayNode, entrypoint, parse_cluster

GIB = 1 << 30


@pytest.mark.parametrize(
    ("chunk", "lines", "size"),
    [(b"", [], 0), (b"a", [], 0), (b"a\n", [b"a"], 2), (b"a\nb", [b"a"], 2), (b"a\nb\n", [b"a", b"b"], 4)],
)
def test_whole_lines(chunk: bytes, lines: list[bytes], size: int) -> None:
    assert whole_lines(chunk) == (lines, size)


@pytest.mark.parametrize(
    ("type_", "data", "changes"),
    [
        ("phase", {"phase": "preparing"}, JobUpdate(phase="preparing")),
        ("phase", {"phase": "condensing"}, JobUpdate(phase="condensing", computing=True)),
        ("iteration", {"iteration": 3, "total": 9, "eta_s": 1.5}, JobUpdate(done=3, total=9, eta_s=1.5)),
        ("epoch", {"epoch": 3, "total": 50, "eta_s": 4.5}, JobUpdate(done=3, total=50, eta_s=4.5)),
        ("step", {"of": "epoch", "done": 2, "total": 50, "eta_s": 4.5}, JobUpdate(done=2, total=50, eta_s=4.5)),
        ("evaluated", {"done": 1, "total": 2, "eta_s": None}, JobUpdate(done=1, total=2)),
        ("phase", {"phase": "validating"}, JobUpdate(phase="validating", computing=True)),
        ("phase", {"phase": "sweeping"}, JobUpdate(phase="sweeping", computing=True)),
        ("validated", {"iteration": 5, "total": 9, "mean": 80.0}, JobUpdate(done=5, total=9)),
        ("trials", {"done": 0, "total": 4}, JobUpdate(done=0, total=4)),
        ("trial", {"number": 3, "done": 1, "total": 4}, JobUpdate(done=1, total=4)),
        ("trial_started", {"number": 3}, JobUpdate()),
        ("trial_validated", {"number": 3, "iteration": 5, "total": 9}, JobUpdate()),
        ("checkpoint", {"iteration": 3}, JobUpdate()),
        ("something new", {}, JobUpdate()),
    ],
)
def test_changes_of(type_: str, data: dict[str, Any], changes: JobUpdate) -> None:
    assert job_update(DriverEvent("2026-01-01T00:00:00Z", type_, data)) == changes


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"[]", b"{", b'{"type": "phase"}', b'{"time": 1, "type": "phase"}', b"\xff"),
        b'{"time": "now", "type": "' + b"x" * 33 + b'"}',
        b'{"time": "now", "type": "a\\u0000b"}',
    ],
)
def test_refuses_lines_that_are_not_events(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        DriverEvent.parse(line)


def node(cpus: float, gpus: float = 0, *, memory: int = 16 * GIB, gpu_memory: int | None = None) -> RayNode:
    return RayNode("n", "10.0.0.1", False, cpus, gpus, cpus, gpus, memory, gpu_memory)


def resources(workers: int = 1, cpus: int = 1, gpus: float = 0) -> ResourcesSpec:
    return ResourcesSpec(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)


@pytest.mark.parametrize(
    ("of", "wanted", "count"),
    [
        (node(4), resources(cpus=1), 4),
        (node(4), resources(cpus=3), 1),
        (node(2), resources(cpus=4), 0),
        (node(8, 2), resources(gpus=1), 2),
        (node(8, 2), resources(gpus=0.5), 4),
        (node(8, 2), resources(gpus=0.4), 4),  # two on each: 0.2 of each GPU is left over
        (node(8, 2), resources(gpus=1 / 3), 6),
        (node(3, 2), resources(gpus=0.25), 3),
        (node(8, 0), resources(gpus=1), 0),
    ],
)
def test_workers_on_a_node(of: RayNode, wanted: ResourcesSpec, count: int) -> None:
    assert workers_on(of, wanted) == count


def test_refuses_job_larger_than_cluster_with_numbers() -> None:
    cluster = RayCluster("2", [node(2), node(3, 1)])
    assert too_large(resources(5), cluster) is None
    assert too_large(resources(6), cluster) == (
        "6 workers of 1 CPU each, but the cluster (2 nodes, 5 CPUs, 1 GPUs in all) can hold at most 5 of them"
    )
    assert "2 workers of 1 CPU and 1 GPU each" in (too_large(resources(2, gpus=1), cluster) or "")
    assert "at most 1 " in (too_large(resources(2, cpus=3), cluster) or "")  # 5 CPUs, but on two nodes


@pytest.mark.parametrize(
    ("wanted", "worker_gib", "count"),
    [
        (resources(), 0, 6),
        (resources(2), 0, 3),  # spread over both nodes
        (resources(5), 0, 1),
        (resources(7), 0, 0),
        (resources(), 5, 4),  # three in 16 GiB and one in 8
        (resources(gpus=1), 0, 2),
        (resources(gpus=1), 5, 2),  # on GPUs: not the node's memory
    ],
)
def test_number_of_jobs_that_fit_at_once(wanted: ResourcesSpec, worker_gib: int, count: int) -> None:
    cluster = RayCluster("2", [node(4, 2), node(2, memory=8 * GIB)])
    assert jobs_held(wanted, cluster, worker_gib * GIB) == count


@pytest.mark.parametrize(
    ("wanted", "nodes", "size"),
    [
        (resources(1), [node(4)], 16 * GIB),
        (resources(4), [node(4)], 4 * GIB),
        (resources(2), [node(4), node(4)], 16 * GIB),
        (resources(3), [node(4), node(4)], 8 * GIB),
        (resources(1), [node(4), node(4, memory=2 * GIB)], 2 * GIB),
        (resources(1, gpus=1), [node(4, 1, gpu_memory=80 * GIB), node(64)], 80 * GIB),
        (resources(1, gpus=0.5), [node(4, 1, gpu_memory=80 * GIB)], 40 * GIB),
    ],
)
def test_memory_per_worker(wanted: ResourcesSpec, nodes: list[RayNode], size: int) -> None:
    assert memory_per_worker(wanted, RayCluster("2", nodes)) == size


def test_driver_is_placed_where_it_costs_most() -> None:
    cluster = RayCluster("2", [node(2), node(2.5)])
    assert too_large(resources(4), cluster) is None
    assert "at most 3 of them in addition to the driver's 0.25 CPU" in (too_large(resources(4), cluster, 0.25) or "")
    assert too_large(resources(3), cluster, 0.25) is None
    assert jobs_held(resources(2), cluster) == 2
    assert jobs_held(resources(2), cluster, driver_cpus=0.25) == 1
    assert "at most 0 " in (too_large(resources(1), RayCluster("2", [node(2)]), 4) or "")  # nobody holds the driver


def test_existing_autoscaled_nodes_are_not_counted_twice() -> None:
    large = [node(8, 1)] * 3
    head = RayNode("head", "10.0.0.1", True, 16, 2, 16, 2, 16 * GIB)
    cluster = with_autoscaled_nodes(RayCluster("2", [head, node(2), node(8, 1)]), large)
    assert (cluster.cpus, cluster.gpus) == (16 + 2 + 3 * 8, 2 + 3)  # a head and a smaller node are none of them
    assert with_autoscaled_nodes(RayCluster("2", [*large, *large]), large).gpus == 6
    assert with_autoscaled_nodes(RayCluster("2", [head]), []).nodes == [head]


def test_autoscaled_nodes_require_a_size() -> None:
    with pytest.raises(ValidationError, match="autoscaled_node_memory_bytes"):
        Settings(autoscaled_nodes=2, autoscaled_node_cpus=4)


@pytest.mark.parametrize(
    ("header", "part"),
    [
        (None, None), ("bytes=0-", (0, 10)), ("bytes=0-0", (0, 1)), ("bytes=3-5", (3, 6)), ("bytes=3-99", (3, 10)),
        ("bytes=-4", (6, 10)), ("bytes=-99", (0, 10)), ("bytes=9-", (9, 10)),
        ("bytes=5-3", None), ("bytes=a-b", None), ("bytes=-", None), ("bytes=", None), ("lines=0-1", None),
        ("bytes=0-1,3-4", None), ("bytes=--1", None), ("bytes=²-3", None), ("bytes=0-" + "9" * 5000, None),
    ],
)  # fmt: skip
def test_byte_range(header: str | None, part: tuple[int, int] | None) -> None:
    assert byte_range(header, 10) == part


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=10-12", 10), ("bytes=-0", 10), ("bytes=0-", 0)])
def test_refuses_range_past_the_end_with_size(header: str, size: int) -> None:
    with pytest.raises(RangeError) as refused:
        byte_range(header, size)
    assert (refused.value.headers or {})["Content-Range"] == f"bytes */{size}"


@pytest.mark.parametrize(
    ("header", "same"),
    [(None, False), ('"a"', True), ('W/"a"', True), ('"b", "a"', True), ("*", True), ('"b"', False), ("a", False)],
)
def test_if_none_match(header: str | None, same: bool) -> None:
    assert matches(header, '"a"') is same


def test_settings_from_environment_and_command_line(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("from-file\n")
    environ = {"CAFE_DATA_DIR": str(tmp_path / "env"), "CAFE_MAX_RESTARTS": "7", "RAY_AUTH_TOKEN_PATH": str(token)}
    settings = Settings.load(environ, data_dir=tmp_path / "option", ray_address=None)
    assert settings.data_dir == tmp_path / "option"
    assert settings.max_restarts == 7
    assert settings.ray_token is not None
    assert settings.ray_token.get_secret_value() == "from-file"
    assert "from-file" not in repr(settings)
    assert settings.roots.uploads == tmp_path / "option" / "uploads"
    with pytest.raises(ValidationError, match="max_restarts"):
        Settings.load({"CAFE_MAX_RESTARTS": "-1"})
    absent = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "absent")}
    with pytest.raises(SecretFileError, match="absent cannot be read: No such file"):
        Settings.load(absent)
    assert Settings.load(absent, with_ray_token=False).ray_token is None


@pytest.mark.parametrize(
    ("root", "taken"),
    [
        (None, True), ("data/datasets", True), ("data/datasets/vision", True), ("images", True), ("data-of-others", True),
        ("data", False), (".", False), ("/", False), ("data/uploads", False), ("data/uploads/ds_1", False), ("data/jobs", False),
        ("data/cache", False), ("data/other", False), ("data/datasets/../jobs", False), ("link", False), ("elsewhere", False),
        ("elsewhere/jobs/job_1", False), ("images/../data", False),
    ],
)  # fmt: skip
def test_refuses_dataset_root_that_contains_private_files(tmp_path: Path, root: str | None, taken: bool) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "elsewhere" / "jobs").mkdir(parents=True)
    (tmp_path / "data" / "jobs").symlink_to(tmp_path / "elsewhere" / "jobs")
    settings = Settings(data_dir=tmp_path / "data", dataset_root=tmp_path / root if root else None)
    if taken:
        settings.check_dataset_root()
        return
    with pytest.raises(ValueError, match=r"dataset_root \(CAFE_DATASET_ROOT\): .* must not contain each other"):
        settings.check_dataset_root()


def test_secrets_are_read_from_files(tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text("postgresql://cafe:hidden@db/cafe\n")
    settings = Settings.load({"CAFE_DATABASE_URL_FILE": str(secret), "CAFE_METRICS_TOKEN": ""})
    assert settings.database == "postgresql://cafe:hidden@db/cafe"
    assert "hidden" not in repr(settings)
    assert settings.metrics_token is None  # empty is unset
    with pytest.raises(SecretFileError, match="are both set"):
        Settings.load({"CAFE_METRICS_TOKEN": "x", "CAFE_METRICS_TOKEN_FILE": str(secret)})
    secret.write_text("\n")
    with pytest.raises(SecretFileError, match="url is empty"):
        Settings.load({"CAFE_DATABASE_URL_FILE": str(secret)})


def test_ids_are_random_base32() -> None:
    ids = {new_id("job") for _ in range(100)}
    assert len(ids) == 100
    assert all(len(i) == 20 and i.startswith("job_") and set(i[4:]) <= set("abcdefghijklmnopqrstuvwxyz234567") for i in ids)


def test_entrypoint_is_quoted() -> None:
    assert entrypoint(Path("/data of mine/jobs/job_a"), 2, "python3") == (
        "python3 -m workers run --job-dir '/data of mine/jobs/job_a' --attempt 2"
    )


def test_parse_cluster_skips_dead_nodes_and_subtracts_used_resources() -> None:
    def entry(node_id: str, state: str) -> dict[str, Any]:
        total = {"CPU": 8.0, "GPU": 2.0, "memory": 40.0 * GIB}
        raylet = {"nodeId": node_id, "state": state, "nodeManagerAddress": "10.0.0.1", "resourcesTotal": total}
        if node_id == "new":
            return {"raylet": raylet}
        gpus = [{"name": "H100", "memoryTotal": 81559}, {"name": "H100", "memoryTotal": 81000}]
        return {"mem": [64 * GIB, 0, 0.0, 0], "gpus": gpus, "raylet": raylet}

    cluster = parse_cluster(
        "2.60.0", [entry("a", "ALIVE"), entry("b", "DEAD"), entry("new", "ALIVE")], {"a": {"CPU": [3.0, 8.0]}}
    )
    a, new = cluster.nodes
    assert (a.id, a.cpus_free, a.gpus_free, a.gpu_memory_bytes, a.memory_bytes) == ("a", 5.0, 2.0, 81000 << 20, 64 * GIB)
    assert (new.id, new.cpus_free, new.gpu_memory_bytes, new.memory_bytes) == ("new", 8.0, None, 40 * GIB)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_describe_events() -> None:
    iteration = {"iteration": 5, "total": 10, "feature_loss": 12.5, "query_accuracy": 0.5, "eta_s": 61}
    assert describe("iteration", iteration) == "  iteration 5/10  1 min 1 s left  loss 12.5  query accuracy 0.500"
    epoch = {"epoch": 50, "total": 50, "loss": 0.1234567, "accuracy": 0.97, "eta_s": 0}
    assert describe("epoch", epoch) == "  epoch 50/50  loss 0.1235  accuracy 0.970"
    step = {"of": "iteration", "done": 0, "total": 10, "outer_step": 3, "max_outer": 11, "inner_epoch": 4, "max_inner": 50}
    assert (
        describe("step", step | {"query_accuracy": None, "eta_s": 3600})
        == "  iteration 0/10  1 h 0 min left  outer step 3/11  inner epoch 4/50"
    )
    step = {"of": "epoch", "done": 1, "total": 3, "batch": 4, "batches": 100, "eta_s": 59}
    assert describe("step", step) == "  epoch 1/3  59 s left  batch 4/100"
    step = {"of": "network", "done": 1, "total": 5, "epoch": 30, "epochs": 300, "networks": 1, "eta_s": 59}
    assert describe("step", step) == "  network 1/5  59 s left  epoch 30/300"
    assert describe("step", step | {"networks": 4}) == "  network 1/5  59 s left  epoch 30/300 of 4 networks"
    assert describe("status", {"status": "failed", "error": {"message": "disk full"}}) == "failed: disk full"
    assert describe("phase", {"phase": "waiting_for_resources"}) == "  waiting for resources"
    assert describe("unknown", {}) is None


@pytest.mark.parametrize(
    ("type_", "data", "line"),
    [
        (
            "evaluated",
            {"network": "convnet", "accuracy": 50.0, "done": 2, "total": 4},
            "  network 2/4  convnet 50.00 %",
        ),
        (
            "evaluated",
            {"source": "random", "network": "mlp", "augment": "dsa", "accuracy": 50.0, "done": 4, "total": 4, "eta_s": 0.0},
            "  network 4/4  mlp on random, dsa 50.00 %",
        ),
        ("validated", {"iteration": 5, "total": 10, "mean": 81.234}, "  validated at iteration 5/10: 81.23 %"),
        ("trials", {"done": 0, "total": 4}, "  trial 0/4"),
        (
            "trial_started",
            {"number": 3, "overrides": {"ipc": 1, "method.beta": 0.5}},
            "  trial 3 starts: ipc = 1, method.beta = 0.5",
        ),
        ("trial_validated", {"number": 3, "iteration": 5, "total": 10, "mean": 81.2}, "  trial 3 at iteration 5/10: 81.20 %"),
        (
            "trial",
            {"number": 3, "status": "stopped", "metric": 70.0, "error": None, "overrides": {"ipc": 1}, "done": 1, "total": 4},
            "  done 1/4  trial 3 stopped: 70.00 %  ipc = 1",
        ),
        (
            "trial",
            {"number": 3, "status": "stopped", "metric": None, "error": None, "overrides": {"ipc": 1}, "done": 1, "total": 4},
            "  done 1/4  trial 3 stopped  ipc = 1",
        ),
        (
            "trial",
            {
                "number": 3,
                "status": "failed",
                "metric": None,
                "error": {"message": "NaN"},
                "overrides": {},
                "done": 1,
                "total": 4,
            },
            "  done 1/4  trial 3 failed: NaN",
        ),
    ],
)
def test_describe_events_of_evaluations_and_sweeps(type_: str, data: dict[str, Any], line: str) -> None:
    assert describe(type_, data) == line


def test_totals() -> None:
    networks = {"networks": [{}, {"name": "mlp"}], "repeats": 3, "augment": ["none", "dsa"], "baselines": ["random", "whole"]}
    evaluate = {"kind": "evaluate", **networks, "synthetic": {"path": "a.npz"}}
    real = {"kind": "evaluate", **networks, "synthetic": {"dataset": {"name": "digits"}, "selection": "whole"}}
    for spec in (evaluate, real):
        parsed = parse_job_spec(spec)
        assert isinstance(parsed, EvaluateSpec)
        assert total_of(parsed) == len(all_tasks(parsed, judged_source(parsed)))
    assert total_of(parse_job_spec(evaluate)) == 36
    assert total_of(parse_job_spec(real)) == 24
    base = {"dataset": {"name": "digits"}, "ipc": 1, "iterations": 7}
    assert total_of(parse_job_spec(base)) == 7
    space = {"seed": {"grid": [1, 2]}, "method.beta": {"uniform": [0.1, 1.0]}}
    assert total_of(parse_job_spec({"kind": "sweep", "base": {**base, "evaluation": {}}, "space": space, "samples": 5})) == 10


def test_trial_lines_are_aligned() -> None:
    networks = [
        {"source": "synthetic", "network": "convnet", "index": 0, "augment": "none", "repeat": 0, "accuracy": 81.234},
        {"source": "random", "network": "mlp", "index": 1, "augment": "dsa", "repeat": 10, "accuracy": 5.0},
    ]
    assert list(trial_lines(networks)) == [
        "synthetic  convnet  0      none     0       81.23 %",
        "random     mlp      1      dsa      10      5.00 %",
    ]
    ended = {"status": "succeeded", "metric": 70.0, "iterations": 20, "seconds": 1.5, "error": None}
    failed = {"status": "failed", "metric": None, "iterations": None, "seconds": 1.0, "error": {"message": "NaN"}}
    sweep = [{"trial": n, "overrides": {"ipc": n}, **row} for n, row in enumerate((ended, failed))]
    assert list(trial_lines(sweep)) == [
        "0      succeeded  70.00 %   20          1.5      ipc = 0",
        "1      failed                           1.0      ipc = 1  NaN",
    ]
    assert list(trial_lines([])) == []
