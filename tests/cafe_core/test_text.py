"""Test that texts from outside become printable."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from cafe_core.errors import CafeError
from cafe_core.text import may_be_unprintable, printable, printable_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("dog 狗 🐕\n", "dog 狗 🐕\n"),
        (os.fsdecode(b"bad\xff.png"), r"bad\xff.png"),
        ("half \ud83d of a pair", r"half \ud83d of a pair"),
        ("a\0b", r"a\x00b"),
        ("", ""),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown
    assert CafeError(text).message == str(CafeError(text)) == shown
    value: dict[str, Any] = {text: [text, {"a": text}, 1, None, True]}
    assert printable_json(value) == {shown: [shown, {"a": shown}, 1, None, True]}
    assert may_be_unprintable(json.dumps(value)) or text == shown
