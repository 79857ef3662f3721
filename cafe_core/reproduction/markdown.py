"""Write a table as Markdown: our numbers next to the published ones, with the conditions of the measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cafe_core.reproduction.experiment import Cell, Experiment
from cafe_core.reproduction.jobs import Finished, Outcome
from cafe_core.reproduction.readings import NoReading, read

SOURCE = "Wang et al., CAFE: Learning to Condense Dataset by Aligning Features, CVPR 2022"


@dataclass(frozen=True)
class Circumstances:
    """The command, time and machine that made a table."""

    command: str
    when: str
    where: str


def markdown(
    experiment: Experiment, outcomes: Mapping[str, Outcome], circumstances: Circumstances, pictures: Sequence[str] = ()
) -> str:
    """Return the whole file. outcomes: of the ended jobs, by name; pictures: file names in the same directory."""
    return "\n\n".join(
        [
            f"# {experiment.title}",
            _about(experiment, outcomes, circumstances),
            *_tables(experiment, outcomes),
            *(f"![{experiment.title}]({picture})" for picture in pictures),
            *experiment.notes,
            _differences(experiment),
        ]
    ) + "\n"  # fmt: skip


def _about(experiment: Experiment, outcomes: Mapping[str, Outcome], circumstances: Circumstances) -> str:
    made_with = versions(outcomes)
    return "\n".join(
        [
            f"`{circumstances.command}` ({experiment.scale.takes}), {circumstances.when}, {circumstances.where}"
            + (f"; {made_with}." if made_with else "."),
            f"Ours: {experiment.ours}; mean ± standard deviation over n networks, test accuracy in %. "
            f"Published: {experiment.paper} ({SOURCE}).",
        ]
    )


def versions(outcomes: Mapping[str, Outcome]) -> str:
    """Return the package versions of the results, e.g. `torch 2.14.1, numpy 2.4.0`; lists several versions if jobs differ."""
    found: dict[str, list[str]] = {}
    for outcome in outcomes.values():
        if isinstance(outcome, Finished):
            for package, version in outcome.result["versions"].items():
                if version not in found.setdefault(package, []):
                    found[package].append(version)
    return ", ".join(f"{package} {' and '.join(sorted(several))}" for package, several in found.items())


def _tables(experiment: Experiment, outcomes: Mapping[str, Outcome]) -> list[str]:
    """Return one table, or one per column with the column's name above it."""
    if len(experiment.columns) == 1:
        return [_table(experiment.row_title, experiment.cells, outcomes)]
    tables = []
    for column in experiment.columns:
        cells = [cell for cell in experiment.cells if cell.column == column]
        tables.append(f"**{column}**\n\n{_table(experiment.row_title, cells, outcomes)}")
    return tables


def _table(row_title: str, cells: Sequence[Cell], outcomes: Mapping[str, Outcome]) -> str:
    lines = [f"| {row_title} | ours | n | published |", "|---|---|---|---|"]
    for cell in cells:
        published = str(cell.published) if cell.published is not None else "–"
        reading = read(cell, outcomes)
        if isinstance(reading, NoReading):
            lines.append(f"| {cell.row} | {_one_line(reading.reason)} | | {published} |")
        else:
            digits = 1 if cell.measure == "accuracy" else 2
            spread = f" ± {reading.std:.{digits}f}" if reading.n > 1 else ""
            lines.append(f"| {cell.row} | {reading.mean:.{digits}f}{spread} | {reading.n} | {published} |")
    return "\n".join(lines)


def _one_line(text: str) -> str:
    """Escape text for a table cell: bars and line breaks would break the table."""
    return " ".join(text.replace("|", "\\|").split())


def _differences(experiment: Experiment) -> str:
    return "\n".join(["What differs from the paper:", "", *(f"- {difference}" for difference in experiment.differences)])
