"""Test that a refused field is named with the value that was read, and with what was probably meant."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cafe_core.spec.job import parse_job_spec
from cafe_core.spec.refusal import refused_field

SPEC: dict[str, Any] = {"dataset": "digits", "ipc": 1}
SWEEP: dict[str, Any] = {"kind": "sweep", "base": SPEC | {"evaluation": {}}, "space": {"seed": {"grid": [1]}}}


def refused(spec: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as error:
        parse_job_spec(spec)
    return [refused_field(each) for each in error.value.errors()]


@pytest.mark.parametrize(
    ("fields", "loc", "messages"),
    [
        ({"ipc": 0}, "ipc", ["got 0 (a number)"]),
        ({"ipc": "5"}, "ipc", ['got "5" (text)', "write 5, without quotes"]),
        ({"ipc": "1_000"}, "ipc", ['got "1_000" (text)', "write 1000"]),
        ({"ipc": 1e3}, "ipc", ["got 1000.0", "write 1000"]),
        ({"labels": {"v": 1.10}}, "labels.v", ["must be text; got 1.1 (a number); write it in quotes, with all its digits"]),
        ({"name": 42}, "name", ["must be text; got 42 (a number)", 'in quotes: "42"']),
        ({"labels": {"on": True}}, "labels.on", ["got true", 'in quotes: "true"']),
        ({"compile": "yes"}, "compile", ['got "yes"', "write true"]),
        ({"compile": 0}, "compile", ["got 0"]),
        ({"seed": None}, "seed", ["got nothing"]),
        ({"seed": [1, 2]}, "seed", ["got a list of 2 items"]),
        ({"method": {"image_lr": "1e-3"}}, "method.image_lr", ['got "1e-3"', "write 1e-3, without quotes"]),
        ({"method": {"beta": float("inf")}}, "method.beta", ["got Infinity"]),
        ({"evaluation": {"networks": "mlp"}}, "evaluation.networks", ['got "mlp"', '["mlp"]']),
        ({"resources": 4}, "resources", ["object with fields;", "got 4"]),
        ({"network": 4}, "network", ["object with fields or a name;", "got 4"]),
        ({"labels": {"a": "x" * 1000}}, "labels.a", ["…"]),
        ({"dataset": {"name": "digits", "path": "x"}}, "dataset", ["exactly one of name, id and path", "got name and path"]),
        ({"dataset": {}}, "dataset", ["got none of them"]),
        ({"name": "a\nb"}, "name", [r'got "a\nb"']),
    ],
)
def test_value_and_type_are_shown(fields: dict[str, Any], loc: str, messages: list[str]) -> None:
    [(named, message)] = refused(SPEC | fields)
    assert named == loc
    assert [part for part in messages if part not in message] == [], message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("spec", "loc", "meant"),
    [
        (SPEC | {"method": "kmean"}, "method.name", "kmeans"),
        (SPEC | {"method": {"name": "Dance"}}, "method.name", "dance"),
        (SPEC | {"network": "resnet-18"}, "network.name", "resnet18"),
        (SPEC | {"network": {"name": "convent"}}, "network.name", "convnet"),
        (SPEC | {"dataset": {"name": "cifar-10"}}, "dataset.name", "cifar10"),
        (SPEC | {"kind": "condence"}, "kind", "condense"),
        (SPEC | {"precision": "float16"}, "precision", "bfloat16"),
        (SPEC | {"iteration": 5}, "iteration", "iterations"),
        (SPEC | {"IPC": 5}, "IPC", "ipc"),
        (SPEC | {"method": {"betta": 1}}, "method.betta", "method.beta"),
        (SPEC | {"method": {"batch-real": 1}}, "method.batch-real", "method.batch_real"),
        (SPEC | {"method": {"name": "dance", "pool_sise": 1}}, "method.pool_sise", "method.pool_size"),
        (SPEC | {"evaluation": {"networks": [{"widht": 1}]}}, "evaluation.networks.0.widht", "evaluation.networks.0.width"),
        (SPEC | {"evaluation": {"network": "mlp"}}, "evaluation.network", "evaluation.networks"),
        (SPEC | {"beta": 1}, "beta", "method.beta"),
        (SPEC | {"lr": 1}, "lr", "method.image_lr or method.network_lr or method.pool_lr"),
        (SPEC | {"method": {"lr": 1}}, "method.lr", "method.image_lr or method.network_lr"),
        (SPEC | {"workers": 2}, "workers", "resources.workers"),
        (SWEEP | {"ipc": 1}, "ipc", "base.ipc"),
        (SWEEP | {"base": SWEEP["base"] | {"sed": 1}}, "base.sed", "base.seed"),
        (SWEEP | {"space": {"seed": {"grids": [1]}}}, "space.seed.grids", "space.seed.grid"),
    ],
)
def test_what_was_meant_is_suggested(spec: dict[str, Any], loc: str, meant: str) -> None:
    [(named, message)] = refused(spec)
    assert named == loc
    assert message.endswith(f"; did you mean {meant}?"), message


def test_unknown_field_without_a_similar_one_gets_no_suggestion() -> None:
    assert refused(SPEC | {"surprise": 1}) == [("surprise", "unknown field")]


def test_field_of_other_methods_names_them() -> None:
    [(loc, message)] = refused(SPEC | {"method": {"name": "dm", "beta": 1}})
    assert loc == "method.beta"
    assert message.endswith(": cafe")


def test_password_of_a_webhook_is_not_shown() -> None:
    [(loc, message)] = refused(SPEC | {"webhook": "https://user:hidden@example.org/"})
    assert loc == "webhook"
    assert "hidden" not in message


@pytest.mark.parametrize(
    ("field", "text", "written_out"),
    [
        ("dataset", "digits", {"name": "digits"}),
        ("dataset", "my-images", {"path": "my-images"}),
        ("dataset", "photos/cats", {"path": "photos/cats"}),
        ("dataset", "ds_abcdefghijklmnop", {"id": "ds_abcdefghijklmnop"}),
        ("dataset", "ds_old", {"path": "ds_old"}),
        ("method", "kmeans", {"name": "kmeans"}),
        ("network", "resnet18", {"name": "resnet18"}),
    ],
)
def test_plain_string_is_written_out(field: str, text: str, written_out: dict[str, str]) -> None:
    parsed = parse_job_spec(SPEC | {field: text})
    assert parsed.model_dump(exclude_unset=True)[field] == written_out


def test_plain_strings_in_lists_and_sweeps() -> None:
    spec = parse_job_spec(
        SPEC | {"evaluation": {"networks": ["mlp", {"name": "lenet"}]}, "validation": {"every": 1, "network": "mlp"}}
    )
    dumped = spec.model_dump(exclude_unset=True)
    assert dumped["evaluation"]["networks"] == [{"name": "mlp"}, {"name": "lenet"}]
    assert dumped["validation"]["network"] == {"name": "mlp"}
