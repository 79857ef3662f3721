"""List the tables and figures that can be reproduced."""

from __future__ import annotations

from collections.abc import Callable

from cafe_core.reproduction import figures_of_paper as figures
from cafe_core.reproduction import tables_of_paper as tables
from cafe_core.reproduction.beyond import beyond
from cafe_core.reproduction.experiment import Experiment, TableName
from cafe_core.reproduction.scales import Scale

EXPERIMENTS: dict[TableName, Callable[[Scale], Experiment]] = {
    "table1": tables.table1,
    "table2": tables.table2,
    "table3": tables.table3,
    "table4": tables.table4,
    "table5": tables.table5,
    "table6": tables.table6,
    "figure3a": figures.figure3a,
    "figure3b": figures.figure3b,
    "figure3c": figures.figure3c,
    "figure4": figures.figure4,
    "figure5": figures.figure5,
    "beyond": beyond,
}
"""A function per name that returns the experiment at a scale."""
