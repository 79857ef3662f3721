"""Real Rays of several nodes, and the tables that tests make."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.reliability.hosts import hosts, reason_for_none
from tests.reliability.measured import Row, table
from tests.reliability.ray_nodes import RayNodes


@pytest.fixture(scope="module")
def rows(notes: list[str]) -> Iterator[list[Row]]:
    """Collect the kill matrix's rows of a module; the table is printed after the tests."""
    made: list[Row] = []
    yield made
    notes.append(table(made))


@pytest.fixture(scope="module")
def ray_nodes() -> Iterator[RayNodes]:
    """Start a Ray of four nodes: a head, two for two workers, and a spare one."""
    if (reason := reason_for_none()) is not None:
        pytest.skip(reason)
    with hosts(4) as made, RayNodes(made) as ray:
        yield ray
