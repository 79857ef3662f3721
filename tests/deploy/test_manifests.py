"""Check the files of deploy/ against the schemas of the programs that read them, and against settings and metrics."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import dockerfile_parse
import jsonschema
import kubernetes_validate
import promql_parser
import pytest
import ray
import yaml
from packaging.specifiers import SpecifierSet

from server.settings import Settings
from tests.deploy.compose import ROOT, load

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
KUBERNETES_VERSION = "1.33"
CUSTOM_KINDS = {"RayCluster", "PodMonitor", "Kustomization"}
"""Kinds that are not part of Kubernetes."""


def manifests() -> list[tuple[str, dict[str, Any]]]:
    """Return (file name, document) for all documents of the manifests."""
    return [(path.name, each) for path in sorted(KUBERNETES.glob("*.yaml")) for each in yaml.safe_load_all(path.read_text())]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for _, document in manifests() if document["kind"] == kind]


def pods() -> list[tuple[str, dict[str, Any]]]:
    """Return (name, template) for all pod templates."""
    [cluster] = of_kind("RayCluster")
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    return [
        *((each["metadata"]["name"], each["spec"]["template"]) for each in of_kind("Deployment")),
        *((group.get("groupName", "head"), group["template"]) for group in groups),
    ]


def test_manifests_match_the_kubernetes_schemas() -> None:
    checked = [document for _, document in manifests() if document["kind"] not in CUSTOM_KINDS]
    for document in checked:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
    assert {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "Secret"} <= {each["kind"] for each in checked}


def test_ray_cluster_matches_the_schema_of_kuberay() -> None:
    [cluster] = of_kind("RayCluster")
    schema = yaml.safe_load(Path(__file__).with_name("schemas").joinpath("raycluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    for name, template in pods():
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}, "template": template}
        kubernetes_validate.validate(pod, KUBERNETES_VERSION, strict=True)
    assert cluster["spec"]["rayVersion"] == ray.__version__
    assert cluster["spec"]["authOptions"]["mode"] == "token"
    assert cluster["spec"]["headGroupSpec"]["rayStartParams"].items() >= {"num-cpus": "0", "num-gpus": "0"}.items()


def test_pods_meet_the_restricted_pod_security_standard() -> None:
    for name, template in pods():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name


def test_only_ray_the_api_kuberay_and_monitoring_reach_the_ports_of_ray() -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in of_kind("NetworkPolicy")}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    allowed = []
    for rule in policies["ray"]["ingress"]:
        [source] = rule["from"]
        labels = next(iter(source.values()))["matchLabels"]
        who = labels.get("app.kubernetes.io/component") or labels["kubernetes.io/metadata.name"]
        allowed.append((who, [port["port"] for port in rule.get("ports", [])]))
    assert allowed == [("ray", []), ("api", [8265]), ("kuberay-system", [8265]), ("monitoring", [8080])]
    for _, template in pods()[1:]:
        assert policies["ray"]["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()


def test_kustomization_lists_every_manifest_except_the_secrets() -> None:
    [kustomization] = of_kind("Kustomization")
    files = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml", "secrets.example.yaml"}
    assert set(kustomization["resources"]) == files


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")
def test_kustomize_builds_the_manifests() -> None:
    built = subprocess.run(["kubectl", "kustomize", str(KUBERNETES)], capture_output=True, text=True, check=True).stdout
    assert "image: cafe\n" not in built


def test_settings_in_the_files_exist() -> None:
    texts = [ROOT / "docker-compose.yml", *KUBERNETES.glob("*.yaml")]
    named = {name for path in texts for name in re.findall(r"\b(CAFE_\w+)(?::\s|, value)", path.read_text())}
    assert len(named) >= 8
    known = {f"CAFE_{field.upper()}" for field in Settings.model_fields}
    assert {name.removesuffix("_FILE") for name in named} <= known


def test_autoscaler_configuration_matches_the_schema_of_ray() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load((DEPLOY / "ray-autoscaler.yaml").read_text()), schema)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here")
def test_prometheus_accepts_its_configuration() -> None:
    for check in (["config", "--syntax-only", "prometheus.yml"], ["rules", "alerts.yml"]):
        checked = subprocess.run(
            ["promtool", "check", *check], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stderr


def expressions() -> list[str]:
    """Return all queries of the dashboard and of the alerts."""
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
    return [target["expr"] for panel in panels() for target in panel.get("targets", [])] + [rule["expr"] for rule in rules]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DEPLOY / "grafana" / "dashboards" / "cafe.json").read_text())["panels"]
    return found


def test_all_queried_metrics_exist() -> None:
    ours = set(re.findall(r"`((?:cafe|process)_\w+)`", (ROOT / "docs" / "metrics.md").read_text()))
    histograms = {f"{name}_{suffix}" for name in ours if name.endswith("seconds") for suffix in ("bucket", "sum", "count")}
    rays = Path(ray.__file__).parent / "dashboard" / "modules" / "reporter" / "reporter_agent.py"
    of_ray = {f"ray_{name}" for name in re.findall(r'"(node_\w+)"', rays.read_text())}
    for expression in expressions():
        names = metrics_in(expression)
        assert names, expression
        assert names <= ours | histograms | of_ray | {"up"}, expression


def metrics_in(expression: str) -> set[str]:
    """Return the names of the metrics in a PromQL expression. Raises ValueError if it is invalid."""
    printed = promql_parser.parse(expression).prettify()
    words = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|on|without|group_left)\s*\([^)]*\)|\"[^\"]*\"", " ", printed)
    return set(re.findall(r"\b(?:up|(?:cafe|ray|process)_\w+)\b", words))


def test_dashboard_is_provisioned_with_its_data_source() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    [provider] = yaml.safe_load((provisioning / "dashboards" / "cafe.yml").read_text())["providers"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in compose["volumes"]
    drawn = [panel for panel in panels() if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in drawn} == {source["uid"]}
    assert len({panel["id"] for panel in panels()}) == len(panels())
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in drawn)


def test_dockerfile_passes_hadolint() -> None:
    linted = subprocess.run(
        [str(Path(sys.prefix) / "bin" / "hadolint"), str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert linted.returncode == 0, linted.stdout


def test_image_is_pinned_and_runs_as_an_unprivileged_user() -> None:
    parser = dockerfile_parse.DockerfileParser(str(DEPLOY / "Dockerfile"))
    last = {step["instruction"]: step["value"] for step in parser.structure}
    [python] = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", parser.content, re.MULTILINE)
    assert last["USER"] == "10001:10001"
    assert "HEALTHCHECK" in last
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", python)
    copied = {step["value"].split()[0] for step in parser.structure if step["instruction"] == "COPY"} - {"--from=build"}
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied <= kept
    assert all((ROOT / name).exists() for name in kept)


@pytest.mark.parametrize("variable", ["TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"])
def test_caches_of_compiled_code_are_on_volumes_that_allow_execution(variable: str) -> None:
    """Docker mounts the tmpfs of a service with noexec, and the rest of the file system is read-only."""
    cache = PurePosixPath(dockerfile_parse.DockerfileParser(str(DEPLOY / "Dockerfile")).envs[variable])

    def nearest(targets: list[str]) -> str:
        """Return the mount that holds the cache."""
        return max((target for target in targets if cache.is_relative_to(target)), key=len)

    workers = [load(ROOT / "docker-compose.yml", {profile}, {}).services for profile in ("gpu", "cpu")]
    for worker in (workers[0]["ray-worker"], workers[1]["ray-worker-cpu"]):
        writable = {mount.target: not mount.read_only for mount in worker.mounts}
        assert writable.get(nearest([*writable, *worker.tmpfs]))
    [worker_pod] = [template["spec"] for name, template in pods() if name == "gpu"]
    mounts = {mount["mountPath"]: mount for mount in worker_pod["containers"][0]["volumeMounts"]}
    mount = mounts[nearest(list(mounts))]
    assert not mount.get("readOnly")
    [volume] = [volume for volume in worker_pod["volumes"] if volume["name"] == mount["name"]]
    assert "medium" not in volume["emptyDir"]  # on disk


def test_lock_file_satisfies_the_requirements() -> None:
    locked = dict(re.findall(r"^([\w.-]+)(?:\[[^\]]*\])?==(\S+) \\$", (DEPLOY / "requirements.lock").read_text(), re.MULTILINE))
    text = (ROOT / "pyproject.toml").read_text()
    wanted = re.findall(r'"([\w-]+)(?:\[[\w,-]+\])?([=<>].*?)"', text.partition("dependencies = [")[2].partition("\n]")[0])
    for name, specifier in wanted:
        version = locked.get(name)
        if name in ("torch", "torchvision"):
            assert f"{name}{specifier}" in (DEPLOY / "Dockerfile").read_text()
        else:
            assert version is not None, name
            assert version in SpecifierSet(specifier), name
