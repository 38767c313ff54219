"""Errors of SATM's approximations beside their bounds, and the curvature that the bounds assume."""

from functools import partial

import pandas

from satm.config import BoundsFigure
from satm.figures.base import Drawn, cell_title, marked, register
from satm.figures.curves import Level, Line, Panel, draw_panels
from satm.tables.reader import Reader

VALUES = ["error", "relative", "bound", "lowest_curvature", "highest_curvature", "step_size"]


@register("bounds")
def draw(reader: Reader, options: BoundsFigure) -> Drawn:
    """Draw, in a row per cell: truncation error, trajectory distance with its bound, and curvature."""
    frames, rows = [], []
    for dataset, ipcs in options.datasets.items():
        for ipc in ipcs:
            truncated, reused, curved, levels = [], [], [], []
            for method in options.methods:
                found = reader.attempt(partial(reader.analysis, "bounds", options.cells_of(dataset, ipc, method)))
                if found is None:
                    continue
                label = options.labels.get(method, method)
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
        "Means over expert segments and seeds, bands one standard deviation. The bound of the truncation error assumes "
        "a smallest curvature above 0 and a largest one below 1 / step size along the kept steps; where the right "
        "panel shows otherwise, it does not apply."
    )
    frame = pandas.concat(frames) if frames else pandas.DataFrame()
    return Drawn(draw_panels(rows, options.title, [note, *reader.notes]), frame)


def _line(told: pandas.DataFrame, column: str, label: str) -> Line:
    return Line(label, told.index.to_numpy(), told[column]["mean"], told[column]["std"])


def _means(rows: pandas.DataFrame) -> pandas.DataFrame:
    return rows.groupby("kept")[VALUES].agg(["mean", "std"])


def _tidy(rows: pandas.DataFrame, dataset: str, ipc: int, method: str) -> pandas.DataFrame:
    flat = rows.groupby(["quantity", "kept"])[VALUES].agg(["mean", "std"])
    flat.columns = pandas.Index(["_".join(column) for column in flat.columns])
    return marked(flat.reset_index(), dataset=dataset, ipc=ipc, method=method)
