"""Test that the text of a spec is read as written, or refused with the place and a way to write it."""

from __future__ import annotations

from typing import Any

import pytest

from cafe_core.spec.json_text import SpecTextError
from cafe_core.spec.reading import Format, read_spec


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("010", 10),
        ("+7", 7),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("12:30:00", "12:30:00"),
        ("2024-11-27", "2024-11-27"),
        ("on", "on"),
        ("NO", "NO"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("Null", None),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("!!float '5'", 5.0),
        ("=", "="),
        ("[1, a]", [1, "a"]),
        ("{on: off, 1: 2}", {"on": "off", "1": 2}),
    ],
)
def test_yaml_has_the_values_of_version_1_2(written: str, value: Any) -> None:
    read = read_spec(f"field: {written}".encode(), "yaml")["field"]
    assert (read, type(read)) == (value, type(value))


def test_yaml_aliases_and_merges() -> None:
    text = b"defaults: &d {width: 32, depth: 2}\nnetwork: {<<: *d, width: 64}\nsame: *d\n"
    assert read_spec(text, "yaml") == {
        "defaults": {"width": 32, "depth": 2},
        "network": {"width": 64, "depth": 2},
        "same": {"width": 32, "depth": 2},
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(
    ("format", "text"), [("json", '{"name": "Größe 像"}'), ("yaml", "name: Größe 像"), (None, '{"name":"Größe 像"}')]
)
def test_every_encoding_of_unicode_is_read(format: Format | None, text: str, encoding: str) -> None:
    assert read_spec(text.encode(encoding), format) == {"name": "Größe 像"}


@pytest.mark.parametrize("text", ['{"a": 1}', '{\n\t"a": 1\n}', "{a: 1}", "a: 1", "\n---\na: 1"])
def test_format_of_a_text_without_file_name_is_recognized(text: str) -> None:
    assert read_spec(text.encode()) == {"a": 1}


@pytest.mark.parametrize(
    ("format", "content", "messages"),
    [
        ("yaml", b"ipc: 1\nseed: 2\nipc: 2\n", ["line 3, column 1", "'ipc' is given twice", "line 1, column 1"]),
        ("yaml", b"a: {b: 1, c: {x: 1}, b: 2}", ["line 1, column 22", "line 1, column 5"]),
        ("yaml", b"on: 1\n'on': 2", ["line 2, column 1", "'on'"]),
        ("yaml", b"a: !!binary aGk=", ["line 1, column 4", "!!binary"]),
        ("yaml", b"a: !!set {x}", ["!!set"]),
        ("yaml", b"a: !!python/object:os.system x", ["python/object"]),
        ("yaml", b"a: !!int x", ["'x'", "!!int"]),
        ("yaml", b"a: -.inf", ["line 1, column 4: -.inf", "finite"]),
        ("yaml", b"a: 1e999", ["1e999", "finite"]),
        ("yaml", b"a: " + b"9" * 5000, ["4300 digits"]),
        ("yaml", b"a: &x [*x]", ["line 1, column 4", "alias"]),
        ("yaml", b"a:\n\t- 1", ["line 2, column 1", "tab", "spaces"]),
        ("yaml", b"a: [1\nb: 2", ["line 2"]),
        ("yaml", b"a: 1\n---\na: 2", ["line 2, column 1", "single document"]),
        ("yaml", b"a: \x07", ["#x0007"]),
        ("yaml", b"? [a]\n: 1", ["line 1, column 3", "key"]),
        ("yaml", b"[" * 2_000, ["nested too deeply"]),
        ("yaml", b"- a", ["got a list of 1 item"]),
        ("yaml", b"42", ["got 42 (a number)"]),
        ("yaml", b' \n"\\ud800": 1', ["half of a character"]),
        ("yaml", b"", ["empty"]),
        ("json", b" \n", ["empty"]),
        ("json", b'{"a": 1,\n "b": 2,\n}', ["line 2, column 8", "comma before the closing }"]),
        ("json", b'{"a": [1, 2 , ]}', ["line 1, column 13", "comma before the closing ]"]),
        ("json", b'{"a": 1, "b": {"a": 2,\n"a": 3}}', ["line 2, column 1", "'a' is given twice", "line 1, column 16"]),
        ("json", b'{"a": [{"b": 1}, {"b": ":"}], "\\u0061": 2}', ["line 1, column 31", "line 1, column 2"]),
        ("json", b'{"a": "NaN", "b": NaN}', ["line 1, column 19: NaN", "finite"]),
        ("json", b'{"a": -Infinity}', ["line 1, column 7: -Infinity"]),
        ("json", b'{"a": 1e999}', ["line 1, column 7: 1e999"]),
        ("json", b'{"a": ' + b"9" * 5000 + b"}", ["4300 digits"]),
        ("json", b"{'a': 1}", ["line 1, column 2", "double quotes"]),
        ("json", "{“a”: 1}".encode(), ["line 1, column 2", "replace “"]),
        ("json", b'{"a": True}', ["line 1, column 7", "write true"]),
        ("json", b'{"a": 1, // why\n"b": 2}', ["line 1, column 10", "no comments"]),
        ("json", b'{"a": 1 "b": 2}', ["line 1, column 9", "','"]),
        ("json", b'{"a": [1', ["line 1, column 9", "ends too early"]),
        ("json", b'{"a": 1} {"a": 2}', ["line 1, column 10"]),
        ("json", b'{"a": "\\ud800"}', ["half of a character"]),
        ("json", b'{\n"a": "caf\xe9"}', ["line 2", "0xe9", "UTF-8"]),
        ("json", b"[" * 100_000, ["nested too deeply"]),
        ("json", b"null", ["got nothing"]),
    ],
)
def test_refused_text_is_explained_with_its_place(format: Format, content: bytes, messages: list[str]) -> None:
    with pytest.raises(SpecTextError) as refused:
        read_spec(content, format)
    assert [message for message in messages if message not in str(refused.value)] == [], str(refused.value)
    assert "\n" not in str(refused.value)
