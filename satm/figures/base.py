"""What a kind of figure is: options, the files it needs, and how it is drawn from them.

A new kind is one module here: a class with `@FIGURES.named("NAME")` that derives from `FigureKind` or `CellsFigure`,
has the option `kind: Literal["NAME"] = "NAME"` and defines `files` and `draw`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas
from pydantic import Field

from satm.config import Cells, FigureOptions, Layout, Resolver, SomeDatasets, TableOptions
from satm.tables.reader import Reader
from satm.tables.render import in_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawn:
    """A figure as it is written.

    Args:
        figure: vector and pixel picture are written from it.
        frame: the numbers that it shows, tidy.
        png: writes the pixel picture in another way, given its path; None: from `figure`.
        tight: options of `savefig`; None: the figure as large as it is.
    """

    figure: "Figure"
    frame: pandas.DataFrame
    png: Callable[[Any], None] | None = None
    tight: dict[str, Any] | None = None


class FigureKind(FigureOptions):
    """A figure of some kind: its options, and how it is drawn from the files of other stages."""

    def draw(self, reader: Reader) -> Drawn:
        """Return the picture and the numbers that it shows.

        Raises:
            UsageError: a file that it needs is missing (the text has the command that makes it), broken, or of another
                run; matplotlib is not installed.
        """
        raise TypeError(f"{type(self).__name__} must define draw()")


class CellsFigure(Cells, FigureKind):
    """A figure of some synthetic sets."""

    datasets: SomeDatasets
    """Images per class, by dataset."""
    methods: tuple[str, ...] = Field(min_length=1)
    """Panels or lines, in this order."""
    labels: dict[str, str] = {}
    """What the legend calls a method; without an entry its name."""

    def label(self, method: str) -> str:
        """Return what the legend calls a method."""
        return self.labels.get(method, method)


class MetricsFigure(CellsFigure):
    """A figure of what was measured in the iterations of distillations."""

    def files(self, layout: Layout, tables: Mapping[str, TableOptions]) -> list[str]:
        """Return the metrics of all distillations."""
        return [layout.metrics(run) for run in self.runs()]


class AnalysisFigure(CellsFigure):
    """A figure of what an analysis measured at synthetic sets; the analysis has the name of the kind."""

    def files(self, layout: Layout, tables: Mapping[str, TableOptions]) -> list[str]:
        """Return what was measured at all sets."""
        return [layout.analysis(self.kind, cell) for cell in self.cells()]

    def measured(self, reader: Reader, dataset: str, ipc: int) -> Iterator[tuple[str, pandas.DataFrame]]:
        """Yield each method and what was measured at its sets of all seeds; without those that may be left out."""
        for method in self.methods:
            rows = reader.attempt(partial(reader.analysis, self.kind, self.cells_of(dataset, ipc, method)))
            if rows is not None:
                yield method, rows


def figure_of(resolver: Resolver, name: str) -> FigureKind:
    """Return a figure of a campaign.

    Raises:
        UsageError: there is no such figure.
    """
    figure = resolver.figure(name)
    assert isinstance(figure, FigureKind)
    return figure


def counted(counts: Iterable[int], what: str, rest: str = "") -> str:
    """Return how many values are behind means: `n = 1 seed` (arguments: `in_numbers`)."""
    return f"n = {in_numbers(counts, what, rest)}"


def cell_title(dataset: str, ipc: int) -> str:
    """Return a cell in words."""
    return f"{dataset}, {ipc} image{'s' if ipc > 1 else ''} per class"
