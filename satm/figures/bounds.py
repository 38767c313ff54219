"""Errors of SATM's approximations beside their bounds, and the curvature that the bounds assume."""

from typing import Literal

import pandas

from satm.config import FIGURES, budgets
from satm.figures.base import AnalysisFigure, Drawn, cell_title
from satm.figures.curves import Level, Line, Panel
from satm.tables.reader import Reader

VALUES = ["error", "relative", "bound", "lowest_curvature", "highest_curvature", "step_size"]


@FIGURES.named("bounds")
class BoundsFigure(AnalysisFigure):
    """Errors of a truncated hypergradient and of a reused trajectory beside their bounds."""

    kind: Literal["bounds"] = "bounds"
    """Errors of SATM's approximations beside their bounds."""

    def draw(self, reader: Reader) -> Drawn:
        """Draw, in a row per cell: truncation error, trajectory distance with its bound, and curvature."""
        frames, panels = [], []
        for dataset, ipc in budgets(self.datasets):
            relative, distances, curvatures, levels = [], [], [], [Level("0: convex above", 0.0)]
            for method, rows in self.measured(reader, dataset, ipc):
                label, values = self.label(method), rows.groupby(["quantity", "kept"])[VALUES].agg(["mean", "std"])
                truncation, reuse = values.loc[["truncation"]], values.loc[["reuse"]]
                relative.append(_line(truncation, "relative", label))
                distances += [_line(reuse, "error", f"{label}, measured"), _line(reuse, "bound", f"{label}, bound")]
                for kind, words in (("lowest", "smallest"), ("highest", "largest")):
                    curvatures.append(_line(truncation, f"{kind}_curvature", f"{label}, {words}"))
                levels.append(Level(f"{label}, 1 / step size", 1 / float(rows["step_size"].mean())))
                values.columns = pandas.Index(["_".join(column) for column in values.columns])
                frames.append(values.reset_index().assign(dataset=dataset, ipc=ipc, method=method))
            title, kept = cell_title(dataset, ipc), "inner steps kept"
            panels.append(
                [
                    Panel(title, kept, "truncation error, relative", relative),
                    Panel(title, kept, "distance of the trajectories", distances, log_y=True),
                    Panel(title, kept, "curvature of the inner loss", curvatures, levels),
                ]
            )
        note = (
            "Means over expert segments and seeds, bands one standard deviation. The bound of the truncation error "
            "assumes a smallest curvature above 0 and a largest one below 1 / step size along the kept steps; if the "
            "right panel shows otherwise, it does not apply."
        )
        return self.drawn(reader, panels, note, frames)


def _line(values: pandas.DataFrame, column: str, label: str) -> Line:
    return Line(label, values.index.get_level_values("kept"), values[column]["mean"], values[column]["std"])
