"""Errors of SATM's approximations beside their bounds, and the curvature that the bounds assume."""

from typing import Literal

import pandas

from satm.config import FIGURES, budgets
from satm.figures.base import AnalysisFigure, Drawn, cell_title
from satm.figures.curves import Level, Line, Panel, draw_panels
from satm.tables.reader import Reader

VALUES = ["error", "relative", "bound", "lowest_curvature", "highest_curvature", "step_size"]


@FIGURES.named("bounds")
class BoundsFigure(AnalysisFigure):
    """Errors of a truncated hypergradient and of a reused trajectory beside their bounds."""

    kind: Literal["bounds"] = "bounds"
    """Errors of SATM's approximations beside their bounds."""

    def draw(self, reader: Reader) -> Drawn:
        """Draw, in a row per cell: truncation error, trajectory distance with its bound, and curvature."""
        frames, rows = [], []
        for dataset, ipc in budgets(self.datasets):
            truncated, reused, curved, levels = [], [], [], []
            for method, found in self.measured(reader, dataset, ipc):
                label = self.label(method)
                frames.append(_tidy(found, dataset, ipc, method))
                cut, again = (_means(found[found["quantity"] == quantity]) for quantity in ("truncation", "reuse"))
                truncated.append(_line(cut, "relative", label))
                reused += [_line(again, "error", f"{label}, measured"), _line(again, "bound", f"{label}, bound")]
                curved += [
                    _line(cut, "lowest_curvature", f"{label}, smallest"),
                    _line(cut, "highest_curvature", f"{label}, largest"),
                ]
                levels.append(Level(f"{label}, 1 / step size", 1 / float(found["step_size"].mean())))
            title, kept = cell_title(dataset, ipc), "inner steps kept"
            zero = Level("0: convex above", 0.0)
            rows.append(
                [
                    Panel(title, kept, "truncation error, relative", truncated),
                    Panel(title, kept, "distance of the trajectories", reused, log_y=True),
                    Panel(title, kept, "curvature of the inner loss", curved, [zero, *levels]),
                ]
            )
        note = (
            "Means over expert segments and seeds, bands one standard deviation. The bound of the truncation error "
            "assumes a smallest curvature above 0 and a largest one below 1 / step size along the kept steps; where "
            "the right panel shows otherwise, it does not apply."
        )
        frame = pandas.concat(frames) if frames else pandas.DataFrame()
        return Drawn(draw_panels(rows, self.title, [note, *reader.notes]), frame)


def _line(told: pandas.DataFrame, column: str, label: str) -> Line:
    return Line(label, told.index.to_numpy(), told[column]["mean"], told[column]["std"])


def _means(rows: pandas.DataFrame) -> pandas.DataFrame:
    return rows.groupby("kept")[VALUES].agg(["mean", "std"])


def _tidy(rows: pandas.DataFrame, dataset: str, ipc: int, method: str) -> pandas.DataFrame:
    flat = rows.groupby(["quantity", "kept"])[VALUES].agg(["mean", "std"])
    flat.columns = pandas.Index(["_".join(column) for column in flat.columns])
    return flat.reset_index().assign(dataset=dataset, ipc=ipc, method=method)
