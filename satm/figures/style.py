"""Style and saving of all figures. matplotlib comes with the extra `figures` and is imported only here.

Lines differ in colour, dashes and marker at once, so that they are distinct in grey and with any colour vision.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from satm.errors import UsageError
from satm.storage.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (7, 2)), (0, (1, 2)))
MARKERS = "osD^vPX"
HATCHES = ("", "//", "..", "xx", "--", "++", "\\\\")
"""Used in turn: colours of lines and bars (Okabe and Ito), dashes, markers of lines with few points, bar hatches."""

PANEL = (3.3, 2.5)
"""Width and height of one panel in inches: a column of a paper."""

LEGEND = (54, 8)
"""Width, in characters, of a line of the legend below a panel, and of the sample of a line in it."""

DPI = 200

SIZES = {"title": 8.5, "label": 8.0, "tick": 7.0, "legend": 7.0, "note": 6.0}
"""Sizes of text in points, readable if a panel is as wide as a column."""


def line_style(index: int) -> dict[str, Any]:
    """Return colour and dashes of the line with this index."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)]}


def bar_style(index: int) -> dict[str, Any]:
    """Return colour and hatch of the bars with this index."""
    return {"color": COLOURS[index % len(COLOURS)], "hatch": HATCHES[index % len(HATCHES)], "edgecolor": "white"}


def new_figure(width: float, height: float, dpi: int = DPI) -> "Figure":
    """Return an empty figure, width and height in inches; `UsageError` if matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "pictures need matplotlib, which is not installed; install it with: pip install 'satm[figures]'"
        ) from error
    figure = Figure(figsize=(width, height), dpi=dpi)
    FigureCanvasAgg(figure)
    return figure


def grid_of_panels(
    rows: int, columns: int, title: str, notes: Sequence[str], extra: float = 0.0, below: float = 0.0
) -> tuple["Figure", Any]:
    """Return a figure of panels with its title above and notes below, and its axes `[rows, columns]`.

    A panel has additional width (`extra`, inches) for a colour bar and height (`below`) for a legend below it.
    """
    width = (PANEL[0] + extra) * columns
    lines = [line for note in notes for line in textwrap.wrap(note, max(40, int(width * 21)))]
    figure = new_figure(width, (PANEL[1] + below) * rows + 0.12 * len(lines) + (0.25 if title else 0))
    figure.set_layout_engine("constrained")
    if title:
        figure.suptitle(title, size=SIZES["title"] + 1)
    if lines:
        figure.supxlabel("\n".join(lines), size=SIZES["note"], x=0.01, ha="left", color="#444444")
    return figure, figure.subplots(rows, columns, squeeze=False)


def dress(axes: Any, title: str, x_label: str, y_label: str) -> None:
    """Write title and labels of a panel, and remove the upper and right borders."""
    axes.set_title(title, size=SIZES["title"])
    axes.set_xlabel(x_label, size=SIZES["label"])
    axes.set_ylabel(y_label, size=SIZES["label"])
    axes.tick_params(which="both", labelsize=SIZES["tick"])
    axes.spines[["top", "right"]].set_visible(False)


def legend_above(figure: "Figure", axes: Any) -> None:
    """Draw one legend for all panels above them."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        place: dict[str, Any] = {"loc": "outside upper center", "ncols": len(labels)}
        figure.legend(handles, labels, frameon=False, fontsize=SIZES["legend"], **place)


def plain_decades(axis: Any, low: float, high: float) -> None:
    """Write more numbers, and in full, on a logarithmic axis that spans few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if low > 0 and high / low < 100:
        axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)) if high / low > 3 else MaxNLocator(6))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def legend_columns(labels: Sequence[str]) -> int:
    """Return the number of columns of the legend below a panel."""
    line, sample = LEGEND
    return max(1, min(len(labels), line // (max(map(len, labels), default=0) + sample)))


def legend(axes: Any, below: float = 0.22) -> None:
    """Draw the legend of a panel, if it has labels, below it; the distance `below` is relative to its height."""
    if labels := axes.get_legend_handles_labels()[1]:
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.0, -below), "ncols": legend_columns(labels)}
        axes.legend(frameon=False, fontsize=SIZES["legend"], handlelength=2.6, **place)


def save(figure: "Figure", path: Path, tight: Mapping[str, Any] | None = None) -> None:
    """Write a figure in the format of the path's ending, atomically.

    `tight` has the options of `savefig` that crop the picture to its content; None: not cropped.

    Raises:
        UsageError: the ending is not an image format.
        RunError: the disk is full or the folder cannot be written.
    """
    kind = path.suffix.removeprefix(".")
    if kind not in (known := figure.canvas.get_supported_filetypes()):
        raise UsageError(f"cannot draw {path}: the ending is {kind!r}; use one of {', '.join(sorted(known))}")
    # Without the writer's name and date, the same content gives the same bytes.
    empty: dict[str, dict[str, Any]] = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    with atomic_path(path) as part:
        figure.savefig(part, format=kind, metadata=empty.get(kind), **(tight or {}))
