"""docs/spec.md, made from the job spec's own descriptions: `python -m cafe_core.spec.reference > docs/spec.md`."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from cafe_core.spec.job import JobSpec


def markdown() -> str:
    """Every field of a job spec: a table per object, the jobs first."""
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
    ]
    return "\n\n".join(parts) + "\n"


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
