"""Read docker-compose.yml. Only what this project uses of the Compose language is supported; the rest is refused.

Reference: the Compose specification (interpolation, services, networks, volumes, secrets).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\})")
_SUPPORTED_KEYS = {
    *("build", "cap_drop", "command", "depends_on", "deploy", "environment", "healthcheck", "image", "init", "logging"),
    *("networks", "ports", "profiles", "read_only", "restart", "secrets", "security_opt", "shm_size", "stop_grace_period"),
    *("tmpfs", "user", "volumes"),
}


@dataclass(frozen=True)
class Mount:
    """A mount of a service. source: a named volume, a path in the project, or None for an anonymous volume."""

    source: str | None
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class Service:
    """A service that the chosen profiles start."""

    name: str
    image: str
    command: list[str]
    user: str
    environment: dict[str, str]
    healthcheck: list[str] | None
    depends_on: dict[str, str]
    """For each service that must start first: the condition that it must meet."""
    networks: list[str]
    mounts: list[Mount]
    tmpfs: list[str]
    secrets: list[str]
    ports: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Project:
    """A compose project. The services are in the order in which they can start."""

    services: dict[str, Service]
    secrets: dict[str, Path]
    volumes: list[str]
    networks: dict[str, bool]
    """For each network: whether it is internal."""


def load(path: Path, profiles: set[str], variables: Mapping[str, str]) -> Project:
    """Load the project of a compose file. Raises ValueError for what is not supported."""
    document = interpolate(yaml.safe_load(path.read_text(encoding="utf-8")), variables)
    services = {
        name: _service(name, entry)
        for name, entry in document["services"].items()
        if not entry.get("profiles") or profiles & set(entry["profiles"])
    }
    return Project(
        services={name: services[name] for name in _in_order(services)},
        secrets={name: path.parent / entry["file"] for name, entry in document["secrets"].items()},
        volumes=list(document["volumes"]),
        networks={name: str(entry.get("internal", "false")) == "true" for name, entry in document["networks"].items()},
    )


def interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    """Replace `${NAME}` and `${NAME:-default}` in every string, and `$$` by a dollar sign."""
    if isinstance(value, str):
        return _VARIABLE.sub(lambda found: _value(found, variables), value)
    if isinstance(value, list):
        return [interpolate(item, variables) for item in value]
    if isinstance(value, dict):
        return {key: interpolate(item, variables) for key, item in value.items()}
    return value


def _value(found: re.Match[str], variables: Mapping[str, str]) -> str:
    if found["name"] is None:
        return "$"
    value = variables.get(found["name"]) or found["default"]
    if value is None:
        raise ValueError(f"{found['name']} has neither a value nor a default")
    return value


def _service(name: str, entry: dict[str, Any]) -> Service:
    if unknown := entry.keys() - _SUPPORTED_KEYS:
        raise ValueError(f"{name}: {sorted(unknown)} is not supported here")
    test = entry.get("healthcheck", {}).get("test")
    if test is not None and test[0] != "CMD":
        raise ValueError(f"{name}: a health check must be a command without a shell")
    depends_on = entry.get("depends_on", {})
    return Service(
        name=name,
        image=entry["image"],
        command=[str(word) for word in entry.get("command", [])],
        user=entry["user"],
        environment={key: str(value) for key, value in entry.get("environment", {}).items()},
        healthcheck=test and [str(word) for word in test[1:]],
        depends_on={other: options["condition"] for other, options in depends_on.items()},
        networks=entry["networks"],
        mounts=[_mount(mount) for mount in entry.get("volumes", [])],
        tmpfs=entry.get("tmpfs", []),
        secrets=entry.get("secrets", []),
        ports=entry.get("ports", []),
    )


def _mount(entry: str | dict[str, Any]) -> Mount:
    if isinstance(entry, dict):
        if entry.keys() != {"type", "target"} or entry["type"] != "volume":
            raise ValueError(f"{entry} is not supported here")
        return Mount(None, entry["target"])
    source, target, *options = entry.split(":")
    if options not in ([], ["ro"]):
        raise ValueError(f"{entry}: {options} is not supported here")
    return Mount(source, target, bool(options))


def _in_order(services: dict[str, Service]) -> list[str]:
    """Return the names of the services, each after those it depends on."""
    ordered: list[str] = []
    while left := [name for name in services if name not in ordered]:
        ready = [name for name in left if services[name].depends_on.keys() <= set(ordered)]
        if not ready:
            raise ValueError(f"{left} depend on each other, or on services that no profile starts")
        ordered += ready
    return ordered
