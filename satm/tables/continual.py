"""Tables of continual learning: how well the classes are known at the end, on the way, and what was forgotten.

Pure functions of the parquet files that the stage `continual` left behind. Accuracies are fractions in the frame and
csv, percent in Markdown.
"""

from functools import partial

import pandas
from rich.console import Console

from satm.config import ContinualOptions
from satm.errors import UsageError, pick
from satm.evaluation.continual import average_accuracy, final_accuracy, forgetting, step_accuracies
from satm.results import CONTINUAL
from satm.tables.accuracy import percent
from satm.tables.reader import Reader
from satm.tables.render import Grid, in_numbers, networks_in_words, write_grid

METRICS = {"final": final_accuracy, "average": average_accuracy, "forgetting": forgetting}
"""What is told of each method, by the column's name; of rows, by run (`satm.evaluation.continual`)."""

COLUMNS = {
    "dataset": "str",
    "ipc": "int64",
    "method": "str",
    "steps": "int64",
    **{f"{metric}_{number}": "float64" for metric in METRICS for number in ("mean", "std")},
    **dict.fromkeys(("n", "seeds", "orders", "networks"), "Int64"),
    **dict.fromkeys(("split", "selection", "average", "step_size"), "object"),
}
"""Columns of a table; all but the first four can be missing."""

HEADINGS = ("dataset", "IPC", "method", "final accuracy", "average accuracy", "forgetting", "n")


def continual_table(reader: Reader, name: str) -> pandas.DataFrame:
    """Return one row per dataset, ipc and method of a protocol.

    Columns: final, accuracy on all classes after the last step; average, the mean over the steps of the accuracy on all
    classes seen by then; forgetting (`satm.evaluation.continual` has the formulas), missing with one step; each with
    its mean and sample standard deviation over the n pairs of a seed of the distillation and a class order, a pair
    being the mean over its networks; seeds, orders and networks, how many; split, the real images; selection, average
    and step_size as in a results table.

    Raises:
        UsageError: no such protocol; a file that it needs is missing (the text has the command that makes it), broken,
            or of another run.
    """
    options = _options(reader, name)
    found = []
    for dataset, ipcs in options.datasets.items():
        for ipc in ipcs:
            for method in options.methods:
                frame = reader.attempt(partial(continual_rows, reader, name, dataset, ipc, method))
                told = {} if frame is None else _row(frame)
                found.append({"dataset": dataset, "ipc": ipc, "method": method, "steps": options.steps, **told})
    return pandas.DataFrame(found, columns=list(COLUMNS)).astype(COLUMNS)


def continual_rows(reader: Reader, name: str, dataset: str, ipc: int, method: str) -> pandas.DataFrame:
    """Return the rows of one cell of a protocol, all seeds.

    Raises:
        UsageError: as `continual_table`.
    """
    options = _options(reader, name)
    found = []
    for cell in options.cells_of(dataset, ipc, method):
        path = reader.resolver.layout.continual(cell, name)
        frame, _ = reader.run(path, CONTINUAL, "continual", {**cell.axes, "protocol": name})
        made = {
            "steps": int(frame["step"].max()),
            "orders": frame["order"].nunique(),
            "repeats": frame["repeat"].nunique(),
            "network": frame["network"].iloc[0],
            "sets": frame["sets"].iloc[0],
        }
        for option, value in made.items():
            if value != (wanted := getattr(options, option)):
                raise UsageError(f"{CONTINUAL.what} {path} has {option} {value}, expected {wanted}; make it again")
        found.append(frame)
    rows = pandas.concat(found, ignore_index=True)
    for column in ("split", "selection", "average"):
        if len(kinds := sorted(set(rows[column]))) > 1:
            raise UsageError(
                f"continual learning of {method} on {dataset}, ipc {ipc}, mixes {column} {' and '.join(kinds)}, which "
                "are not comparable; make all with one"
            )
    return rows


def curves(reader: Reader, name: str) -> dict[tuple[str, int], dict[str, pandas.DataFrame]]:
    """Return the accuracy on all classes seen, by (dataset, ipc) and method, indexed by the number of classes.

    Columns: mean, std and n of the pairs of a seed and a class order, as in `continual_table`.

    Raises:
        UsageError: as `continual_table`.
    """
    options = _options(reader, name)
    found: dict[tuple[str, int], dict[str, pandas.DataFrame]] = {}
    for dataset, ipcs in options.datasets.items():
        for ipc in ipcs:
            methods = found.setdefault((dataset, ipc), {})
            for method in options.methods:
                frame = reader.attempt(partial(continual_rows, reader, name, dataset, ipc, method))
                if frame is not None:
                    values = by_order(step_accuracies(frame)).groupby("classes_seen")
                    methods[method] = values.agg(["mean", "std", "count"]).rename(columns={"count": "n"})
    return found


def by_order(values: pandas.Series) -> pandas.Series:
    """Return results by run as means over the networks, by seed and order and what else they are indexed by."""
    return values.groupby([level for level in values.index.names if level != "repeat"]).mean()


def write_continual(reader: Reader, name: str, console: Console) -> pandas.DataFrame:
    """Write a protocol's table as csv, md and tex, show it, and return its frame."""
    frame = continual_table(reader, name)
    title = f"Continual learning in {_options(reader, name).steps} steps, percent"
    grid = Grid(title, HEADINGS, _lines(frame), HEADINGS[:3], _notes(reader, name, frame))
    write_grid(reader.resolver.layout, name, frame, grid, console)
    return frame


def _options(reader: Reader, name: str) -> ContinualOptions:
    where = reader.resolver.path or "the built-in campaign"
    return pick(name, reader.resolver.campaign.continual, f"protocol of continual learning in {where}")


def _row(rows: pandas.DataFrame) -> dict[str, object]:
    """Return the numbers of one method."""
    found: dict[str, object] = {}
    for metric, function in METRICS.items():
        values = by_order(function(rows))
        found |= {f"{metric}_mean": values.mean(), f"{metric}_std": values.std(), "n": len(values)}
    counts = {"seeds": "seed", "orders": "order", "networks": "repeat"}
    found |= {column: rows[axis].nunique() for column, axis in counts.items()}
    same = {column: rows[column].iloc[0] for column in ("split", "selection", "average")}
    return {**found, **same, "step_size": "+".join(sorted(set(rows["step_size"])))}


def _lines(frame: pandas.DataFrame) -> list[list[str]]:
    lines = []
    for row in frame.to_dict("records"):
        cells = [percent(row[f"{metric}_mean"], row[f"{metric}_std"]) or "-" for metric in METRICS]
        mark = "" if pandas.isna(row["selection"]) or row["selection"] == "last" else f" [{row['selection']}]"
        lines.append(
            [
                row["dataset"],
                str(row["ipc"]),
                f"{row['method']}{mark}",
                *cells,
                "" if pandas.isna(row["n"]) else str(row["n"]),
            ]
        )
    return lines


def _notes(reader: Reader, name: str, frame: pandas.DataFrame) -> list[str]:
    options = _options(reader, name)
    networks = networks_in_words(
        {dataset: reader.resolver.network(options.network, dataset) for dataset in options.datasets}
    )
    brings = "its classes' images of one distillation of all classes"
    if options.sets == "per-step":
        brings = "images distilled on its classes only"
    splits = " and ".join(sorted(set(frame["split"].dropna())))
    notes = [
        f"{splits.capitalize()} accuracy in percent, mean ± sample standard "
        "deviation over n pairs of a synthetic set's seed and a class order, each the mean over "
        f"{in_numbers([options.repeats], 'network')}. Classes come in {options.steps} steps; a step brings {brings}, "
        "and new networks are trained on all synthetic images that came so far and tested on all classes seen. final: "
        "after the last step; average: over the steps; forgetting: best earlier minus final accuracy on the classes of "
        f"a step, mean over the steps before the last (Chaudhry et al. 2018). Network: {networks}."
    ]
    averaged = list(dict.fromkeys(frame.loc[frame["average"] == "ema", "method"]))
    if averaged:
        notes.append(f"{', '.join(averaged)}: exponential moving averages over the iterations.")
    marks = sorted(set(frame["selection"].dropna()) - {"last"})
    return [*notes, *reader.notes] + [
        f"[{mark}]: synthetic sets of the iteration that was best on {mark} images, not the last." for mark in marks
    ]
