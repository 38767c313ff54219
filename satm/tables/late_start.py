"""Tables of accuracies by the expert epoch at which networks begin to learn from a synthetic set."""

import re
from collections.abc import Sequence
from itertools import product
from typing import Literal

import pandas

from satm.config import TABLES, Cell, Layout, budgets
from satm.tables.base import Row, TableKind
from satm.tables.published import PUBLISHED, printed, source_of
from satm.tables.reader import Reader
from satm.tables.render import Grid, percent, text_of

HEADINGS = ("dataset", "IPC", "method", "begun at epoch", "epochs left", "published", "measured", "n")


@TABLES.named("late-start")
class LateStartTable(TableKind):
    """A table of accuracies by the expert epoch at which networks begin to learn from a set.

    Columns: epochs_left, the expert's remaining epochs, and steps, the training steps on the set in their place;
    accuracy_mean and accuracy_std over n experts and seeds, on test images; published_mean.
    """

    kind: Literal["late-start"] = "late-start"
    """Accuracy by the expert epoch at which networks begin."""

    columns = {
        **{"dataset": "str", "ipc": "int64", "method": "str", "start": "int64"},
        **{"epochs_left": "Int64", "steps": "Int64", "accuracy_mean": "float64", "accuracy_std": "float64"},
        **{"n": "Int64", "published_mean": "float64", "published_source": "object"},
    }
    counted = ("accuracy_mean", "published_mean", "")

    def files(self, layout: Layout, name: str) -> list[str]:
        """Return the errors measured along the experts' trajectories."""
        return [layout.analysis("trajectory", cell) for cell in self.cells()]

    def rows(self, reader: Reader, name: str) -> list[Row]:
        """Return one row per dataset, ipc, method and expert epoch at which networks begin."""
        rows: list[Row] = []
        for (dataset, ipc), method in product(budgets(self.datasets), self.methods):
            measured = reader.attempt(_measured, reader, self.cells_of(dataset, ipc, method)) or {}
            published = _published(name, dataset, ipc, method)
            rows += [
                {"dataset": dataset, "ipc": ipc, "method": method, "start": start}
                | measured.get(start, {})
                | published.get(start, {})
                for start in sorted({*measured, *published})
            ]
        return rows

    def grid(self, reader: Reader, name: str, frame: pandas.DataFrame) -> Grid:
        """Return the accuracies in percent."""
        lines = [
            [
                *(row["dataset"], str(row["ipc"]), row["method"], str(row["start"]), text_of(row["epochs_left"])),
                percent(row["published_mean"]),
                percent(row["accuracy_mean"], row["accuracy_std"]),
                text_of(row["n"]),
            ]
            for row in frame.to_dict("records")
        ]
        notes = [
            "Test accuracy in percent, mean ± sample standard deviation over n experts and seeds. A network begins "
            "with the expert's weights after this number of epochs and learns from the synthetic set for the expert's "
            "remaining epochs, at the method's ratio of inner steps to matched epochs."
        ]
        if name in PUBLISHED:
            notes.append(f"Published: {source_of(name)}, with 20 steps for one epoch.")
        return Grid(f"{name}, accuracy in percent", HEADINGS, lines, HEADINGS[:3], [*notes, *reader.notes])


def _measured(reader: Reader, cells: Sequence[Cell]) -> dict[int, Row]:
    """Return the numbers by epoch of the start."""
    rows = reader.analysis("trajectory", cells)
    return {
        int(str(start)): {
            **{"epochs_left": int((group["epoch"] - group["start"]).iloc[0]), "steps": int(group["steps"].iloc[0])},
            "accuracy_mean": group["evaluation_accuracy"].mean(),
            **{"accuracy_std": group["evaluation_accuracy"].std(), "n": len(group)},
        }
        for start, group in rows[rows["kind"] == "restart"].groupby("start")
    }


def _published(name: str, dataset: str, ipc: int, method: str) -> dict[int, Row]:
    """Return the published numbers by epoch of the start, as fractions; a number's note has the epoch."""
    frame = printed(name, dataset)
    records = frame[frame["method"].eq(method) & frame["ipc"].eq(ipc)].to_dict("records")
    return {
        int(start[1]): {"published_mean": row["value"] / 100, "published_source": source_of(name)}
        for row in records
        if (start := re.search(r"start_epoch=(\d+)", str(row["note"])))
    }
