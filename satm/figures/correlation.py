"""Heatmaps of how the matching losses of all epochs move while one is matched."""

from functools import partial
from typing import Annotated, Any, Literal, Self

import numpy
import pandas
from pydantic import Field, model_validator

from satm.analysis.correlation import correlations, triangle
from satm.config import AT_EPOCH, FIGURES, Cell, Ipc, budgets, refuse_many
from satm.errors import UsageError
from satm.figures.base import Drawn, MetricsFigure, cell_title, counted
from satm.figures.style import SIZES, dress, grid_of_panels
from satm.tables.reader import Reader


@FIGURES.named("correlation")
class CorrelationFigure(MetricsFigure):
    """How the matching losses of all epochs move while one epoch is matched: a heatmap per method and cell.

    Each matched epoch is a distillation of its own, whose method is named `METHOD-at-epoch-7`: the method with its
    option `start_epoch` set. The method must `monitor` at least so many epochs.
    """

    kind: Literal["correlation"] = "correlation"
    """Correlations of matching losses as heatmaps."""
    epochs: int = Field(ge=2)
    """Epochs that are matched and monitored, the first ones."""
    epochs_at: dict[Ipc, Annotated[int, Field(ge=2)]] = {}
    """Other numbers of them at some numbers of images per class."""

    @model_validator(mode="after")
    def _has_not_too_many_files(self) -> Self:
        refuse_many(sum(self.epochs_for(cell.ipc) for cell in self.cells()))
        return self

    def epochs_for(self, ipc: int) -> int:
        """Return how many epochs are matched at so many images per class."""
        return self.epochs_at.get(ipc, self.epochs)

    def size(self) -> dict[str, object]:
        """Return how many epochs are matched."""
        return {"epochs on the path": self.epochs}

    def runs(self) -> list[Cell]:
        """Return each distillation, of a derived method."""
        return [
            cell._replace(method=f"{cell.method}{AT_EPOCH}{epoch}")
            for cell in self.cells()
            for epoch in range(self.epochs_for(cell.ipc))
        ]

    def draw(self, reader: Reader) -> Drawn:
        """Draw a heatmap per method (rows) and cell (columns), the mean over the seeds."""
        cells = budgets(self.datasets)
        found: dict[tuple[str, str, int], numpy.ndarray] = {}
        counts = set()
        for method in self.methods:
            for dataset, ipc in cells:
                matrices = [
                    matrix
                    for cell in self.cells_of(dataset, ipc, method)
                    if (matrix := reader.attempt(partial(self._matrix, reader, cell))) is not None
                ]
                counts.add(len(matrices))
                if matrices:
                    found[method, dataset, ipc] = numpy.mean(matrices, 0)
        notes = [
            "Row: the epoch that is matched; column: the epoch whose matching loss is watched, on an expert that is "
            f"never matched. Pearson's correlation over the iterations, mean over {counted(counts, 'seed')}. "
            "Below the diagonal a later epoch is matched and an earlier one watched.",
            *reader.notes,
        ]
        figure, drawn = grid_of_panels(len(self.methods), len(cells), self.title, notes, extra=0.3)
        image = None
        for axes_row, method in zip(drawn, self.methods, strict=True):
            for axes, (dataset, ipc) in zip(axes_row, cells, strict=True):
                matrix = found.get((method, dataset, ipc))
                label = self.label(method)
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

    def _matrix(self, reader: Reader, cell: Cell) -> numpy.ndarray:
        """Return the correlations of one seed.

        Raises:
            UsageError: a distillation did not monitor so many epochs.
        """
        dataset, ipc, method, _ = cell
        epochs = self.epochs_for(ipc)
        columns = [f"monitor_{epoch}" for epoch in range(epochs)]
        losses = []
        for epoch in range(epochs):
            name = f"{method}{AT_EPOCH}{epoch}"
            frame = reader.metrics(cell._replace(method=name))
            if lacking := [column for column in columns if column not in frame.columns]:
                raise UsageError(
                    f"the metrics of {name} on {dataset}, ipc {ipc}, lack {lacking[0]}: its distillation did not "
                    f"monitor {epochs} epochs; set monitor {epochs} for {method} and distil again"
                )
            losses.append(frame[columns].dropna().to_numpy())
        return correlations(losses)


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


def _tidy(found: dict[tuple[str, str, int], numpy.ndarray]) -> pandas.DataFrame:
    rows = [
        {"method": method, "dataset": dataset, "ipc": ipc, "matched": row, "watched": column, "correlation": value}
        for (method, dataset, ipc), matrix in found.items()
        for (row, column), value in numpy.ndenumerate(matrix)
    ]
    return pandas.DataFrame(rows, columns=["method", "dataset", "ipc", "matched", "watched", "correlation"])
