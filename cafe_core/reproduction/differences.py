"""Describe the differences between a reproduction and the paper."""

from __future__ import annotations

from collections.abc import Mapping

from cafe_core.reproduction.scales import PAPER_ABLATION, Scale, Setting
from cafe_core.spec.network import NetworkSpec


def differences(
    scale: Scale,
    setting: Setting,
    *,
    data: str | None = None,
    long_loops: bool = False,
    evaluation: Mapping[str, int] | None = None,
) -> tuple[str, ...]:
    """Return the differences at `scale`.

    long_loops: whether the experiment uses the scale's long loops. evaluation: fields that override the scale's evaluation.
    data: replaces the text about the data, for an experiment on more than `setting`.
    """
    if scale.name == "paper":
        return (
            "MNIST's networks are trained with crop·scale·rotate, as in the authors' code; the paper does not mention it",
            "SVHN is its `train` split of 73,257 images, not the 600,000 images that the paper mentions",
        )
    method = scale.matching | scale.cafe | (scale.long_loops if long_loops else {})
    iterations = scale.long_iterations if long_loops else scale.iterations["cafe"]
    networks = {"repeats": scale.repeats, "epochs": scale.epochs} | dict(evaluation or {})
    sets = "one synthetic set" if scale.seeds == 1 else f"{scale.seeds} synthetic sets"
    other_data = f"{setting.in_words} instead of {PAPER_ABLATION.in_words}: accuracies are far higher; at most, comparisons "
    return (
        data or f"{other_data}within a column are valid",
        f"{_in_words(setting)} instead of ConvNet-3 of width 128",
        f"{iterations} iterations instead of 2000 (DC: of 1000), an image learning rate of {method['image_lr']:g} instead of "
        "0.1, halved at the same fractions of the run",
        f"N = {method['batch_real']} real images per class and step instead of 256, and {method['query_per_class']} query "
        f"images; at most {method['max_outer']} outer steps, and {method['max_inner']} inner epochs after each, instead of "
        f"DC's loops by ipc; γ = {method['gamma']} instead of 10 unless stated otherwise",
        f"{sets} and {networks['repeats']} networks of {networks['epochs']} epochs per number instead of 5 sets and 20 networks "
        "of 300 epochs for each",
    )


def table1_differences(scale: Scale) -> tuple[str, ...]:
    """Return the differences for Table 1, which has several datasets and networks trained on all real images."""
    setting = scale.table1[0]
    if scale.name == "paper":
        return differences(scale, setting)
    names = {
        "digits": "scikit-learn's digits instead of five datasets; the published numbers are MNIST's",
        "mnist": "only MNIST instead of five datasets",
    }
    ipcs = " and ".join(str(s.ipc) for s in scale.table1)
    return (
        *differences(scale, setting, data=f"{names[setting.dataset_name]}; {ipcs} images per class"),
        f"coresets by a network trained for {scale.coreset['network_epochs']} epochs; Whole: {scale.whole_repeats} networks of "
        f"{scale.whole_epochs} epochs",
    )


def beyond_differences(scale: Scale) -> tuple[str, ...]:
    """Return the differences for the comparison beyond the paper."""
    if scale.name == "paper":
        return differences(scale, scale.beyond[0])
    setting = scale.beyond[0]
    data = f"{setting.dataset_name} instead of CIFAR10"
    later = ", ".join(f"{name} {scale.iterations[name]}" for name in ("dm", "dance", "ncfm"))
    pool = scale.fields("dance")
    return (
        *differences(scale, setting, data=data),
        f"iterations of the other methods: {later} instead of 20,000, 10,000 and 20,000; pools of {pool['pool_size']} networks "
        f"of {pool['pool_epochs']} epochs instead of 5 (NCFM: 20) of 60",
    )


def _in_words(setting: Setting) -> str:
    network = NetworkSpec.model_validate(setting.network).resolved()
    return f"ConvNet-{network.depth} of width {network.width}"
