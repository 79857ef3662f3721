"""Start the workers of Ray as forks of one process that has imported torch, other large libraries and `cafe_core`: the template.

A job on Ray starts up to six workers. Each imports torch, pandas, pyarrow and `cafe_core`, which takes 5 s of CPU time: longer
than most jobs of the tests run. A fork has them already. It then runs Ray's own program for workers, with the arguments,
environment, module path, directory and files of the process that Ray started. The template imports nothing of Ray, which reads
the job's ID and other settings from the environment when it is imported.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ADDRESS = "TEMPLATE_OF_WORKERS"
"""The environment variable with the path of the template's socket."""
LIBRARIES = (
    *("torch", "pandas", "pyarrow.fs", "safetensors.torch", "PIL.Image", "jsonschema", "yaml", "msgpack", "psutil", "pdb"),
    "torch.fx.experimental.symbolic_shapes",  # autograd imports it at the first backward pass from given gradients
    *("pydantic.dataclasses", "pydantic.v1", "pydantic._internal._generate_schema", "google.protobuf.json_format"),
    *("requests", "aiohttp", "fsspec.asyn", "filelock", "rich.console", "rich.table"),
    *("cafe_core.jobs.condense_job", "cafe_core.evaluation.run"),
)
"""The modules that the template imports: the slowest ones that workers need, without those of Ray."""
LENGTH_BYTES = 4
ANSWER_WITHIN_S = 60.0


@contextmanager
def running() -> Iterator[dict[str, str]]:
    """Run a template. Yield the environment variables with which a Ray has to be started to use it."""
    with tempfile.TemporaryDirectory(prefix="cafe-template-", dir="/tmp") as directory:  # a socket's path is limited to 107 bytes
        path = str(Path(directory, "socket"))
        command = [sys.executable, __file__, path]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
        pipe = subprocess.PIPE  # the template ends when its input ends
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment) as process:
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == b"ready\n"
                python_path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
                yield {ADDRESS: path, "PYTHONPATH": os.pathsep.join(python_path)}
            finally:
                process.kill()


def request(path: str, arguments: list[str]) -> None:
    """Ask the template at `path` for a worker that takes over the standard files of this process. Return when it exists."""
    message = {"arguments": arguments, "environment": dict(os.environ), "directory": str(Path.cwd()), "path": sys.path}
    body = json.dumps(message).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_WITHIN_S)
        connection.connect(path)
        socket.send_fds(connection, [len(body).to_bytes(LENGTH_BYTES, "big")], [0, 1, 2])
        connection.sendall(body)
        assert connection.recv(1) == b"."


def serve(path: str) -> None:
    """Import the libraries, then start a worker for each request."""
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # so that collections in the workers do not copy the pages of these objects
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                return  # the tests have ended
            connection, _ = listener.accept()
            with connection:
                try:
                    length, files, _, _ = socket.recv_fds(connection, LENGTH_BYTES, 3)
                    with connection.makefile("rb") as stream:
                        message = json.loads(stream.read(int.from_bytes(length, "big")))
                except (OSError, ValueError):
                    continue  # Ray has ended the process that asked
                if os.fork() == 0:
                    listener.close()
                    connection.close()
                    become_worker(message, files)
                for file in files:
                    os.close(file)
                with contextlib.suppress(OSError):
                    connection.sendall(b".")


def become_worker(message: dict[str, Any], files: list[int]) -> None:
    """Run Ray's program for workers in this process, and exit."""
    os.setpgid(0, 0)  # Ray starts each worker in a process group, and kills the group
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(message["environment"])
    os.chdir(message["directory"])
    program, *arguments = message["arguments"]
    sys.path[:] = [str(Path(program).parent), *message["path"]]

    from ray._private.runtime_env.context import RuntimeEnvContext
    from ray._private.utils import update_envs

    # What Ray's setup_worker.py does before it executes the program, for runtime environments that only set variables.
    context = RuntimeEnvContext.deserialize(_option(arguments, "--serialized-runtime-env-context") or "{}")
    assert not context.command_prefix
    assert context.override_worker_entrypoint is None
    update_envs(context.env_vars)
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")
    sys.exit()


def _option(arguments: list[str], name: str) -> str | None:
    """Remove `name=VALUE` from the arguments, and `--language=…`, which only setup_worker.py knows; return VALUE."""
    found = [argument for argument in arguments if argument.startswith((f"{name}=", "--language="))]
    arguments[:] = [argument for argument in arguments if argument not in found]
    values = [argument.partition("=")[2] for argument in found if argument.startswith(name)]
    return values[0] if values else None


if __name__ == "__main__":
    serve(sys.argv[1])
