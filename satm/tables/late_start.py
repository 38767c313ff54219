"""Tables of accuracies by the epoch of the experts' path at which networks begin to learn from a synthetic set.

Pure functions of the rows that the analysis `trajectory` left behind. Accuracies are fractions in the frame and csv,
percent in Markdown.
"""

import re
from collections.abc import Sequence
from functools import partial

import pandas
from rich.console import Console

from satm.config import Cell, StartsOptions
from satm.errors import pick
from satm.tables.accuracy import load_published, percent, published_name
from satm.tables.reader import Reader
from satm.tables.render import Grid, write_grid

PUBLISHED = {"ftd-table6": ("ftd", "Table 6")}
"""Where a table's published numbers are, as (source, table) of the data file, by the name of the table."""

COLUMNS = {
    "dataset": "str",
    "ipc": "int64",
    "method": "str",
    "start": "int64",
    "epochs_left": "Int64",
    "steps": "Int64",
    "accuracy_mean": "float64",
    "accuracy_std": "float64",
    "n": "Int64",
    "published_mean": "float64",
    "published_source": "object",
}
"""Columns of a table; all but the first four can be missing."""


def starts_table(reader: Reader, name: str) -> pandas.DataFrame:
    """Return one row per dataset, ipc, method and epoch at which networks begin where an expert is.

    Columns: epochs_left, of the expert after that, and steps, that are made on the set in their place; accuracy_mean
    and accuracy_std over n experts and seeds, on test images; published_mean.

    Raises:
        UsageError: no such table; a file that it needs is missing (the text has the command that makes it), broken, or
            of another run.
    """
    options = _options(reader, name)
    rows: list[dict[str, object]] = []
    for dataset, ipcs in options.datasets.items():
        for ipc in ipcs:
            for method in options.methods:
                found = reader.attempt(partial(_measured, reader, options.cells_of(dataset, ipc, method))) or {}
                printed = _published(name, dataset, ipc, method)
                cell = {"dataset": dataset, "ipc": ipc, "method": method}
                rows += [
                    {**cell, "start": start, **found.get(start, {}), **printed.get(start, {})}
                    for start in sorted({*found, *printed})
                ]
    return pandas.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def write_starts(reader: Reader, name: str, console: Console) -> pandas.DataFrame:
    """Write a table as csv, md and tex, show it, and return its frame."""
    frame = starts_table(reader, name)
    grid = Grid(f"{name}, accuracy in percent", HEADINGS, _lines(frame), HEADINGS[:3], _notes(reader, name))
    write_grid(reader.resolver.layout, name, frame, grid, console)
    return frame


HEADINGS = ("dataset", "IPC", "method", "begun at epoch", "epochs left", "published", "measured", "n")


def _lines(frame: pandas.DataFrame) -> list[list[str]]:
    return [
        [
            *(row["dataset"], str(row["ipc"]), row["method"], str(row["start"])),
            "" if pandas.isna(row["epochs_left"]) else str(row["epochs_left"]),
            percent(row["published_mean"], float("nan")),
            percent(row["accuracy_mean"], row["accuracy_std"]),
            "" if pandas.isna(row["n"]) else str(row["n"]),
        ]
        for row in frame.to_dict("records")
    ]


def _options(reader: Reader, name: str) -> StartsOptions:
    where = reader.resolver.path or "the built-in campaign"
    return pick(name, reader.resolver.campaign.starts, f"table of starts in {where}")


def _measured(reader: Reader, cells: Sequence[Cell]) -> dict[int, dict[str, object]]:
    """Return the numbers by epoch of the start."""
    rows = reader.analysis("trajectory", cells)
    found: dict[int, dict[str, object]] = {}
    for start, group in rows[rows["kind"] == "restart"].groupby("start"):
        accuracy = group["evaluation_accuracy"]
        found[int(str(start))] = {
            "epochs_left": int(group["epoch"].iloc[0] - group["start"].iloc[0]),
            "steps": int(group["steps"].iloc[0]),
            "accuracy_mean": accuracy.mean(),
            "accuracy_std": accuracy.std(),
            "n": len(accuracy),
        }
    return found


def _published(name: str, dataset: str, ipc: int, method: str) -> dict[int, dict[str, object]]:
    """Return what is published by epoch of the start, as fractions; the epoch stands in the note of a number."""
    source = PUBLISHED.get(name)
    if source is None:
        return {}
    frame = load_published()
    kept = frame["source"].eq(source[0]) & frame["table"].eq(source[1]) & frame["method"].eq(method)
    kept &= frame["dataset"].eq(published_name(dataset)) & frame["ipc"].eq(ipc)
    found: dict[int, dict[str, object]] = {}
    for row in frame[kept].to_dict("records"):
        start = re.search(r"start_epoch=(\d+)", row["note"])
        assert start is not None, row["note"]
        found[int(start[1])] = {"published_mean": row["value"] / 100, "published_source": " ".join(source)}
    return found


def _notes(reader: Reader, name: str) -> list[str]:
    notes = [
        "Test accuracy in percent, mean ± sample standard deviation over n experts and seeds. A network begins with "
        "the expert's weights after so many epochs and learns from the synthetic set for the epochs that the expert "
        "has left, inner steps of the method per epochs that it matches."
    ]
    if name in PUBLISHED:
        notes.append(f"Published: {' '.join(PUBLISHED[name])}, which makes 20 steps for one epoch.")
    return [*notes, *reader.notes]
