"""Look up published numbers in `published.json`, which gives the source of each. Accuracies are in percent."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

TABLE1_IPCS = (1, 10, 50)
"""Images per class in Table 1."""


@dataclass(frozen=True)
class Published:
    """A number as stated in the paper."""

    mean: float
    std: float | None = None
    """None if the paper states none."""
    approximate: bool = False
    """Whether the paper states it with ≈."""

    def __str__(self) -> str:
        deviation = f" ± {self.std:.1f}" if self.std is not None else ""
        return f"{'≈ ' if self.approximate else ''}{self.mean:g}{deviation}"


@cache
def figures() -> dict[str, Any]:
    """Return the content of `published.json`."""
    content: dict[str, Any] = json.loads(resources.files(__package__).joinpath("published.json").read_text(encoding="utf-8"))
    return content


def table1(dataset: str, row: str, ipc: int) -> Published | None:
    """Return a number of Table 1 for a dataset as the paper spells it, or None. `Whole` does not depend on ipc."""
    mean, std = figures()["published"].get(dataset, {}).get(row), figures()["table1_std"].get(dataset, {}).get(row)
    if row != "Whole":
        if mean is None or ipc not in TABLE1_IPCS:
            return None
        mean, std = mean[TABLE1_IPCS.index(ipc)], std[TABLE1_IPCS.index(ipc)]
    return None if mean is None else Published(mean, std)


def table2(losses: str, *, dynamic: bool) -> Published:
    """Return a number of Table 2. losses: DL, LFA or DL+LFA."""
    return Published(figures()["ablation_cifar10_ipc50_table2"][f"{losses}+dyn" if dynamic else losses])


def layers(table: str, row: int, *, with_discrimination: bool) -> Published:
    """Return a number of `table3` or `table4`, row 0 to 3."""
    return Published(figures()[table]["LFA+DL" if with_discrimination else "LFA"][row])


def table5(gamma: int | None) -> tuple[Published, Published]:
    """Return (accuracy, minutes) of Table 5 for a γ, or for DC (None)."""
    if gamma is None:
        return Published(figures()["table5_dc"]["accuracy"]), Published(figures()["table5_dc"]["minutes"], approximate=True)
    columns = figures()["gamma_table5"]
    place = columns["gamma"].index(gamma)
    return Published(columns["accuracy"][place]), Published(columns["minutes"][place], approximate=True)


def table6(method: str, network: str) -> Published:
    """Return a number of Table 6: `DC` or `CAFE` condensed with ConvNet, tested on `network` as the paper spells it."""
    mean = figures()["cross_architecture_cifar10_ipc50"][method][network]
    return Published(mean, figures()["table6_std"][method][network])


def figure3_default() -> Published:
    """Return the accuracy with default λ1, λ2 and β, the only point of Figure 3 that the paper states as a number."""
    return Published(figures()["figure3"]["accuracy"])
