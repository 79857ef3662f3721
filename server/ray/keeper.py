"""Restart the local Ray when it ends while the server runs.

Its jobs are lost with it and continue as new attempts after the restart: see :mod:`server.reconciler.policy`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from server.ray.embedded import EmbeddedRay

log = logging.getLogger(__name__)

CHECK_EVERY_S = 3.0


@contextmanager
def restarting(ray: EmbeddedRay) -> Iterator[None]:
    """Within the block, restart `ray` whenever it has ended, at the same address and with the same token."""
    stop = threading.Event()
    # Ray ends with the thread that started it, so this thread lives as long as the block.
    thread = threading.Thread(target=_keep, args=(ray, stop), name="local Ray keeper", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _keep(ray: EmbeddedRay, stop: threading.Event) -> None:
    while not stop.wait(CHECK_EVERY_S):
        if ray.has_ended():
            log.error("the local Ray has ended; restarting it. Its output:\n%s", ray.output())
            try:
                ray.restart()
            except OSError:
                log.exception("cannot start the local Ray; retrying in %g s", CHECK_EVERY_S)
