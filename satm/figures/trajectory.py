"""Distance of networks trained on a synthetic set from the experts, along their whole trajectory."""

from typing import Literal

import pandas

from satm.config import FIGURES, budgets
from satm.figures.base import AnalysisFigure, Drawn, cell_title
from satm.figures.curves import Line, Panel
from satm.tables.reader import Reader
from satm.tables.render import in_numbers
from satm.tables.statistics import spread

COLUMNS = ["dataset", "ipc", "method", "quantity", "epoch", "mean", "std", "n"]

DIFFERENCES = {"evaluation": "trained on the set alone", "distillation": "begun at the expert, each segment"}
"""Networks whose loss is compared with the expert's."""

ERRORS = ("accumulated", "matching", "initialisation")
"""Parts of the error in weights."""


@FIGURES.named("trajectory")
class TrajectoryFigure(AnalysisFigure):
    """Distance of networks trained on a synthetic set from the experts, along their whole trajectory."""

    kind: Literal["trajectory"] = "trajectory"
    """Errors along the experts' trajectories."""

    def draw(self, reader: Reader) -> Drawn:
        """Draw, in a row per cell, test losses minus the expert's and the parts of the error in weights."""
        frames, panels, counts = [], [], set()
        for dataset, ipc in budgets(self.datasets):
            losses, errors, right = [], [], list[Line]()
            for method, rows in self.measured(reader, dataset, ipc):
                rows, label = rows[rows["kind"] == "path"], self.label(method)
                values = {name: rows[f"{name}_loss"] - rows["expert_loss"] for name in DIFFERENCES}
                values |= {name: rows[name] for name in ERRORS} | {"expert": rows["expert_loss"]}
                means = {name: spread(series, rows["epoch"]).reset_index() for name, series in values.items()}
                curves = {name: curve.assign(quantity=name) for name, curve in means.items()}
                counts |= set(curves["expert"]["n"])
                frames += [curve.assign(dataset=dataset, ipc=ipc, method=method) for curve in curves.values()]
                losses += [_line(curves[name], f"{label}, {words}") for name, words in DIFFERENCES.items()]
                errors += [_line(curves[name], f"{label}, {name}") for name in ERRORS]
                right = right or [_line(curves["expert"], f"expert of {label} (right axis)")]
            title, difference = cell_title(dataset, ipc), "test loss minus the expert's"
            left = Panel(title, "epoch", difference, losses, right=right, right_label="test loss")
            panels.append([left, Panel(title, "epoch", "norm of the error in weights", errors)])
        note = (
            f"Mean over n = {in_numbers(counts, 'pair', ' of an expert and a seed')}, bands one standard deviation. "
            "The accumulated error is the sum, as vectors, of all matching and initialisation errors until then."
        )
        return self.drawn(reader, panels, note, frames, COLUMNS)


def _line(values: pandas.DataFrame, label: str) -> Line:
    return Line(label, values["epoch"], values["mean"], values["std"])
