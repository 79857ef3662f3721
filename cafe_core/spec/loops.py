"""Look up the published bounds of the outer and the inner loop, by ipc."""

from __future__ import annotations

from itertools import pairwise

_DC_LOOPS = ((1, 1, 1), (10, 10, 50), (20, 20, 25), (30, 30, 20), (40, 40, 15), (50, 50, 10))
"""(ipc, max_outer, max_inner) of DC (Zhao et al., ICLR 2021), which CAFE's paper uses too."""


def dc_loops(ipc: int) -> tuple[int, int]:
    """Return (max_outer, max_inner) for an ipc: DC's table, linear between its entries, constant after the last one."""
    for (ipc_a, outer_a, inner_a), (ipc_b, outer_b, inner_b) in pairwise(_DC_LOOPS):
        if ipc_a <= ipc < ipc_b:
            t = (ipc - ipc_a) / (ipc_b - ipc_a)
            return round(outer_a + t * (outer_b - outer_a)), round(inner_a + t * (inner_b - inner_a))
    return _DC_LOOPS[-1][1:]
