"""Accuracy in continual learning against the number of classes seen."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from satm.config import FIGURES, FigureOptions, Layout, TableOptions
from satm.errors import pick
from satm.figures.base import Drawn, FigureKind, cell_title
from satm.figures.curves import Line, Panel
from satm.tables.continual import ContinualTable
from satm.tables.reader import Reader
from satm.tables.render import in_numbers


@FIGURES.named("continual")
class ContinualFigure(FigureKind):
    """Accuracy on the classes seen against their number, a panel per protocol and cell."""

    kind: Literal["continual"] = "continual"
    """Accuracy in continual learning."""
    protocols: tuple[str, ...] = Field(min_length=1)
    """Names of the campaign's protocols of continual learning."""

    @classmethod
    def standard(cls, tables: Mapping[str, TableOptions]) -> Mapping[str, FigureOptions]:
        """Return a figure of each protocol, by its name."""
        return {name: cls(protocols=(name,)) for name, table in tables.items() if isinstance(table, ContinualTable)}

    def tables_shown(self, tables: Mapping[str, TableOptions]) -> Mapping[str, ContinualTable]:
        """Return the protocols; `UsageError` for an unknown name."""
        known = {name: table for name, table in tables.items() if isinstance(table, ContinualTable)}
        return {name: pick(name, known, "protocol of continual learning") for name in self.protocols}

    def files(self, layout: Layout, tables: Mapping[str, TableOptions]) -> list[str]:
        """Return the accuracies of all protocols."""
        return [path for name, table in self.tables_shown(tables).items() for path in table.files(layout, name)]

    def draw(self, reader: Reader) -> Drawn:
        """Draw a line per method in a band of one standard deviation, a panel per protocol and cell."""
        panels, frames, counts = [], [], set()
        for protocol, table in self.tables_shown(reader.resolver.campaign.tables).items():
            for (dataset, ipc), methods in table.curves(reader, protocol).items():
                lines = []
                for method, curve in methods.items():
                    counts |= set(curve["n"])
                    tidy = curve.reset_index().assign(protocol=protocol, dataset=dataset, ipc=ipc, method=method)
                    frames.append(tidy)
                    lines.append(Line(method, curve.index.to_numpy(), 100 * curve["mean"], 100 * curve["std"]))
                seen = sorted({int(count) for curve in methods.values() for count in curve.index})
                title, ticks = f"{cell_title(dataset, ipc)}, {table.steps} steps", seen if len(seen) <= 10 else None
                panels.append(Panel(title, "classes seen", "accuracy on them, percent", lines, ticks=ticks))
        note = (
            f"Lines: mean over n = {in_numbers(counts, 'pair', ' of a distillation and a class order')}; "
            "bands: one standard deviation."
        )
        return self.drawn(reader, [panels], note, frames)
