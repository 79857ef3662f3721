"""Test inputs and circumstances on which users reported that the command failed, with their smallest inputs.

A row of :func:`test_spec_text` gives the same answer at every door: a file, standard input and the REST API.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from server.cli.main import main
from server.settings import Settings
from tests.server.conftest import Api, FakeRay, running

JSON = '{"dataset": {"name": "digits"}, "ipc": 1, "iterations": 3}'
YAML = "dataset: {name: digits}\nipc: 1\niterations: 3\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running(Settings(data_dir=tmp_path_factory.mktemp("data")), FakeRay()) as api:
        yield api


def cafe(api: Api, *arguments: str, input: bytes | None = None, **environ: str) -> Result:
    """Run `cafe ARGUMENTS` against the server."""
    runner = CliRunner(env={"CAFE_URL": str(api.base_url)} | environ)
    return runner.invoke(main, list(arguments), input=input, catch_exceptions=False)


PLAIN_STRINGS = b"dataset: digits\nmethod: kmeans\nnetwork: resnet18\nipc: 1\n"
SPEC_TEXTS: dict[str, tuple[str, bytes, dict[str, Any] | list[str]]] = {
    "spec_dup_yaml": ("dup.yaml", f"{YAML}ipc: 2\n".encode(), ["'ipc' is given twice", "line 4, column 1", "line 2, column 1"]),
    "spec_octal_yaml": ("octal.yaml", f"{YAML}seed: 010\n".encode(), {"seed": 10}),
    "spec_sci_yaml": ("sci.yaml", f"{YAML}method: {{image_lr: 1e-3}}\n".encode(), {"method.image_lr": 0.001}),
    "spec_norway_yaml": ("no.yaml", f"{YAML}labels: {{on: yes}}\nname: no\n".encode(), {"labels.on": "yes", "name": "no"}),
    "spec_norway_yaml, number as text": (
        "no.yaml",
        f"{YAML}name: 42\n".encode(),
        ["name: ", "got 42 (a number)", 'quotes: "42"'],
    ),
    "spec_date_yaml": ("date.yaml", f"{YAML}name: 2024-11-27\n".encode(), {"name": "2024-11-27"}),
    "spec_trailing_json": ("trailing.json", f"{JSON[:-1]},}}".encode(), ["line 1, column 58", "comma", "remove"]),
    "spec_bom_json": ("bom.json", JSON.encode("utf-8-sig"), {"ipc": 1}),
    "BOM in YAML": ("bom.yaml", YAML.encode("utf-8-sig"), {"ipc": 1}),
    "spec_utf16_json": ("utf16.json", JSON.encode("utf-16"), {"ipc": 1}),
    "UTF-16 in YAML": ("utf16.yaml", YAML.encode("utf-16"), {"ipc": 1}),
    "repeated key in JSON": ("dup.json", f'{JSON[:-1]},\n"ipc": 2}}'.encode(), ["'ipc' is given twice", "line 2, column 1"]),
    "plain strings": (
        "plain.yaml",
        PLAIN_STRINGS,
        {"network.name": "resnet18", "method.name": "kmeans", "dataset.name": "digits"},
    ),
    "misspelled dataset": ("plain.yaml", b"dataset: mnits\nipc: 1\n", ["dataset", "'mnits'", "did you mean mnist?"]),
}


def doors(name: str) -> list[str]:
    """Return the doors at which a file is accepted: the REST API reads JSON only."""
    return ["file", "standard input", *(["HTTP"] if name.endswith(".json") else [])]


@pytest.mark.parametrize(("case", "door"), [(case, door) for case, (name, _, _) in SPEC_TEXTS.items() for door in doors(name)])
def test_spec_text(server: Api, tmp_path: Path, case: str, door: str) -> None:
    name, content, expected = SPEC_TEXTS[case]
    if door == "HTTP":
        answer = server.post("/v1/jobs?dry_run=true", content=content, headers={"Content-Type": "application/json"})
        accepted, output, message = answer.status_code == 200, answer.text, answer.text
        assert accepted or (answer.status_code == 422 and answer.json()["errors"])
    else:
        (tmp_path / name).write_bytes(content)
        source = str(tmp_path / name) if door == "file" else "-"
        result = cafe(server, "submit", "--dry-run", source, input=content)
        accepted, output, message = result.exit_code == 0, result.stdout, result.stderr
        assert accepted or result.exit_code == 2
    if isinstance(expected, dict):
        assert accepted, message
        assert {path: field_at(json.loads(output)["spec"], path) for path in expected} == expected
    else:
        assert not accepted
        assert [part for part in expected if part not in message.replace('\\"', '"')] == [], message


def field_at(spec: Any, path: str) -> Any:
    for part in path.split("."):
        spec = spec[part]
    return spec
