"""Test which specs are accepted as jobs, and which are refused at submission."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cafe_core.data import catalog
from cafe_core.data.roots import DataRoots
from cafe_core.errors import SpecError
from cafe_core.jobs.submission import Accepted, Facts, accept, datasets_needed, named_set, resources_needed, set_at
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset_facts import DatasetFacts
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.job import parse_job_spec
from cafe_core.spec.sweep import SweepSpec
from cafe_core.synthetic_set.synthetic_set import SyntheticSet

Submit = Callable[[dict[str, Any]], Accepted]


def synthetic_set(
    *, classes: int = 10, shape: tuple[int, int, int] = (1, 8, 8), dataset: dict[str, Any] | None = None, **fields: Any
) -> SyntheticSet:
    parts: dict[str, Any] = {
        "images": np.zeros((2 * classes, *shape), np.float32),
        "labels": np.repeat(np.arange(classes, dtype=np.int64), 2),
        "mean": np.zeros(shape[0], np.float32),
        "std": np.ones(shape[0], np.float32),
        "class_names": [str(k) for k in range(classes)],
        "dataset": {"name": "digits", "is_digits": True},
        "spec": {} if dataset is None else {"dataset": dataset},
        "iteration": 3,
        "versions": {},
    }
    return SyntheticSet(**parts | fields)


@pytest.fixture
def roots(tmp_path: Path) -> DataRoots:
    for name in ("datasets", "uploads", "downloads", "cache"):
        (tmp_path / name).mkdir()
    return DataRoots(**{name: tmp_path / name for name in ("datasets", "uploads", "downloads", "cache")})


@pytest.fixture
def submit(roots: DataRoots) -> Submit:
    def submit(sent: dict[str, Any]) -> Accepted:
        spec, input_set, concurrent = parse_job_spec(sent), None, 1
        named = named_set(spec)
        if named is not None and named.path is not None:
            input_set = set_at(named.path, roots, field=named.field)
        elif named is not None:
            input_set = synthetic_set(dataset={"name": "digits"})
        if isinstance(spec, SweepSpec):
            concurrent = 4 // resources_needed(spec, gpus=0).workers
        datasets = DatasetFacts.gather(datasets_needed(spec, input_set), lambda dataset: catalog.describe(dataset, roots))
        return accept(spec, Facts(datasets, input_set, concurrent=concurrent))

    return submit


def test_kind_defaults_to_condense(submit: Submit) -> None:
    accepted = submit({"dataset": {"name": "digits"}, "ipc": 1})
    assert isinstance(accepted.spec, CondenseSpec)
    assert (accepted.spec.method.name, accepted.spec.iterations) == ("cafe", 100)  # type: ignore[attr-defined]
    assert accepted.condensations == [accepted.spec]


def test_set_of_another_job_is_tested_on_its_own_dataset(submit: Submit) -> None:
    accepted = submit({"kind": "evaluate", "synthetic": {"job_id": "job_known"}, "baselines": ["random"]})
    assert isinstance(accepted.spec, EvaluateSpec)
    assert accepted.spec.dataset is not None
    assert accepted.spec.dataset.name == "digits"
    assert accepted.spec.whole_epochs == 300
    assert accepted.spec.networks[0].width == 128
    assert accepted.input_set is not None
    assert accepted.input_set.iteration == 3
    assert accepted.condensations == []


def test_accepts_synthetic_set_under_the_dataset_root(submit: Submit, roots: DataRoots) -> None:
    synthetic_set(dataset={"name": "digits"}).save(roots.datasets / "set.safetensors")
    (roots.datasets / "set.npz").write_bytes(synthetic_set(dataset={"name": "digits"}).to_npz_bytes())
    for name in ("set.safetensors", "set.npz"):
        accepted = submit({"kind": "evaluate", "synthetic": {"path": name}})
        assert accepted.input_set is not None
        assert accepted.input_set.ipc == 2


def test_coreset_of_an_evaluation_is_condensed_first(submit: Submit) -> None:
    chosen = {"dataset": {"name": "digits"}, "selection": "herding", "ipc": 3}
    accepted = submit({"kind": "evaluate", "synthetic": chosen, "seed": 5, "resources": {"workers": 20}})
    (condensation,) = accepted.condensations
    assert condensation.method.name == "herding"
    assert (condensation.ipc, condensation.iterations, condensation.seed, condensation.resources.workers) == (3, 0, 5, 10)
    for selection, fields in (("random", {"ipc": 3}), ("whole", {})):
        judged = {"dataset": {"name": "digits"}, "selection": selection, **fields}
        assert submit({"kind": "evaluate", "synthetic": judged}).condensations == []


def test_evaluation_may_share_gpus_but_condensation_may_not(submit: Submit) -> None:
    shared = {"workers": 4, "gpus_per_worker": 0.5}
    chosen = {"dataset": {"name": "digits"}, "selection": "k_center", "ipc": 3}
    accepted = submit({"kind": "evaluate", "synthetic": chosen, "resources": shared})
    assert isinstance(accepted.spec, EvaluateSpec)
    assert accepted.spec.resources.workers == 4
    assert accepted.condensations[0].resources.workers == 1
    with pytest.raises(ValueError, match="several workers that condense"):
        submit({"dataset": {"name": "digits"}, "ipc": 1, "resources": shared})


def test_accepted_sweep_lists_its_trials(submit: Submit) -> None:
    base = {"dataset": {"name": "digits"}, "ipc": 1, "evaluation": {}, "resources": {"workers": 2}}
    accepted = submit({"kind": "sweep", "base": base, "space": {"method.beta": {"grid": [0.5, 1.0, 2.0]}}})
    assert isinstance(accepted.spec, SweepSpec)
    assert accepted.spec.max_concurrent == 2
    assert [trial.overrides for trial in accepted.trials] == [{"method.beta": beta} for beta in (0.5, 1.0, 2.0)]
    assert len(accepted.condensations) == 3


@pytest.mark.parametrize(
    ("made", "fields", "message"),
    [
        (
            {"shape": (1, 12, 12)},
            {},
            "synthetic: its images are 1×12×12 (channels × height × width), the test images of digits 1×8×8",
        ),
        ({"shape": (3, 8, 8)}, {}, "synthetic: its images are 3×8×8"),
        ({"classes": 9}, {}, "synthetic: it has 9 classes, digits has 10"),
        ({}, {"dataset": {"name": "cifar10"}}, "the test images of cifar10 3×32×32"),
        (
            {},
            {"dataset": {"name": "fashion_mnist", "image_size": 8}},
            "its classes 0, 1, 2, 3, 4, … are not in fashion_mnist",
        ),
    ],
)
def test_refuses_set_that_does_not_fit_the_test_images(
    submit: Submit, roots: DataRoots, made: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    synthetic_set(**made, dataset={"name": "digits"}).save(roots.datasets / "set.safetensors")
    with pytest.raises(ValueError, match="synthetic: ") as refused:
        submit({"kind": "evaluate", "synthetic": {"path": "set.safetensors"}, **fields})
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("synthetic", "loc"),
    [
        ({"path": "absent.safetensors"}, "synthetic.path"),
        ({"path": "../absent.safetensors"}, "synthetic.path"),
        ({"path": "damaged.safetensors"}, "synthetic.path"),
        ({"path": "picture.png"}, "synthetic.path"),
        ({"path": "nameless.safetensors"}, "dataset"),
    ],
)
def test_refuses_unreadable_set(submit: Submit, roots: DataRoots, synthetic: dict[str, Any], loc: str) -> None:
    (roots.datasets / "damaged.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    (roots.datasets / "picture.png").write_bytes(b"")
    synthetic_set().save(roots.datasets / "nameless.safetensors")
    with pytest.raises(SpecError) as refused:
        submit({"kind": "evaluate", "synthetic": synthetic})
    assert refused.value.loc == loc


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"baselines": ["random"], "synthetic": {"dataset": {"name": "digits"}, "selection": "whole"}}, "baselines: "),
        (
            {"dataset": {"name": "mnist"}, "synthetic": {"dataset": {"name": "digits"}, "selection": "whole"}},
            "dataset: images chosen from a dataset are evaluated on its own test images",
        ),
    ],
)
def test_refuses_contradictory_evaluation_of_real_images(submit: Submit, sent: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        submit({"kind": "evaluate", **sent})


@pytest.mark.parametrize("name", ["random", "herding"])
def test_coreset_methods_refuse_iterations_and_validation(submit: Submit, name: str) -> None:
    job = {"dataset": {"name": "digits"}, "ipc": 1, "method": {"name": name}}
    assert submit(job).condensations[0].iterations == 0
    with pytest.raises(ValueError, match="iterations: "):
        submit({**job, "iterations": 5})
    with pytest.raises(ValueError, match="validation: "):
        submit({**job, "validation": {"every": 5}})


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (
            {
                "dataset": {"name": "digits"},
                "ipc": 1,
                "evaluation": {"repeats": 10_000, "baselines": ["random"], "networks": [{}] * 6},
            },
            "evaluation.repeats: 10000 of each kind of network, augmentation and source of images are 120000 networks to train",
        ),
        (
            {"kind": "evaluate", "synthetic": {"job_id": "job_known"}, "repeats": 10_000, "networks": [{}] * 11},
            "repeats: 10000 of each kind of network, augmentation and source of images are 110000 networks to train",
        ),
        (
            {"dataset": {"name": "digits"}, "ipc": 1, "iterations": 300_000, "validation": {"every": 2}},
            "validation.every: 150000 validations by 3 networks each are 450000 networks to train; at most 100000",
        ),
    ],
)
def test_refuses_more_networks_than_the_limit(submit: Submit, sent: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        submit(sent)


def test_accepts_as_many_networks_as_the_limit(submit: Submit) -> None:
    chosen = {"dataset": {"name": "digits"}, "selection": "random", "ipc": 1}
    sent = {"kind": "evaluate", "synthetic": chosen, "repeats": 10_000, "networks": [{}] * 10, "baselines": ["random"]}
    assert isinstance(submit(sent).spec, EvaluateSpec)  # random is evaluated anyway, so it adds nothing as a baseline
