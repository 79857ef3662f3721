"""Remove a directory together with its database row, atomically even if the server dies in between.

The directory is moved aside within the transaction and deleted after the commit. If the transaction fails, it is moved back;
if the server dies, the next start moves it back or deletes it, depending on whether the row exists.
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
    """Remove a directory and everything in it."""
    shutil.rmtree(aside)


@contextmanager
def stage_removal(directory: Path, clear: Clear = remove_tree) -> Iterator[Callable[[], None]]:
    """Wrap the transaction that deletes the row of `directory`; yields a function to call last in the transaction."""
    aside = directory.with_name(f"{ASIDE}{directory.name}")
    moved = False  # by this removal, not by a concurrent one

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
    """Move directories back whose names are in `known`, and delete the others. Call it at startup, before serving."""
    for aside in parent.glob(f"{ASIDE}*"):
        name = aside.name.removeprefix(ASIDE)
        if name in known:
            aside.rename(parent / name)
        else:
            _clear(aside, clear)


def _clear(aside: Path, clear: Clear) -> None:
    """Delete the files. The row is gone already, so a failure is retried at the next start."""
    try:
        clear(aside)
    except OSError:
        log.exception("could not remove %s; retrying at the next start", aside)
