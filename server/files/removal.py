"""Removing a directory together with its row in the database, whatever happens in between.

It is moved aside within the transaction and cleared after it: nobody sees a half, a transaction that fails has the
directory put back, and what a dying server left aside is put back or cleared at the next start.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

ASIDE = ".deleted-"

Clear = Callable[[Path], None]


def remove_tree(aside: Path) -> None:
    """Remove a directory with all that is in it."""
    shutil.rmtree(aside)


@contextmanager
def stage_removal(directory: Path, clear: Clear = remove_tree) -> Iterator[Callable[[], None]]:
    """Around the transaction that deletes the row of `directory`; yields what is to be called last in it."""
    aside = directory.with_name(f"{ASIDE}{directory.name}")
    moved = False  # by this removal: another one's is none of ours

    def set_aside() -> None:
        nonlocal moved
        if directory.exists():
            directory.rename(aside)
            moved = True

    try:
        yield set_aside
    except BaseException:
        if moved:
            aside.rename(directory)
        raise
    if moved:
        _clear(aside, clear)


def finish_removals(parent: Path, known: Collection[str], clear: Clear = remove_tree) -> None:
    """At the start, before anything else: put back what is `known` by the database, clear the rest."""
    for aside in parent.glob(f"{ASIDE}*"):
        name = aside.name.removeprefix(ASIDE)
        if name in known:
            aside.rename(parent / name)
        else:
            _clear(aside, clear)


def _clear(aside: Path, clear: Clear) -> None:
    """The row is gone, so its files' end is a matter of time: what fails is tried again at the next start."""
    try:
        clear(aside)
    except OSError:
        log.exception("%s could not be removed; trying again when the server starts", aside)
