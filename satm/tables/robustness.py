"""Tables of what distilled images are worth by themselves: labels, augmentation, random images and real data apart."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import nan
from typing import Any, Literal

import pandas
from pydantic import Field, model_validator

from satm.config import FULL, TABLES, Layout, budgets
from satm.errors import UsageError
from satm.results.columns import EVALUATION
from satm.tables.base import Number, TableKind
from satm.tables.reader import Reader
from satm.tables.render import Grid, in_numbers, percent
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

HEADINGS = (
    *("dataset", "IPC", "network", "method"),
    *("hard", "hard, plain", "soft", "soft, plain", "real"),
    *("gap", "over random", "LRS", "ARS"),
)

LEAST_NETWORKS, LEAST_SEEDS = 5, 3
"""With fewer a table says so."""


@TABLES.named("robustness")
class RobustnessTable(TableKind):
    """One table that says what a method's images are worth: labels, augmentation, random images and real data apart.

    Columns: own_labels, hard or soft, what the set comes with; soft_labels, own or teacher, whose the soft ones are
    (`make_evaluation`). hard, soft, hard_plain, soft_plain: accuracy with these labels, augmented or plain;
    mean, sample standard deviation over all networks, and the 95 % interval of the mean. full: of networks trained on
    all real images. gap: full minus hard. improvement: with own labels over the baseline's images with labels of the
    same kind; improvement_plain: the same without augmentation. lrs, ars: the label- and the augmentation-robust score
    (`satm.tables.statistics`). networks: per set; seeds: sets.

    Intervals are Student's t over the distillations' seeds, each the mean over its networks; with one seed over its
    networks, paired where two sets are compared, and then do not cover the choice of the seed.
    """

    kind: Literal["robustness"] = "robustness"
    """What images are worth with other labels and augmentation."""
    networks: tuple[str, ...] = Field(("convnet",), min_length=1)
    """Networks that are trained on the synthetic sets."""
    baseline: str = "random"
    """The method whose sets, with the same labels and schedule, are the measure of an improvement."""
    full: Literal["experts", "strong"] = "strong"
    """Recipe of the networks trained on all real images, the measure of recovery (`FULL`)."""

    @model_validator(mode="after")
    def _has_baseline(self) -> "RobustnessTable":
        if self.baseline not in self.methods:
            raise ValueError(f"methods lacks the baseline {self.baseline!r}; add it, or name another baseline")
        return self

    def files(self, layout: Layout, name: str) -> list[str]:
        """Return the evaluations of all distillations with each kind of labels, and those of all real images."""
        found = [layout.variants(cell, network) for cell in self.cells() for network in self.networks]
        places = [(dataset, self.full, network) for dataset in self.datasets for network in self.networks]
        return found + [layout.full(*place) for place in places]

    def tested_networks(self) -> tuple[str, ...]:
        """Return the networks that are trained on the synthetic sets."""
        return self.networks

    def frame(self, reader: Reader, name: str) -> pandas.DataFrame:
        """Return one row per dataset, ipc, network and method."""
        rows: list[dict[str, object]] = []
        for dataset, ipc in budgets(self.datasets):
            for network in self.networks:
                for method in self.methods:
                    place = {"dataset": dataset, "ipc": ipc, "network": network, "method": method}
                    found = reader.attempt(partial(self._compared, reader, dataset, ipc, network, method))
                    rows.append({**place, **(found or {})})
        return pandas.DataFrame(rows, columns=list(COLUMNS))

    def _compared(self, reader: Reader, dataset: str, ipc: int, network: str, method: str) -> dict[str, object]:
        """Return the numbers of one method beside the baseline and all real images."""
        full = float(reader.full(dataset, self.full, network)["accuracy"].mean())
        base = self._variants(reader, dataset, ipc, network, self.baseline)
        return _row(self._variants(reader, dataset, ipc, network, method), base, full)

    def _variants(self, reader: Reader, dataset: str, ipc: int, network: str, method: str) -> pandas.DataFrame:
        found = []
        for cell in self.cells_of(dataset, ipc, method):
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

    def grid(self, reader: Reader, name: str, frame: pandas.DataFrame) -> Grid:
        """Return the numbers in percent."""
        lines = []
        for row in frame.to_dict("records"):
            cells = []
            for setting in SETTINGS:
                text = percent(row[f"{setting}_mean"], row[f"{setting}_std"])
                cells.append(f"**{text}**" if text and setting == row["own_labels"] else text)
            scores = [_spread(row, score) for score in ("gap", "improvement", "lrs", "ars")]
            place = (row["dataset"], str(row["ipc"]), row["network"], row["method"])
            lines.append([*place, *cells, percent(row["full_mean"]), *scores])
        notes = [*self._notes(frame), *reader.notes]
        return Grid("What images are worth, percent", HEADINGS, lines, HEADINGS[:4], notes)

    def numbers(self, frame: pandas.DataFrame) -> Sequence[Number]:
        """Return the accuracies with hard labels, augmented."""
        return [(value, nan, nan) for value in frame["hard_mean"]]

    def _notes(self, frame: pandas.DataFrame) -> list[str]:
        networks, seeds = (sorted(set(frame[column].dropna().astype(int))) or [0] for column in ("networks", "seeds"))
        count = f"{in_numbers(networks, 'network')} on each of {in_numbers(seeds, 'set')}"
        notes = [
            f"Test accuracy in percent, mean ± sample standard deviation over {count}; bold: with the labels that the "
            "set comes with. hard: the class of each image; soft: the set's own soft labels, or those that experts "
            f"give; plain: without augmentation. real: all real images, hard labels ({FULL[self.full]}; the campaign "
            f"may change it). gap: real minus hard. over random: over `{self.baseline}` with labels of the same kind, "
            "augmented. LRS, ARS: label- and augmentation-robust score of DD-Ranking (arXiv 2505.13300), weights 0.5, "
            "as percent. In parentheses 95 % intervals of the mean (Student's t over the sets, or of one set over its "
            "networks)."
        ]
        if networks[0] < LEAST_NETWORKS or seeds[0] < LEAST_SEEDS:
            notes.append(
                f"Fewer than {LEAST_NETWORKS} networks or {LEAST_SEEDS} sets: the intervals say little about other "
                "seeds."
            )
        return notes


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


def _spread(row: Mapping[Any, Any], name: str) -> str:
    mean, low, high = (100 * row[f"{name}_{number}"] for number in ("mean", "low", "high"))
    if pandas.isna(mean):
        return ""
    return f"{mean:.1f}" if pandas.isna(low) else f"{mean:.1f} ({low:.1f} to {high:.1f})"
