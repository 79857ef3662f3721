"""Read YAML by the core schema of YAML 1.2, which has the types of JSON.

PyYAML's own schema is that of YAML 1.1, which reads `1e-3` as text, `010` as 8, `on` and `no` as booleans, `12:30:00` as 45000
and `2024-11-27` as a date.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from cafe_core.spec.json_text import MAX_PARTS, TOO_MANY_DIGITS, SpecTextError
from cafe_core.spec.wording import described

_NAMES = ("null", "bool", "int", "float", "str", "map", "seq", "merge")
_NULL, _BOOL, _INT, _FLOAT, _STR, _MAP, _SEQ, _MERGE = (f"tag:yaml.org,2002:{name}" for name in _NAMES)
_WRITTEN = {
    _NULL: re.compile(r"(?:null|Null|NULL|~|)\Z"),
    _BOOL: re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"),
    _INT: re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"),
    _FLOAT: re.compile(
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
}
"""How a plain scalar of each type is written; every other one is text."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}


for _tag, _pattern in _WRITTEN.items():
    _Loader.add_implicit_resolver(_tag, _pattern, None)
_Loader.add_implicit_resolver(_MERGE, re.compile(r"<<\Z"), None)


def read_yaml(text: str) -> Any:
    """Return the value in a YAML text. Raises SpecTextError."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _Values().of(node)
    except yaml.MarkedYAMLError as error:
        raise SpecTextError(f"{_place(error.problem_mark or error.context_mark)}: {_problem(error)}") from error
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise SpecTextError(str(error).replace("\n", " ")) from error
    except RecursionError as error:
        raise SpecTextError("lists and mappings are nested too deeply") from error
    finally:
        if loader is not None:
            loader.dispose()


def _problem(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or ""
    if r"'\t'" in problem:
        return "a tab; indent with spaces"
    if "<stream end>" in problem:
        return "the text ends too early; a closing bracket is missing"
    if "unexpected end of stream" in problem:
        return "the text ends too early; a closing quote is missing"
    return " ".join(filter(None, [error.context, error.problem]))


def _place(mark: yaml.Mark | None) -> str:
    return "somewhere" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}"


class _Values:
    """Build the values of nodes. A node that an alias repeats is built once, but counts each time against MAX_PARTS."""

    def __init__(self) -> None:
        self._built: dict[int, tuple[Any, int]] = {}  # by the id of the node: its value, and how many values that holds
        self._unfinished: set[int] = set()
        self._nodes = 0  # values so far, aliases written out
        self._parts = 0  # the same, without the items that are written in lists

    def of(self, node: yaml.Node) -> Any:
        """Return the value of a node. Raises SpecTextError."""
        key = id(node)
        if key in self._unfinished:
            raise SpecTextError(f"{_place(node.start_mark)}: an alias refers to the value that contains it; remove it")
        if key in self._built:
            value, nodes = self._built[key]
            self._count(nodes, nodes)
            return value
        before = self._nodes
        self._unfinished.add(key)
        value = self._new(node)
        self._unfinished.remove(key)
        self._built[key] = value, self._nodes - before
        return value

    def _count(self, nodes: int, parts: int) -> None:
        self._nodes += nodes
        self._parts += parts
        if self._parts > MAX_PARTS:
            raise SpecTextError(
                f"the spec is too complex: the limit is {MAX_PARTS} fields, lists and mappings, "
                "and everything that an alias repeats counts; write fewer of them"
            )

    def _new(self, node: yaml.Node) -> Any:
        match node:
            case yaml.MappingNode() if node.tag == _MAP:
                self._count(1, 1 + len(node.value))
                return self._mapping(node)
            case yaml.SequenceNode() if node.tag == _SEQ:
                self._count(1, 1)
                return [self.of(item) for item in node.value]
            case yaml.ScalarNode():
                self._count(1, 0)
                return _scalar(node)
            case _:
                raise _unknown_tag(node)

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        written: dict[str, yaml.Node] = {}
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise SpecTextError(f"{_place(key.start_mark)}: a key must be text; got a list or mapping")
            if key.value in written:
                first, second = _place(written[key.value].start_mark), _place(key.start_mark)
                raise SpecTextError(f"{second}: the key {key.value!r} is given twice, first in {first}; remove one of them")
            written[key.value] = key
            if key.tag == _MERGE:
                merged = self._merged(value)
            else:
                own[key.value] = self.of(value)
        return merged | own

    def _merged(self, node: yaml.Node) -> dict[str, Any]:
        """Return the fields that `<<: *defaults` or `<<: [*first, *second]` adds. Earlier mappings take precedence."""
        value = self.of(node)
        mappings = value if isinstance(value, list) else [value]
        merged: dict[str, Any] = {}
        for mapping in mappings:
            if not isinstance(mapping, dict):
                raise SpecTextError(
                    f"{_place(node.start_mark)}: << needs a mapping or a list of mappings; got {described(mapping)}"
                )
            merged = mapping | merged
        return merged


def _scalar(node: yaml.ScalarNode) -> Any:
    text: str = node.value
    if node.tag == _STR:
        return text
    if node.tag not in _WRITTEN:
        raise _unknown_tag(node)
    if not _WRITTEN[node.tag].match(text):
        raise SpecTextError(f"{_place(node.start_mark)}: {text!r} is not a value of the tag {_tag_name(node)}")
    if node.tag == _NULL:
        return None
    if node.tag == _BOOL:
        return text.lower() == "true"
    try:
        if node.tag == _INT:
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    except ValueError as error:  # more than 4300 digits
        raise SpecTextError(f"{_place(node.start_mark)}: {TOO_MANY_DIGITS}") from error
    number = math.nan if text[-1].isalpha() else float(text)  # .inf and .nan end with a letter
    if not math.isfinite(number):
        raise SpecTextError(f"{_place(node.start_mark)}: {text} is not a number that a spec can have; write a finite number")
    return number


def _unknown_tag(node: yaml.Node) -> SpecTextError:
    return SpecTextError(f"{_place(node.start_mark)}: the tag {_tag_name(node)} is not supported; use only values that JSON has")


def _tag_name(node: yaml.Node) -> str:
    return str(node.tag).replace("tag:yaml.org,2002:", "!!")
