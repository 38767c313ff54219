"""Synthetic images as grids in true colours, beside their initial images."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from satm.config import FIGURES, Cell, FigureOptions, Layout, TableOptions
from satm.figures.base import CellsFigure, Drawn, cell_title
from satm.figures.mosaic import TIGHT, Block, clipped_frame, clipping_note, draw_images
from satm.tables.reader import Reader


@FIGURES.named("images")
class ImagesFigure(CellsFigure):
    """Synthetic images in true colours, a block per cell and method, the first seed of each."""

    SHOWS_PIXELS = True

    kind: Literal["images"] = "images"
    """Synthetic images."""
    start: bool = False
    """Show above each set its initial images; its history must be stored (option `snapshots`)."""
    per_class: int = Field(5, ge=1)
    """Largest number of images shown per class."""
    classes: int = Field(20, ge=1)
    """Largest number of classes shown."""

    @classmethod
    def standard(cls, tables: Mapping[str, TableOptions]) -> Mapping[str, FigureOptions]:
        """Return a picture of the synthetic sets of all tables, for each dataset and number of images per class."""
        cells: dict[tuple[str, int], dict[str, int]] = {}
        for cell in (cell for table in tables.values() for cell in table.cells()):
            cells.setdefault((cell.dataset, cell.ipc), {}).setdefault(cell.method, cell.seed)
        return {
            f"synthetic-{dataset}-ipc-{ipc}": cls(
                datasets={dataset: (ipc,)}, methods=tuple(seeds), seeds=tuple(seeds.values())[:1]
            )
            for (dataset, ipc), seeds in cells.items()
        }

    def chosen(self) -> list[Cell]:
        """Return the cells with the first seed of each."""
        return [cell for cell in self.cells() if cell.seed == self.seeds_for(cell.ipc)[0]]

    def files(self, layout: Layout, tables: Mapping[str, TableOptions]) -> list[str]:
        """Return the synthetic sets."""
        return [layout.distilled(cell) for cell in self.chosen()]

    def draw(self, reader: Reader) -> Drawn:
        """Draw a block per set, and with `start` its initial images above it."""
        blocks: list[Block] = []
        cells = self.chosen()
        several = len({cell[:2] for cell in cells}) > 1
        for cell in cells:
            if (data := reader.attempt(reader.distilled, cell)) is None:
                continue
            label = self.label(cell.method) + (f"\n{cell.dataset}\nIPC {cell.ipc}" if several else "")
            if self.start:
                blocks.append(Block(f"start of {label}", data.at(0)))
            blocks.append(Block(label, data))
        title = self.title or (f"{cell_title(*cells[0][:2])}, seed {cells[0].seed}" if not several else "")
        frame = clipped_frame([block.data for block in blocks])
        note = " ".join([clipping_note(frame), *reader.notes]).strip()
        return Drawn(draw_images(blocks, title, note, self.classes, self.per_class), frame, tight=dict(TIGHT))
