"""Panels of lines: what a label looks like, where its legend stands, what is written at a logarithmic axis."""

from typing import Any

import pytest

from satm.figures.curves import Level, Line, Panel, draw_panels
from satm.figures.style import COLOURS, legend_columns


def panel(*labels: str, **options: Any) -> Panel:
    return Panel("title", "x", "y", [Line(label, [1, 2], [0.1, 0.3]) for label in labels], **options)


def colours(axes: Any) -> dict[str, str]:
    return {line.get_label(): line.get_color() for line in axes.lines}


def test_a_label_has_one_style_in_all_panels() -> None:
    level = Level("published", 0.2, True, like=0)
    one, two = map(colours, draw_panels([[panel("mtt", "satm"), panel("satm", "ftd", levels=[level])]]).axes)
    assert one == {"mtt": COLOURS[0], "satm": COLOURS[1]}
    assert two == {"satm": COLOURS[1], "ftd": COLOURS[2], "published": COLOURS[1]}


def test_with_more_labels_than_styles_no_panel_uses_one_twice() -> None:
    left, right = [f"a{index}" for index in range(5)], [f"b{index}" for index in range(5)]
    for axes in draw_panels([[panel(*left), panel(*right)]]).axes:
        assert list(colours(axes).values()) == list(COLOURS[:5])


def test_a_legend_stands_below_its_panel() -> None:
    figure = draw_panels([[panel("mtt", "satm")]])
    figure.canvas.draw()
    axes = figure.axes[0]
    assert axes.get_legend().get_window_extent().y1 < axes.xaxis.label.get_window_extent().y0
    assert [legend_columns(labels) for labels in ([], ["mtt"], ["mtt", "satm"], ["mtt"] * 9)] == [1, 1, 2, 4]
    assert legend_columns(["a label of twenty-seven signs", "mtt"]) == 1


@pytest.mark.parametrize(
    ("values", "texts"),
    [([0.05, 0.07], ["0.05", "0.06"]), ([0.02, 0.5], ["0.02", "0.05", "0.1"]), ([1.0, 1e4], [r"10^{2}"])],
)
def test_a_logarithmic_axis_of_few_decades_has_plain_numbers(values: list[float], texts: list[str]) -> None:
    figure = draw_panels([[Panel("title", "x", "y", [Line("a", [1, 2], values)], log_y=True)]])
    figure.canvas.draw()
    written = " ".join(label.get_text() for label in figure.axes[0].yaxis.get_ticklabels())
    assert all(text in written for text in texts), written
