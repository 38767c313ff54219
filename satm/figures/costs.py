"""Peak memory and time of an iteration of different methods, as bars."""

from itertools import product
from typing import Literal

import pandas

from satm.config import FIGURES, budgets
from satm.figures.base import Drawn, MetricsFigure, cell_title
from satm.figures.style import SIZES, bar_style, dress, grid_of_panels, legend_above
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
        rows, cells = [], budgets(self.datasets)
        for (dataset, ipc), method in product(cells, self.methods):
            if runs := [run for run in self.measured(reader, dataset, ipc, method) if len(run)]:
                memory, seconds = measure("memory_gb", runs), measure("seconds", runs)
                place = {"dataset": dataset, "ipc": ipc, "method": method, "memory_gb": memory.mean}
                rows.append({**place, "seconds": seconds.mean, "std": seconds.std, "n": seconds.n})
        frame = pandas.DataFrame(rows, columns=COLUMNS)
        notes = [
            "Memory: peak of an iteration (on a GPU of PyTorch's tensors, on a CPU of the whole process). "
            "Time: mean over all iterations but the first, bars one standard deviation.",
            *reader.notes,
        ]
        figure, panels = grid_of_panels(1, 2, self.title, notes)
        width = 0.8 / max(1, len(self.methods))
        labels = {"memory_gb": "peak memory, GB", "seconds": "seconds per iteration"}
        for axes, (column, label) in zip(panels[0], labels.items(), strict=True):
            for index, method in enumerate(self.methods):
                own = frame[frame["method"] == method]
                places = [cells.index(cell) for cell in zip(own["dataset"], own["ipc"], strict=True)]
                shift = (index - (len(self.methods) - 1) / 2) * width
                axes.bar(
                    [place + shift for place in places],
                    own[column],
                    width * 0.9,
                    yerr=own["std"].fillna(0) if column == "seconds" else None,
                    capsize=2,
                    label=self.label(method),
                    **bar_style(index),
                )
            dress(axes, "", "", label)
            axes.set_xticks(range(len(cells)), [cell_title(*cell) for cell in cells], size=SIZES["tick"])
        legend_above(figure, panels[0][0])
        return Drawn(figure, frame)
