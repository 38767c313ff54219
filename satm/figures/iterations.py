"""Measurements along the distillation, such as step size, hypergradient norm, sharpness and accuracy."""

from collections.abc import Sequence
from typing import Literal

import pandas
from pydantic import Field, model_validator

from satm.config import FIGURES, Cell, budgets
from satm.figures.base import Drawn, MetricsFigure, cell_title, counted
from satm.figures.curves import Level, Line, Panel, draw_panels
from satm.tables.published import load_published
from satm.tables.reader import Reader

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
"""What a quantity is called on an axis."""

PUBLISHED = {"hypergradient_norm": "hypergradient_norm_mean"}
"""Published numbers that are the mean of a quantity over the iterations."""


@FIGURES.named("iterations")
class IterationsFigure(MetricsFigure):
    """Measurements along the distillation: a line per method, a row of panels per cell, a column per quantity."""

    kind: Literal["iterations"] = "iterations"
    """Measurements along the distillation."""
    quantities: tuple[Quantity, ...] = Field(min_length=1)
    """Columns of the metrics; accuracies are there where a method's option `watch` or `selection` says so."""
    logarithmic: tuple[Quantity, ...] = ()
    """Quantities drawn on a logarithmic axis."""
    groups: dict[str, tuple[str, ...]] = {}
    """Panels of some of the methods each, by their titles; left out: one panel of all."""
    smooth: int = Field(1, ge=1)
    """Iterations of a centred running mean that is drawn over the pale measurements; 1: the measurements alone."""

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
        for dataset, ipc in budgets(self.datasets):
            for name, methods in (self.groups or {"": self.methods}).items():
                title = f"{cell_title(dataset, ipc)}, {name}" if name else cell_title(dataset, ipc)
                panels = []
                for quantity in self.quantities:
                    lines, levels = self._lines(reader, dataset, ipc, methods, quantity, frames)
                    log = quantity in self.logarithmic
                    panels.append(Panel(title, "iteration", AXES[quantity], lines, levels, log_y=log))
                rows.append(panels)
        if all(len(row) == 1 for row in rows):  # one quantity: the cells side by side
            rows = [[row[0] for row in rows]]
        return Drawn(draw_panels(rows, self.title, [self._spread(), *reader.notes]), tidy(frames))

    def _lines(
        self,
        reader: Reader,
        dataset: str,
        ipc: int,
        methods: Sequence[str],
        quantity: str,
        frames: list[pandas.DataFrame],
    ) -> tuple[list[Line], list[Level]]:
        """Return the lines of one panel and what is published beside them; append their values to `frames`."""
        lines: list[Line] = []
        levels: list[Level] = []
        for method in methods:
            values = _values(reader, self.cells_of(dataset, ipc, method), quantity)
            if values.empty:
                continue
            frames.append(values.assign(dataset=dataset, ipc=ipc, method=method, quantity=quantity))
            label = self.label(method)
            levels += _published(dataset, ipc, method, quantity, label, len(lines))
            lines.append(_line(values, label, self.smooth, 100.0 if quantity.endswith("accuracy") else 1.0))
        return lines, levels

    def _spread(self) -> str:
        counts = sorted({len(self.seeds_for(ipc)) for _, ipc in budgets(self.datasets)})
        words = counted(counts, "seed", " of the distillation")
        if self.smooth > 1:
            return f"Lines: running mean over {self.smooth} iterations of the pale measurements, mean over {words}."
        bands = "; bands: one standard deviation" if max(counts, default=0) > 1 else ""
        return f"Lines: mean over {words}{bands}."


def tidy(frames: Sequence[pandas.DataFrame]) -> pandas.DataFrame:
    """Return the values of all lines in one frame."""
    columns = ["dataset", "ipc", "method", "quantity", "iteration", "mean", "std", "n"]
    return pandas.concat(frames)[columns] if frames else pandas.DataFrame(columns=columns)


def _values(reader: Reader, cells: Sequence[Cell], quantity: str) -> pandas.DataFrame:
    """Return mean, std and n over the seeds by iteration, of those iterations where it was measured."""
    frames = reader.attempt(lambda: [reader.metrics(cell) for cell in cells]) or []
    found = [
        frame.loc[frame[quantity].notna(), ["iteration", quantity]] for frame in frames if quantity in frame.columns
    ]
    if not sum(map(len, found)):
        return pandas.DataFrame(columns=["iteration", "mean", "std", "n"])
    grouped = pandas.concat(found).groupby("iteration")[quantity]
    return grouped.agg(["mean", "std", "count"]).rename(columns={"count": "n"}).reset_index()


def _line(values: pandas.DataFrame, label: str, smooth: int, scale: float) -> Line:
    mean, std = scale * values["mean"], scale * values["std"]
    if smooth == 1 or len(values) <= smooth:
        return Line(label, values["iteration"], mean, std)
    running = mean.rolling(smooth, center=True, min_periods=1).mean()
    return Line(label, values["iteration"], running, pale=mean)


def _published(dataset: str, ipc: int, method: str, quantity: str, label: str, like: int) -> list[Level]:
    """Return what a paper prints as the mean of this quantity."""
    frame = load_published()
    kept = frame["metric"].eq(PUBLISHED.get(quantity, "")) & frame["method"].eq(method)
    kept &= frame["dataset"].eq(dataset) & frame["ipc"].eq(ipc) & frame["value"].notna()
    return [Level(f"{label}, published mean", value, True, like) for value in frame.loc[kept, "value"]]
