"""Panels of lines, with bands, references and published values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy
import pandas

from satm.figures.style import (
    COLOURS,
    MARKERS,
    dress,
    grid_of_panels,
    legend,
    legend_columns,
    line_style,
    plain_decades,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = Sequence[float] | pandas.Series | pandas.Index | numpy.ndarray

GREYS = ("#000000", "#777777", "#aaaaaa")
"""Colours of horizontal lines without a corresponding line, used in turn."""

FEW = 30
"""Largest number of points of a line that is drawn with markers."""


@dataclass(frozen=True)
class Line:
    """One line of a panel: values at places x, and its label in the legend."""

    label: str
    x: Values
    mean: Values
    std: Values | None = None
    """Spread around the values; None: not drawn."""
    pale: Values | None = None
    """Measurements behind the line, drawn pale; None: not drawn."""
    bars: bool = False
    """Draw the spread as bars at the points, not as a band."""


@dataclass(frozen=True)
class Level:
    """A horizontal line at a value, and its label in the legend."""

    label: str
    value: float
    published: bool = False
    """Whether the value is printed in a paper; it is drawn dotted."""
    like: int | None = None
    """Index of the line whose colour it has; None: black or grey."""


@dataclass(frozen=True)
class Panel:
    """One panel: its title, the labels of its axes with their units, its lines and horizontal lines."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    levels: Sequence[Level] = ()
    log_x: bool = False
    log_y: bool = False
    ticks: Sequence[float] | None = None
    """Ticks of the x axis; None: matplotlib's choice."""
    right: Sequence[Line] = ()
    """Further lines, grey, with a separate axis at the right."""
    right_label: str = ""


def draw_panels(panels: Sequence[Sequence[Panel]], title: str = "", notes: Sequence[str] = ()) -> "Figure":
    """Return a figure with rows of panels, all of the same length.

    A label has the same style in all panels if there are enough styles; else the lines of each panel use them in turn.
    """
    below = 0.0
    for panel in (panel for row in panels for panel in row):
        labels = [line.label for line in (*panel.lines, *panel.right)] + [level.label for level in panel.levels]
        below = max(below, 0.15 * math.ceil(len(labels) / legend_columns(labels)))
    names = dict.fromkeys(line.label for row in panels for panel in row for line in panel.lines)
    shared = {label: index for index, label in enumerate(names)} if len(names) <= len(COLOURS) else {}
    figure, grid = grid_of_panels(len(panels), len(panels[0]), title, notes, below=below)
    for row, axes_row in zip(panels, grid, strict=True):
        for panel, axes in zip(row, axes_row, strict=True):
            _panel(axes, panel, [shared.get(line.label, index) for index, line in enumerate(panel.lines)])
    return figure


def _panel(axes: Any, panel: Panel, styles: Sequence[int]) -> None:
    if panel.log_x:
        axes.set_xscale("log")
    if panel.log_y:
        axes.set_yscale("log")
    for style, line in zip(styles, panel.lines, strict=True):
        _line(axes, line, style, panel.log_y)
    for index, level in enumerate(panel.levels):
        colour = GREYS[index % len(GREYS)] if level.like is None else COLOURS[styles[level.like] % len(COLOURS)]
        dashes = ":" if level.published else (0, (6, 2 + 2 * index))
        axes.axhline(level.value, color=colour, linestyle=dashes, linewidth=1.0, label=level.label)
    if panel.log_y:
        plain_decades(axes.yaxis, *axes.get_ylim())
    if panel.log_x and panel.ticks is None:
        plain_decades(axes.xaxis, *axes.get_xlim())
    if panel.ticks is not None:
        axes.set_xticks(panel.ticks, [f"{tick:g}" for tick in panel.ticks], minor=False)
        axes.minorticks_off()
    axes.grid(alpha=0.25, linewidth=0.5)
    dress(axes, panel.title, panel.x_label, panel.y_label)
    if panel.right:
        other = axes.twinx()
        for line in panel.right:
            other.plot(line.x, line.mean, color="#999999", linewidth=1.0, label=line.label)
            axes.plot([], [], color="#999999", linewidth=1.0, label=line.label)
        dress(other, "", "", panel.right_label)
        other.spines["right"].set_visible(True)
        other.tick_params(colors="#777777", labelsize=7)
        other.yaxis.label.set_color("#777777")
    legend(axes)


def _line(axes: Any, line: Line, index: int, log_y: bool) -> None:
    style = line_style(index)
    x, mean = numpy.asarray(line.x, float), numpy.asarray(line.mean, float)
    if line.pale is not None:
        axes.plot(x, line.pale, color=style["color"], alpha=0.25, linewidth=0.6)
    marker = {"marker": MARKERS[index % len(MARKERS)], "markersize": 3.5} if len(x) <= FEW else {}
    std = None if line.std is None else numpy.nan_to_num(numpy.asarray(line.std, float))
    if line.bars and std is not None:
        axes.errorbar(x, mean, std, label=line.label, linewidth=1.3, capsize=2, **style, **marker)
        return
    axes.plot(x, mean, label=line.label, linewidth=1.3, **style, **marker)
    if std is not None and std.any():
        low = numpy.maximum(mean - std, mean / 100) if log_y else mean - std  # a band below 0 has no logarithm
        axes.fill_between(x, low, mean + std, color=style["color"], alpha=0.15, linewidth=0)
