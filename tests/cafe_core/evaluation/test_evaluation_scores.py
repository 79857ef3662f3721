from __future__ import annotations

import json
import subprocess
import sys
from statistics import fmean, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafe_core.evaluation.report import evaluation_result
from cafe_core.evaluation.scores import (
    augmentation_robustness,
    average,
    average_transfer,
    best_augmentation,
    label_robustness,
)
from cafe_core.evaluation.tasks import EvaluationTask, all_tasks, chunks
from cafe_core.spec.evaluation import EvaluationSpec
from cafe_core.spec.evaluation_sources import Source

fractions = st.floats(0, 1)
CONVNET, MLP = {"name": "convnet"}, {"name": "mlp"}


def test_scores_match_known_values() -> None:
    assert label_robustness(0.555, 0.434, 0.848) == pytest.approx(0.234, abs=5e-4)  # CAFE's Table 1: CIFAR10, 50 images per class
    assert label_robustness(1, 0, 1) == pytest.approx((2.718281828**0.5 - 1 / 2.718281828) / (2.718281828 - 1 / 2.718281828))
    assert augmentation_robustness(1, 0, 1, 0) == pytest.approx(1)
    assert augmentation_robustness(0, 1, 0, 1) == pytest.approx(0)
    assert augmentation_robustness(0.3, 0.3, 0.6, 0.6) == pytest.approx((1 - 1 / 2.718281828) / (2.718281828 - 1 / 2.718281828))


@given(judged=fractions, random=fractions, whole=fractions, more=fractions)
def test_label_robustness_rises_with_the_set_and_falls_with_the_baselines(
    judged: float, random: float, whole: float, more: float
) -> None:
    score = label_robustness(judged, random, whole)
    assert -1e-12 <= score <= 1 + 1e-12
    if more > judged + 1e-6:
        assert label_robustness(more, random, whole) > score
    if more > random + 1e-6:
        assert label_robustness(judged, more, whole) < score
    if more > whole + 1e-6:
        assert label_robustness(judged, random, more) < score


@given(a=fractions, b=fractions, c=fractions, d=fractions)
def test_augmentation_robustness_weighs_both_improvements_equally(a: float, b: float, c: float, d: float) -> None:
    assert augmentation_robustness(a, b, c, d) == pytest.approx(augmentation_robustness(c, d, a, b))
    assert -1e-12 <= augmentation_robustness(a, b, c, d) <= 1 + 1e-12


def test_dc_bench_scores_match_known_values() -> None:
    means = {"none": 50.0, "dsa": 61.0, "autoaugment": 39.0}
    assert best_augmentation(means) == ("dsa", 61.0)
    assert best_augmentation({"none": 50.0, "dsa": 50.0})[0] == "none"
    assert average(means) == pytest.approx(50)
    assert average_transfer([90.0, 30.0, 50.0]) == pytest.approx(40)


def spec(**fields: Any) -> EvaluationSpec:
    return EvaluationSpec.model_validate({"repeats": 2, "whole_epochs": 1, **fields})


def accuracies(spec: EvaluationSpec, judged: Source = "synthetic") -> dict[EvaluationTask, float]:
    """Return a different accuracy below 100 for each task of an evaluation."""
    tasks = all_tasks(spec, judged)
    return {task: 17.3 + 71 * number / len(tasks) + task.repeat**2 for number, task in enumerate(tasks)}


def mean(found: dict[EvaluationTask, float], source: Source, augment: str = "none", network: int = 0) -> float:
    """Return the mean accuracy of the matching tasks, in percent."""
    return fmean(v for t, v in found.items() if (t.source, t.augment, t.network) == (source, augment, network))


def test_result_without_options_has_only_networks() -> None:
    found = accuracies(spec())
    values = list(found.values())
    row = {"name": "convnet", "mean": fmean(values), "std": stdev(values), "n": 2, "accuracies": values}
    assert evaluation_result(spec(), "synthetic", found) == {"networks": [row], "baselines": {}}


def test_standard_deviation_of_one_network_is_zero() -> None:
    (row,) = evaluation_result(spec(repeats=1), "synthetic", accuracies(spec(repeats=1)))["networks"]
    assert (row["std"], row["n"]) == (0.0, 1)


def test_both_baselines_give_label_robustness() -> None:
    asked = spec(baselines=["random", "whole"])
    found = accuracies(asked)
    result = evaluation_result(asked, "synthetic", found)
    assert {name: baseline["networks"][0]["mean"] for name, baseline in result["baselines"].items()} == {
        "random": mean(found, "random"),
        "whole": mean(found, "whole"),
    }
    inputs: list[Source] = ["synthetic", "random", "whole"]
    assert result["scores"] == {"lrs": pytest.approx(label_robustness(*(mean(found, source) / 100 for source in inputs)))}
    assert "augmentations" not in result


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"baselines": ["random"]}, set()),
        ({"baselines": ["whole"]}, set()),
        ({"baselines": ["random", "whole"]}, {"lrs"}),
        ({"augment": ["none", "dsa"]}, {"best", "best_augmentation", "average"}),
        ({"augment": ["dsa", "autoaugment"], "baselines": ["random"]}, {"best", "best_augmentation", "average"}),
        ({"augment": ["dsa", "none"], "baselines": ["random"]}, {"best", "best_augmentation", "average", "ars"}),
        ({"networks": [CONVNET, MLP]}, {"average_transfer"}),
        ({"networks": [CONVNET, MLP], "baselines": ["random", "whole"]}, {"average_transfer", "lrs", "networks"}),
    ],
)
def test_score_is_reported_if_its_inputs_exist(fields: dict[str, Any], expected: set[str]) -> None:
    asked = spec(**fields)
    result = evaluation_result(asked, "synthetic", accuracies(asked))
    assert set(result.get("scores", {})) == expected
    assert ("scores" in result) == bool(expected)


def test_result_with_several_augmentations_and_networks() -> None:
    asked = spec(networks=[CONVNET, MLP], augment=["dsa", "none", "randaugment"], baselines=["random", "whole"], repeats=3)
    found = accuracies(asked)
    result = evaluation_result(asked, "synthetic", found)
    assert result["networks"] == result["augmentations"]["dsa"]["networks"]
    assert result["baselines"] == result["augmentations"]["dsa"]["baselines"]
    assert [row["mean"] for row in result["augmentations"]["none"]["baselines"]["random"]["networks"]] == [
        mean(found, "random", "none", network) for network in (0, 1)
    ]
    scores = result["scores"]
    assert [row["name"] for row in scores["networks"]] == ["convnet", "mlp"]
    for network, row in enumerate(scores["networks"]):
        of = {a: mean(found, "synthetic", a, network) for a in asked.augmentations}
        random = {a: mean(found, "random", a, network) for a in asked.augmentations}
        assert row["ars"] == {
            a: pytest.approx(augmentation_robustness(of[a] / 100, random[a] / 100, of["none"] / 100, random["none"] / 100))
            for a in ("dsa", "randaugment")
        }
        whole = mean(found, "whole", "dsa", network) / 100
        assert row["lrs"] == pytest.approx(label_robustness(of["dsa"] / 100, random["dsa"] / 100, whole))
        assert (row["best_augmentation"], row["best"]) == (max(of, key=of.__getitem__), pytest.approx(max(of.values())))
        assert row["average"] == pytest.approx(fmean(of.values()))
    first = {name: value for name, value in scores["networks"][0].items() if name != "name"}
    assert first.items() <= scores.items()
    assert scores["average_transfer"] == pytest.approx(mean(found, "synthetic", "dsa", 1))


def test_random_images_can_be_evaluated() -> None:
    asked = spec(baselines=["random", "whole"])
    found = accuracies(asked, "random")
    result = evaluation_result(asked, "random", found)
    assert result["networks"][0]["mean"] == mean(found, "random")
    assert list(result["baselines"]) == ["whole"]
    random, whole = mean(found, "random") / 100, mean(found, "whole") / 100
    assert result["scores"] == {"lrs": pytest.approx(label_robustness(random, random, whole))}


def test_result_can_be_written_as_json() -> None:
    asked = spec(networks=[CONVNET, MLP], augment=["none", "dsa"], baselines=["random", "whole"])
    result = evaluation_result(asked, "synthetic", accuracies(asked))
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@given(
    repeats=st.integers(1, 5),
    networks=st.integers(1, 3),
    augment=st.lists(st.sampled_from(["none", "dsa", "randaugment"]), min_size=1, max_size=3, unique=True),
    baselines=st.lists(st.sampled_from(["random", "whole"]), max_size=2, unique=True),
    judged=st.sampled_from(["synthetic", "random", "whole"]),
    size=st.integers(1, 7),
)
def test_chunks_contain_every_task_once_and_differ_only_in_repeat(
    repeats: int, networks: int, augment: list[str], baselines: list[str], judged: Source, size: int
) -> None:
    asked = spec(repeats=repeats, networks=[CONVNET] * networks, augment=augment, baselines=baselines)
    tasks = all_tasks(asked, judged)
    assert len(tasks) == len(set(tasks)) == repeats * networks * len(augment) * len({judged, *baselines})
    cut = chunks(tasks, size)
    assert sorted((t for chunk in cut for t in chunk), key=repr) == sorted(tasks, key=repr)
    assert all(1 <= len(chunk) <= size for chunk in cut)
    assert all(len({(t.source, t.network, t.augment) for t in chunk}) == 1 for chunk in cut)


def test_importing_results_does_not_import_torch() -> None:
    code = "import sys, cafe_core.evaluation.report, cafe_core.evaluation.tasks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
