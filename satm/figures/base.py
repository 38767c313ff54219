"""What a kind of figure is, and the registry that it enters with one line."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas

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


Draw = Callable[[Reader, Any], Drawn]
"""`(reader, options) -> figure`."""

FIGURES: dict[str, Draw] = {}
"""Every kind of figure by its name, which is the `kind` of its options."""


def register(kind: str) -> Callable[[Draw], Draw]:
    """Enter a kind of figure under its name."""

    def enter(draw: Draw) -> Draw:
        FIGURES[kind] = draw
        return draw

    return enter


def counted(counts: Iterable[int], what: str, rest: str = "") -> str:
    """Return how many values are behind means: `n = 1 seed` (arguments: `in_numbers`)."""
    return f"n = {in_numbers(counts, what, rest)}"


def marked(frame: pandas.DataFrame, **constant: str | int) -> pandas.DataFrame:
    """Return a frame with further columns that are the same in all rows."""
    return frame.assign(**constant)


def cell_title(dataset: str, ipc: int) -> str:
    """Return a cell in words."""
    return f"{dataset}, {ipc} image{'s' if ipc > 1 else ''} per class"
