"""Synthetic images as grids in true colours, beside the images that they began from, and moving."""

from functools import partial
from pathlib import Path

import pandas

from satm.config import AnimationFigure, ImagesFigure
from satm.errors import UsageError
from satm.figures.base import Drawn, cell_title, register
from satm.figures.images import TIGHT, Block, clipped, draw_images, write_animation
from satm.results import DistilledDataset
from satm.tables.reader import Reader


@register("images")
def draw(reader: Reader, options: ImagesFigure) -> Drawn:
    """Draw a block per set; with `start` the images it began from above it."""
    blocks: list[Block] = []
    cells = options.chosen()
    several = len({cell[:2] for cell in cells}) > 1
    for cell in cells:
        dataset, ipc, method, _ = cell
        data = reader.attempt(partial(reader.distilled, cell))
        if data is None:
            continue
        label = options.labels.get(method, method) + (f"\n{dataset}\nIPC {ipc}" if several else "")
        if options.start:
            blocks.append(Block(f"start of {label}", data.at(0)))
        blocks.append(Block(label, data))
    title = options.title or (f"{cell_title(*cells[0][:2])}, seed {cells[0].seed}" if not several else "")
    frame = _told([block.data for block in blocks])
    notes = [_clipping(frame), *reader.notes]
    return Drawn(
        draw_images(blocks, title, " ".join(notes), options.classes, options.per_class), frame, tight=dict(TIGHT)
    )


@register("animation")
def animate(reader: Reader, options: AnimationFigure) -> Drawn:
    """Draw the states of one set below each other, and as the pixel picture one after another."""
    (cell,) = options.cells()
    data = reader.distilled(cell)
    if data.history is None:
        raise UsageError(
            f"the synthetic set of {cell.method} on {cell.dataset} was stored without its history; distil it with "
            "snapshots above 1"
        )
    states = [data.at(place) for place in range(len(data.history))]
    blocks = [Block(f"{state.iteration}", state) for state in states]
    frame = _told(states)
    title = options.title or f"{cell.method} on {cell_title(cell.dataset, cell.ipc)}: the set after so many iterations"
    figure = draw_images(blocks, title, _clipping(frame), options.classes, options.per_class)

    def png(path: Path) -> None:
        write_animation(states, path, options.classes, options.per_class)

    return Drawn(figure, frame, png, dict(TIGHT))


def _told(sets: list[DistilledDataset]) -> pandas.DataFrame:
    names = ("dataset", "ipc", "method", "seed", "iteration")
    return pandas.DataFrame(
        [{**{name: getattr(data, name) for name in names}, **clipped(data)} for data in sets],
        columns=[*names, "clipped", "lowest", "highest"],
    )


def _clipping(frame: pandas.DataFrame) -> str:
    """Say how much of the pictures lies beyond black and white."""
    if frame.empty:
        return ""
    low, high = 100 * frame["clipped"].min(), 100 * frame["clipped"].max()
    share = f"{high:.1f} %" if round(low, 1) == round(high, 1) else f"{low:.1f} to {high:.1f} %"
    return f"Whitening or normalisation inverted; {share} of the numbers lie outside [0, 1] and are clipped."
