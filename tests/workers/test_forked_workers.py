"""Test that the workers of the tests' Ray are forks of the template, and that the template survives clients that go away."""

from __future__ import annotations

import os
import socket

import psutil
import pytest
import ray

import cafe_core
from tests.forked_workers import template
from tests.workers.conftest import SmallRay


@ray.remote
class Worker:
    """An actor, for which Ray starts a process."""

    def parent(self) -> int:
        return os.getppid()

    def package(self) -> str | None:
        return cafe_core.__file__


@pytest.mark.usefixtures("leaves_nothing")
def test_workers_are_forks_of_the_template(small_ray: SmallRay, forked_workers: dict[str, str]) -> None:  # noqa: ARG001
    for sent in (b"", b"abc"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(forked_workers[template.ADDRESS])
            client.sendall(sent)
    workers = [Worker.remote() for _ in range(3)]  # more than Ray has started in advance
    parents = {ray.get(worker.parent.remote(), timeout=120) for worker in workers}
    assert ray.get(workers[0].package.remote(), timeout=120) == cafe_core.__file__  # not that of another checkout
    for worker in workers:
        ray.kill(worker)
    [parent] = parents
    assert psutil.Process(parent).cmdline()[1:2] == [template.__file__]
