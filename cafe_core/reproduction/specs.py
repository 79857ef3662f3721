"""Build the specs of a table's jobs. Equal jobs get equal specs, so that each is run once."""

from __future__ import annotations

from typing import Any

from cafe_core.data.builtin import BUILTIN
from cafe_core.reproduction.jobs import Job
from cafe_core.reproduction.scales import Scale, Setting
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.network import NetworkSpec, aligned_map_count
from cafe_core.spec.resolution import resolve


def condense(
    scale: Scale,
    setting: Setting,
    method: dict[str, Any],
    *,
    iterations: int | None = None,
    evaluation: dict[str, Any] | None = None,
) -> tuple[Job, ...]:
    """Return one job per synthetic set, with evaluation.

    method, evaluation: fields that override the scale's; `method` includes the name.
    """
    name = method["name"]
    iterations = iterations or scale.iterations.get(name)
    own = scale.fields(name)
    if iterations is not None and name == "cafe":  # halve image_lr at the same fractions of a run as the paper
        own = own | {"image_milestones": [round(fraction * iterations) for fraction in (0.6, 0.7, 0.9)]}
    spec = _spec(setting, setting.ipc, own | _beyond_default(setting, own, method))
    spec |= {"evaluation": _evaluation(scale, setting) | (evaluation or {})}
    if iterations is not None:
        spec |= {"iterations": iterations, "checkpoint_every": max(1, min(50, iterations // 5))}
    return tuple(Job(spec | {"seed": seed}) for seed in range(scale.seeds))


def cafe(scale: Scale, setting: Setting, **method: Any) -> tuple[Job, ...]:
    """Return CAFE jobs with the given fields."""
    return condense(scale, setting, {"name": "cafe"} | method)


def losses(setting: Setting, wanted: str) -> dict[str, Any]:
    """Return the fields of cafe for DL, LFA or DL+LFA. For DL, one map is aligned with weight 0, so that L = β L_d."""
    if wanted == "DL":
        return {"layers": [last_map(setting)], "layer_weights": [0.0]}
    return {"discrimination": wanted == "DL+LFA"}


def random(scale: Scale, setting: Setting) -> tuple[Job, ...]:
    """Return jobs that evaluate random real images, different ones for each network."""
    judged = {"dataset": setting.dataset, "selection": "random", "ipc": setting.ipc}
    spec = {"kind": "evaluate", "synthetic": judged} | _evaluation(scale, setting)
    return tuple(Job(spec | {"seed": seed}) for seed in range(scale.seeds))


def whole(scale: Scale, setting: Setting) -> tuple[Job, ...]:
    """Return a job that evaluates all training images."""
    judged = {"dataset": setting.dataset, "selection": "whole"}
    evaluation = _evaluation(scale, setting) | {"repeats": scale.whole_repeats, "epochs": scale.whole_epochs}
    return (Job({"kind": "evaluate", "synthetic": judged} | evaluation | {"seed": 0}),)


def real_images(setting: Setting, per_class: int) -> Job:
    """Return a job that saves random real images as a set, without evaluation."""
    return Job(_spec(setting, per_class, {"name": "random"}) | {"seed": 0})


def last_map(setting: Setting) -> int:
    """Return the index of the network's last feature map."""
    return aligned_map_count(NetworkSpec.model_validate(setting.network)) - 1


def _spec(setting: Setting, ipc: int, method: dict[str, Any]) -> dict[str, Any]:
    network = {"name": "convnet"} | setting.network
    return {"kind": "condense", "dataset": setting.dataset, "ipc": ipc, "network": network, "method": method}


def _evaluation(scale: Scale, setting: Setting) -> dict[str, Any]:
    """Return an evaluation with the kind of network that condenses."""
    digits_as_authors = scale.name == "paper" and setting.dataset_name == "mnist"
    return {
        "networks": [{"name": "convnet"} | setting.network],
        "repeats": scale.repeats,
        "epochs": scale.epochs,
        "augment": "crop_scale_rotate" if digits_as_authors else "none",
    }


def _beyond_default(setting: Setting, own: dict[str, Any], method: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of `method` that differ from the defaults."""
    bare = CondenseSpec.model_validate(_spec(setting, setting.ipc, own | {"name": method["name"]}))
    default = resolve(bare, BUILTIN[setting.dataset_name]).method.model_dump()
    return {field: value for field, value in method.items() if field == "name" or default[field] != value}
