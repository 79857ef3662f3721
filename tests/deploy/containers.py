"""Start the services of a compose project as processes, each in its own namespaces, without a container engine.

Like a container, each service has its own network (an address on a bridge for each of its networks; its peers' names in
/etc/hosts), processes, host name and file system (read-only root; volumes, secrets and tmpfs as in the compose file), runs
as the user in the compose file, and has no capabilities. Unlike a container, it uses the programs of this machine instead of
an image's, and has no memory limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser

from tests.deploy.compose import ROOT, Mount, Project, Service

HERE = Path(__file__).parent
POSTGRES = Path("/usr/lib/postgresql/15/bin")
ENTRYPOINTS = {"cafe": [], "postgres": [str(HERE / "postgres_entrypoint.sh")], "prom/prometheus": ["prometheus"]}
"""The entry points of the images."""
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
START_WITHIN_S = 90.0


def unavailable_reason() -> str | None:
    """Return why containers cannot be started on this machine, or None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    programs = {"ip", "unshare", "nsenter", "setpriv", "prometheus", "wget", str(POSTGRES / "postgres")}
    if absent := sorted(program for program in programs if shutil.which(program) is None):
        return f"not installed: {', '.join(absent)}"
    name = f"cafe-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        return f"cannot create a network namespace: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


@dataclass
class Container:
    """A running service."""

    service: Service
    namespace: str
    addresses: dict[str, str]
    """The address of the service in each network."""
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes]

    def init_pid(self) -> int | None:
        """Return this machine's ID of the container's process 1, or None if it has not entered its file system yet."""
        try:
            for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
                if Path(f"/proc/{child}/root").readlink() != Path("/"):
                    return int(child)
        except FileNotFoundError:
            pass  # the process has ended
        return None

    def run(self, command: list[str], *, as_root: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as its user."""
        init = self.init_pid()
        assert init is not None
        uid, gid = ("0", "0") if as_root else self.service.user.split(":")
        return subprocess.run(
            [
                *("nsenter", f"--target={init}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"),
                *("setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs", "--", *command),
            ],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def is_healthy(self) -> bool:
        """Return whether the service is running and passes its health check."""
        if self.process.poll() is not None or self.init_pid() is None:
            return False
        assert self.service.healthcheck is not None
        return self.run(self.service.healthcheck).returncode == 0


@dataclass
class Containers:
    """A context manager that runs the services of a project."""

    project: Project
    directory: Path
    """The directory of volumes and logs."""
    running: dict[str, Container] = field(default_factory=dict)
    networks: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    """For each service: its network namespace, and its address in each network."""

    def __post_init__(self) -> None:
        self._id = os.getpid() % 0xFFFF
        self._links: list[str] = []
        self._bridges = {network: f"cf{self._id:x}{index}" for index, network in enumerate(self.project.networks)}
        self._subnets = {network: f"10.{201 + index}.{self._id % 250}" for index, network in enumerate(self.project.networks)}

    def __enter__(self) -> Containers:
        try:
            for network, internal in self.project.networks.items():
                bridge = self._bridges[network]
                _ip("link", "add", bridge, "type", "bridge")
                _ip("link", "set", bridge, "up")
                if not internal:
                    _ip("address", "add", f"{self._subnets[network]}.1/24", "dev", bridge)
            for service in self.project.services.values():
                self.networks[service.name] = self.add_namespace(service.name, service.networks)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all processes and delete the networks."""
        for container in reversed(self.running.values()):
            container.process.send_signal(signal.SIGKILL)  # unshare; its child, process 1 of the container, ends with it
            container.process.wait()
        for namespace in _namespaces(f"cafe-{self._id:x}-"):
            _ip("netns", "delete", namespace)
        for link in self._links:  # lingering connections keep a namespace and its links for minutes
            with contextlib.suppress(subprocess.CalledProcessError):  # deleted with its namespace
                _ip("link", "delete", link)
        for bridge in self._bridges.values():
            with contextlib.suppress(subprocess.CalledProcessError):  # not created yet
                _ip("link", "delete", bridge)

    def start(self, names: list[str]) -> None:
        """Start services one after the other, each when the services it depends on meet their conditions."""
        for name in names:
            service = self.project.services[name]
            for other, condition in service.depends_on.items():
                self._await(self.running[other], condition)
            self.running[name] = self._start(service)

    def await_healthy(self) -> None:
        """Wait until all services that have a health check pass it."""
        for container in self.running.values():
            if container.service.healthcheck:
                self._await(container, "service_healthy")

    def add_namespace(self, name: str, networks: list[str]) -> tuple[str, dict[str, str]]:
        """Create a network namespace with an address in each network. Return its name and {network: address}."""
        namespace = f"cafe-{self._id:x}-{name}"
        host = 10 + len(_namespaces(f"cafe-{self._id:x}-"))
        _ip("netns", "add", namespace)
        _ip("-n", namespace, "link", "set", "lo", "up")
        addresses = {}
        for index, network in enumerate(networks):
            outer = f"cf{self._id:x}{host}{index}"
            addresses[network] = f"{self._subnets[network]}.{host}"
            _ip("link", "add", outer, "type", "veth", "peer", "name", f"eth{index}", "netns", namespace)
            self._links.append(outer)
            _ip("link", "set", outer, "master", self._bridges[network], "up")
            _ip("-n", namespace, "address", "add", f"{addresses[network]}/24", "dev", f"eth{index}")
            _ip("-n", namespace, "link", "set", f"eth{index}", "up")
            if not self.project.networks[network]:
                _ip("-n", namespace, "route", "add", "default", "via", f"{self._subnets[network]}.1")
        return namespace, addresses

    def _start(self, service: Service) -> Container:
        namespace, addresses = self.networks[service.name]
        log = self.directory / f"{service.name}.log"
        environment = _image_environment(service) | service.environment
        container_spec = {
            "scratch": str(self._create(self.directory / "scratch" / service.name)),
            "hostname": service.name,
            "user": service.user,
            "environment": environment,
            "command": [*ENTRYPOINTS[_image(service)], *service.command],
            "cwd": "/",
            "tmpfs": service.tmpfs,
            "host_paths": outermost(ROOT, Path(sys.prefix), Path(sys.base_prefix)),
            "mounts": [*(self._mounted(service, mount) for mount in service.mounts), *self._secrets(service)],
            "files": {
                "/etc/hosts": self._hosts(service),
                "/etc/passwd": "".join(f"{name}:x:{uid}:{uid}::/:/bin/false\n" for name, uid in _USERS.items()),
            },
        }
        with log.open("ab") as output:
            process = subprocess.Popen(
                [
                    *("ip", "netns", "exec", namespace),
                    *("unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"),
                    *(sys.executable, "-I", str(HERE / "container_init.py")),
                ],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        assert process.stdin is not None
        with process.stdin as stdin:
            stdin.write(json.dumps(container_spec).encode())
        return Container(service, namespace, addresses, environment, log, process)

    def _hosts(self, service: Service) -> str:
        """Return /etc/hosts: the services, each with its address in the first network that it shares with `service`."""
        lines = ["127.0.0.1 localhost"]
        for name, (_, addresses) in self.networks.items():
            lines += [f"{addresses[network]} {name}" for network in service.networks if network in addresses][:1]
        return "\n".join(lines) + "\n"

    def _mounted(self, service: Service, mount: Mount) -> tuple[str, str, bool]:
        if mount.source is not None and mount.source.startswith("."):
            return str(ROOT / mount.source), mount.target, mount.read_only
        volume = self.directory / "volumes" / (mount.source or f"{service.name}{mount.target.replace('/', '-')}")
        if not volume.exists():  # an empty volume gets the owner of the image's directory at that path
            uid, gid = service.user.split(":")
            self._create(volume)
            os.chown(volume, int(uid), int(gid))
            volume.chmod(0o700 if _image(service) == "postgres" else 0o755)
        return str(volume), mount.target, mount.read_only

    def _secrets(self, service: Service) -> list[tuple[str, str, bool]]:
        return [(str(self.project.secrets[name]), f"/run/secrets/{name}", True) for name in service.secrets]

    def _await(self, container: Container, condition: str) -> None:
        """Wait until a service meets a condition. Raises RuntimeError with the end of its log if it fails or takes too long."""
        name = container.service.name
        deadline = time.monotonic() + START_WITHIN_S
        while time.monotonic() < deadline:
            code = container.process.poll()
            match condition:
                case "service_started":
                    return
                case "service_completed_successfully" if code == 0:
                    return
                case "service_healthy" if container.is_healthy():
                    return
            if code:
                break
            time.sleep(1)  # a health check starts a process
        log = container.log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{name} did not meet {condition} (exit code {container.process.poll()}):\n{log}")

    @staticmethod
    def _create(directory: Path) -> Path:
        directory.mkdir(parents=True)
        return directory


_USERS = {"root": 0, "postgres": 999, "cafe": 10001, "nobody": 65534}


def _image(service: Service) -> str:
    return service.image.partition(":")[0]


def _image_environment(service: Service) -> dict[str, str]:
    """Return the environment of the image. Programs are those of this machine, Python's those of the tests' environment."""
    if _image(service) == "cafe":
        from_image = DockerfileParser(str(ROOT / "deploy" / "Dockerfile")).envs
        return from_image | {"PATH": f"{Path(sys.prefix) / 'bin'}:{SYSTEM_PATH}", "OMP_NUM_THREADS": "1"}
    return {"PATH": f"{POSTGRES}:{SYSTEM_PATH}"}


def _namespaces(prefix: str) -> list[str]:
    listed = subprocess.run(["ip", "-json", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [entry["name"] for entry in json.loads(listed or "[]") if entry["name"].startswith(prefix)]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def outermost(*paths: Path) -> list[str]:
    """Return the paths that are not inside another one: `make` creates .venv in the project."""
    return [str(path) for path in paths if not any(other in path.parents for other in paths)]
