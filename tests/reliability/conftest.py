"""Real Rays of several nodes, and the tables that tests make."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.reliability.hosts import hosts, reason_for_none
from tests.reliability.measured import Row, table
from tests.reliability.ray_nodes import RayNodes

TABLES: pytest.StashKey[list[str]] = pytest.StashKey()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the tables."""
    for text in config.stash.get(TABLES, []):
        terminalreporter.write_line(f"\n{text}\n")


@pytest.fixture(scope="session")
def tables(request: pytest.FixtureRequest) -> list[str]:
    """Texts that are printed after the tests."""
    return request.config.stash.setdefault(TABLES, [])


@pytest.fixture(scope="module")
def rows(tables: list[str]) -> Iterator[list[Row]]:
    """The rows of the kill matrix that a module's tests have made."""
    made: list[Row] = []
    yield made
    tables.append(table(made))


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """A Ray of four nodes: a head, two for two workers, and a spare one."""
    if (reason := reason_for_none()) is not None:
        pytest.skip(reason)
    with hosts(4) as made, RayNodes(made) as ray:
        yield ray
