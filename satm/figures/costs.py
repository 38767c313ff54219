"""Peak memory and time of an iteration of different methods, as bars."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import pandas

from satm.config import FIGURES, Cell, budgets
from satm.figures.base import Drawn, MetricsFigure, cell_title
from satm.figures.style import COLOURS, HATCHES, SIZES, dress, grid_of_panels, legend_above
from satm.tables.reader import Reader
from satm.tables.run_metrics import measure

COLUMNS = ["dataset", "ipc", "method", "memory_gb", "seconds", "std", "n"]


@FIGURES.named("costs")
class CostsFigure(MetricsFigure):
    """Peak memory and time of an iteration as bars, a group per cell."""

    kind: Literal["costs"] = "costs"
    """Peak memory and time as bars."""

    def draw(self, reader: Reader) -> Drawn:
        """Draw memory in the left panel and time in the right one, a group of bars per cell."""
        rows = []
        cells = budgets(self.datasets)
        for dataset, ipc in cells:
            for method in self.methods:
                read = partial(_runs, reader, self.cells_of(dataset, ipc, method))
                runs = [run for run in reader.attempt(read) or [] if len(run)]
                if runs:
                    memory, seconds = measure("memory_gb", runs), measure("seconds", runs)
                    found = {"memory_gb": memory.mean, "seconds": seconds.mean, "std": seconds.std, "n": seconds.n}
                    rows.append({"dataset": dataset, "ipc": ipc, "method": method, **found})
        frame = pandas.DataFrame(rows, columns=COLUMNS)
        notes = [
            "Memory: the most that an iteration held (on a GPU the tensors of PyTorch, on a CPU the whole process). "
            "Time: mean over the iterations but the first, bars one standard deviation over them.",
            *reader.notes,
        ]
        figure, drawn = grid_of_panels(1, 2, self.title, notes)
        for axes, column, label in zip(
            drawn[0], ("memory_gb", "seconds"), ("peak memory, GB", "seconds per iteration"), strict=True
        ):
            wide = 0.8 / max(1, len(self.methods))
            for index, method in enumerate(self.methods):
                own = frame[frame["method"] == method]
                places = [cells.index((dataset, ipc)) for dataset, ipc in zip(own["dataset"], own["ipc"], strict=True)]
                shift = (index - (len(self.methods) - 1) / 2) * wide
                axes.bar(
                    [place + shift for place in places],
                    own[column],
                    wide * 0.9,
                    yerr=own["std"].fillna(0) if column == "seconds" else None,
                    capsize=2,
                    label=self.label(method),
                    color=COLOURS[index % len(COLOURS)],
                    hatch=HATCHES[index % len(HATCHES)],
                    edgecolor="white",
                )
            dress(axes, "", "", label)
            axes.set_xticks(range(len(cells)), [cell_title(*cell) for cell in cells], size=SIZES["tick"])
        legend_above(figure, drawn[0][0])
        return Drawn(figure, frame)


def _runs(reader: Reader, cells: Sequence[Cell]) -> list[pandas.DataFrame]:
    return [reader.metrics(cell) for cell in cells]
