"""Tables of continual learning: final accuracy, average accuracy over the steps, and forgetting."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Literal, Self

import pandas
from pydantic import model_validator

from satm.config import TABLES, Cell, Layout, Resolver, StepsOptions, budgets, refuse_many
from satm.config.class_order import split_classes
from satm.config.datasets import CLASSES
from satm.errors import UsageError
from satm.results.columns import CONTINUAL
from satm.tables.base import Row, TableKind
from satm.tables.reader import Reader
from satm.tables.render import Grid, in_numbers, networks_in_words, percent, text_of
from satm.tables.statistics import spread

METRICS = ("final", "average", "forgetting")
"""Numbers of each method."""

HEADINGS = ("dataset", "IPC", "method", "final accuracy", "average accuracy", "forgetting", "n")


@TABLES.named("continual")
class ContinualTable(StepsOptions, TableKind):
    """A protocol of continual learning from some synthetic sets: a table, and a figure of the same name.

    Columns: final, accuracy on all classes after the last step; average, the mean over the steps of the accuracy on all
    classes seen by then; forgetting (`satm.evaluation.continual` has the formulas), missing with one step; each with
    its mean and sample standard deviation over the n pairs of a seed of the distillation and a class order, after
    averaging over a pair's networks; numbers of seeds, orders and networks; split, the real images; selection, average
    and step_size as in a table of accuracies.
    """

    kind: Literal["continual"] = "continual"
    """Continual learning."""

    columns = {
        **{"dataset": "str", "ipc": "int64", "method": "str", "steps": "int64"},
        **{f"{metric}_{number}": "float64" for metric in METRICS for number in ("mean", "std")},
        **dict.fromkeys(("n", "seeds", "orders", "networks"), "Int64"),
        **dict.fromkeys(("split", "selection", "average", "step_size"), "object"),
    }
    counted = ("final_mean", "", "")

    @model_validator(mode="after")
    def _has_not_too_many_files(self) -> Self:
        refuse_many(len(self.cells()) * (self.orders * self.steps if self.sets == "per-step" else 1))
        return self

    def files(self, layout: Layout, name: str) -> list[str]:
        """Return the accuracies of all distillations."""
        return [layout.continual(cell, name) for cell in self.cells()]

    def size(self) -> dict[str, object]:
        """Return the numbers of steps and class orders."""
        return {"steps": self.steps, "class orders": self.orders}

    def check(self, resolver: Resolver) -> None:
        """Refuse more steps than a dataset has classes, if their number is known before the files are read."""
        for dataset in self.datasets:
            options = resolver.dataset(dataset)
            if self.sets == "per-step" or options.classes is not None or options.source in CLASSES:
                split_classes(resolver.classes(dataset), 0, self.steps)

    def rows(self, reader: Reader, name: str) -> list[Row]:
        """Return one row per dataset, ipc and method."""
        return [
            {"dataset": dataset, "ipc": ipc, "method": method, "steps": self.steps}
            | ({} if runs is None else _summary(runs))
            for dataset, ipc, method, runs in self._measured(reader, name)
        ]

    def curves(self, reader: Reader, name: str) -> dict[tuple[str, int], dict[str, pandas.DataFrame]]:
        """Return the accuracy on all classes seen, by (dataset, ipc) and method, indexed by the number of classes.

        Columns: mean, std and n of the pairs of a seed and a class order. Errors: `frame`.
        """
        from satm.evaluation.continual import step_accuracies

        curves: dict[tuple[str, int], dict[str, pandas.DataFrame]] = {each: {} for each in budgets(self.datasets)}
        for dataset, ipc, method, runs in self._measured(reader, name):
            if runs is not None:
                curves[dataset, ipc][method] = spread(by_order(step_accuracies(runs)), "classes_seen")
        return curves

    def _measured(self, reader: Reader, name: str) -> Iterator[tuple[str, int, str, pandas.DataFrame | None]]:
        """Yield dataset, ipc, method and rows of all its seeds; None for rows that may be missing."""
        for (dataset, ipc), method in product(budgets(self.datasets), self.methods):
            yield dataset, ipc, method, reader.attempt(self._runs, reader, name, self.cells_of(dataset, ipc, method))

    def _runs(self, reader: Reader, name: str, cells: Sequence[Cell]) -> pandas.DataFrame:
        """Return the rows of all seeds, after a check that they are of this protocol and comparable."""
        frames = []
        for cell in cells:
            path = reader.resolver.layout.continual(cell, name)
            frame, _ = reader.run("continual", CONTINUAL, {**cell.axes, "protocol": name})
            actual = {"steps": frame["step"].max(), "orders": frame["order"].nunique()}
            actual |= {"repeats": frame["repeat"].nunique(), **frame[["network", "sets"]].iloc[0]}
            for option, value in actual.items():
                if value != (expected := getattr(self, option)):
                    what = f"{CONTINUAL.what} {path}"
                    raise UsageError(f"{what} has {option} {value}, expected {expected}; make it again")
            frames.append(frame)
        rows, (dataset, ipc, method, _) = pandas.concat(frames, ignore_index=True), cells[0]
        for column in ("split", "selection", "average"):
            if len(values := sorted(set(rows[column]))) > 1:
                raise UsageError(
                    f"continual learning of {method} on {dataset}, ipc {ipc}, mixes {column} {' and '.join(values)}, "
                    "which are not comparable; make all with one"
                )
        return rows

    def grid(self, reader: Reader, name: str, frame: pandas.DataFrame) -> Grid:
        """Return the numbers in percent."""
        lines = []
        for row in frame.to_dict("records"):
            cells = [percent(row[f"{metric}_mean"], row[f"{metric}_std"]) or "-" for metric in METRICS]
            mark = "" if pandas.isna(row["selection"]) or row["selection"] == "last" else f" [{row['selection']}]"
            lines.append([row["dataset"], str(row["ipc"]), f"{row['method']}{mark}", *cells, text_of(row["n"])])
        title = f"Continual learning in {self.steps} steps, percent"
        return Grid(title, HEADINGS, lines, HEADINGS[:3], self._notes(reader, frame))

    def _notes(self, reader: Reader, frame: pandas.DataFrame) -> list[str]:
        options = {dataset: reader.resolver.network(self.network, dataset) for dataset in self.datasets}
        networks = in_numbers([self.repeats], "network")
        images = "images distilled on its classes only"
        if self.sets == "sliced":
            images = "its classes' images of one distillation of all classes"
        splits = " and ".join(sorted(set(frame["split"].dropna())))
        notes = [
            f"{splits.capitalize()} accuracy in percent, mean ± sample standard deviation over n pairs of a synthetic "
            f"set's seed and a class order, each the mean over {networks}. Classes come in {self.steps} steps; a step "
            f"brings {images}, and new networks are trained on all synthetic images so far and tested on all classes "
            "seen. final: after the last step; average: over the steps; forgetting: best earlier minus final "
            "accuracy on the classes of a step, mean over the steps before the last (Chaudhry et al. 2018). Network: "
            f"{networks_in_words(options)}."
        ]
        if averaged := list(dict.fromkeys(frame.loc[frame["average"] == "ema", "method"])):
            notes.append(f"{', '.join(averaged)}: exponential moving averages over the iterations.")
        marks = sorted(set(frame["selection"].dropna()) - {"last"})
        return [*notes, *reader.notes] + [
            f"[{mark}]: synthetic sets of the iteration that was best on {mark} images, not the last." for mark in marks
        ]


def by_order(values: pandas.Series) -> pandas.Series:
    """Return the means over the networks of results by run; the other index levels, such as seed and order, stay."""
    return values.groupby([level for level in values.index.names if level != "repeat"]).mean()


def _summary(rows: pandas.DataFrame) -> Row:
    """Return the numbers of one method."""
    from satm.evaluation.continual import average_accuracy, final_accuracy, forgetting

    summary: Row = {}
    for metric, function in zip(METRICS, (final_accuracy, average_accuracy, forgetting), strict=True):
        values = by_order(function(rows))
        summary |= {f"{metric}_mean": values.mean(), f"{metric}_std": values.std(), "n": len(values)}
    counts = {"seeds": "seed", "orders": "order", "networks": "repeat"}
    summary |= {column: rows[axis].nunique() for column, axis in counts.items()}
    summary |= {column: rows[column].iloc[0] for column in ("split", "selection", "average")}
    return {**summary, "step_size": "+".join(sorted(set(rows["step_size"])))}
