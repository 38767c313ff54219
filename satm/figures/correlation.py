"""Heatmaps of how the matching losses of all epochs move while one is matched."""

from functools import partial
from typing import Any

import numpy
import pandas

from satm.analysis.correlation import correlations, triangle
from satm.config import AT_EPOCH, Cell, CorrelationFigure
from satm.errors import UsageError
from satm.figures.base import Drawn, cell_title, counted, register
from satm.figures.style import SIZES, dress, grid_of_panels
from satm.tables.reader import Reader


@register("correlation")
def draw(reader: Reader, options: CorrelationFigure) -> Drawn:
    """Draw a heatmap per method (rows) and cell (columns), the mean over the seeds."""
    cells = [(dataset, ipc) for dataset, ipcs in options.datasets.items() for ipc in ipcs]
    found: dict[tuple[str, str, int], numpy.ndarray] = {}
    counts = set()
    for method in options.methods:
        for dataset, ipc in cells:
            matrices = [
                matrix
                for cell in options.cells_of(dataset, ipc, method)
                if (matrix := reader.attempt(partial(_matrix, reader, options, cell))) is not None
            ]
            counts.add(len(matrices))
            if matrices:
                found[method, dataset, ipc] = numpy.mean(matrices, 0)
    notes = [
        "Row: the epoch that is matched; column: the epoch whose matching loss is watched, on an expert that is never "
        f"matched. Pearson's correlation over the iterations, mean over {counted(counts, 'seed')}. "
        "Below the diagonal a later epoch is matched and an earlier one watched.",
        *reader.notes,
    ]
    figure, drawn = grid_of_panels(len(options.methods), len(cells), options.title, notes, extra=0.3)
    image = None
    for axes_row, method in zip(drawn, options.methods, strict=True):
        for axes, (dataset, ipc) in zip(axes_row, cells, strict=True):
            matrix = found.get((method, dataset, ipc))
            label = options.labels.get(method, method)
            heading = f"{label}\n{cell_title(dataset, ipc)}"
            dress(axes, heading, "epoch watched", "epoch matched")
            if matrix is None:
                axes.text(0.5, 0.5, "not run", ha="center", va="center", transform=axes.transAxes)
                continue
            low = triangle(matrix, lower=True)
            heading += f"\nbelow the diagonal: mean {low.mean:.2f}, {100 * low.negative:.0f} % negative"
            axes.set_title(heading, size=SIZES["tick"])
            image = _heatmap(axes, matrix)
    if image is not None:
        bar = figure.colorbar(image, ax=drawn.ravel().tolist(), shrink=0.8)
        bar.set_label("correlation", size=SIZES["label"])
        bar.ax.tick_params(labelsize=SIZES["tick"])
    return Drawn(figure, _tidy(found))


def _heatmap(axes: Any, matrix: numpy.ndarray) -> Any:
    """Draw one matrix; blue is positive and orange negative, which differ in lightness from white alike."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("signed", ["#a14000", "#f5a45c", "#ffffff", "#6baed6", "#08306b"])
    image = axes.imshow(matrix, vmin=-1, vmax=1, cmap=colours, interpolation="nearest")
    step = max(1, len(matrix) // 10)
    ticks = range(0, len(matrix), step)
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    if len(matrix) <= 12:
        # The sign stands in the square, since dark orange and dark blue are the same grey.
        for (row, column), value in numpy.ndenumerate(matrix):
            shade = "white" if abs(value) > 0.6 else "black"
            axes.text(
                column, row, "" if numpy.isnan(value) else f"{value:.1f}", ha="center", va="center", size=5, color=shade
            )
    return image


def _matrix(reader: Reader, options: CorrelationFigure, cell: Cell) -> numpy.ndarray:
    """Return the correlations of one seed.

    Raises:
        UsageError: a distillation did not monitor so many epochs.
    """
    dataset, ipc, method, _ = cell
    epochs = options.epochs_for(ipc)
    columns = [f"monitor_{epoch}" for epoch in range(epochs)]
    losses = []
    for epoch in range(epochs):
        name = f"{method}{AT_EPOCH}{epoch}"
        frame = reader.metrics(cell._replace(method=name))
        if lacking := [column for column in columns if column not in frame.columns]:
            raise UsageError(
                f"the metrics of {name} on {dataset}, ipc {ipc}, lack {lacking[0]}: its distillation did not monitor "
                f"{epochs} epochs; set monitor {epochs} for {method} and distil again"
            )
        losses.append(frame[columns].dropna().to_numpy())
    return correlations(losses)


def _tidy(found: dict[tuple[str, str, int], numpy.ndarray]) -> pandas.DataFrame:
    rows = [
        {"method": method, "dataset": dataset, "ipc": ipc, "matched": row, "watched": column, "correlation": value}
        for (method, dataset, ipc), matrix in found.items()
        for (row, column), value in numpy.ndenumerate(matrix)
    ]
    return pandas.DataFrame(rows, columns=["method", "dataset", "ipc", "matched", "watched", "correlation"])
