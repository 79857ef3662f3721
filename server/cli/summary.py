"""Summarise a finished job for a person."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def summary_lines(result: dict[str, Any], directory: Path) -> Iterator[str]:
    """Yield the lines that say what a job made, how accurate networks trained on it are, and how to load it.

    result: of the job. directory: holds the files of the result.
    """
    made = result["best"]["result"] if "best" in result else result  # a sweep's result holds that of its best trial
    synthetic = directory / "synthetic.safetensors"
    if synthetic.exists():
        yield f"{synthetic}: {made['images']} images; {directory / 'preview.png'} shows them"
    measured = made.get("evaluation", made)  # the result of an evaluate job is the evaluation itself
    if measured is not None:
        yield "accuracy of fresh networks on the test images, in percent:"
        yield from _accuracies("", measured["networks"])
        for baseline, of_baseline in measured.get("baselines", {}).items():
            images = {"random": "random real images", "whole": "all real images"}.get(baseline, baseline)
            yield from _accuracies(f" trained on {images}", of_baseline["networks"])
    if synthetic.exists():
        yield "to train on the set:"
        yield "  from cafe_core import load_set"
        yield "  from torch.utils.data import DataLoader"
        yield f'  loader = DataLoader(load_set("{synthetic}"), batch_size=256, shuffle=True)'


def _accuracies(trained_on: str, networks: list[dict[str, Any]]) -> Iterator[str]:
    for network in networks:
        spread = f" ± {network['std']:.1f}" if network["n"] > 1 else ""
        yield f"  {network['name']}{trained_on}: {network['mean']:.1f}{spread} (n = {network['n']})"
