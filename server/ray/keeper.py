"""Starts the local Ray again when it has ended while the server goes on.

Its jobs are lost with it, and go on as new attempts when it is back: see :mod:`server.reconciler.policy`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from server.ray.embedded import EmbeddedRay

log = logging.getLogger(__name__)

LOOK_EVERY_S = 3.0


@contextmanager
def kept(ray: EmbeddedRay) -> Iterator[None]:
    """Within the block, whenever `ray` has ended it is started again: at the same address, with the same token."""
    over = threading.Event()
    # Ray ends when the thread that has started it does, so the thread is one that lives as long as the block.
    thread = threading.Thread(target=_keep, args=(ray, over), name="keeps the local Ray", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _keep(ray: EmbeddedRay, over: threading.Event) -> None:
    while not over.wait(LOOK_EVERY_S):
        if ray.has_ended():
            log.error("the local Ray has ended; starting it again. It printed:\n%s", ray.output())
            try:
                ray.restart()
            except OSError:
                log.exception("the local Ray could not be started; trying again in %g s", LOOK_EVERY_S)
