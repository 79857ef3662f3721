"""Write docs/spec.md from the job spec's own descriptions: `python -m cafe_core.spec.reference > docs/spec.md`."""

from __future__ import annotations

import json
from typing import Any, get_args

from pydantic import TypeAdapter

from cafe_core.methods.registry import METHODS
from cafe_core.spec.job import JobSpec
from cafe_core.spec.method import MethodSpec, ResolutionContext
from cafe_core.spec.network import NetworkSpec

_SAMPLED_IPC = (1, 10, 50)


def markdown() -> str:
    """Return the reference of every field of a job spec: a table per object, the jobs first, then the methods' defaults."""
    definitions = TypeAdapter(JobSpec).json_schema()["$defs"]
    jobs = ["CondenseSpec", "EvaluateSpec", "SweepSpec"]
    names = [*jobs, *(name for name in definitions if name not in jobs)]
    parts = [
        "# Job specs",
        "Made by `python -m cafe_core.spec.reference` from `cafe_core/spec/`; do not edit.",
        "`kind` says which job it is: [Condense](#condense) (the default), [Evaluate](#evaluate) or [Sweep](#sweep). "
        "Unknown fields are refused. A default of *resolved* follows from the method, its preset, ipc or the data: POST with "
        "`?dry_run=true` shows it.",
        *(_section(definitions[name]) for name in names),
        _method_defaults(),
    ]
    return "\n\n".join(parts) + "\n"


def _method_defaults() -> str:
    """Return the tables of the defaults that methods and their presets fill in."""
    parts = [
        "## Defaults of the methods",
        "What resolution fills in on ten classes with the default network. Values that depend on ipc are those of ipc "
        f"{' / '.join(map(str, _SAMPLED_IPC))}.",
    ]
    for name, method in METHODS.items():
        rows = [f"| `iterations` | {method.spec.published_iterations} |"]
        presets = get_args(method.spec.model_fields["preset"].annotation) if "preset" in method.spec.model_fields else (None,)
        columns = [_defaults(method.spec, name, preset) for preset in presets]
        for field in columns[0]:
            rows.append(f"| `{field}` | {' | '.join(column[field] for column in columns)} |")
        rows[0] += "".join(f" {method.spec.published_iterations} |" for _ in presets[1:])
        header = " | ".join(f"preset `{preset}`" if preset else "default" for preset in presets)
        table = "\n".join([f"| field | {header} |", "|---|" + "---|" * len(presets), *rows])
        parts.append(f"### {name}\n\n{table}")
    return "\n\n".join(parts)


def _defaults(spec: type[MethodSpec], name: str, preset: str | None) -> dict[str, str]:
    """Return the resolved value of each field, as text."""
    sent = {"name": name} | ({"preset": preset} if preset else {})
    network = NetworkSpec().resolved()
    resolved = [
        spec.model_validate(sent).resolved(ResolutionContext(ipc=ipc, num_classes=10, network=network)).model_dump()
        for ipc in _SAMPLED_IPC
    ]
    values = {field: [_value(sample[field]) for sample in resolved] for field in resolved[0] if field not in ("name", "preset")}
    return {field: found[0] if len(set(found)) == 1 else " / ".join(found) for field, found in values.items()}


def _value(value: Any) -> str:
    return f"`{json.dumps(value) if not isinstance(value, str) else value}`"


def _section(definition: dict[str, Any]) -> str:
    required = definition.get("required", [])
    rows = [
        f"| `{name}` | {_type(field)} | {_default(name, field, required)} | {' '.join(field['description'].split())} |"
        for name, field in definition["properties"].items()
    ]
    title = definition["title"].removesuffix("Spec")
    table = "\n".join(["| field | type | default | meaning |", "|---|---|---|---|", *rows])
    return f"## {title}\n\n{' '.join(definition['description'].split())}\n\n{table}"


def _type(field: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if options := field.get("anyOf", field.get("oneOf")):
        return " or ".join(_type(option) for option in options if option.get("type") != "null")
    if "$ref" in field:
        title = field["$ref"].rsplit("/", 1)[1].removesuffix("Spec")
        return f"[{title}](#{title.lower()})"
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return " · ".join(f"`{value}`" for value in field["enum"])
    if "type" not in field:
        return "anything"
    if field["type"] == "array":
        return f"list of {_type(field['items'])}"
    if field["type"] == "object":
        return f"text → {_type(field['additionalProperties'])}"
    return {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}[field["type"]] + _bounds(
        field
    )


def _bounds(field: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {_number(field[key])}" for key, sign in signs.items() if key in field]
    return f" {', '.join(bounds)}" if bounds else ""


def _number(value: float) -> str:
    """As people write it: 0.5, 1000000, 2⁶³, 1e30."""
    if value == 2**63:
        return "2⁶³"
    return str(int(value)) if value < 1e15 and value == int(value) else f"{value:g}".replace("e+", "e")


def _default(name: str, field: dict[str, Any], required: list[str]) -> str:
    if name in required:
        return "**required**"
    if "default" not in field:
        return "*resolved*"
    value = field["default"]
    if value is None or isinstance(value, dict | list):
        return "" if not value else "its defaults"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    print(markdown(), end="")
