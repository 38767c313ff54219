"""Tables of what distilled images are worth by themselves: labels, augmentation, random images and real data apart.

Pure functions of the parquet files that the evaluation left behind. Accuracies are fractions in the frame and csv,
percent in Markdown.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas
from rich.console import Console

from satm.config import FULL, FairOptions
from satm.errors import UsageError, pick
from satm.results import EVALUATION
from satm.tables.accuracy import percent
from satm.tables.reader import Reader
from satm.tables.render import Grid, in_numbers, write_grid
from satm.tables.statistics import augmentation_robust_score, label_robust_score, student_interval

SETTINGS = {
    "hard": ("hard", "yes"),
    "hard_plain": ("hard", "no"),
    "soft": ("soft", "yes"),
    "soft_plain": ("soft", "no"),
}
"""Columns of accuracies: labels, and whether augmented."""

SCORES = ("gap", "improvement", "improvement_plain", "lrs", "ars")

COLUMNS = (
    *("dataset", "ipc", "network", "method", "own_labels", "soft_labels"),
    *(f"{setting}_{number}" for setting in SETTINGS for number in ("mean", "std", "low", "high")),
    "full_mean",
    *(f"{score}_{number}" for score in SCORES for number in ("mean", "low", "high")),
    *("networks", "seeds"),
)

LEAST_NETWORKS, LEAST_SEEDS = 5, 3
"""With fewer a table says so."""


def fair_table(reader: Reader, name: str) -> pandas.DataFrame:
    """Return one row per dataset, ipc, network and method.

    Columns: own_labels, hard or soft, what the set comes with; soft_labels, own or teacher, whose the soft ones are
    (`make_variants`). hard, soft, hard_plain, soft_plain: accuracy with these labels, augmented or plain;
    mean, sample standard deviation over all networks, and the 95 % interval of the mean. full: of networks trained on
    all real images. gap: full minus hard. improvement: with own labels over the baseline's images with labels of the
    same kind; improvement_plain: the same without augmentation. lrs, ars: the label- and the augmentation-robust score
    (`satm.tables.statistics`). networks: per set; seeds: sets.

    Intervals are Student's t over the distillations' seeds, each the mean over its networks; with one seed over its
    networks, paired where two sets are compared, and then do not cover the choice of the seed.

    Raises:
        UsageError: no such table; a file that it needs is missing (the text has the command that makes it), broken, or
            of another run.
    """
    options = _options(reader, name)
    rows: list[dict[str, object]] = []
    for dataset, ipcs in options.datasets.items():
        for ipc in ipcs:
            for network in options.networks:
                for method in options.methods:
                    place = {"dataset": dataset, "ipc": ipc, "network": network, "method": method}
                    found = reader.attempt(partial(_compared, reader, options, dataset, ipc, network, method))
                    rows.append({**place, **(found or {})})
    return pandas.DataFrame(rows, columns=list(COLUMNS))


def write_fair(reader: Reader, name: str, console: Console) -> pandas.DataFrame:
    """Write a table as csv, md and tex, show it, and return its frame."""
    frame = fair_table(reader, name)
    notes = [*_notes(_options(reader, name), frame), *reader.notes]
    grid = Grid("What images are worth, percent", HEADINGS, _lines(frame), HEADINGS[:4], notes)
    write_grid(reader.resolver.layout, name, frame, grid, console)
    return frame


HEADINGS = (
    *("dataset", "IPC", "network", "method"),
    *("hard", "hard, plain", "soft", "soft, plain", "real"),
    *("gap", "over random", "LRS", "ARS"),
)


def _options(reader: Reader, name: str) -> FairOptions:
    return pick(name, reader.resolver.campaign.fair, f"fair table in {reader.resolver.path or 'the built-in campaign'}")


def _row(frame: pandas.DataFrame, base: pandas.DataFrame, full: float) -> dict[str, object]:
    """Return the numbers of one method."""
    own = "soft" if (frame["labelled"] == "own").any() else "hard"
    found: dict[str, object] = {"own_labels": own, "full_mean": full}
    found["soft_labels"] = frame.loc[frame["labels"] == "soft", "labelled"].iloc[0]
    units: dict[str, pandas.Series] = {}
    for setting, (labels, augmented) in SETTINGS.items():
        rows = _chosen(frame, labels, augmented)
        units[setting] = _units(rows)
        mean, low, high = student_interval(units[setting].tolist())
        numbers = {"mean": mean, "std": float(rows["accuracy"].std()), "low": low, "high": high}
        found |= {f"{setting}_{number}": value for number, value in numbers.items()}
    random = {setting: _units(_chosen(base, labels, augmented)) for setting, (labels, augmented) in SETTINGS.items()}
    gain = _paired(units[own], random[own])
    plain = _paired(units[f"{own}_plain"], random[f"{own}_plain"])
    gap = full - units["hard"]
    scores: dict[str, Sequence[float]] = {
        "gap": gap.tolist(),
        "improvement": gain.tolist(),
        "improvement_plain": plain.tolist(),
        "lrs": _each(label_robust_score, gain, gap),
        "ars": _each(augmentation_robust_score, gain, plain),
    }
    for score, values in scores.items():
        found |= dict(zip((f"{score}_mean", f"{score}_low", f"{score}_high"), student_interval(values), strict=True))
    return {**found, "networks": frame["repeat"].nunique(), "seeds": frame["seed"].nunique()}


def _each(score: Callable[[float, float], float], one: pandas.Series, two: pandas.Series) -> list[float]:
    return [score(first, second) for first, second in zip(one, two, strict=True)]


def _chosen(frame: pandas.DataFrame, labels: str, augmented: str) -> pandas.DataFrame:
    return frame[(frame["labels"] == labels) & (frame["augmented"] == augmented)]


def _units(rows: pandas.DataFrame) -> pandas.Series:
    """Return accuracies by seed, or of one seed by network."""
    return rows.groupby("seed" if rows["seed"].nunique() > 1 else "repeat")["accuracy"].mean()


def _paired(one: pandas.Series, two: pandas.Series) -> pandas.Series:
    if not one.index.equals(two.index):
        raise UsageError(
            f"a method and its baseline have different {one.index.name}s ({list(one.index)} and {list(two.index)}); "
            "evaluate both with the same options"
        )
    return one - two


def _variants(
    reader: Reader, options: FairOptions, dataset: str, ipc: int, network: str, method: str
) -> pandas.DataFrame:
    found = []
    for cell in options.cells_of(dataset, ipc, method):
        axes = {"dataset": dataset, "what": "variants", **cell.axes, "network": network}
        path = reader.resolver.layout.variants(cell, network)
        rows, _ = reader.run(path, EVALUATION, "evaluate", axes)
        networks = [set(_chosen(rows, *setting)["repeat"]) for setting in SETTINGS.values()]
        if any(each != networks[0] for each in networks):
            raise UsageError(
                f"evaluation {path} is not of the same networks with each kind of labels and images; make it again"
            )
        found.append(rows)
    return pandas.concat(found, ignore_index=True)


def _compared(
    reader: Reader, options: FairOptions, dataset: str, ipc: int, network: str, method: str
) -> dict[str, object]:
    """Return the numbers of one method beside the baseline and all real images."""
    full = _full(reader, dataset, network, options.full)
    base = _variants(reader, options, dataset, ipc, network, options.baseline)
    return _row(_variants(reader, options, dataset, ipc, network, method), base, full)


def _full(reader: Reader, dataset: str, network: str, recipe: str) -> float:
    return float(reader.full(dataset, recipe, network)["accuracy"].mean())


def _lines(frame: pandas.DataFrame) -> list[list[str]]:
    lines = []
    for row in frame.to_dict("records"):
        cells = []
        for setting in SETTINGS:
            text = percent(row[f"{setting}_mean"], row[f"{setting}_std"])
            cells.append(f"**{text}**" if text and setting == row["own_labels"] else text)
        scores = [_spread(row, score) for score in ("gap", "improvement", "lrs", "ars")]
        real = percent(row["full_mean"], float("nan"))
        lines.append([row["dataset"], str(row["ipc"]), row["network"], row["method"], *cells, real, *scores])
    return lines


def _spread(row: Mapping[Any, Any], name: str) -> str:
    mean, low, high = (100 * row[f"{name}_{number}"] for number in ("mean", "low", "high"))
    if pandas.isna(mean):
        return ""
    return f"{mean:.1f}" if pandas.isna(low) else f"{mean:.1f} ({low:.1f} to {high:.1f})"


def _notes(options: FairOptions, frame: pandas.DataFrame) -> list[str]:
    networks, seeds = (sorted(set(frame[column].dropna().astype(int))) or [0] for column in ("networks", "seeds"))
    count = f"{in_numbers(networks, 'network')} on each of {in_numbers(seeds, 'set')}"
    notes = [
        f"Test accuracy in percent, mean ± sample standard deviation over {count}; bold: with the labels that the set "
        "comes with. hard: the class of each image; soft: the set's own soft labels, or those that experts give; "
        f"plain: without augmentation. real: all real images, hard labels ({FULL[options.full]}; the campaign may "
        f"change it). gap: real minus hard. over random: over `{options.baseline}` with labels of the same kind, "
        "augmented. LRS, ARS: label- and augmentation-robust score of DD-Ranking (arXiv 2505.13300), weights 0.5, as "
        "percent. In parentheses 95 % intervals of the mean (Student's t over the sets, or of one set over its "
        "networks)."
    ]
    if networks[0] < LEAST_NETWORKS or seeds[0] < LEAST_SEEDS:
        notes.append(
            f"Fewer than {LEAST_NETWORKS} networks or {LEAST_SEEDS} sets: the intervals say little about other seeds."
        )
    return notes
