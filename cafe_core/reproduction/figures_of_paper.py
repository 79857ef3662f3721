"""Define the experiments of Figures 3 to 5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from cafe_core.reproduction import published, specs
from cafe_core.reproduction.differences import differences
from cafe_core.reproduction.experiment import Cell, Curve, Experiment
from cafe_core.reproduction.scales import PAPER_ABLATION, Scale
from cafe_core.reproduction.tables_of_paper import RANDOM


def figure3a(scale: Scale) -> Experiment:
    """Return Figure 3a: accuracy by λ1."""
    about = "ends the outer loop when the last γ query accuracies span less"
    return _figure3(scale, "figure3a", "lambda_1", "λ1", about, scale.lambdas, default=0.05)


def figure3b(scale: Scale) -> Experiment:
    """Return Figure 3b: accuracy by λ2."""
    about = "ends the inner loop when the last γ query accuracies span more"
    return _figure3(scale, "figure3b", "lambda_2", "λ2", about, scale.lambdas, default=0.05)


def figure3c(scale: Scale) -> Experiment:
    """Return Figure 3c: accuracy by β."""
    about = "weighs the discrimination loss against feature alignment"
    return _figure3(scale, "figure3c", "beta", "β", about, scale.betas, default=1.0)


def _figure3(
    scale: Scale,
    name: Literal["figure3a", "figure3b", "figure3c"],
    field: str,
    symbol: str,
    about: str,
    values: Sequence[float],
    *,
    default: float,
) -> Experiment:
    setting = scale.ablation
    loops, iterations = ({}, None) if field == "beta" else (scale.long_loops, scale.long_iterations)
    cells = []
    for value in values:
        jobs = specs.condense(scale, setting, {"name": "cafe", field: value} | loops, iterations=iterations)
        stated = published.figure3_default() if value == default else None
        cells.append(Cell(f"{symbol} = {value:g}", "accuracy", jobs, stated))
    return Experiment(
        name,
        scale,
        f"Figure {name.removeprefix('figure')}: accuracy by {symbol}",
        symbol,
        tuple(cells),
        ours=setting.in_words,
        paper=PAPER_ABLATION.in_words,
        notes=(
            f"{symbol} {about}. The paper states only the accuracy at its default, {symbol} = {default:g}, as a number; it draws "
            "the other points.",
        ),
        differences=differences(scale, setting, long_loops=bool(loops)),
        curve=Curve(symbol, tuple(values), default, logarithmic=field == "beta"),
    )


def figure4(scale: Scale) -> Experiment:
    """Return Figure 4: image grids."""
    setting = scale.ablation
    rows = {
        "original images": (specs.condense(scale, setting, {"name": "random"}), RANDOM),
        "DC": (specs.condense(scale, setting, {"name": "dc"}), published.table6("DC", "ConvNet")),
        "CAFE": (specs.condense(scale, setting, {"name": "cafe"}), published.table6("CAFE", "ConvNet")),
    }
    return Experiment(
        "figure4",
        scale,
        "Figure 4: original images, and images made by DC and CAFE from noise",
        "images",
        tuple(Cell(row, "accuracy", jobs[:1], value) for row, (jobs, value) in rows.items()),
        ours=setting.in_words,
        paper=PAPER_ABLATION.in_words,
        notes=(
            "Each row of a grid is a class. The original images are chosen at random; DC and CAFE start from the same noise.",
        ),
        differences=differences(scale, setting),
    )


def figure5(scale: Scale) -> Experiment:
    """Return Figure 5: real and synthetic features."""
    setting = scale.ablation
    rows = {"DC": (specs.condense(scale, setting, {"name": "dc"}), published.table6("DC", "ConvNet"))}
    for row, losses in (("DL", "DL"), ("LFA", "LFA"), ("CAFE", "DL+LFA")):
        rows[row] = specs.cafe(scale, setting, **specs.losses(setting, losses)), published.table2(losses, dynamic=True)
    return Experiment(
        "figure5",
        scale,
        "Figure 5: where real and synthetic images lie in feature space",
        "synthetic images by",
        tuple(Cell(row, "accuracy", jobs[:1], value) for row, (jobs, value) in rows.items()),
        ours=setting.in_words,
        paper=PAPER_ABLATION.in_words,
        notes=(
            f"Features: the last map of a ConvNet trained on {scale.embedded_per_class} random real images per class. One t-SNE "
            "places one class's real images and the synthetic ones of all four methods, so positions are comparable between "
            "the panels. Points are real images, stars synthetic ones.",
            "t-SNE preserves neighbourhoods, not distances: the position of stars among points is meaningful, the distance "
            "between groups is not.",
        ),
        differences=differences(scale, setting),
        further_jobs=(specs.real_images(setting, scale.embedded_per_class),),
    )
