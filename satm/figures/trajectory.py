"""How far networks trained on a synthetic set are from the experts, along their whole path."""

from functools import partial

import pandas

from satm.config import TrajectoryFigure
from satm.figures.base import Drawn, cell_title, counted, marked, register
from satm.figures.curves import Line, Panel, draw_panels
from satm.tables.reader import Reader

COLUMNS = ["dataset", "ipc", "method", "quantity", "epoch", "mean", "std", "n"]

DIFFERENCES = {"evaluation": "trained on the set alone", "distillation": "begun at the expert, each segment"}
"""Networks whose loss is compared with the expert's."""

ERRORS = {"accumulated": "accumulated", "matching": "matching", "initialisation": "initialisation"}


@register("trajectory")
def draw(reader: Reader, options: TrajectoryFigure) -> Drawn:
    """Draw, in a row per cell, test losses minus the expert's and the parts of the error in weights."""
    frames, rows, counts = [], [], set()
    for dataset, ipcs in options.datasets.items():
        for ipc in ipcs:
            losses, errors, expert = [], [], None
            for method in options.methods:
                found = reader.attempt(partial(reader.analysis, "trajectory", options.cells_of(dataset, ipc, method)))
                if found is None:
                    continue
                found = found[found["kind"] == "path"]
                label = options.labels.get(method, method)
                values = {name: found[f"{name}_loss"] - found["expert_loss"] for name in DIFFERENCES}
                values |= {name: found[name] for name in ERRORS} | {"expert": found["expert_loss"]}
                told = {name: _by_epoch(found["epoch"], series) for name, series in values.items()}
                counts |= set(told["expert"]["n"])
                frames += [
                    marked(each, dataset=dataset, ipc=ipc, method=method, quantity=name) for name, each in told.items()
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
    return Drawn(draw_panels(rows, options.title, [note, *reader.notes]), frame)


def _by_epoch(epochs: pandas.Series, values: pandas.Series) -> pandas.DataFrame:
    grouped = values.groupby(epochs)
    return grouped.agg(["mean", "std", "count"]).rename(columns={"count": "n"}).rename_axis("epoch").reset_index()


def _line(values: pandas.DataFrame, label: str) -> Line:
    return Line(label, values["epoch"], values["mean"], values["std"])
