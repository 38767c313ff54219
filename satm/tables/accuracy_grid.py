"""Accuracies for people: in the paper's layout, as rows on a terminal, and the differences of pairs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas

from satm.tables.published import WIDE
from satm.tables.render import Grid, percent, text_of

ALL = 0
"""Number of images per class of networks trained on all real images."""

WATCHED = "best watched"
"""Mark of the columns of accuracies that were recorded during the distillation."""

KINDS = {"published": " (published)", "accuracy": "", "watched": f" ({WATCHED})"}
"""Kinds of numbers, in the order of the columns: the begin of their names in the frame, and the mark of the columns."""


def results_grid(frame: pandas.DataFrame, title: str = "", notes: Sequence[str] = ()) -> Grid:
    """Return a table of accuracies in the paper's layout, percent: datasets, ipc, networks down, methods across.

    The best of a row is bold, among the published numbers and among the measured ones of one selection; networks
    trained on all real images are not considered.
    """
    columns = _columns(frame)
    places = ["dataset", "IPC", *(["network"] if frame["network"].nunique() > 1 else [])]
    lines = [[*place[: len(places)], *texts] for *place, texts in _lines(frame, columns)]
    header = [*places, *(f"{method}{KINDS[kind]}" for kind, method in columns)]
    return Grid(title, header, lines, places, notes)


def rows_grid(frame: pandas.DataFrame) -> Grid:
    """Return the rows of a table of accuracies, percent, with their costs."""
    frame = frame.assign(memory=frame["peak_memory_bytes"] / 2**20)
    lines = [
        [
            *(row["dataset"], str(row["ipc"]), row["network"], name),
            percent(row["accuracy_mean"], row["accuracy_std"]),
            *(text_of(row[column]) for column in ("n", "selection", "step_size")),
            percent(row["published_mean"], row["published_std"]) + _mark(row, published=True),
            text_of(row["seconds"], ".0f"),
            text_of(row["memory"], ".0f"),
        ]
        for name, row in zip(_names(frame), frame.to_dict("records"), strict=True)
    ]
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
        difference, low, high, mean, reference = (f"{scale * row[name]:.{digits}f}" for name in names)
        place = (row["dataset"], str(row["ipc"]), row["network"], row["quantity"])
        texts = (f"{row['method']} - {row['reference']}: {difference}", f"{low} to {high}", f"{mean}, {reference}")
        lines.append([*place, *texts, str(row["n"]), row["over"]])
    head = ("dataset", "IPC", "network", "quantity", "difference", "interval", "means", "n", "over")
    return Grid("Paired differences with 95 % intervals (accuracy in percent)", head, lines, head, ())


def step_size_notes(frame: pandas.DataFrame) -> list[str]:
    """Return the origins of the tested networks' step sizes, unless all were learned with their sets."""
    tested = frame[frame["accuracy_mean"].notna() & ~frame["method"].str.startswith("full-")]
    if tested["step_size"].isna().any() or set(tested["step_size"]) <= {"learned"}:  # earlier versions wrote none
        return []
    parts = []
    for kind, rows in tested.groupby("step_size"):
        where = rows.groupby("network", sort=False)["method"].agg(lambda names: ", ".join(dict.fromkeys(names)))
        parts.append(f"{kind} - " + "; ".join(f"{network}: {names}" for network, names in where.items()))
    return [f"Step size of the tested networks: {'. '.join(parts)}."]


def _names(frame: pandas.DataFrame) -> list[str]:
    """Return the method of each row, with `, raw` if the same cell also has a row of averages."""
    cells = pandas.MultiIndex.from_frame(frame[["dataset", "ipc", "network", "method"]])
    raw = cells.isin(cells[frame["average"] == "ema"]) & (frame["average"] == "raw")
    return [f"{method}, raw" if beside else method for method, beside in zip(frame["method"], raw, strict=True)]


def _columns(frame: pandas.DataFrame) -> list[tuple[str, str]]:
    """Return kind and method of each column of the paper's layout; a missing method has an empty one."""
    names = pandas.Series(_names(frame), index=frame.index)
    measured = frame["accuracy_mean"].notna() | (frame["diverged"] > 0).fillna(False)
    shown = {
        "published": frame["published_mean"].notna(),
        "accuracy": measured | frame["published_mean"].isna(),
        "watched": frame["watched_mean"].notna(),
    }
    return [(kind, name) for kind in KINDS for name in dict.fromkeys(names[shown[kind]])]


def _lines(frame: pandas.DataFrame, columns: Sequence[tuple[str, str]]) -> list[tuple[str, str, str, list[str]]]:
    """Return dataset (empty if it repeats), ipc, network and the cells of each row, the best ones in bold."""
    records = zip(_names(frame), frame.to_dict("records"), strict=True)
    rows = {(row["dataset"], row["ipc"], row["network"], name): row for name, row in records}
    lines: list[tuple[str, str, str, list[str]]] = []
    last = None
    for dataset, ipc, network in dict.fromkeys(place[:3] for place in rows):
        shown: list[tuple[float, str, str]] = []
        for kind, method in columns:
            row = rows.get((dataset, ipc, network, method), {})
            mean, std = row.get(f"{kind}_mean", math.nan), row.get(f"{kind}_std", math.nan)
            rivals = str(row.get("published_network") if kind == "published" else f"selection {row.get('selection')}")
            if not math.isnan(mean):
                mark = "" if kind == "watched" else _mark(row, kind == "published")
                best = math.nan if kind == "watched" else round(100 * mean, 1)  # no result, so it has no rivals
                shown.append((best, rivals, f"{percent(mean, std)}{mark}"))
            else:
                shown.append((math.nan, rivals, "diverged" if kind == "accuracy" and _diverged(row) else "-"))
        cells = []
        for mean, rivals, text in shown:
            means = [other for other, kind, _ in shown if kind == rivals and not math.isnan(other)]
            cells.append(f"**{text}**" if len(means) > 1 and mean == max(means) else text)
        lines.append(("" if dataset == last else dataset, "all" if ipc == ALL else str(ipc), network, cells))
        last = dataset
    return lines


def _diverged(row: Mapping[Any, Any]) -> int:
    """Return the number of networks that diverged."""
    count = row.get("diverged", 0)
    return 0 if pandas.isna(count) else int(count)


def _mark(row: Mapping[Any, Any], published: bool) -> str:
    """Return the mark of a number that cannot simply be compared with the others."""
    if published:
        return " [wide]" if row.get("published_network") == WIDE != row.get("network") else ""
    some = f" [{_diverged(row)} diverged]" if _diverged(row) else ""
    return some if row["selection"] == "last" else f"{some} [{row['selection']}]"
