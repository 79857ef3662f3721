"""Settings of all tests, and the lanes in which `make test` runs them side by side.

`make test` runs pytest-xdist with `--dist loadgroup`: each lane runs in one process, its tests one after another. The tests that
use a real Ray form two lanes, scheduled first because they take longest: those of Tune's trials, and all others. More lanes would
make single tests slower, because a job on Ray starts several processes and the CPUs are busy. The tests of every other module
form a lane each, so that module fixtures are set up once.
"""

from __future__ import annotations

import gc
import os
import shutil

# One thread for each process: lanes and their subprocesses share few cores, and waiting threads of OpenMP spin. NumPy and torch
# read these when they are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from coverage import Coverage

from server.ray.embedded import EmbeddedRay
from tests.forked_workers import template

SHARED_MEMORY = "/dev/shm"
if Path(SHARED_MEMORY).is_dir() and shutil.disk_usage(SHARED_MEMORY).free >= 4 << 30:
    # Temporary directories in memory: every commit and every file of a job is flushed, which takes milliseconds on a disk.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", SHARED_MEMORY)

gc.disable()  # until all tests are collected, because what is imported stays

# A busy machine is slow: an example that takes long is no failure.
hypothesis.settings.register_profile("without deadlines", deadline=None)
hypothesis.settings.load_profile("without deadlines")

RAY_FIXTURES = {"small_ray", "embedded_ray", "ray_nodes", "containers"}
"""Fixtures that start a Ray. Tests that start one without them carry the marker `real_ray`."""

NOTES: pytest.StashKey[list[str]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[NOTES] = []


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Assign each test to its lane, and put the lanes of Ray first."""
    with_ray = [item for item in items if starts_ray(item)]
    others = [item for item in items if not starts_ray(item)]
    for item in with_ray:
        item.add_marker(pytest.mark.xdist_group(lane_of_ray(item)))
    for item in others:
        item.add_marker(pytest.mark.xdist_group(f"{item.path.parent.name}.{item.path.stem}"))
    items[:] = with_ray + others


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Let the garbage collector work again after the collection, without the objects that exist already."""
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def starts_ray(item: pytest.Item) -> bool:
    """Return whether a test starts a real Ray or uses one that a fixture starts."""
    return item.get_closest_marker("real_ray") is not None or not RAY_FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))


def lane_of_ray(item: pytest.Item) -> str:
    """Return the lane of a test that uses a real Ray."""
    return "ray of trials" if item.path.stem.startswith("test_tune") else "ray"


def pytest_make_parametrize_id(val: object) -> str | None:
    """Return the same ID in every process for bytes, which may hold the time at which an archive was made."""
    return "bytes" if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def notes(request: pytest.FixtureRequest) -> list[str]:
    """Collect texts that are printed after the tests."""
    return request.config.stash[NOTES]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the notes of an xdist worker to the process that prints the summary; save its coverage, if it is measured."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["notes"] = session.config.stash[NOTES]
    if "COVERAGE_PROCESS_START" in os.environ:  # xdist kills a process that needs more than 10 s to exit
        coverage = Coverage.current()
        assert coverage is not None, "coverage was not started: reinstall the development tools (make clean setup)"
        coverage.stop()
        coverage.save()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Receive the notes of an xdist worker that has ended."""
    node.config.stash[NOTES] += getattr(node, "workeroutput", {}).get("notes", [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the notes."""
    for text in config.stash[NOTES]:
        terminalreporter.write_line(f"\n{text}\n")


@pytest.fixture(scope="session")
def forked_workers() -> Iterator[dict[str, str]]:
    """Run a template of Ray's workers. A Ray that is started with these environment variables starts its workers quickly."""
    with template.running() as environment:
        yield environment


@pytest.fixture(scope="session")
def embedded_ray(forked_workers: dict[str, str], notes: list[str]) -> Iterator[EmbeddedRay]:
    """Start one Ray of two CPUs, with a dashboard, for all tests that leave it as they find it."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in forked_workers.items():
                patch.setenv(name, value)
            ray = stack.enter_context(EmbeddedRay(num_cpus=2))
        yield ray
        if ray.has_ended():
            notes.append(f"The tests' embedded Ray ended by itself:\n{ray.output()}")
