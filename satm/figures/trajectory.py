"""How far networks trained on a synthetic set are from the experts, along their whole path."""

from typing import Literal

import pandas

from satm.config import FIGURES, budgets
from satm.figures.base import AnalysisFigure, Drawn, cell_title, counted
from satm.figures.curves import Line, Panel, draw_panels
from satm.tables.reader import Reader

COLUMNS = ["dataset", "ipc", "method", "quantity", "epoch", "mean", "std", "n"]

DIFFERENCES = {"evaluation": "trained on the set alone", "distillation": "begun at the expert, each segment"}
"""Networks whose loss is compared with the expert's."""

ERRORS = {"accumulated": "accumulated", "matching": "matching", "initialisation": "initialisation"}


@FIGURES.named("trajectory")
class TrajectoryFigure(AnalysisFigure):
    """How far networks trained on a synthetic set are from the experts, along their whole path."""

    kind: Literal["trajectory"] = "trajectory"
    """Errors along the experts' path."""

    def draw(self, reader: Reader) -> Drawn:
        """Draw, in a row per cell, test losses minus the expert's and the parts of the error in weights."""
        frames, rows, counts = [], [], set()
        for dataset, ipc in budgets(self.datasets):
            losses, errors, expert = [], [], None
            for method, found in self.measured(reader, dataset, ipc):
                found = found[found["kind"] == "path"]
                label = self.label(method)
                values = {name: found[f"{name}_loss"] - found["expert_loss"] for name in DIFFERENCES}
                values |= {name: found[name] for name in ERRORS} | {"expert": found["expert_loss"]}
                told = {name: _by_epoch(found["epoch"], series) for name, series in values.items()}
                counts |= set(told["expert"]["n"])
                frames += [
                    each.assign(dataset=dataset, ipc=ipc, method=method, quantity=name) for name, each in told.items()
                ]
                losses += [_line(told[name], f"{label}, {words}") for name, words in DIFFERENCES.items()]
                errors += [_line(told[name], f"{label}, {words}") for name, words in ERRORS.items()]
                expert = expert or _line(told["expert"], f"expert of {label} (right axis)")
            title = cell_title(dataset, ipc)
            right = (expert,) if expert else ()
            rows.append(
                [
                    Panel(title, "epoch", "test loss minus the expert's", losses, right=right, right_label="test loss"),
                    Panel(title, "epoch", "norm of the error in weights", errors),
                ]
            )
        note = (
            f"Mean over {counted(counts, 'pair', ' of an expert and a seed')}, bands one standard deviation. The "
            "accumulated error is the sum, as vectors, of all matching and initialisation errors until then."
        )
        frame = pandas.concat(frames)[COLUMNS] if frames else pandas.DataFrame(columns=COLUMNS)
        return Drawn(draw_panels(rows, self.title, [note, *reader.notes]), frame)


def _by_epoch(epochs: pandas.Series, values: pandas.Series) -> pandas.DataFrame:
    grouped = values.groupby(epochs)
    return grouped.agg(["mean", "std", "count"]).rename(columns={"count": "n"}).rename_axis("epoch").reset_index()


def _line(values: pandas.DataFrame, label: str) -> Line:
    return Line(label, values["epoch"], values["mean"], values["std"])
