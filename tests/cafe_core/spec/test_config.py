"""Test the job spec: presets, resolved defaults, and which field a refusal names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cafe_core.methods.cafe.spec import CafeMethod
from cafe_core.methods.dance.spec import DanceMethod
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset import DatasetInfo
from cafe_core.spec.evaluation import EvaluationSpec
from cafe_core.spec.job import field_path, parse_job_spec
from cafe_core.spec.loops import dc_loops
from cafe_core.spec.method import ResolutionContext
from cafe_core.spec.network import NetworkSpec
from cafe_core.spec.reference import markdown
from cafe_core.spec.resolution import resolve
from tests.cafe_core.made_data import make_info


def info(classes: int = 10, test_count: int = 100, side: int = 32) -> DatasetInfo:
    return make_info([100] * classes, side=side, test_count=test_count)


def spec(**fields: Any) -> CondenseSpec:
    return CondenseSpec.model_validate({"dataset": {"name": "digits"}, "ipc": 10, **fields})


def method(preset: str, **fields: Any) -> CafeMethod:
    sent = CafeMethod.model_validate({"preset": preset, **fields})
    return sent.resolved(ResolutionContext(ipc=10, num_classes=10, network=NetworkSpec().resolved(), shape=(3, 32, 32)))


def test_paper_preset_matches_the_paper() -> None:
    m = method("paper")
    assert (m.beta, m.layer_weights, m.layers) == (1.0, [1.0] * 4, [0, 1, 2, 3])
    assert (m.lambda_1, m.lambda_2, m.gamma, m.max_outer, m.max_inner) == (0.05, 0.05, 10, 11, 51)
    assert (m.batch_real, m.batch_train, m.query_per_class, m.query_carry) == (256, 256, 256, False)
    assert (m.image_lr, m.image_momentum, m.image_milestones, m.network_lr) == (0.1, 0.5, [1200, 1400, 1800], 0.01)


def test_reference_preset_matches_the_released_code() -> None:
    m = method("reference")
    assert (m.beta, m.layer_weights) == (pytest.approx(25.6), [0.1, 0.1, 1.0, 2.0])
    assert (m.lambda_1, m.lambda_2, m.gamma) == (0.04, 0.03, 10)
    assert (m.query_per_class, m.query_carry, m.image_milestones) == (128, True, [1200, 1600, 1800])


def test_defaults_depend_on_other_fields() -> None:
    assert method("reference", batch_real=64).beta == pytest.approx(0.01 * 10 * 64)
    assert method("paper", batch_real=64).query_per_class == 64
    assert method("reference", layers=[1, 3]).layer_weights == [0.1, 2.0]
    assert method("reference", beta=3.0, gamma=5).beta == 3.0
    mlp = CafeMethod(preset="reference").resolved(ResolutionContext(1, 10, NetworkSpec(name="mlp"), (3, 32, 32)))
    assert mlp.layer_weights == [1.0, 2.0]


@pytest.mark.parametrize(
    ("ipc", "loops"),
    [
        (1, (1, 1)),
        (10, (10, 50)),
        (15, (15, 38)),
        (20, (20, 25)),
        (30, (30, 20)),
        (40, (40, 15)),
        (50, (50, 10)),
        (500, (50, 10)),
    ],
)
def test_loops_of_the_paper_preset(ipc: int, loops: tuple[int, int]) -> None:
    assert dc_loops(ipc) == loops


@pytest.mark.parametrize(
    ("sent", "digits", "expected"),
    [
        ({}, False, (300, 256, "tenth_at_half", 0.0, "none")),
        ({"protocol": "paper"}, True, (300, 256, "tenth_at_half", 0.0, "none")),
        ({"protocol": "paper", "augment": "dsa"}, True, (300, 256, "tenth_at_half", 0.0, "dsa")),
        ({"protocol": "reference"}, False, (600, 256, "tenth_at_half", 0.0, "none")),
        ({"protocol": "reference"}, True, (1000, 256, "tenth_at_half", 0.0, "crop_scale_rotate")),
        ({"protocol": "reference", "augment": "none"}, True, (600, 256, "tenth_at_half", 0.0, "none")),
        ({"protocol": "dc-bench", "augment": ["none", "dsa"]}, False, (1000, 256, "tenth_at_half", 0.0, ["none", "dsa"])),
        ({"protocol": "dc-bench"}, False, (300, 256, "tenth_at_half", 0.0, "none")),
        ({"protocol": "dance"}, False, (1500, 64, "fifths_at_the_end", 0.5, "dsa_without_cutout")),
        ({"protocol": "dance", "epochs": 300, "cutmix": 0.0}, False, (300, 64, "fifths_at_the_end", 0.0, "dsa_without_cutout")),
    ],
)
def test_protocol_fills_in_the_fields_that_are_left_out(sent: dict[str, Any], digits: bool, expected: tuple[Any, ...]) -> None:
    resolved = EvaluationSpec.model_validate(sent).resolved(grey_digits=digits)
    assert (resolved.epochs, resolved.batch, resolved.schedule, resolved.cutmix, resolved.augment) == expected
    assert resolved.whole_epochs == resolved.epochs
    again = EvaluationSpec.model_validate_json(resolved.model_dump_json(exclude_none=True))
    assert again.resolved(grey_digits=digits) == resolved


def test_method_can_be_given_by_its_name_alone() -> None:
    assert spec(method="dm") == spec(method={"name": "dm"})
    with pytest.raises(ValidationError, match=r"must be one of cafe, .*, best"):
        spec(method="nothing")


@pytest.mark.parametrize(("side", "factor"), [(16, 2), (28, 2), (32, 2), (96, 3)])
@pytest.mark.parametrize(("gpus", "iterations", "pool"), [(0, None, 3), (1, 10_000, 5)])
def test_best_method_is_written_out(side: int, factor: int, gpus: int, iterations: int | None, pool: int) -> None:
    dataset = info(side=side)
    resolved = resolve(spec(method="best"), dataset, cluster_gpus=gpus)
    assert isinstance(resolved.method, DanceMethod)
    assert (resolved.method.factor, resolved.method.pool_size) == (factor, pool)
    assert resolved.iterations == iterations or 50 <= resolved.iterations <= 400
    again = parse_job_spec(json.loads(resolved.model_dump_json(exclude_none=True)))
    assert isinstance(again, CondenseSpec)
    assert resolve(again, dataset, cluster_gpus=gpus) == resolved
    assert resolve(spec(method="best", iterations=7), dataset).iterations == 7


def test_best_is_the_default_unless_iterations_are_given() -> None:
    """A number of iterations alone is that of CAFE, because other methods count other iterations."""
    bare = spec()
    assert resolve(bare, info(side=32)).model_dump() == resolve(spec(method="best"), info(side=32)).model_dump()
    with_iterations = resolve(spec(iterations=7), info(side=32))
    assert (with_iterations.method.name, with_iterations.iterations) == ("cafe", 7)  # type: ignore[attr-defined]
    assert resolve(spec(method={"beta": 0.5}), info(side=32)).method.name == "cafe"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("classes", "side", "ipc", "iterations"),
    [(3, 32, 10, 108), (10, 28, 1, 103), (10, 32, 10, 50), (2, 16, 1, 400), (100, 64, 50, 50)],
)
def test_best_method_takes_fewer_iterations_on_cpus_if_each_computes_more(
    classes: int, side: int, ipc: int, iterations: int
) -> None:
    resolved = resolve(spec(method="best", ipc=ipc), make_info([300] * classes, side=side))
    assert resolved.iterations == iterations


@pytest.mark.parametrize(("images", "epochs"), [(10, 60), (100, 8), (1_000_000, 1)])
def test_best_method_trains_its_pool_on_about_as_many_images_for_any_dataset(images: int, epochs: int) -> None:
    resolved = resolve(spec(method="best"), make_info([images] * 10, side=32, test_count=100))
    assert isinstance(resolved.method, DanceMethod)
    assert resolved.method.pool_epochs == epochs


def test_best_method_depends_on_the_gpus_of_the_job() -> None:
    on_cpus = resolve(spec(method="best", resources={"gpus_per_worker": 0}), info(side=32), cluster_gpus=4)
    assert on_cpus.iterations < 10_000


@pytest.mark.parametrize(
    ("ipc", "gpus", "method", "iterations"),
    [(1, 0, "cafe", 100), (9, 1, "cafe", 2000), (10, 0, "kmeans", 0), (50, 1, "kmeans", 0)],
)
def test_best_method_for_tiny_images_depends_on_ipc(ipc: int, gpus: int, method: str, iterations: int) -> None:
    resolved = resolve(spec(method="best", ipc=ipc), info(side=15), cluster_gpus=gpus)
    assert (resolved.method.name, resolved.iterations) == (method, iterations)  # type: ignore[attr-defined]


def test_best_method_has_iterations_if_the_spec_needs_them() -> None:
    """The method for tiny images at ipc 10 or more chooses real images, which has neither iterations nor checkpoints."""
    digits = info(side=8)
    assert resolve(spec(), digits).method.name == "kmeans"  # type: ignore[attr-defined]
    for fields in ({"method": "best", "iterations": 5}, {"validation": {"every": 10}}):
        resolved = resolve(spec(**fields), digits)
        assert (resolved.method.name, resolved.iterations) == ("cafe", fields.get("iterations", 100))  # type: ignore[attr-defined]


def test_factor_must_fit_the_images() -> None:
    with pytest.raises(ValueError, match=r"^method.factor: 3 × 3 tiles do not fit into images of 4×4 pixels; .* at most 2"):
        resolve(spec(method={"name": "dance", "factor": 3}), info(side=4))
    wide = info(side=48).model_copy(update={"width": 49})
    with pytest.raises(ValueError, match=r"images of 48×49 pixels; use a factor of at most 7"):
        resolve(spec(method={"name": "dance", "factor": 8}), wide)
    assert resolve(spec(method={"name": "dance", "factor": 7}), wide)


def test_image_lr_is_halved_at_each_milestone() -> None:
    m = method("paper", image_milestones=[2, 4])
    assert [m.image_lr_at(i) for i in range(6)] == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025, 0.025])


def test_resolved_spec_is_unchanged_by_json_and_by_resolving_again() -> None:
    resolved = resolve(spec(evaluation={"networks": [{"name": "mlp"}, {"name": "convnet", "depth": 2}]}), info(), cluster_gpus=2)
    assert resolved.resources.gpus_per_worker == 1
    assert resolve(spec(), info()).resources.gpus_per_worker == 0
    dumped = resolved.model_dump_json(exclude_none=True)
    assert CondenseSpec.model_validate_json(dumped) == resolved
    assert resolve(resolved, info()) == resolved


@pytest.mark.parametrize(
    ("fields", "loc"),
    [
        ({"ipc": 0}, ("ipc",)),
        ({"iterations": -1}, ("iterations",)),
        ({"iterations": 1_000_001}, ("iterations",)),
        ({"seed": 2**63}, ("seed",)),
        ({"no_such_field": 1}, ("no_such_field",)),
        ({"method": {"bta": 1}}, ("method", "bta")),
        ({"method": {"beta": -1}}, ("method", "beta")),
        ({"method": {"beta": float("nan")}}, ("method", "beta")),
        ({"method": {"beta": None}}, ("method", "beta")),
        ({"method": {"name": "mtt"}}, ("method",)),
        ({"method": {"name": "dm", "beta": 1.0}}, ("method", "beta")),
        ({"method": {"layer_weights": []}}, ("method", "layer_weights")),
        ({"method": {"image_momentum": 1}}, ("method", "image_momentum")),
        ({"network": {"name": "mlp", "depth": 2}}, ("network",)),
        ({"network": {"norm": "batch"}}, ()),
        ({"dataset": {}}, ("dataset",)),
        ({"dataset": {"name": "digits", "path": "x"}}, ("dataset",)),
        ({"dataset": {"name": "imagenet"}}, ("dataset", "name")),
        ({"dataset": {"path": "a\x00b"}}, ("dataset",)),
        ({"dataset": {"id": "../x"}}, ("dataset", "id")),
        ({"resources": {"workers": 0}}, ("resources", "workers")),
        ({"resources": {"workers": 2, "gpus_per_worker": 0.5}}, ()),
        ({"name": "two\nlines"}, ("name",)),
        ({"labels": {"k": 1}}, ("labels", "k")),
        ({"precision": "float16"}, ("precision",)),
        ({"evaluation": {"networks": []}}, ("evaluation", "networks")),
    ],
)
def test_refusal_names_the_field(fields: dict[str, Any], loc: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as refused:
        spec(**fields)
    assert field_path(refused.value.errors()[0]["loc"]) == ".".join(loc)


@pytest.mark.parametrize(
    ("fields", "dataset", "message"),
    [
        ({"resources": {"workers": 11}}, info(), "resources.workers: 11 workers for 10 classes"),
        ({}, info(classes=1), "dataset: made has 1 class"),
        ({"evaluation": {}}, info(test_count=0), "evaluation: made has no test images"),
        ({"method": {"layers": [0, 4]}}, info(), "method.layers: .* below 4"),
        ({"method": {"layers": [1, 0]}}, info(), "method.layers: .* increasing"),
        ({"method": {"layer_weights": [1, 2]}}, info(), "method.layer_weights: 2 weights for 4 aligned maps"),
    ],
)
def test_refuses_spec_that_does_not_fit_the_dataset(fields: dict[str, Any], dataset: DatasetInfo, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(spec(**fields), dataset)


def test_every_field_is_documented() -> None:
    schema = CondenseSpec.model_json_schema()
    models = [schema, *schema["$defs"].values()]
    undocumented = [
        f"{model['title']}.{name}"
        for model in models
        for name, field in model.get("properties", {}).items()
        if not field.get("description")
    ]
    assert undocumented == []


def test_importing_the_spec_does_not_import_torch() -> None:
    code = (
        "import sys, cafe_core.spec.job, cafe_core.spec.estimate, cafe_core.synthetic_set.synthetic_set;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_documentation_of_the_spec_is_current() -> None:
    documented = (Path(__file__).parents[3] / "docs" / "spec.md").read_text(encoding="utf-8")
    assert documented == markdown(), "run: python -m cafe_core.spec.reference > docs/spec.md"
