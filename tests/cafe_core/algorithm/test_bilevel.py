"""The stop rules: a table of cases, and bounds that hold whatever the accuracies do."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafe_core.algorithm.bilevel import Loop, QueryAverage, StopReason, needed_queries


def run(loop: Loop, accuracies: list[float]) -> tuple[int, StopReason | None]:
    for accuracy in accuracies:
        reason = loop.ends_after(accuracy)
        if reason is not None:
            return loop.steps, reason
    return loop.steps, None


@pytest.mark.parametrize(
    ("case", "bound", "window", "threshold", "rule", "accuracies", "expected"),
    [
        ("flat from the start: as soon as the window is full", 9, 3, 0.05, "converged", [0.5] * 9, (3, "converged")),
        ("a window that is not full never fires", 9, 5, 0.05, "converged", [0.5] * 4, (4, None)),
        ("rises, then flat", 9, 3, 0.05, "converged", [0.1, 0.3, 0.5, 0.51, 0.52], (5, "converged")),
        ("a span equal to λ1 goes on", 4, 2, 0.25, "converged", [0.0, 0.25, 0.5, 0.75], (4, "bound")),
        ("the window forgets the old", 9, 2, 0.05, "converged", [0.0, 0.9, 0.9], (3, "converged")),
        ("never flat: the bound", 4, 2, 0.05, "converged", [0.1, 0.9, 0.1, 0.9, 0.1], (4, "bound")),
        ("moved enough as soon as the window is full", 9, 3, 0.05, "moved", [0.1, 0.2, 0.3, 0.4], (3, "moved")),
        ("does not move: the bound", 5, 3, 0.05, "moved", [0.2] * 9, (5, "bound")),
        ("a span equal to λ2 goes on", 4, 2, 0.25, "moved", [0.0, 0.25, 0.5, 0.75], (4, "bound")),
        ("a jump before the window is full counts", 9, 3, 0.3, "moved", [0.1, 0.5, 0.5], (3, "moved")),
        ("falling moves too", 9, 2, 0.05, "moved", [0.9, 0.2], (2, "moved")),
        ("γ = 1: one value spans 0", 9, 1, 0.05, "converged", [0.3], (1, "converged")),
        ("rule and bound on the same step: the rule is named", 3, 3, 0.05, "converged", [0.5] * 3, (3, "converged")),
        ("fixed: only the bound", 4, 0, 0.05, "converged", [0.5] * 9, (4, "bound")),
    ],
)
def test_stop_rules(
    case: str,
    bound: int,
    window: int,
    threshold: float,
    rule: StopReason,
    accuracies: list[float],
    expected: tuple[int, StopReason | None],
) -> None:
    assert run(Loop(bound, window, threshold, rule), accuracies) == expected, case


@given(
    accuracies=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=30, max_size=30),
    bound=st.integers(1, 30),
    window=st.integers(0, 40),
    threshold=st.floats(0, 1),
    rule=st.sampled_from(["converged", "moved"]),
)
def test_every_loop_is_bounded(accuracies: list[float], bound: int, window: int, threshold: float, rule: StopReason) -> None:
    steps, reason = run(Loop(bound, window, threshold, rule), accuracies)
    assert reason is not None
    assert steps <= bound


@pytest.mark.parametrize(
    ("max_outer", "max_inner", "window", "carry", "needed"),
    [
        (11, 50, 10, False, (True, True)),
        (10, 50, 10, False, (False, True)),  # a window that fills with the last step decides nothing
        (50, 10, 10, False, (True, False)),
        (1, 50, 10, False, (False, False)),  # there is no inner loop after the last outer step
        (10, 50, 0, False, (False, False)),  # fixed loops
        (10, 50, 10, True, (True, True)),  # the outer checks enter into the inner loop's accuracies
        (1, 50, 10, True, (False, False)),
    ],
)
def test_queries_are_made_only_where_they_can_matter(
    max_outer: int, max_inner: int, window: int, carry: bool, needed: tuple[bool, bool]
) -> None:
    assert needed_queries(max_outer, max_inner, window, carry) == needed


def test_query_average() -> None:
    plain, carried = QueryAverage(10, carry=False), QueryAverage(10, carry=True)
    assert [plain.update(a) for a in (0.5, 0.6)] == [0.5, 0.6]
    assert [carried.update(a) for a in (0.5, 0.6, 0.6)] == pytest.approx([0.5, 0.65, 0.665])
    assert math.isclose(carried.update(0.6), 0.6 + 0.665 / 10)
