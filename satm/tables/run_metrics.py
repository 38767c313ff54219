"""Tables of numbers about distillations, beside the published ones: memory, time, norms, convergence.

Pure functions of the metrics that the stage `distill` left behind.
"""

from functools import partial

import pandas
from rich.console import Console

from satm.config import MeasuresOptions
from satm.config.run_metrics import Measure, measure
from satm.errors import UsageError, pick
from satm.tables.accuracy import load_published, published_name
from satm.tables.reader import Reader
from satm.tables.render import Grid, write_grid

PUBLISHED = {
    "table7": ("satm", "Table 7"),
    "table8": ("satm", "Table 8"),
    "figure3": ("satm", "Figure 3"),
    "contra-table4-time": ("contra", "Table 4 right"),
    "ratbptt-c8": ("ratbptt", "Appendix C.8 (text)"),
}
"""Where a table's published numbers are, as (source, table) of the data file, by the name of the table."""

COLUMNS = {
    "dataset": "str",
    "ipc": "int64",
    "method": "str",
    "measure": "str",
    "mean": "float64",
    "std": "float64",
    "n": "Int64",
    "published": "float64",
    "published_std": "float64",
    "published_source": "object",
}
"""Columns of a table; all but the first four can be missing."""


def measure_table(reader: Reader, name: str) -> pandas.DataFrame:
    """Return one row per measure, dataset, ipc and method; methods that are only published come first in a cell.

    Columns: mean, std and n as in `satm.config.run_metrics`, in the units that the measure's name says; published and
    published_std as printed. Numbers that a paper prints without saying at how many images per class stand in every
    cell of their dataset. What does not exist is missing.

    Raises:
        UsageError: no such table; a file that it needs is missing (the text has the command that makes it), broken, or
            of another run.
    """
    options = _options(reader, name)
    rows: list[dict[str, object]] = []
    for quantity in options.measures:
        for dataset, ipcs in options.datasets.items():
            for ipc in ipcs:
                printed = _published(name, quantity, dataset, ipc)
                cell = {"dataset": dataset, "ipc": ipc, "measure": quantity}
                measured = []
                for method in options.methods:
                    found = reader.attempt(partial(_measured, reader, options, quantity, dataset, ipc, method))
                    beside = printed.pop(options.published_as.get(method, method), {})
                    measured.append({**cell, "method": method, **(vars(found) if found else {}), **beside})
                rows += [{**cell, "method": one, **values} for one, values in printed.items()] + measured
    return pandas.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def write_measures(reader: Reader, name: str, console: Console) -> pandas.DataFrame:
    """Write a table as csv, md and tex, show it, and return its frame."""
    frame = measure_table(reader, name)
    grid = Grid(name, HEADINGS, _lines(frame), HEADINGS[:4], _notes(reader, name))
    write_grid(reader.resolver.layout, name, frame, grid, console)
    return frame


HEADINGS = ("measure", "dataset", "IPC", "method", "published", "measured", "n")


def _lines(frame: pandas.DataFrame) -> list[list[str]]:
    return [
        [
            *(row["measure"].replace("_", " "), row["dataset"], str(row["ipc"]), row["method"]),
            _number(row["published"], row["published_std"]),
            _number(row["mean"], row["std"]),
            "" if pandas.isna(row["n"]) else str(row["n"]),
        ]
        for row in frame.to_dict("records")
    ]


def _number(mean: float, std: float) -> str:
    if pandas.isna(mean):
        return ""
    return f"{mean:.4g}" if pandas.isna(std) else f"{mean:.4g} ± {std:.2g}"


def _options(reader: Reader, name: str) -> MeasuresOptions:
    where = reader.resolver.path or "the built-in campaign"
    return pick(name, reader.resolver.campaign.measures, f"table of measures in {where}")


def _measured(reader: Reader, options: MeasuresOptions, quantity: str, dataset: str, ipc: int, method: str) -> Measure:
    runs = []
    for cell in options.cells_of(dataset, ipc, method):
        run = reader.metrics(cell)
        kept = run[run["iteration"] > options.after]
        if kept.empty:
            raise UsageError(
                f"the run of {method} on {dataset} at ipc {ipc}, seed {cell.seed}, has {len(run)} iterations and "
                f"`after: {options.after}` leaves none of them; take a smaller `after`"
            )
        runs.append(kept)
    return measure(quantity, runs)


def _published(name: str, quantity: str, dataset: str, ipc: int) -> dict[str, dict[str, object]]:
    """Return what is published by method."""
    source = PUBLISHED.get(name)
    if source is None:
        return {}
    frame = load_published()
    kept = frame["source"].eq(source[0]) & frame["table"].eq(source[1]) & frame["metric"].eq(quantity)
    kept &= frame["dataset"].eq(published_name(dataset)) & (frame["ipc"].eq(ipc) | frame["ipc"].isna())
    return {
        row["method"]: {
            "published": row["value"],
            "published_std": row["std"],
            "published_source": " ".join(source),
        }
        for row in frame[kept].to_dict("records")
    }


def _notes(reader: Reader, name: str) -> list[str]:
    notes = [
        "Seconds of an iteration: over all iterations but the first of each run. Memory: the most that an iteration "
        "held, on a GPU the tensors of PyTorch, on a CPU the whole process; 1 GB is 10^9 bytes. A published time or "
        "memory is that of another machine.",
    ]
    if after := _options(reader, name).after:
        notes.append(f"The first {after} iterations of each run are left out.")
    if name in PUBLISHED:
        notes.append(f"Published: {' '.join(PUBLISHED[name])}.")
    return [*notes, *reader.notes]
