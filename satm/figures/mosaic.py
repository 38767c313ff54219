"""Pictures of synthetic images, pixel by pixel, in true colours."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas

from satm.errors import UsageError
from satm.figures.style import new_figure
from satm.storage.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from satm.results.distilled import DistilledDataset

TILE = 64
"""Least height of a shown image in the picture's pixels; every image pixel becomes a square of whole pixels."""

DPI = 100

TIGHT = {"bbox_inches": "tight", "pad_inches": 0.1}
"""How a picture is saved: cut to what is drawn, since slanted class names reach beyond the last column."""

FRAME = 250
"""Milliseconds that one state of an animation is shown; the last one for four times as long."""


@dataclass(frozen=True)
class Block:
    """The images of one set in a picture.

    Args:
        label: beside them.
        data: the set.
    """

    label: str
    data: "DistilledDataset"

    @property
    def kind(self) -> tuple[Any, ...]:
        """What sets below one row of class names have in common."""
        return self.data.class_names, self.data.images.shape[1:]


def clipped(data: "DistilledDataset") -> dict[str, float]:
    """Return what showing a set takes away: pixels are shown in [0, 1], and those beyond are clipped.

    Returns:
        `clipped`, the fraction of the numbers that lie outside; `lowest` and `highest` of all.
    """
    pixels = data.pixels(clip=False)
    outside = (pixels < 0) | (pixels > 1)
    return {
        "clipped": float(outside.float().mean()),
        "lowest": float(pixels.min()),
        "highest": float(pixels.max()),
    }


def clipped_frame(sets: "Sequence[DistilledDataset]") -> pandas.DataFrame:
    """Return a row per set: which it is, and what showing it takes away."""
    names = ("dataset", "ipc", "method", "seed", "iteration")
    return pandas.DataFrame(
        [{**{name: getattr(data, name) for name in names}, **clipped(data)} for data in sets],
        columns=[*names, "clipped", "lowest", "highest"],
    )


def clipping_note(frame: pandas.DataFrame) -> str:
    """Say how much of the pictures lies beyond black and white."""
    if frame.empty:
        return ""
    low, high = 100 * frame["clipped"].min(), 100 * frame["clipped"].max()
    share = f"{high:.1f} %" if round(low, 1) == round(high, 1) else f"{low:.1f} to {high:.1f} %"
    return f"Whitening or normalisation inverted; {share} of the numbers lie outside [0, 1] and are clipped."


def mosaic(images: "Tensor", labels: "Tensor", classes: int, per_class: int) -> "Tensor":
    """Return `[rows, columns, 3]` in [0, 1]: a column per class, its images below each other, enlarged, on white.

    Args:
        images: `[n, C, H, W]` in [0, 1]; one channel is shown grey.
        labels: `[n]` int64.
        classes: columns; classes from 0.
        per_class: rows of images; a class with fewer leaves white squares.
    """
    import torch

    height, width = images.shape[2:]
    scale = max(1, math.ceil(TILE / height))
    gap = max(2, scale // 2)
    large = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3).expand(-1, 3, -1, -1)
    tall, wide = height * scale + gap, width * scale + gap
    picture = torch.ones(3, per_class * tall + gap, classes * wide + gap)
    for label in range(classes):
        for place, image in enumerate(large[labels == label][:per_class]):
            top, left = gap + place * tall, gap + label * wide
            picture[:, top : top + height * scale, left : left + width * scale] = image
    return picture.permute(1, 2, 0)


def draw_images(blocks: Sequence[Block], title: str, note: str = "", classes: int = 20, per_class: int = 5) -> "Figure":
    """Return a picture of synthetic images: a block per set, a column per class, class names above each kind of set.

    An image's pixels are enlarged as squares, never interpolated, so that 8 x 8 digits stay what they are.

    Args:
        blocks: the sets, from top to bottom.
        title: above the picture.
        note: below it, in small print.
        classes: the first so many are shown.
        per_class: and the first so many images of each.

    Raises:
        UsageError: there are no sets, matplotlib is not installed, or a set's whitening is missing
            (`DistilledDataset.pixels`).
    """
    if not blocks:
        raise UsageError("a picture needs at least one synthetic set, got none; name a dataset, ipc and method")
    shown = [_mosaic(block.data, classes, per_class).numpy() for block in blocks]
    heads = [index == 0 or block.kind != blocks[index - 1].kind for index, block in enumerate(blocks)]
    names = [block.data.class_names[:classes] for block in blocks]
    long = [max(map(len, each)) > 7 for each in names]
    between, left = 12, 20 + 9 * max(len(line) for block in blocks for line in block.label.splitlines())
    above = [(110 if slanted else 40) if head else 0 for head, slanted in zip(heads, long, strict=True)]
    total_wide = left + max(picture.shape[1] for picture in shown) + between
    lines = textwrap.wrap(note, max(40, total_wide // 6))
    top, below = 24 if title else 0, 12 + 13 * len(lines)
    total_tall = top + below + sum(above) + sum(picture.shape[0] + between for picture in shown)
    figure = new_figure(total_wide / DPI, total_tall / DPI, DPI)
    figure.text(between / total_wide, 1 - 4 / total_tall, title, va="top", size=12)
    figure.text(between / total_wide, 4 / total_tall, "\n".join(lines), va="bottom", size=8, color="#444444")
    place = top
    for block, picture, space, slanted, columns in zip(blocks, shown, above, long, names, strict=True):
        tall, wide, _ = picture.shape
        place += space
        bottom = total_tall - place - tall
        axes = figure.add_axes((left / total_wide, bottom / total_tall, wide / total_wide, tall / total_tall))
        axes.imshow(picture, interpolation="nearest", aspect="equal")
        axes.set_axis_off()
        axes.text(-8, tall / 2, block.label, ha="right", va="center", size=10)
        for column, name in enumerate(columns if space else ()):
            how: dict[str, Any] = {"ha": "left", "rotation": 35} if slanted else {"ha": "center"}
            axes.text((column + 0.5) * wide / len(columns), -6, name[:20], va="bottom", size=8, **how)
        place += tall + between
    return figure


def write_animation(states: "Sequence[DistilledDataset]", path: Path, classes: int = 20, per_class: int = 5) -> None:
    """Write the states of a set, one after another, as an animated PNG without loss of colour, atomically.

    Args:
        states: of one set, in their order.
        path: where to; browsers show it as a moving picture, other programs its first state.
        classes: the first so many are shown.
        per_class: and the first so many images of each.

    Raises:
        UsageError: there are no states, or the set's whitening is missing.
        RunError: the disk is full or the folder cannot be written.
    """
    from PIL import Image

    if not states:
        raise UsageError("an animation needs at least one state of a set, got none; distil with snapshots above 0")
    pictures = [(255 * _mosaic(state, classes, per_class)).round().byte().numpy() for state in states]
    frames = [Image.fromarray(picture) for picture in pictures]
    times = [FRAME] * (len(frames) - 1) + [4 * FRAME]
    with atomic_path(path) as part:
        frames[0].save(part, "PNG", save_all=True, append_images=frames[1:], duration=times, loop=0)


def _mosaic(data: "DistilledDataset", classes: int, per_class: int) -> "Tensor":
    fullest = int(data.classes.bincount().max())
    return mosaic(data.pixels(), data.classes, min(classes, len(data.class_names)), min(fullest, per_class))
