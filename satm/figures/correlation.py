"""Heatmaps of the correlations of all epochs' matching losses while one epoch is matched."""

from itertools import product
from typing import Annotated, Any, Literal, Self

import numpy
import pandas
from pydantic import Field, model_validator

from satm.analysis.correlation import correlations, triangle
from satm.config import AT_EPOCH, FIGURES, Cell, Ipc, Resolver, budgets, refuse_many
from satm.errors import UsageError
from satm.figures.base import Drawn, MetricsFigure, cell_title
from satm.figures.style import SIZES, dress, grid_of_panels
from satm.methods import resolve
from satm.tables.reader import Reader
from satm.tables.render import in_numbers

COLUMNS = ["method", "dataset", "ipc", "matched", "watched", "correlation"]


@FIGURES.named("correlation")
class CorrelationFigure(MetricsFigure):
    """Correlations of all epochs' matching losses while one epoch is matched: a heatmap per method and cell.

    Each matched epoch is a separate distillation, whose method is named `METHOD-at-epoch-7`: the method with its option
    `start_epoch` set. The method must `monitor` at least the number of epochs shown.
    """

    kind: Literal["correlation"] = "correlation"
    """Correlations of matching losses as heatmaps."""
    epochs: int = Field(ge=2)
    """Number of epochs that are matched and monitored, the first ones."""
    epochs_at: dict[Ipc, Annotated[int, Field(ge=2)]] = {}
    """Other numbers of epochs at some numbers of images per class."""

    @model_validator(mode="after")
    def _has_not_too_many_files(self) -> Self:
        refuse_many(sum(self.epochs_for(cell.ipc) for cell in self.cells()))
        return self

    def epochs_for(self, ipc: int) -> int:
        """Return the number of matched epochs at a number of images per class."""
        return self.epochs_at.get(ipc, self.epochs)

    def size(self) -> dict[str, object]:
        """Return the number of matched epochs."""
        return {"epochs on the path": self.epochs}

    def runs(self) -> list[Cell]:
        """Return each distillation, of a derived method."""
        return [
            cell._replace(method=f"{cell.method}{AT_EPOCH}{epoch}")
            for cell in self.cells()
            for epoch in range(self.epochs_for(cell.ipc))
        ]

    def check(self, resolver: Resolver) -> None:
        """Refuse methods that do not monitor all epochs shown."""
        for cell in dict.fromkeys(cell._replace(seed=0) for cell in self.cells()):
            _, options = resolve(resolver.method(cell))
            monitored, epochs = getattr(options, "monitor", 0), self.epochs_for(cell.ipc)
            if monitored < epochs:
                raise UsageError(
                    f"{cell.method} on {cell.dataset} at ipc {cell.ipc} monitors {monitored} epochs, the figure shows "
                    f"{epochs}; set monitor {epochs} for it, or lower epochs"
                )

    def draw(self, reader: Reader) -> Drawn:
        """Draw a heatmap per method (rows) and cell (columns), the mean over the seeds."""
        cells = budgets(self.datasets)
        means: dict[tuple[str, str, int], numpy.ndarray] = {}
        counts = set()
        for method, (dataset, ipc) in product(self.methods, cells):
            seeds = [reader.attempt(self._matrix, reader, cell) for cell in self.cells_of(dataset, ipc, method)]
            matrices = [matrix for matrix in seeds if matrix is not None]
            counts.add(len(matrices))
            if matrices:
                means[method, dataset, ipc] = numpy.mean(matrices, 0)
        notes = [
            "Row: the epoch that is matched; column: the epoch whose matching loss is watched, on an expert that is "
            f"never matched. Pearson's correlation over the iterations, mean over n = {in_numbers(counts, 'seed')}. "
            "Below the diagonal a later epoch is matched and an earlier one watched.",
            *reader.notes,
        ]
        figure, panels = grid_of_panels(len(self.methods), len(cells), self.title, notes, extra=0.3)
        image = None
        for axes, (method, (dataset, ipc)) in zip(panels.flat, product(self.methods, cells), strict=True):
            title = f"{self.label(method)}\n{cell_title(dataset, ipc)}"
            dress(axes, title, "epoch watched", "epoch matched")
            if (matrix := means.get((method, dataset, ipc))) is None:
                axes.text(0.5, 0.5, "not run", ha="center", va="center", transform=axes.transAxes)
                continue
            low = triangle(matrix, lower=True)
            title += f"\nbelow the diagonal: mean {low.mean:.2f}, {100 * low.negative:.0f} % negative"
            axes.set_title(title, size=SIZES["tick"])
            image = _heatmap(axes, matrix)
        if image is not None:
            bar = figure.colorbar(image, ax=panels.ravel().tolist(), shrink=0.8)
            bar.set_label("correlation", size=SIZES["label"])
            bar.ax.tick_params(labelsize=SIZES["tick"])
        rows = [[*key, *place, value] for key, mean in means.items() for place, value in numpy.ndenumerate(mean)]
        return Drawn(figure, pandas.DataFrame(rows, columns=COLUMNS))

    def _matrix(self, reader: Reader, cell: Cell) -> numpy.ndarray:
        """Return the correlations of one seed."""
        epochs = range(self.epochs_for(cell.ipc))
        columns = [f"monitor_{epoch}" for epoch in epochs]
        losses = []
        for epoch in epochs:
            name = f"{cell.method}{AT_EPOCH}{epoch}"
            frame = reader.metrics(cell._replace(method=name))
            if lacking := [column for column in columns if column not in frame.columns]:
                raise UsageError(
                    f"the metrics of {name} on {cell.dataset}, ipc {cell.ipc}, lack {lacking[0]}: its distillation did "
                    f"not monitor {len(epochs)} epochs; set monitor {len(epochs)} for {cell.method} and distil again"
                )
            losses.append(frame[columns].dropna().to_numpy())
        return correlations(losses)


def _heatmap(axes: Any, matrix: numpy.ndarray) -> Any:
    """Draw one matrix; blue is positive and orange negative, with the same change in lightness from white."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("signed", ["#a14000", "#f5a45c", "#ffffff", "#6baed6", "#08306b"])
    image = axes.imshow(matrix, vmin=-1, vmax=1, cmap=colours, interpolation="nearest")
    ticks = range(0, len(matrix), max(1, len(matrix) // 10))
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    if len(matrix) <= 12:
        # The number shows the sign, since dark orange and dark blue are the same grey.
        for (row, column), value in numpy.ndenumerate(matrix):
            text, shade = "" if numpy.isnan(value) else f"{value:.1f}", "white" if abs(value) > 0.6 else "black"
            axes.text(column, row, text, ha="center", va="center", size=5, color=shade)
    return image
