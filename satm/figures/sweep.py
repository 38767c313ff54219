"""Accuracy against the value of an option, such as rho, beta or the number of concurrent segments."""

from collections.abc import Mapping
from typing import Literal, Self

import pandas
from pydantic import Field, model_validator

from satm.config import FIGURES, Cell, Layout, Seeds, SomeDatasets, TableOptions, budgets, refuse_many
from satm.figures.base import Drawn, FigureKind, cell_title, counted
from satm.figures.curves import Level, Line, Panel, draw_panels
from satm.tables.published import load_published
from satm.tables.reader import Reader

COLUMNS = ["dataset", "ipc", "series", "value", "method", "network", "mean", "std", "n"]


@FIGURES.named("sweep")
class SweepFigure(FigureKind):
    """Accuracy against the value of an option, a line per series and a panel per cell."""

    kind: Literal["sweep"] = "sweep"
    """Accuracy against the value of an option."""
    datasets: SomeDatasets
    """Images per class, by dataset."""
    series: dict[str, dict[float, str]] = Field(min_length=1)
    """By the legend's name of a line: the method of each value, or `METHOD@NETWORK` for another network."""
    references: tuple[str, ...] = ()
    """Methods drawn as horizontal lines."""
    axis: str
    """What the values are, for the axis."""
    logarithmic: bool = False
    """Draw the values on a logarithmic axis."""
    network: str = "convnet"
    """Network that accuracies are of, where a series does not name another."""
    seeds: Seeds = (0,)
    """Seeds of the distillation."""

    @model_validator(mode="after")
    def _has_not_too_many_files(self) -> Self:
        refuse_many(len(budgets(self.datasets)) * len(self.points()) * len(self.seeds))
        return self

    def points(self) -> list[tuple[str, str]]:
        """Return (method, network) of everything that is drawn, once each."""
        named = [each for values in self.series.values() for each in values.values()] + list(self.references)
        return list(dict.fromkeys(self.place(each) for each in named))

    def place(self, named: str) -> tuple[str, str]:
        """Return the method and network that a value names."""
        method, _, network = named.partition("@")
        return method, network or self.network

    def runs(self) -> list[Cell]:
        """Return every distillation that it is made of."""
        methods = dict.fromkeys(method for method, _ in self.points())
        return [
            Cell(*budget, method, seed)
            for budget in budgets(self.datasets)
            for method in methods
            for seed in self.seeds
        ]

    def tested_networks(self) -> list[str]:
        """Return the networks that accuracies are of."""
        return list(dict.fromkeys(network for _, network in self.points()))

    def files(self, layout: Layout, tables: Mapping[str, TableOptions]) -> list[str]:
        """Return the evaluations of all points."""
        return [
            layout.evaluation(Cell(*budget, method, seed), network)
            for budget in budgets(self.datasets)
            for method, network in self.points()
            for seed in self.seeds
        ]

    def draw(self, reader: Reader) -> Drawn:
        """Draw a line per series, its points the mean over the networks of all seeds with one standard deviation."""
        rows, panels = [], []
        for dataset, ipc in budgets(self.datasets):
            lines = []
            for label, values in self.series.items():
                points = []
                for value, named in sorted(values.items()):
                    found = self._accuracy(reader, dataset, ipc, named)
                    if found is not None:
                        points.append({"value": value, **found})
                rows += [{"dataset": dataset, "ipc": ipc, "series": label, **point} for point in points]
                x, mean, std = ([float(point[key]) for point in points] for key in ("value", "mean", "std"))
                lines.append(Line(label, x, [100 * each for each in mean], [100 * each for each in std], bars=True))
            levels = []
            for method in self.references:
                found = self._accuracy(reader, dataset, ipc, method)
                if found is not None:
                    rows.append({"dataset": dataset, "ipc": ipc, "series": "reference", **found})
                    levels.append(Level(method, 100 * float(found["mean"])))
            levels += self._published(dataset, ipc)
            ticks = sorted({value for values in self.series.values() for value in values})
            title, log = cell_title(dataset, ipc), self.logarithmic
            panels.append(Panel(title, self.axis, "test accuracy, percent", lines, levels, log_x=log, ticks=ticks))
        counts = sorted({int(row["n"]) for row in rows})
        note = f"Points: mean over {counted(counts, 'network')}; bars: one standard deviation."
        frame = pandas.DataFrame(rows, columns=COLUMNS)
        return Drawn(draw_panels([panels], self.title, [note, *reader.notes]), frame)

    def _accuracy(self, reader: Reader, dataset: str, ipc: int, named: str) -> dict[str, str | float | int] | None:
        """Return mean, std and n of what a value names; of averaged sets those of the averages."""
        method, network = self.place(named)

        def read() -> list[pandas.DataFrame]:
            return [reader.evaluation(Cell(dataset, ipc, method, seed), network) for seed in self.seeds]

        frames = reader.attempt(read)
        if frames is None:
            return None
        found = []
        for frame in frames:
            average = "ema" if (frame["average"] == "ema").any() else "raw"
            found.append(frame[(frame["split"] == "test") & (frame["average"] == average)])
        values = pandas.concat(found)["accuracy"]
        return {"method": method, "network": network, "mean": values.mean(), "std": values.std(), "n": len(values)}

    def _published(self, dataset: str, ipc: int) -> list[Level]:
        """Return what papers print for the references in this cell, the first number of each."""
        frame = load_published()
        kept = frame["dataset"].eq(dataset) & frame["ipc"].eq(ipc) & frame["metric"].eq("test_accuracy")
        frame = frame[kept & frame["eval_arch"].eq("convnet") & frame["value"].notna()]
        found = []
        for method in self.references:
            values = frame.loc[frame["method"] == method, "value"]
            found += [Level(f"{method}, published", float(values.iloc[0]), True)] if len(values) else []
        return found
