"""Test the trials of a sweep, and which spaces are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from cafe_core.data.builtin import BUILTIN
from cafe_core.errors import SpecError
from cafe_core.spec.dataset import DatasetInfo, DatasetSpec
from cafe_core.spec.dataset_facts import DatasetFacts
from cafe_core.spec.job import field_path
from cafe_core.spec.resolution import resolve_sweep
from cafe_core.spec.sweep import SweepSpec
from cafe_core.spec.trials import Trial, datasets_of, trials

BASE: dict[str, Any] = {"dataset": {"name": "digits"}, "ipc": 1, "iterations": 4, "evaluation": {"repeats": 1}}


def describe(dataset: DatasetSpec) -> DatasetInfo:
    assert dataset.name is not None
    info = BUILTIN[dataset.name]
    return (
        info
        if dataset.image_size is None
        else info.model_copy(update={"height": dataset.image_size, "width": dataset.image_size})
    )


def sweep(space: dict[str, Any], **fields: Any) -> SweepSpec:
    spec = SweepSpec.model_validate({"kind": "sweep", "base": BASE, "space": space} | fields)
    return resolve_sweep(spec, BUILTIN["digits"], concurrent=2)


def make_trials(space: dict[str, Any], **fields: Any) -> list[Trial]:
    return plan_trials(sweep(space, **fields))


def plan_trials(spec: SweepSpec) -> list[Trial]:
    return trials(spec, DatasetFacts.gather(datasets_of(spec), describe))


def test_datasets_to_describe() -> None:
    swept = sweep({"dataset": {"grid": [{"name": "digits"}, {"name": "mnist"}, {}]}, "dataset.image_size": {"grid": [8, 16]}})
    found = {(dataset.name, dataset.image_size) for dataset in datasets_of(swept)}
    assert found == {("digits", None), *((name, size) for name in ("digits", "mnist") for size in (8, 16))}
    assert datasets_of(sweep({"ipc": {"grid": [1, 10]}})) == [DatasetSpec(name="digits")]


def test_each_trial_is_resolved_against_its_own_dataset() -> None:
    digits, mnist = make_trials({"dataset.name": {"grid": ["digits", "mnist"]}})
    assert (digits.spec.dataset.name, mnist.spec.dataset.name) == ("digits", "mnist")


def test_grid_is_every_combination_with_the_first_field_slowest() -> None:
    found = make_trials({"method.beta": {"grid": [0.1, 1.0]}, "ipc": {"grid": [1, 10]}})
    assert [trial.overrides for trial in found] == [
        {"method.beta": 0.1, "ipc": 1},
        {"method.beta": 0.1, "ipc": 10},
        {"method.beta": 1.0, "ipc": 1},
        {"method.beta": 1.0, "ipc": 10},
    ]
    assert [trial.number for trial in found] == [0, 1, 2, 3]


def test_methods_are_given_by_their_name_alone_and_as_best() -> None:
    trials = make_trials({"method": {"grid": ["dance", "dm"]}, "method.image_lr": {"grid": [0.5]}})
    assert [(trial.spec.method.name, trial.spec.method.image_lr) for trial in trials] == [("dance", 0.5), ("dm", 0.5)]  # type: ignore[union-attr]
    without = {name: value for name, value in BASE.items() if name != "iterations"}
    (best,) = make_trials({"seed": {"grid": [1]}}, base={**without, "method": "best"})
    assert (best.spec.method.name, best.spec.iterations) == ("cafe", 100)
    asha = sweep({"seed": {"grid": [1]}}, base={**without, "method": "best"}, scheduler="asha")
    assert asha.base.validation is not None
    assert asha.base.validation.every == 25  # a quarter of the iterations
    at_ipc_10 = make_trials({"seed": {"grid": [1]}}, base={**without, "ipc": 10}, scheduler="asha")
    assert [trial.spec.method.name for trial in at_ipc_10] == ["cafe"]  # type: ignore[union-attr]


def test_each_trial_has_the_defaults_of_its_own_overrides() -> None:
    one, ten = make_trials({"ipc": {"grid": [1, 10]}})
    assert (one.spec.method.max_outer, ten.spec.method.max_outer) == (2, 11)  # type: ignore[union-attr]
    cafe, dm = make_trials({"method": {"grid": [{"name": "cafe"}, {"name": "dm"}]}})
    assert (cafe.spec.method.image_lr, dm.spec.method.image_lr) == (0.1, 1.0)  # type: ignore[union-attr]


def test_nested_field_is_set_after_its_parent() -> None:
    space = {"method.beta": {"grid": [0.5]}, "method": {"grid": [{"name": "cafe", "gamma": 7}]}}
    (trial,) = make_trials(space)
    assert (trial.spec.method.beta, trial.spec.method.gamma) == (0.5, 7)  # type: ignore[union-attr]
    (trial,) = make_trials({"validation.every": {"grid": [3]}}, base={**BASE, "validation": None})
    assert trial.spec.validation is not None
    assert trial.spec.validation.every == 3


def test_replaced_resources_keep_the_gpus_of_the_base() -> None:
    space = {"resources": {"grid": [{"workers": 2}, {"cpus_per_worker": 2, "gpus_per_worker": 0}]}}
    spec = resolve_sweep(
        SweepSpec.model_validate({"kind": "sweep", "base": BASE, "space": space}), BUILTIN["digits"], concurrent=1, cluster_gpus=4
    )
    assert [trial.spec.resources.gpus_per_worker for trial in plan_trials(spec)] == [1, 0]
    stored = SweepSpec.model_validate(json.loads(spec.model_dump_json(exclude_none=True)))
    assert plan_trials(stored) == plan_trials(spec)


@pytest.mark.parametrize(
    ("space", "fields", "loc", "message"),
    [
        ({"evaluation": {"grid": [{}, None]}}, {}, "space.evaluation", "null: a trial without a validation"),
        ({"validation": {"grid": [None, {"every": 1}]}}, {}, "space.validation", "give all trials one, or none"),
        ({"validation": {"grid": [None]}}, {"scheduler": "asha"}, "space.validation", "null: asha stops trials"),
    ],
)
def test_refuses_trials_that_cannot_be_compared(space: dict[str, Any], fields: dict[str, Any], loc: str, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        make_trials(space, **fields)
    assert refused.value.loc == loc
    assert message in refused.value.message


def test_samples_draw_new_values_at_each_point_of_the_grid() -> None:
    space = {
        "ipc": {"grid": [1, 2]},
        "method.beta": {"uniform": [0.5, 2.0]},
        "method.image_lr": {"loguniform": [0.01, 10.0]},
        "method.gamma": {"integers": [5, 20]},
        "method.init": {"choice": ["noise", "real"]},
    }
    found = make_trials(space, samples=30)
    assert len(found) == 60 == sweep(space, samples=30).trial_count
    assert [trial.overrides["ipc"] for trial in found] == [1] * 30 + [2] * 30
    assert len({trial.overrides["method.beta"] for trial in found}) == 60
    assert all(0.5 <= trial.overrides["method.beta"] <= 2 for trial in found)
    rates = sorted(trial.overrides["method.image_lr"] for trial in found)
    assert 0.01 <= rates[0] < 0.1
    assert 1 < rates[-1] <= 10
    assert 0.05 < rates[30] < 2  # about half are below the middle of the logarithms, 0.32
    assert {trial.overrides["method.gamma"] for trial in found} <= set(range(5, 21))
    assert {trial.overrides["method.init"] for trial in found} == {"noise", "real"}
    assert make_trials(space, samples=30) == found
    assert make_trials(space, samples=30, seed=1) != found


def test_adding_a_field_does_not_change_other_draws() -> None:
    alone = make_trials({"method.beta": {"uniform": [0.0, 1.0]}}, samples=3)
    both = make_trials({"method.lambda_1": {"uniform": [0.0, 1.0]}, "method.beta": {"uniform": [0.0, 1.0]}}, samples=3)
    assert [t.overrides["method.beta"] for t in alone] == [t.overrides["method.beta"] for t in both]
    assert all(t.overrides["method.beta"] != t.overrides["method.lambda_1"] for t in both)


def test_stored_sweep_has_the_same_trials() -> None:
    spec = sweep({"method.beta": {"uniform": [0.5, 2.0]}}, samples=3)
    stored = SweepSpec.model_validate(json.loads(spec.model_dump_json(exclude_none=True)))
    assert plan_trials(stored) == plan_trials(spec)


def test_fields_inside_lists_and_of_the_evaluation_can_be_swept() -> None:
    fields = {**BASE, "evaluation": {"networks": [{"name": "mlp"}]}}
    spec = SweepSpec.model_validate(
        {
            "kind": "sweep",
            "base": fields,
            "space": {"evaluation.networks.0.width": {"grid": [16, 32]}, "network.depth": {"grid": [2]}},
        }
    )
    found = plan_trials(resolve_sweep(spec, BUILTIN["digits"], concurrent=1))
    assert [trial.spec.evaluation.networks[0].width for trial in found if trial.spec.evaluation] == [16, 32]
    assert found[0].spec.network.depth == 2


@pytest.mark.parametrize(
    ("space", "loc", "message"),
    [
        ({"method.gama": {"grid": [1]}}, "space.method.gama", "unknown field"),
        ({"gamma": {"grid": [1]}}, "space.gamma", "unknown field"),
        ({"name.first": {"grid": [1]}}, "space.name.first", "cannot vary this field"),
        ({"kind": {"grid": ["evaluate"]}}, "space.kind", "cannot vary this field"),
        ({"webhook": {"grid": ["https://example.org"]}}, "space.webhook", "cannot vary this field"),
        ({"ipc.x": {"grid": [1]}}, "space.ipc.x", "has no field"),
        ({"method.beta": {"grid": [1.0, -2.0]}}, "space.method.beta", "-2.0: Input should be greater than or equal to 0"),
        ({"method.beta": {"uniform": [-1.0, 5.0]}}, "space.method.beta", "-1.0: Input should be greater"),
        ({"method.image_lr": {"uniform": [0.0, 5.0]}}, "space.method.image_lr", "0.0: Input should be greater than 0"),
        ({"method.image_momentum": {"uniform": [0.5, 1.0]}}, "space.method.image_momentum", "1.0: Input should be less than 1"),
        ({"ipc": {"uniform": [1.0, 5.0]}}, "space.ipc", "Input should be a valid integer"),
        ({"ipc": {"integers": [0, 5]}}, "space.ipc", "0: Input should be greater than or equal to 1"),
        ({"method.init": {"choice": ["noise", "fake"]}}, "space.method.init", "\"fake\": Input should be 'noise' or 'real'"),
        ({"resources.workers": {"grid": [2, 11]}}, "space.resources.workers", "11: 11 workers for 10 classes"),
        ({"method.layers": {"grid": [[3], [4]]}}, "space.method.layers", "[4]: [4] must be increasing and below 4"),
        ({"network.depth": {"grid": [3, 9]}}, "space.network.depth", "9: Input should be less than or equal to 8"),
        ({"evaluation.networks.1.width": {"grid": [8]}}, "space.evaluation.networks.1.width", "has no item 1"),
    ],
)
def test_refuses_invalid_value_of_the_space(space: dict[str, Any], loc: str, message: str) -> None:
    base = {**BASE, "evaluation": {"networks": [{}]}}
    spec = SweepSpec.model_validate({"kind": "sweep", "base": base, "space": space})
    with pytest.raises(SpecError) as refused:
        plan_trials(resolve_sweep(spec, BUILTIN["digits"], concurrent=1))
    assert refused.value.loc == loc
    assert message in refused.value.message


def test_refusal_names_all_overrides_that_conflict() -> None:
    with pytest.raises(SpecError) as refused:
        make_trials({"network.depth": {"grid": [3, 1]}, "method.layers": {"grid": [[0], [3]]}})
    assert refused.value.loc == "space.method.layers"
    assert "[3]" in refused.value.message
    with pytest.raises(SpecError) as refused:
        make_trials({"network": {"grid": [{"name": "convnet", "depth": 1}]}, "method": {"grid": [{"layers": [3]}]}})
    assert refused.value.loc == "space.method"


@pytest.mark.parametrize(
    ("fields", "loc"),
    [
        ({"space": {}}, "space"),
        ({"space": {"ipc": {}}}, "space.ipc"),
        ({"space": {"ipc": {"grid": []}}}, "space.ipc.grid"),
        ({"space": {"ipc": {"grid": [1], "choice": [1]}}}, "space.ipc"),
        ({"space": {"method.beta": {"uniform": [2.0, 1.0]}}}, "space.method.beta"),
        ({"space": {"method.beta": {"loguniform": [0.0, 1.0]}}}, "space.method.beta"),
        ({"space": {"ipc": {"grid": [1]}}, "scheduler": "hyperband"}, "scheduler"),
        ({"space": {"ipc": {"grid": [1]}}, "max_concurrent": 0}, "max_concurrent"),
        ({"space": {"ipc": {"grid": list(range(1, 1001))}}, "samples": 11}, ""),
        ({"space": {"ipc": {"grid": [1]}}, "base": {"dataset": {"name": "digits"}, "ipc": 1}}, ""),
    ],
)
def test_refuses_invalid_sweep(fields: dict[str, Any], loc: str) -> None:
    with pytest.raises(ValidationError) as refused:
        SweepSpec.model_validate({"kind": "sweep", "base": BASE, **fields})
    assert field_path(refused.value.errors()[0]["loc"]) == loc


def test_concurrency_is_limited_by_cluster_and_trials() -> None:
    assert sweep({"ipc": {"grid": [1]}}).max_concurrent == 1
    assert sweep({"ipc": {"grid": [1, 2, 3]}}).max_concurrent == 2
    assert sweep({"ipc": {"grid": [1, 2, 3]}}, max_concurrent=1).max_concurrent == 1
    assert sweep({"ipc": {"grid": [1, 2, 3]}}, max_concurrent=9).max_concurrent == 2


def test_asha_adds_a_validation() -> None:
    spec = sweep({"ipc": {"grid": [1, 2]}}, scheduler="asha")
    assert spec.base.validation is not None
    assert spec.base.validation.every == 1
    assert all(trial.spec.validation is not None for trial in plan_trials(spec))


def test_asha_needs_a_method_with_checkpoints() -> None:
    base = {**BASE, "iterations": 0, "method": {"name": "herding"}}
    with pytest.raises(ValueError, match="scheduler: asha stops trials by validations, and herding has no checkpoints"):
        sweep({"seed": {"grid": [1, 2]}}, scheduler="asha", base=base)
    swept = sweep({"method": {"grid": [{"name": "dm"}]}}, scheduler="asha", base=base)
    assert plan_trials(swept)[0].spec.validation is not None
