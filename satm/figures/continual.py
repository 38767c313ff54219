"""Accuracy in continual learning against the number of classes seen."""

import pandas

from satm.config import ContinualFigure
from satm.figures.base import Drawn, cell_title, counted, marked, register
from satm.figures.curves import Line, Panel, draw_panels
from satm.tables.continual import curves
from satm.tables.reader import Reader


@register("continual")
def draw(reader: Reader, options: ContinualFigure) -> Drawn:
    """Draw a line per method in a band of one standard deviation, a panel per protocol and cell."""
    panels, frames, counts = [], [], set()
    for protocol in options.protocols:
        steps = reader.resolver.campaign.continual[protocol].steps
        for (dataset, ipc), methods in curves(reader, protocol).items():
            lines = []
            for method, curve in methods.items():
                counts |= set(curve["n"])
                frames.append(marked(curve.reset_index(), protocol=protocol, dataset=dataset, ipc=ipc, method=method))
                lines.append(Line(method, curve.index.to_numpy(), 100 * curve["mean"], 100 * curve["std"]))
            ticks = sorted({int(seen) for curve in methods.values() for seen in curve.index})
            title = f"{cell_title(dataset, ipc)}, {steps} steps"
            panels.append(
                Panel(
                    title, "classes seen", "accuracy on them, percent", lines, ticks=ticks if len(ticks) <= 10 else None
                )
            )
    note = (
        f"Lines: mean over {counted(counts, 'pair', ' of a distillation and a class order')}; "
        "bands: one standard deviation."
    )
    frame = pandas.concat(frames) if frames else pandas.DataFrame()
    return Drawn(draw_panels([panels], options.title, [note, *reader.notes]), frame)
