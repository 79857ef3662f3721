from __future__ import annotations

import itertools

import pytest
import torch

from cafe_core.algorithm.sampling import choose, counter_seed, generator


def test_same_address_gives_the_same_draw() -> None:
    first = torch.rand(8, generator=generator(3, "real", 1, 2))
    torch.rand(100)  # other random draws in between have no effect
    assert torch.equal(first, torch.rand(8, generator=generator(3, "real", 1, 2)))


def test_seed_depends_on_every_part_of_the_address() -> None:
    addresses = [
        (0, "a"),
        (1, "a"),
        (0, "b"),
        (0, "a", 0),
        (0, "a", 0, 0),
        (0, "a", 1, 23),
        (0, "a", 12, 3),
        (0, "a',1"),
        (0, "a", -1),
        (2**63, "a"),
    ]
    seeds = [counter_seed(seed, purpose, *counters) for seed, purpose, *counters in addresses]
    assert len(set(seeds)) == len(addresses)
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_seed_of_an_address_never_changes() -> None:
    """A run may be resumed by a newer version of the program, which must make the same draws."""
    assert counter_seed(0, "real", 1, 2, 3) == 0xA443C993F3E6A300


def test_draws_at_neighbouring_addresses_are_uncorrelated() -> None:
    draws = torch.stack([torch.randn(2000, generator=generator(0, "noise", i)) for i in range(8)])
    correlation = torch.corrcoef(draws) - torch.eye(8)
    assert correlation.abs().max() < 0.1  # 4.5 standard deviations


@pytest.mark.parametrize(("population", "count", "expected"), [(10, 4, 4), (4, 10, 4), (5, 5, 5), (5, 0, 0), (0, 3, 0)])
def test_choose_returns_distinct_indices(population: int, count: int, expected: int) -> None:
    chosen = choose(generator(0, "choose"), population, count)
    assert chosen.dtype == torch.int64
    assert len(chosen) == expected == len(set(chosen.tolist()))
    assert all(0 <= index < population for index in chosen.tolist())


def test_choose_is_uniform() -> None:
    counts = torch.zeros(6)
    for draw in range(3000):
        counts[choose(generator(0, "uniform", draw), 6, 2)] += 1
    assert (counts / 1000 - 1).abs().max() < 0.15  # 1000 expected each, standard deviation 26


def test_choose_keeps_only_the_memory_of_its_result() -> None:
    assert choose(generator(0, "memory"), 10_000, 3).untyped_storage().nbytes() == 3 * 8


def test_choices_of_different_classes_differ() -> None:
    choices = [tuple(choose(generator(0, "real", 0, 0, k), 1000, 16).tolist()) for k in range(10)]
    assert all(a != b for a, b in itertools.combinations(choices, 2))
