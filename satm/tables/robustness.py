"""Tables that separate the value of distilled images from that of labels and augmentation."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Literal

import pandas
from pydantic import Field, model_validator

from satm.config import FULL, TABLES, Cell, Layout, budgets
from satm.errors import UsageError
from satm.results.columns import EVALUATION
from satm.tables.base import Row, TableKind
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

PLACE = ("dataset", "IPC", "network", "method")
HEADINGS = (*PLACE, "hard", "hard, plain", "soft", "soft, plain", "real", "gap", "over random", "LRS", "ARS")

LEAST_NETWORKS, LEAST_SEEDS = 5, 3
"""Numbers of networks and seeds below which a table has a warning."""


@TABLES.named("robustness")
class RobustnessTable(TableKind):
    """A table of a method's images with other labels and augmentation, beside random images and real data.

    Columns: own_labels, kind of the set's labels, hard or soft; soft_labels, origin of the soft labels, own or teacher
    (`make_evaluation`). hard, soft, hard_plain, soft_plain: accuracy with these labels, augmented or plain;
    mean, sample standard deviation over all networks, and the 95 % interval of the mean. full: accuracy of networks
    trained on all real images. gap: full minus hard. improvement: accuracy with own labels minus that of the baseline's
    images with labels of the same kind; improvement_plain: the same without augmentation. lrs, ars: the label- and the
    augmentation-robust score (`satm.tables.statistics`). networks: their number per set; seeds: number of sets.

    Intervals are Student's t over the distillations' seeds, after averaging over each seed's networks; with one seed
    they are over its networks, paired if two sets are compared, and do not cover the choice of the seed.
    """

    kind: Literal["robustness"] = "robustness"
    """Accuracy of images with other labels and augmentation."""
    networks: tuple[str, ...] = Field(("convnet",), min_length=1)
    """Networks that are trained on the synthetic sets."""
    baseline: str = "random"
    """Method whose sets, with the same labels and schedule, are the reference for an improvement."""
    full: Literal["experts", "strong"] = "strong"
    """Recipe of the networks trained on all real images, the reference for the gap (`FULL`)."""

    columns = {
        **{"dataset": "str", "ipc": "int64", "network": "str", "method": "str"},
        **dict.fromkeys(("own_labels", "soft_labels"), "object"),
        **{f"{setting}_{number}": "float64" for setting in SETTINGS for number in ("mean", "std", "low", "high")},
        "full_mean": "float64",
        **{f"{score}_{number}": "float64" for score in SCORES for number in ("mean", "low", "high")},
        **{"networks": "Int64", "seeds": "Int64"},
    }
    counted = ("hard_mean", "", "")

    @model_validator(mode="after")
    def _has_baseline(self) -> "RobustnessTable":
        if self.baseline not in self.methods:
            raise ValueError(f"methods lacks the baseline {self.baseline!r}; add it, or name another baseline")
        return self

    def files(self, layout: Layout, name: str) -> list[str]:
        """Return the evaluations of all distillations with each kind of labels, and those of all real images."""
        return [
            *(layout.variants(*place) for place in product(self.cells(), self.networks)),
            *(layout.full(dataset, self.full, network) for dataset, network in product(self.datasets, self.networks)),
        ]

    def rows(self, reader: Reader, name: str) -> list[Row]:
        """Return one row per dataset, ipc, network and method."""
        return [
            {"dataset": dataset, "ipc": ipc, "network": network, "method": method}
            | (reader.attempt(self._row, reader, dataset, ipc, network, method) or {})
            for (dataset, ipc), network, method in product(budgets(self.datasets), self.networks, self.methods)
        ]

    def _row(self, reader: Reader, dataset: str, ipc: int, network: str, method: str) -> Row:
        """Return the numbers of one method beside the baseline and all real images."""
        full = float(reader.full(dataset, self.full, network)["accuracy"].mean())
        base, frame = (
            _variants(reader, self.cells_of(dataset, ipc, each), network) for each in (self.baseline, method)
        )
        own = "soft" if (frame["labelled"] == "own").any() else "hard"
        soft = frame.loc[frame["labels"] == "soft", "labelled"].iloc[0]
        row: Row = {"own_labels": own, "soft_labels": soft, "full_mean": full}
        units = {setting: _units(_variant(frame, setting)) for setting in SETTINGS}
        for setting, values in units.items():
            mean, low, high = student_interval(values.tolist())
            numbers = {"mean": mean, "std": float(_variant(frame, setting)["accuracy"].std()), "low": low, "high": high}
            row |= {f"{setting}_{number}": value for number, value in numbers.items()}
        gain, plain = (_difference(units[each], _units(_variant(base, each))) for each in (own, f"{own}_plain"))
        gap = full - units["hard"]
        scores: dict[str, Sequence[float]] = {
            "gap": gap.tolist(),
            "improvement": gain.tolist(),
            "improvement_plain": plain.tolist(),
            "lrs": list(map(label_robust_score, gain, gap)),
            "ars": list(map(augmentation_robust_score, gain, plain)),
        }
        for score, series in scores.items():
            row |= dict(zip((f"{score}_mean", f"{score}_low", f"{score}_high"), student_interval(series), strict=True))
        return {**row, "networks": frame["repeat"].nunique(), "seeds": frame["seed"].nunique()}

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
        return Grid("What images are worth, percent", HEADINGS, lines, PLACE, notes)

    def _notes(self, frame: pandas.DataFrame) -> list[str]:
        networks, seeds = (sorted(set(frame[column].dropna())) or [0] for column in ("networks", "seeds"))
        count = f"{in_numbers(networks, 'network')} on each of {in_numbers(seeds, 'set')}"
        notes = [
            f"Test accuracy in percent, mean ± sample standard deviation over {count}; bold: with the set's own kind "
            "of labels. hard: the class of each image; soft: the set's own soft labels, or those of experts; plain: "
            f"without augmentation. real: all real images, hard labels ({FULL[self.full]}; unless the campaign "
            f"changes it). gap: real minus hard. over random: minus `{self.baseline}` with labels of the same kind, "
            "augmented. LRS, ARS: label- and augmentation-robust score of DD-Ranking (arXiv 2505.13300), weights 0.5, "
            "as percent. In parentheses 95 % intervals of the mean (Student's t over the sets, or of one set over its "
            "networks)."
        ]
        if networks[0] < LEAST_NETWORKS or seeds[0] < LEAST_SEEDS:
            least = f"{LEAST_NETWORKS} networks or {LEAST_SEEDS} sets"
            notes.append(f"Fewer than {least}: the intervals say little about other seeds.")
        return notes


def _variants(reader: Reader, cells: Sequence[Cell], network: str) -> pandas.DataFrame:
    """Return the evaluations of sets with each kind of labels, with and without augmentation, on the same networks."""
    frames = []
    for cell in cells:
        path = reader.resolver.layout.variants(cell, network)
        frame, _ = reader.run("variants", EVALUATION, {**cell.axes, "network": network})
        networks = [set(_variant(frame, setting)["repeat"]) for setting in SETTINGS]
        if any(each != networks[0] for each in networks):
            raise UsageError(
                f"evaluation {path} has different networks for the kinds of labels and augmentation; "
                + reader.remedy("variants", **cell.axes, network=network)
            )
        frames.append(frame)
    return pandas.concat(frames, ignore_index=True)


def _variant(frame: pandas.DataFrame, setting: str) -> pandas.DataFrame:
    """Return the rows of one setting of `SETTINGS`."""
    labels, augmented = SETTINGS[setting]
    return frame[(frame["labels"] == labels) & (frame["augmented"] == augmented)]


def _units(rows: pandas.DataFrame) -> pandas.Series:
    """Return accuracies by seed, or with one seed by network."""
    return rows.groupby("seed" if rows["seed"].nunique() > 1 else "repeat")["accuracy"].mean()


def _difference(one: pandas.Series, two: pandas.Series) -> pandas.Series:
    """Return the differences of pairs, one - two."""
    if not one.index.equals(two.index):
        raise UsageError(
            f"a method and its baseline have different {one.index.name}s ({list(one.index)} and {list(two.index)}); "
            "evaluate both with the same options"
        )
    return one - two


def _spread(row: Mapping[Any, Any], name: str) -> str:
    """Return a score with its interval, in percent; an empty text if it is missing."""
    low, high = 100 * row[f"{name}_low"], 100 * row[f"{name}_high"]
    return percent(row[f"{name}_mean"]) + ("" if pandas.isna(low) else f" ({low:.1f} to {high:.1f})")
