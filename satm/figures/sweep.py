"""Accuracy against the value of an option, such as rho, beta or the number of concurrent segments."""

from collections.abc import Mapping
from itertools import product
from typing import Any, Literal, Self

import pandas
from pydantic import Field, model_validator

from satm.config import FIGURES, Cell, Layout, Seeds, SomeDatasets, TableOptions, budgets, refuse_many
from satm.figures.base import Drawn, FigureKind, cell_title
from satm.figures.curves import Level, Line, Panel
from satm.tables.published import load_published
from satm.tables.reader import Reader
from satm.tables.render import in_numbers

COLUMNS = ["dataset", "ipc", "series", "value", "method", "network", "mean", "std", "n"]


@FIGURES.named("sweep")
class SweepFigure(FigureKind):
    """Accuracy against the value of an option, a line per series and a panel per cell."""

    kind: Literal["sweep"] = "sweep"
    """Accuracy against the value of an option."""
    datasets: SomeDatasets
    """Images per class, by dataset."""
    series: dict[str, dict[float, str]] = Field(min_length=1)
    """Lines by their label in the legend: the method of each value, or `METHOD@NETWORK` for another network."""
    references: tuple[str, ...] = ()
    """Methods drawn as horizontal lines."""
    axis: str
    """Label of the axis of the values."""
    logarithmic: bool = False
    """Draw the values on a logarithmic axis."""
    network: str = "convnet"
    """Network whose accuracy is shown, unless a series names another."""
    seeds: Seeds = (0,)
    """Seeds of the distillation."""

    @model_validator(mode="after")
    def _has_not_too_many_files(self) -> Self:
        refuse_many(len(budgets(self.datasets)) * len(self.points()) * len(self.seeds))
        return self

    def points(self) -> list[tuple[str, str]]:
        """Return (method, network) of every point and reference, once each."""
        named = [name for values in self.series.values() for name in values.values()]
        return list(dict.fromkeys(self.point(name) for name in (*named, *self.references)))

    def point(self, name: str) -> tuple[str, str]:
        """Return the method and network of a name in a series."""
        method, _, network = name.partition("@")
        return method, network or self.network

    def runs(self) -> list[Cell]:
        """Return every distillation that it needs."""
        methods = dict.fromkeys(method for method, _ in self.points())
        return [Cell(*budget, *run) for budget, *run in product(budgets(self.datasets), methods, self.seeds)]

    def tested_networks(self) -> list[str]:
        """Return the networks whose accuracy is shown."""
        return list(dict.fromkeys(network for _, network in self.points()))

    def files(self, layout: Layout, tables: Mapping[str, TableOptions]) -> list[str]:
        """Return the evaluations of all points."""
        return [
            layout.evaluation(Cell(*budget, method, seed), network)
            for budget, (method, network), seed in product(budgets(self.datasets), self.points(), self.seeds)
        ]

    def draw(self, reader: Reader) -> Drawn:
        """Draw a line per series, its points the mean over the networks of all seeds with one standard deviation."""
        rows: list[dict[str, Any]] = []
        panels = []
        for dataset, ipc in budgets(self.datasets):
            place = {"dataset": dataset, "ipc": ipc}
            lines = []
            for label, values in self.series.items():
                points = [
                    {"value": value, **point}
                    for value, name in sorted(values.items())
                    if (point := reader.attempt(self._accuracy, reader, dataset, ipc, name))
                ]
                rows += [{**place, "series": label, **point} for point in points]
                means, stds = ([100 * point[key] for point in points] for key in ("mean", "std"))
                lines.append(Line(label, [point["value"] for point in points], means, stds, bars=True))
            levels = []
            for method in self.references:
                if point := reader.attempt(self._accuracy, reader, dataset, ipc, method):
                    rows.append({**place, "series": "reference", **point})
                    levels.append(Level(method, 100 * point["mean"]))
            levels += self._published(dataset, ipc)
            ticks = sorted({value for values in self.series.values() for value in values})
            title, log = cell_title(dataset, ipc), self.logarithmic
            panels.append(Panel(title, self.axis, "test accuracy, percent", lines, levels, log_x=log, ticks=ticks))
        counts = {row["n"] for row in rows}
        note = f"Points: mean over n = {in_numbers(counts, 'network')}; bars: one standard deviation."
        return self.drawn(reader, [panels], note, [pandas.DataFrame(rows, columns=COLUMNS)])

    def _accuracy(self, reader: Reader, dataset: str, ipc: int, name: str) -> dict[str, Any]:
        """Return mean, std and n of a point; for averaged sets those of the averages."""
        method, network = self.point(name)
        cells = [Cell(dataset, ipc, method, seed) for seed in self.seeds]
        accuracy = reader.accuracies(cells, network)[0]["accuracy"]
        spread = {"mean": float(accuracy.mean()), "std": float(accuracy.std()), "n": len(accuracy)}
        return {"method": method, "network": network, **spread}

    def _published(self, dataset: str, ipc: int) -> list[Level]:
        """Return the published numbers of the references in this cell, the first of each."""
        frame = load_published()
        frame = frame[frame["dataset"].eq(dataset) & frame["ipc"].eq(ipc) & frame["metric"].eq("test_accuracy")]
        frame = frame[frame["eval_arch"].eq("convnet") & frame["value"].notna()]
        first = frame.drop_duplicates("method").set_index("method")["value"]
        return [Level(f"{method}, published", first[method], True) for method in self.references if method in first]
