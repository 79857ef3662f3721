"""Test the stop rules with a table of cases, and their bounds with arbitrary accuracies."""

from __future__ import annotations

import math
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafe_core.algorithm.bilevel import Check, Loop, QueryAverage, StopReason, needed_queries


def run(loop: Loop, accuracies: list[float], made: list[int] | None = None) -> tuple[int, StopReason | None]:
    """Return the number of steps and why the loop ended. The steps whose checks are made are added to `made`."""

    def check(step: int) -> Check:
        def measure() -> float:
            if made is not None:
                made.append(step)
            return accuracies[step]

        return Check(measure)

    for step in range(len(accuracies)):
        reason = loop.ends_after(check(step))
        if reason is not None:
            return loop.steps, reason
    return loop.steps, None


@pytest.mark.parametrize(
    ("case", "bound", "window", "threshold", "rule", "accuracies", "expected"),
    [
        ("flat from the start: stops when the window is full", 9, 3, 0.05, "converged", [0.5] * 9, (3, "converged")),
        ("a window that is not full never stops the loop", 9, 5, 0.05, "converged", [0.5] * 4, (4, None)),
        ("rises, then flat", 9, 3, 0.05, "converged", [0.1, 0.3, 0.5, 0.51, 0.52], (5, "converged")),
        ("a span equal to λ1 does not stop the loop", 4, 2, 0.25, "converged", [0.0, 0.25, 0.5, 0.75], (4, "bound")),
        ("the window drops old accuracies", 9, 2, 0.05, "converged", [0.0, 0.9, 0.9], (3, "converged")),
        ("never flat: stops at the bound", 4, 2, 0.05, "converged", [0.1, 0.9, 0.1, 0.9, 0.1], (4, "bound")),
        ("moved enough: stops when the window is full", 9, 3, 0.05, "moved", [0.1, 0.2, 0.3, 0.4], (3, "moved")),
        ("does not move: stops at the bound", 5, 3, 0.05, "moved", [0.2] * 9, (5, "bound")),
        ("a span equal to λ2 does not stop the loop", 4, 2, 0.25, "moved", [0.0, 0.25, 0.5, 0.75], (4, "bound")),
        ("a jump before the window is full counts", 9, 3, 0.3, "moved", [0.1, 0.5, 0.5], (3, "moved")),
        ("a fall counts as moving", 9, 2, 0.05, "moved", [0.9, 0.2], (2, "moved")),
        ("γ = 1: one value spans 0", 9, 1, 0.05, "converged", [0.3], (1, "converged")),
        ("at the bound the rule is not asked", 3, 3, 0.05, "converged", [0.5] * 3, (3, "bound")),
        ("fixed loops stop only at the bound", 4, 0, 0.05, "converged", [0.5] * 9, (4, "bound")),
    ],
)
def test_loop_stops_by_its_rule_or_bound(
    case: str,
    bound: int,
    window: int,
    threshold: float,
    rule: StopReason,
    accuracies: list[float],
    expected: tuple[int, StopReason | None],
) -> None:
    assert run(Loop(bound, window, threshold, rule), accuracies) == expected, case


@pytest.mark.parametrize(
    ("case", "bound", "threshold", "rule", "accuracies", "expected"),
    [
        ("newest and oldest differ: moved", 9, 0.1, "moved", [0.1, 0.15, 0.2, 0.3], [3, 0]),
        ("only one between them differs", 9, 0.1, "moved", [0.1, 0.15, 0.3, 0.1], [3, 0, 1, 2]),
        ("all are alike, so all are needed", 9, 0.1, "converged", [0.1, 0.1, 0.1, 0.1], [3, 0, 1, 2]),
        ("not converged: the others are needed one by one", 9, 0.1, "converged", [0.1, 0.3, 0.3, 0.3, 0.3], [3, 0, 4, 1, 2]),
        ("none is made at the bound", 5, 0.1, "converged", [0.1, 0.5, 0.1, 0.5, 0.1], [3, 0]),
    ],
)
def test_checks_are_made_only_while_the_rule_is_undecided(
    case: str, bound: int, threshold: float, rule: StopReason, accuracies: list[float], expected: list[int]
) -> None:
    made: list[int] = []
    run(Loop(bound, 4, threshold, rule), accuracies, made)
    assert made == expected, case


def test_made_checks_and_ended_loops_keep_no_copies() -> None:
    """A check that waits holds a copy of the network's weights, and all loops of an iteration are kept for its report."""

    class Measure:
        def __call__(self) -> float:
            return 0.5

    measures = [Measure() for _ in range(5)]
    alive = [weakref.ref(measure) for measure in measures]
    checks = [Check(measure) for measure in measures]
    del measures
    assert checks[0].accuracy() == checks[0].accuracy() == 0.5
    assert alive[0]() is None
    loop = Loop(5, 4, 0.1, "moved")
    while checks:
        loop.ends_after(checks.pop(0))
        if loop.steps == 3:
            assert all(ref() is not None for ref in alive[1:3])  # they wait until the window is full
    assert loop.stop == "bound"
    assert [ref() for ref in alive] == [None] * 5


@given(
    accuracies=st.lists(st.integers(0, 6).map(lambda hits: hits / 8), min_size=12, max_size=12),
    bound=st.integers(1, 12),
    window=st.integers(1, 6),
    threshold=st.integers(0, 6).map(lambda hits: hits / 8),
    rule=st.sampled_from(["converged", "moved"]),
)
def test_loop_ends_where_the_whole_window_says(
    accuracies: list[float], bound: int, window: int, threshold: float, rule: StopReason
) -> None:
    def ends(step: int) -> StopReason | None:
        if step == bound:
            return "bound"
        seen = accuracies[max(0, step - window) : step]
        span = max(seen) - min(seen)
        return rule if len(seen) == window and (span < threshold if rule == "converged" else span > threshold) else None

    expected = next((step, reason) for step in range(1, bound + 1) if (reason := ends(step)))
    made: list[int] = []
    assert run(Loop(bound, window, threshold, rule), accuracies, made) == expected
    assert len(made) == len(set(made))


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
        (10, 50, 10, False, (False, True)),  # a window that is full only at the last step has no effect
        (50, 10, 10, False, (True, False)),
        (1, 50, 10, False, (False, False)),  # there is no inner loop after the last outer step
        (10, 50, 0, False, (False, False)),  # fixed loops
        (10, 50, 10, True, (True, True)),  # queries of the outer loop enter the accuracies of the inner loop
        (1, 50, 10, True, (False, False)),
    ],
)
def test_queries_are_made_only_if_they_can_have_an_effect(
    max_outer: int, max_inner: int, window: int, carry: bool, needed: tuple[bool, bool]
) -> None:
    assert needed_queries(max_outer, max_inner, window, carry) == needed


def test_query_average_with_and_without_carry() -> None:
    plain, carried = QueryAverage(10, carry=False), QueryAverage(10, carry=True)
    assert [plain.update(a) for a in (0.5, 0.6)] == [0.5, 0.6]
    assert [carried.update(a) for a in (0.5, 0.6, 0.6)] == pytest.approx([0.5, 0.65, 0.665])
    assert math.isclose(carried.update(0.6), 0.6 + 0.665 / 10)
