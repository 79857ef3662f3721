"""Test that the registry refuses an incomplete method and says what is missing."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from cafe_core.methods.registry import METHODS, SELECTIONS, MethodDefinitionError, register

SPEC = '''
from typing import ClassVar, Literal
from cafe_core.spec.base import resolved_later
from cafe_core.spec.method import *

class Spec(LearningMethodSpec):
    published_iterations: ClassVar[int] = 10
    couples_classes: ClassVar[bool] = False
    name: Literal["made"]
    """The name."""
    alpha: float = resolved_later(ge=0)
    """A field."""

    def resolved(self, context):
        return self.filled(
            batch_real=1, image_lr=1.0, image_momentum=0.0, image_milestones=[], init="real", augment="none", alpha=1.0
        )

    def statistics_bytes(self, sizes):
        return 0

    def graph_bytes(self, sizes):
        return 0
'''
METHOD = """
from cafe_core.algorithm.method import LearningMethod

class Made(LearningMethod):
    def gradient(self, shard, batch, draws): ...
"""
_numbers = itertools.count()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create an importable folder with a complete method."""
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / f"made_method_{next(_numbers)}"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "spec.py").write_text(SPEC)
    (folder / "method.py").write_text(METHOD)
    return folder


def test_registers_complete_method(package: Path) -> None:
    registered = register("made", package.name)
    assert registered.spec.published_iterations == 10
    assert f"{package.name}.method" not in sys.modules


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("    published_iterations: ClassVar[int] = 10\n", "", "published_iterations"),
        ("    couples_classes: ClassVar[bool] = False\n", "", "couples_classes"),
        ("= 10\n", "= 0\n", "at least 1"),
        ("= 10\n", "= 10.5\n", "published_iterations"),
        ('Literal["made"]', 'Literal["other"]', 'Literal["made"]'),
        ('    """A field."""\n', "", "the field alpha has no docstring"),
        (", alpha=1.0", "", "leaves alpha without a value"),
        ("image_lr=1.0, ", "", "leaves image_lr without a value"),
        ("alpha: float = resolved_later(ge=0)", "alpha: float", "needs a default"),
        ("    def statistics_bytes(self, sizes):\n        return 0\n", "", "does not define statistics_bytes"),
        ("    def graph_bytes(self, sizes):\n        return 0\n", "", "does not define graph_bytes"),
        ("def graph_bytes(self, sizes):\n        return 0", "def graph_bytes(self, sizes):\n        return -1", "whole number"),
        ("couples_classes: ClassVar[bool] = False", "couples_classes: ClassVar[bool] = True", "numbers_per_outer_step"),
        ("class Spec(LearningMethodSpec)", "class Spec(SelectionMethodSpec)", "has no iterations"),
        ("class Spec(LearningMethodSpec)", "class Spec(MethodSpec)", "subclass of LearningMethodSpec or"),
        ("class Spec(", "class Another(SelectionMethodSpec): ...\n\nclass Spec(", "exactly one subclass"),
        ("class Spec(LearningMethodSpec):", "class Spec:", "exactly one subclass"),
    ],
)
def test_refuses_incomplete_spec(package: Path, old: str, new: str, problem: str) -> None:
    assert old in SPEC
    (package / "spec.py").write_text(SPEC.replace(old, new))
    with pytest.raises(MethodDefinitionError) as refused:
        register("made", package.name)
    assert problem in str(refused.value)


@pytest.mark.parametrize("absent", ["spec", "method"])
def test_refuses_folder_without_required_module(package: Path, absent: str) -> None:
    (package / f"{absent}.py").unlink()
    with pytest.raises(MethodDefinitionError, match=rf"has no {absent}\.py"):
        register("made", package.name)


@pytest.mark.parametrize("name", ["Made", "1st", "", "a-b", "m" * 41])
def test_refuses_invalid_name(package: Path, name: str) -> None:
    with pytest.raises(MethodDefinitionError, match="at most 40 characters"):
        register(name, package.name)


def test_refuses_method_class_that_does_not_fit_its_spec(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cafe_core.algorithm.method import load_method

    (package / "method.py").write_text(
        "from cafe_core.algorithm.method import SelectionMethod\n\n"
        "class Made(SelectionMethod):\n    def select(self, report): ...\n"
    )
    monkeypatch.setitem(METHODS, "made", register("made", package.name))
    with pytest.raises(MethodDefinitionError, match="must be a LearningMethod"):
        load_method("made")


def test_registry_lists_the_methods_of_this_package() -> None:
    assert list(METHODS)[:10] == [
        "cafe",
        "dance",
        "dc",
        "dm",
        "forgetting",
        "herding",
        "k_center",
        "kmeans",
        "ncfm",
        "random",
    ]
    assert {"forgetting", "herding", "k_center", "kmeans", "random"} <= set(SELECTIONS)
