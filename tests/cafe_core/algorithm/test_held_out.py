from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cafe_core.algorithm.held_out import split


@given(count=st.integers(2, 300), fraction=st.floats(0, 1), seed=st.integers(0, 2**63 - 1))
def test_every_image_is_kept_or_held_out_and_neither_part_is_empty(count: int, fraction: float, seed: int) -> None:
    kept, held = split(seed, 3, count, fraction)
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(count))
    assert kept.tolist() == sorted(kept.tolist())
    assert held.tolist() == sorted(held.tolist())
    assert min(len(kept), len(held)) >= 1
    assert abs(len(held) - fraction * count) <= 1


def test_split_depends_on_seed_and_class() -> None:
    def held(seed: int, k: int) -> list[int]:
        chosen: list[int] = split(seed, k, 1000, 0.1)[1].tolist()
        return chosen

    assert len(held(0, 0)) == 100
    assert held(0, 0) == held(0, 0)
    assert held(0, 0) != held(1, 0)
    assert held(0, 0) != held(0, 1)


@pytest.mark.parametrize("count", [0, 1])
def test_class_that_is_too_small_to_split_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"class 7 has {count}"):
        split(0, 7, count, 0.5)
