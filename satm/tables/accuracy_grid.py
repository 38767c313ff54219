"""Accuracies for people: in the paper's layout, as rows on a terminal, and the differences of pairs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas

from satm.tables.published import WIDE
from satm.tables.render import Grid, percent, text_of

ALL = 0
"""Stands for the number of images per class where networks are trained on all real images."""


def results_grid(frame: pandas.DataFrame, title: str = "", notes: Sequence[str] = ()) -> Grid:
    """Return a table of accuracies in the paper's layout, percent: datasets, ipc, networks down, methods across.

    Bold is the best of a row among the published numbers and among the measured ones of one selection; networks trained
    on all real images are left out of that.
    """
    columns, names = _columns(frame), _row_names(frame)
    lines = [[*place[: len(names)], *texts] for *place, texts in _lines(frame, columns)]
    header = [*names, *(f"{method} (published)" if kind else method for kind, method in columns)]
    return Grid(title, header, lines, names, notes)


def rows_grid(frame: pandas.DataFrame) -> Grid:
    """Return the rows of a table of accuracies, percent, with what they cost."""
    lines = []
    for name, row in zip(_names(frame), frame.to_dict("records"), strict=True):
        memory = row["peak_memory_bytes"]
        lines.append(
            [
                *(row["dataset"], str(row["ipc"]), row["network"], name),
                percent(row["accuracy_mean"], row["accuracy_std"]),
                *(text_of(row[column]) for column in ("n", "selection", "step_size")),
                percent(row["published_mean"], row["published_std"]) + _mark(row, True),
                "" if pandas.isna(row["seconds"]) else f"{row['seconds']:.0f}",
                "" if pandas.isna(memory) else f"{memory / 2**20:.0f}",
            ]
        )
    left = ("dataset", "network", "method", "selection", "step size")
    head = ("dataset", "IPC", "network", "method", "accuracy", "n", *left[3:], "published", "seconds", "peak MiB")
    title = f"{' and '.join(sorted(set(frame['split'].dropna())))} accuracy, percent".capitalize()
    return Grid(title, head, lines, left, ())


def paired_grid(frame: pandas.DataFrame) -> Grid:
    """Return the differences of pairs, accuracies in percent."""
    lines = []
    for row in frame.to_dict("records"):
        scale, digits = (100, 2) if row["quantity"] == "accuracy" else (1, 4)
        names = ("difference", "low", "high", "method_mean", "reference_mean")
        difference, low, high, mine, other = (f"{scale * row[name]:.{digits}f}" for name in names)
        lines.append(
            [
                *(row["dataset"], str(row["ipc"]), row["network"], row["quantity"]),
                *(f"{row['method']} - {row['reference']}: {difference}", f"{low} to {high}", f"{mine}, {other}"),
                *(str(row["n"]), row["over"]),
            ]
        )
    head = ("dataset", "IPC", "network", "quantity", "difference", "interval", "means", "n", "over")
    return Grid("Paired differences with 95 % intervals (accuracy in percent)", head, lines, head, ())


def step_size_notes(frame: pandas.DataFrame) -> list[str]:
    """Say where the step sizes of the tested networks come from, unless all were learned with their sets."""
    told = frame[frame["accuracy_mean"].notna() & ~frame["method"].str.startswith("full-")]
    if told["step_size"].isna().any() or set(told["step_size"]) <= {"learned"}:  # files of earlier versions do not say
        return []
    parts = []
    for kind, rows in told.groupby("step_size"):
        where = rows.groupby("network", sort=False)["method"].agg(lambda names: ", ".join(dict.fromkeys(names)))
        parts.append(f"{kind} - " + "; ".join(f"{network}: {names}" for network, names in where.items()))
    return [f"Step size of the tested networks: {'. '.join(parts)}."]


def _names(frame: pandas.DataFrame) -> list[str]:
    """Return the method of each row, with `, raw` where the same cell has a row of averages too."""
    records = frame.to_dict("records")
    cells = [(row["dataset"], row["ipc"], row["network"], row["method"]) for row in records]
    averaged = {cell for cell, row in zip(cells, records, strict=True) if row["average"] == "ema"}
    return [
        f"{row['method']}, raw" if cell in averaged and row["average"] == "raw" else str(row["method"])
        for cell, row in zip(cells, records, strict=True)
    ]


def _columns(frame: pandas.DataFrame) -> list[tuple[bool, str]]:
    """Return (whether published, name) of each column of the paper's layout."""
    found = []
    names = pandas.Series(_names(frame), index=frame.index)
    for published, column in ((True, "published_mean"), (False, "accuracy_mean")):
        shown = frame[column].notna() if published else frame[column].notna() | (frame["diverged"] > 0).fillna(False)
        found += [(published, str(name)) for name in dict.fromkeys(names[shown])]
    return found


def _lines(frame: pandas.DataFrame, columns: Sequence[tuple[bool, str]]) -> list[tuple[str, str, str, list[str]]]:
    """Return dataset (empty where it repeats), ipc, network and the cells of each row, the best ones in bold."""
    records = zip(_names(frame), frame.to_dict("records"), strict=True)
    held = {(row["dataset"], row["ipc"], row["network"], name): row for name, row in records}
    found: list[tuple[str, str, str, list[str]]] = []
    last = None
    for dataset, ipc, network in dict.fromkeys(place[:3] for place in held):
        shown: list[tuple[float, str, str]] = []
        for published, method in columns:
            kind = "published" if published else "accuracy"
            row = held.get((dataset, ipc, network, method), {})
            mean, std = row.get(f"{kind}_mean", math.nan), row.get(f"{kind}_std", math.nan)
            rivals = row.get("published_network") if published else f"selection {row.get('selection')}"
            lost = row.get("diverged", 0)
            if not published and math.isnan(mean) and pandas.notna(lost) and lost > 0:
                shown.append((math.nan, str(rivals), "diverged"))
                continue
            mark = "" if math.isnan(mean) else _mark(row, published)
            shown.append((round(100 * mean, 1), str(rivals), f"{percent(mean, std)}{mark}" or "-"))
        cells = []
        for mean, rivals, text in shown:
            means = [other for other, kind, _ in shown if kind == rivals and not math.isnan(other)]
            cells.append(f"**{text}**" if len(means) > 1 and mean == max(means) else text)
        found.append(("" if dataset == last else dataset, "all" if ipc == ALL else str(ipc), network, cells))
        last = dataset
    return found


def _row_names(frame: pandas.DataFrame) -> list[str]:
    """Return the headings in front of the cells; the network's only where there are several."""
    return ["dataset", "IPC", *(["network"] if frame["network"].nunique() > 1 else [])]


def _mark(row: Mapping[Any, Any], published: bool) -> str:
    """Return what is said of a number that is not to be compared with the others without a thought."""
    if published:
        return " [wide]" if row.get("published_network") == WIDE != row.get("network") else ""
    lost = row.get("diverged", 0)
    some = f" [{lost} diverged]" if pandas.notna(lost) and lost > 0 else ""
    return some if row["selection"] == "last" else f"{some} [{row['selection']}]"
