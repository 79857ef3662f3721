"""Find the methods: the folders of this package, and the folders that installed packages declare with an entry point.

A method is a folder with two modules:

* `spec.py` defines one subclass of :class:`cafe_core.spec.method.MethodSpec`: fields, defaults, published iterations, memory.
* `method.py` defines one subclass of :class:`cafe_core.algorithm.method.Method`: the computation. It may import torch.

An installed package adds a method with an entry point in the group ``cafe_service.methods``, whose name is the method's name and
whose value is the folder's import path. An incomplete definition raises MethodDefinitionError when this module is imported. The
job spec, the estimate, the generated reference and the parametrized tests take the methods from here. This module does not import
torch.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args

from pydantic import BeforeValidator, Discriminator, Tag, ValidationError

from cafe_core import methods
from cafe_core.spec.base import is_resolved_later
from cafe_core.spec.best import BestMethod
from cafe_core.spec.method import LearningMethodSpec, MethodSpec, ResolutionContext, SelectionMethodSpec, Sizes
from cafe_core.spec.network import NetworkSpec
from cafe_core.spec.plain_names import named

ENTRY_POINTS = "cafe_service.methods"
DEFAULT_METHOD = "cafe"
BEST = "best"
"""The name that stands for the method that measured best."""

_T = TypeVar("_T")
_CONTEXT = ResolutionContext(ipc=1, num_classes=10, network=NetworkSpec().resolved(), shape=(3, 32, 32))
_SIZES = Sizes(
    ipc=1,
    num_classes=10,
    classes=5,
    largest_class=100,
    maps=[(128, 32, 32), (128, 16, 16), (128, 8, 8), (128, 4, 4)],
    parameters=320_010,
    graph_factor=3,
    double_graph_factor=12,
    itemsize=4,
)
"""The sample that definitions are checked with: the default network on ten classes of 32×32 images."""


class MethodDefinitionError(Exception):
    """The definition of a method is incomplete or inconsistent."""


@dataclass(frozen=True)
class RegisteredMethod:
    """A method that a job spec can name."""

    name: str
    package: str
    """Import path of the folder."""
    spec: type[MethodSpec]


def _discover() -> dict[str, RegisteredMethod]:
    packages = {info.name: f"{methods.__name__}.{info.name}" for info in pkgutil.iter_modules(methods.__path__) if info.ispkg}
    for entry_point in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry_point: entry_point.name):
        if entry_point.name == BEST:
            raise MethodDefinitionError(f"the name {BEST!r} of the entry point {entry_point.value} is reserved")
        if entry_point.name in packages:
            raise MethodDefinitionError(
                f"the name {entry_point.name!r} of the entry point {entry_point.value} is taken by {packages[entry_point.name]}"
            )
        packages[entry_point.name] = entry_point.value
    return {name: register(name, package) for name, package in packages.items()}


def register(name: str, package: str) -> RegisteredMethod:
    """Return the method in the folder `package` (an import path). Raises MethodDefinitionError, which names the missing part."""
    if re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name) is None:
        raise MethodDefinitionError(f"{package}: a method's name has at most 40 characters a-z, 0-9, _; got {name!r}")
    for part in ("spec", "method"):
        if find_spec(f"{package}.{part}") is None:
            raise MethodDefinitionError(f"{package} has no {part}.py")
    spec = only_subclass(importlib.import_module(f"{package}.spec"), MethodSpec)  # type: ignore[type-abstract]
    _check_spec(spec, name)
    return RegisteredMethod(name, package, spec)


def only_subclass(module: ModuleType, base: type[_T]) -> type[_T]:
    """Return the one class that `module` defines and that is a complete subclass of `base`."""
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        names = ", ".join(value.__name__ for value in found) or "none"
        raise MethodDefinitionError(f"{module.__name__} must define exactly one subclass of {base.__name__}; it defines {names}")
    if inspect.isabstract(found[0]):
        missing = ", ".join(sorted(found[0].__abstractmethods__))  # type: ignore[attr-defined]
        raise MethodDefinitionError(f"{module.__name__}.{found[0].__name__} does not define {missing}")
    return found[0]


def _check_spec(spec: type[MethodSpec], name: str) -> None:
    """Raise MethodDefinitionError unless `spec` is complete and consistent."""

    def refuse(problem: str) -> MethodDefinitionError:
        return MethodDefinitionError(f"{spec.__module__}.{spec.__name__}: {problem}")

    if get_args(spec.model_fields["name"].annotation if "name" in spec.model_fields else None) != (name,):
        raise refuse(f'it must have a field `name: Literal["{name}"]`, the name of its folder or entry point')
    for fact, type_ in (("published_iterations", int), ("couples_classes", bool)):
        if type(getattr(spec, fact, None)) is not type_:
            raise refuse(f"it must set {fact}, a ClassVar[{type_.__name__}]")
    if issubclass(spec, LearningMethodSpec):
        if spec.published_iterations < 1:
            raise refuse("published_iterations must be at least 1 for a method that learns images")
    elif not issubclass(spec, SelectionMethodSpec):
        raise refuse("it must be a subclass of LearningMethodSpec or SelectionMethodSpec")
    elif spec.published_iterations != 0 or spec.couples_classes:
        raise refuse("a method that chooses real images has no iterations (published_iterations = 0) and does not couple classes")
    for field, info in spec.model_fields.items():
        if not info.description:
            raise refuse(f"the field {field} has no docstring")

    try:
        sample = spec.model_validate({"name": name}).resolved(_CONTEXT)
    except ValidationError as error:
        raise refuse(f"every field except name needs a default, or `resolved_later()`: {error}") from error
    absent = [field for field, info in spec.model_fields.items() if is_resolved_later(info) and getattr(sample, field) is None]
    if absent:
        raise refuse(f"resolved() leaves {', '.join(absent)} without a value")
    for computed in (sample.statistics_bytes, sample.graph_bytes, sample.numbers_per_outer_step):
        if type(value := computed(_SIZES)) is not int or value < 0:
            raise refuse(f"{computed.__name__}() must return a whole number; got {value!r}")
    if bool(sample.numbers_per_outer_step(_SIZES)) != spec.couples_classes:
        raise refuse("numbers_per_outer_step() must be above 0 if and only if couples_classes is True")


METHODS: dict[str, RegisteredMethod] = _discover()
"""Every method by name: those of this package, then those of installed packages."""

SELECTIONS = tuple(name for name, method in METHODS.items() if issubclass(method.spec, SelectionMethodSpec))
"""The methods that choose real images."""


def _method_name(value: Any) -> str | None:
    """Return the method's name in `value`, a submitted or validated spec: cafe if it has none, None if it is unknown."""
    name = value.get("name", DEFAULT_METHOD) if isinstance(value, Mapping) else getattr(value, "name", None)
    return name if isinstance(name, str) and (name in METHODS or name == BEST) else None


if TYPE_CHECKING:
    AnyMethod: TypeAlias = MethodSpec
    Selection: TypeAlias = str
else:
    _SPECS = Annotated[
        Union[(*(Annotated[method.spec, Tag(name)] for name, method in METHODS.items()), Annotated[BestMethod, Tag(BEST)])],
        Discriminator(
            _method_name,
            custom_error_type="unknown_method",
            custom_error_message=f"method.name must be one of {', '.join([*METHODS, BEST])}",
        ),
    ]
    AnyMethod = Annotated[_SPECS, BeforeValidator(named, json_schema_input_type=_SPECS | Literal[(*METHODS, BEST)])]
    """Any registered method's spec, or its name alone."""
    Selection = Literal["random", "whole", *(name for name in SELECTIONS if name != "random")]
    """A choice of real images to evaluate."""
