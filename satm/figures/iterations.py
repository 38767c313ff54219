"""Measurements along the distillation, such as step size, hypergradient norm, sharpness and accuracy."""

from collections.abc import Sequence
from itertools import product
from typing import Literal

import pandas
from pydantic import Field, model_validator

from satm.config import FIGURES, Cell, budgets
from satm.figures.base import Drawn, MetricsFigure, cell_title
from satm.figures.curves import Level, Line, Panel
from satm.tables.published import load_published
from satm.tables.reader import Reader
from satm.tables.render import in_numbers
from satm.tables.statistics import spread

COLUMNS = ["dataset", "ipc", "method", "quantity", "iteration", "mean", "std", "n"]

Quantity = Literal[
    "loss", "step_size", "hypergradient_norm", "sharpness", "test_accuracy", "validation_accuracy", "seconds"
]

AXES = {
    "loss": "loss",
    "step_size": "inner step size",
    "hypergradient_norm": "norm of the hypergradient",
    "sharpness": "sharpness (rise of the loss)",
    "test_accuracy": "test accuracy, percent",
    "validation_accuracy": "validation accuracy, percent",
    "seconds": "seconds per iteration",
}
"""Axis label of each quantity."""

PUBLISHED = {"hypergradient_norm": "hypergradient_norm_mean"}
"""Published metrics that are the mean of a quantity over the iterations."""


@FIGURES.named("iterations")
class IterationsFigure(MetricsFigure):
    """Measurements along the distillation: a line per method, a row of panels per cell, a column per quantity."""

    kind: Literal["iterations"] = "iterations"
    """Measurements along the distillation."""
    quantities: tuple[Quantity, ...] = Field(min_length=1)
    """Columns of the metrics; accuracies exist if a method's option `watch` or `selection` records them."""
    logarithmic: tuple[Quantity, ...] = ()
    """Quantities drawn on a logarithmic axis."""
    groups: dict[str, tuple[str, ...]] = {}
    """Methods of each panel, by the panel's title; left out: one panel of all methods."""
    smooth: int = Field(1, ge=1)
    """Iterations of a centred running mean, drawn over the pale measurements; 1: the measurements alone."""

    @model_validator(mode="after")
    def _groups_of_its_methods(self) -> "IterationsFigure":
        for method in [method for methods in self.groups.values() for method in methods]:
            if method not in self.methods:
                raise ValueError(f"groups names {method!r}, which is not among methods; add it there")
        return self

    def draw(self, reader: Reader) -> Drawn:
        """Draw a line per method, the mean over the seeds in a band of one standard deviation."""
        frames: list[pandas.DataFrame] = []
        rows = []
        for (dataset, ipc), (name, methods) in product(
            budgets(self.datasets), (self.groups or {"": self.methods}).items()
        ):
            title = f"{cell_title(dataset, ipc)}, {name}" if name else cell_title(dataset, ipc)
            panels = []
            for quantity in self.quantities:
                lines: list[Line] = []
                levels: list[Level] = []
                for method in methods:
                    values = _values(self.measured(reader, dataset, ipc, method), quantity)
                    if values.empty:
                        continue
                    frames.append(values.assign(dataset=dataset, ipc=ipc, method=method, quantity=quantity))
                    published = _published(Cell(dataset, ipc, method), quantity)
                    label = self.label(method)
                    levels += [Level(f"{label}, published mean", value, True, len(lines)) for value in published]
                    lines.append(_line(values, label, self.smooth, 100.0 if quantity.endswith("accuracy") else 1.0))
                log = quantity in self.logarithmic
                panels.append(Panel(title, "iteration", AXES[quantity], lines, levels, log_y=log))
            rows.append(panels)
        if len(self.quantities) == 1:  # cells side by side
            rows = [[row[0] for row in rows]]
        counts = sorted({len(self.seeds_for(ipc)) for _, ipc in budgets(self.datasets)})
        words = f"n = {in_numbers(counts, 'seed', ' of the distillation')}"
        note = f"Lines: mean over {words}{'; bands: one standard deviation' if max(counts) > 1 else ''}."
        if self.smooth > 1:
            note = f"Lines: running mean over {self.smooth} iterations of the pale measurements, mean over {words}."
        return self.drawn(reader, rows, note, frames, COLUMNS)


def _values(runs: Sequence[pandas.DataFrame], quantity: str) -> pandas.DataFrame:
    """Return mean, std and n over the seeds, for each iteration in which the quantity was measured."""
    measured = [run.loc[run[quantity].notna(), ["iteration", quantity]] for run in runs if quantity in run.columns]
    if not sum(map(len, measured)):
        return pandas.DataFrame()
    values = pandas.concat(measured)
    return spread(values[quantity], values["iteration"]).reset_index()


def _line(values: pandas.DataFrame, label: str, smooth: int, scale: float) -> Line:
    mean, std = scale * values["mean"], scale * values["std"]
    if smooth == 1 or len(values) <= smooth:
        return Line(label, values["iteration"], mean, std)
    running = mean.rolling(smooth, center=True, min_periods=1).mean()
    return Line(label, values["iteration"], running, pale=mean)


def _published(cell: Cell, quantity: str) -> pandas.Series:
    """Return the means of this quantity that papers print."""
    frame = load_published()
    own = frame["metric"].eq(PUBLISHED.get(quantity, "")) & frame["method"].eq(cell.method)
    own &= frame["dataset"].eq(cell.dataset) & frame["ipc"].eq(cell.ipc) & frame["value"].notna()
    return frame.loc[own, "value"]
