"""Base of all kinds of figure: options, the files that a figure needs, and the methods that draw it from them.

A new kind is one module here: a class with `@FIGURES.named("NAME")` that derives from `FigureKind` or `CellsFigure`,
has the option `kind: Literal["NAME"] = "NAME"` and defines `files` and `draw`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas
from pydantic import Field

from satm.config import Cells, FigureOptions, Layout, Resolver, SomeDatasets, TableOptions
from satm.figures.curves import Panel, draw_panels
from satm.tables.reader import Reader

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawn:
    """A drawn figure, to be written as pdf and png, and the tidy numbers that it shows."""

    figure: "Figure"
    frame: pandas.DataFrame
    png: Callable[[Any], None] | None = None
    """Writes another png to a path; None: the png is written from `figure`."""
    tight: dict[str, Any] | None = None
    """Options of `savefig` for cropping; None: not cropped."""


class FigureKind(FigureOptions):
    """Base of all kinds of figure: options, and the methods that draw it from the files of other stages."""

    def draw(self, reader: Reader) -> Drawn:
        """Return the picture and the numbers that it shows.

        Raises:
            UsageError: a file that it needs is missing (the text has the command that makes it), broken, or of another
                run; matplotlib is not installed.
        """
        raise TypeError(f"{type(self).__name__} must define draw()")

    def drawn(
        self,
        reader: Reader,
        panels: Sequence[Sequence[Panel]],
        note: str,
        frames: Sequence[pandas.DataFrame],
        columns: list[str] | None = None,
    ) -> Drawn:
        """Return rows of panels with a note below, and their numbers as one frame, restricted to `columns`."""
        frame = pandas.concat(frames) if frames else pandas.DataFrame(columns=columns)
        figure = draw_panels(panels, self.title, [note, *reader.notes])
        return Drawn(figure, frame if columns is None else frame[columns])


class CellsFigure(Cells, FigureKind):
    """A figure of some synthetic sets."""

    datasets: SomeDatasets
    """Images per class, by dataset."""
    methods: tuple[str, ...] = Field(min_length=1)
    """Panels or lines, in this order."""
    labels: dict[str, str] = {}
    """Labels of methods in the legend; without an entry the method's name."""

    def label(self, method: str) -> str:
        """Return the label of a method in the legend."""
        return self.labels.get(method, method)


class MetricsFigure(CellsFigure):
    """A figure of measurements in the iterations of distillations."""

    def files(self, layout: Layout, tables: Mapping[str, TableOptions]) -> list[str]:
        """Return the metrics of all distillations."""
        return [layout.metrics(run) for run in self.runs()]

    def measured(self, reader: Reader, dataset: str, ipc: int, method: str) -> list[pandas.DataFrame]:
        """Return the metrics of all seeds; empty for a method that was not run."""
        cells = self.cells_of(dataset, ipc, method)
        return reader.attempt(lambda: [reader.metrics(cell) for cell in cells]) or []


class AnalysisFigure(CellsFigure):
    """A figure of measurements of an analysis at synthetic sets; the analysis has the name of the kind."""

    def files(self, layout: Layout, tables: Mapping[str, TableOptions]) -> list[str]:
        """Return the measurements at all sets."""
        return [layout.analysis(self.kind, cell) for cell in self.cells()]

    def measured(self, reader: Reader, dataset: str, ipc: int) -> Iterator[tuple[str, pandas.DataFrame]]:
        """Yield each method and the measurements at its sets of all seeds, without methods that were not run."""
        for method in self.methods:
            rows = reader.attempt(reader.analysis, self.kind, self.cells_of(dataset, ipc, method))
            if rows is not None:
                yield method, rows


def figure_of(resolver: Resolver, name: str) -> FigureKind:
    """Return a figure of a campaign; `UsageError` for an unknown name."""
    figure = resolver.figure(name)
    assert isinstance(figure, FigureKind)
    return figure


def cell_title(dataset: str, ipc: int) -> str:
    """Describe a cell for a title."""
    return f"{dataset}, {ipc} image{'s' if ipc > 1 else ''} per class"
