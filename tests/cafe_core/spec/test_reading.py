"""Test that the text of a spec is read as written, or refused with the place and a way to write it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cafe_core.spec.json_text import MAX_PARTS, SpecTextError
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


def test_first_of_several_merged_mappings_has_precedence() -> None:
    text = b"a: &a {x: 1}\nb: &b {x: 2, y: 3}\nc: {z: 4, <<: [*a, *b]}\n"
    assert read_spec(text, "yaml")["c"] == {"x": 1, "y": 3, "z": 4}


def _bomb(first: str, repeat: str) -> bytes:
    levels = [f"a0: &a0 {first}"]
    levels += [f"a{n}: &a{n} {repeat.format(', '.join([f'*a{n - 1}'] * 9))}" for n in range(1, 9)]
    return "\n".join(levels).encode()


@pytest.mark.parametrize(
    "content",
    [
        _bomb("[lol, lol]", "[{}]"),
        _bomb("lol", "[{}]"),
        _bomb("{x: 1}", "{{<<: [{}]}}"),
        f"a: &a [{'x,' * 2_000}]\nb: [{'*a,' * 2_000}]".encode(),
    ],
    ids=["lists", "text", "merges", "long list"],
)
def test_aliases_count_against_the_limit_each_time(content: bytes) -> None:
    started = time.process_time()
    with pytest.raises(SpecTextError, match="limit is 10000 fields"):
        read_spec(content, "yaml")
    assert time.process_time() - started < 10  # written out, the first would take hours


@pytest.mark.parametrize(
    ("format", "content"),
    [("yaml", f"a: &a {{b: [1, 2]}}\nc: [{'*a,' * 1_900}]\nd: [{'1,' * 2_000}]"), ("json", f'{{"a": [{"1," * 20_000}1]}}')],
    ids=["aliases", "long list"],
)
def test_specs_within_the_limit_are_read(format: Format, content: str) -> None:
    assert read_spec(content.encode(), format)


def test_limit_is_checked_before_a_repeated_key_is_located() -> None:
    text = "{" + ",".join(f'"k{n}":1' for n in range(MAX_PARTS)) + ',"k0":2}'
    with pytest.raises(SpecTextError, match="limit is 10000 fields"):  # locating one of 1,000,000 keys took 8 s
        read_spec(text.encode(), "json")


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
        ("yaml", b"a: !foo:map {b: 1}", ["line 1, column 4", "!foo:map"]),
        ("yaml", b"a: !foo:seq [b]", ["!foo:seq"]),
        ("yaml", b"a: {<<: [{b: 1}, 2]}", ["line 1, column 9", "<<", "got 2"]),
        ("yaml", b"a: &a {<<: *a}", ["alias refers to the value that contains it"]),
        ("yaml", b"a: !!int x", ["'x'", "!!int"]),
        ("yaml", b"a: -.inf", ["line 1, column 4: -.inf", "finite"]),
        ("yaml", b"a: 1e999", ["1e999", "finite"]),
        ("yaml", b"a: " + b"9" * 5000, ["line 1, column 4: a whole number has more than 4300 digits; write a smaller one"]),
        ("yaml", b"a: &x [*x]", ["line 1, column 4", "alias"]),
        ("yaml", b"a:\n\t- 1", ["line 2, column 1", "tab", "spaces"]),
        ("yaml", b"a: [1\nb: 2", ["line 2"]),
        ("yaml", b"a: [", ["line 1, column 5: the text ends too early; a closing bracket is missing"]),
        ("yaml", b"a: {b: 1", ["line 1, column 9: the text ends too early; a closing bracket is missing"]),
        ("yaml", b"a: 'b", ["line 1, column 6: the text ends too early; a closing quote is missing"]),
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
        ("json", b'{"a": ' + b"9" * 5000 + b"}", ["a whole number has more than 4300 digits; write a smaller one"]),
        ("json", b"{'a': 1}", ["line 1, column 2", "double quotes"]),
        ("json", "{“a”: 1}".encode(), ["line 1, column 2", "replace “"]),
        ("json", b'{"a": True}', ["line 1, column 7", "write true"]),
        ("json", b'{"a": 1, // why\n"b": 2}', ["line 1, column 10", "no comments"]),
        ("json", b'{"a": 1 "b": 2}', ["line 1, column 9", "','"]),
        ("json", b'{"a": "b}', ["line 1, column 7: this text has no closing quote; add one"]),
        ("json", b'{"a": "b\n"}', ["line 1, column 9", "line break", r"write \n"]),
        ("json", b'{"a": [1', ["line 1, column 9", "ends too early"]),
        ("json", b'{"a": 1} {"a": 2}', ["line 1, column 10"]),
        ("json", b'{"a": "\\ud800"}', ["half of a character"]),
        ("json", b'{\n"a": "caf\xe9"}', ["line 2", "0xe9", "UTF-8"]),
        ("json", b"[" * 9_000, ["nested too deeply"]),
        ("json", b"[" * 100_000, ["limit is 10000 fields"]),
        ("json", b"null", ["got nothing"]),
    ],
)
def test_refused_text_is_explained_with_its_place(format: Format, content: bytes, messages: list[str]) -> None:
    with pytest.raises(SpecTextError) as refused:
        read_spec(content, format)
    assert [message for message in messages if message not in str(refused.value)] == [], str(refused.value)
    assert "\n" not in str(refused.value)
