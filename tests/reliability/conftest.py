"""Fixtures: a Ray of several nodes, and the rows of the kill matrix."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.reliability.hosts import hosts, unavailable_reason
from tests.reliability.measured import Row, table
from tests.reliability.ray_nodes import RayNodes


@pytest.fixture(scope="module")
def rows(notes: list[str]) -> Iterator[list[Row]]:
    """Collect the rows that a module adds to the kill matrix. Their table is printed after the tests."""
    made: list[Row] = []
    yield made
    notes.append(table(made))


@pytest.fixture(scope="module")
def ray_nodes() -> Iterator[RayNodes]:
    """Start a Ray of four nodes: a head, two for the two workers, and a spare."""
    if (reason := unavailable_reason()) is not None:
        pytest.skip(reason)
    with hosts(4) as made, RayNodes(made) as ray:
        yield ray
