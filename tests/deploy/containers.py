"""Starts the services of a compose project as processes, each in namespaces of its own: no container engine.

Like a container, each has its own network (an address on a bridge for each of its networks; names of its peers in
/etc/hosts), processes, host name and file system (read-only root; volumes, secrets and tmpfs where the file says), the
user that the file names, and no capabilities. Unlike one, it has this machine's programs instead of its image's, and no
limit on memory.
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
"""What the images of the services run their command with."""
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
START_WITHIN_S = 90.0


def missing() -> str | None:
    """Why containers cannot be had here; None where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    programs = {"ip", "unshare", "nsenter", "setpriv", "prometheus", "wget", str(POSTGRES / "postgres")}
    if absent := sorted(program for program in programs if shutil.which(program) is None):
        return f"not installed: {', '.join(absent)}"
    name = f"cafe-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        return f"no network namespaces: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


@dataclass
class Container:
    """A running service."""

    service: Service
    namespace: str
    addresses: dict[str, str]
    """Network → this service's address there."""
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes]

    def init(self) -> int | None:
        """Process 1 as this machine knows it, once it has gone into the container's file system."""
        try:
            for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
                if Path(f"/proc/{child}/root").readlink() != Path("/"):
                    return int(child)
        except FileNotFoundError:
            pass  # it has ended
        return None

    def run(self, command: list[str], *, as_root: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as its user."""
        init = self.init()
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

    def healthy(self) -> bool:
        """Whether it lives and its health check passes."""
        if self.process.poll() is not None or self.init() is None:
            return False
        assert self.service.healthcheck is not None
        return self.run(self.service.healthcheck).returncode == 0


@dataclass
class Containers:
    """A context manager around the services of a project."""

    project: Project
    directory: Path
    """Volumes and logs."""
    running: dict[str, Container] = field(default_factory=dict)
    networks: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    """Service → its network namespace, and its address in each network."""

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
                self.networks[service.name] = self.namespace(service.name, service.networks)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes, for certain, and take the networks down."""
        for container in reversed(self.running.values()):
            container.process.send_signal(signal.SIGKILL)  # unshare; its child, process 1 of the rest, goes with it
            container.process.wait()
        for namespace in _namespaces(f"cafe-{self._id:x}-"):
            _ip("netns", "delete", namespace)
        for link in self._links:  # a namespace lives on for minutes where connections linger in it, and its links with it
            with contextlib.suppress(subprocess.CalledProcessError):  # its namespace is gone, and it with that
                _ip("link", "delete", link)
        for bridge in self._bridges.values():
            with contextlib.suppress(subprocess.CalledProcessError):  # it had not been made yet
                _ip("link", "delete", bridge)

    def start(self, names: list[str]) -> None:
        """Start services one after the other, each when what it depends on is as it has to be."""
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

    def namespace(self, name: str, networks: list[str]) -> tuple[str, dict[str, str]]:
        """A network namespace with an address on each of `networks`; returns its name and {network: address}."""
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
            "scratch": str(self._made(self.directory / "scratch" / service.name)),
            "hostname": service.name,
            "user": service.user,
            "environment": environment,
            "command": [*ENTRYPOINTS[_image(service)], *service.command],
            "cwd": "/",
            "tmpfs": service.tmpfs,
            "kept": outermost(ROOT, Path(sys.prefix), Path(sys.base_prefix)),
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
        """The services by name, each at its address in the first network that it shares with `service`."""
        lines = ["127.0.0.1 localhost"]
        for name, (_, addresses) in self.networks.items():
            lines += [f"{addresses[network]} {name}" for network in service.networks if network in addresses][:1]
        return "\n".join(lines) + "\n"

    def _mounted(self, service: Service, mount: Mount) -> tuple[str, str, bool]:
        if mount.source is not None and mount.source.startswith("."):
            return str(ROOT / mount.source), mount.target, mount.read_only
        volume = self.directory / "volumes" / (mount.source or f"{service.name}{mount.target.replace('/', '-')}")
        if not volume.exists():  # an empty volume takes over the owner of the directory that the image has there
            uid, gid = service.user.split(":")
            self._made(volume)
            os.chown(volume, int(uid), int(gid))
            volume.chmod(0o700 if _image(service) == "postgres" else 0o755)
        return str(volume), mount.target, mount.read_only

    def _secrets(self, service: Service) -> list[tuple[str, str, bool]]:
        return [(str(self.project.secrets[name]), f"/run/secrets/{name}", True) for name in service.secrets]

    def _await(self, container: Container, condition: str) -> None:
        """Raises RuntimeError, with the end of its log, when the service does not get there in time."""
        name = container.service.name
        deadline = time.monotonic() + START_WITHIN_S
        while time.monotonic() < deadline:
            code = container.process.poll()
            match condition:
                case "service_started":
                    return
                case "service_completed_successfully" if code == 0:
                    return
                case "service_healthy" if container.healthy():
                    return
            if code:
                break
            time.sleep(0.3)
        log = container.log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{name} did not meet {condition} (exit code {container.process.poll()}):\n{log}")

    @staticmethod
    def _made(directory: Path) -> Path:
        directory.mkdir(parents=True)
        return directory


_USERS = {"root": 0, "postgres": 999, "cafe": 10001, "nobody": 65534}


def _image(service: Service) -> str:
    return service.image.partition(":")[0]


def _image_environment(service: Service) -> dict[str, str]:
    """What the image sets. Programs come from this machine: python's from the environment that the tests run in."""
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
    """Those that do not lie within another one: `make` puts .venv into the project."""
    return [str(path) for path in paths if not any(other in path.parents for other in paths)]
