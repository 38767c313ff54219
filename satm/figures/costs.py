"""Peak memory and time of an iteration of different methods, as bars."""

from collections.abc import Sequence
from functools import partial

import pandas

from satm.config import Cell, CostsFigure
from satm.config.run_metrics import measure
from satm.figures.base import Drawn, cell_title, register
from satm.figures.style import COLOURS, HATCHES, SIZES, dress, grid_of_panels, legend_above
from satm.tables.reader import Reader

COLUMNS = ["dataset", "ipc", "method", "memory_gb", "seconds", "std", "n"]


def _runs(reader: Reader, cells: Sequence[Cell]) -> list[pandas.DataFrame]:
    return [reader.metrics(cell) for cell in cells]


@register("costs")
def draw(reader: Reader, options: CostsFigure) -> Drawn:
    """Draw memory in the left panel and time in the right one, a group of bars per cell."""
    rows = []
    cells = [(dataset, ipc) for dataset, ipcs in options.datasets.items() for ipc in ipcs]
    for dataset, ipc in cells:
        for method in options.methods:
            read = partial(_runs, reader, options.cells_of(dataset, ipc, method))
            held = [run for run in reader.attempt(read) or [] if len(run)]
            if held:
                memory, seconds = measure("memory_gb", held), measure("seconds", held)
                found = {"memory_gb": memory.mean, "seconds": seconds.mean, "std": seconds.std, "n": seconds.n}
                rows.append({"dataset": dataset, "ipc": ipc, "method": method, **found})
    frame = pandas.DataFrame(rows, columns=COLUMNS)
    notes = [
        "Memory: the most that an iteration held (on a GPU the tensors of PyTorch, on a CPU the whole process). Time: "
        "mean over the iterations but the first, bars one standard deviation over them.",
        *reader.notes,
    ]
    figure, drawn = grid_of_panels(1, 2, options.title, notes)
    for axes, column, label in zip(
        drawn[0], ("memory_gb", "seconds"), ("peak memory, GB", "seconds per iteration"), strict=True
    ):
        wide = 0.8 / max(1, len(options.methods))
        for index, method in enumerate(options.methods):
            own = frame[frame["method"] == method]
            places = [cells.index((dataset, ipc)) for dataset, ipc in zip(own["dataset"], own["ipc"], strict=True)]
            shift = (index - (len(options.methods) - 1) / 2) * wide
            axes.bar(
                [place + shift for place in places],
                own[column],
                wide * 0.9,
                yerr=own["std"].fillna(0) if column == "seconds" else None,
                capsize=2,
                label=options.labels.get(method, method),
                color=COLOURS[index % len(COLOURS)],
                hatch=HATCHES[index % len(HATCHES)],
                edgecolor="white",
            )
        dress(axes, "", "", label)
        axes.set_xticks(range(len(cells)), [cell_title(*cell) for cell in cells], size=SIZES["tick"])
    legend_above(figure, drawn[0][0])
    return Drawn(figure, frame)
