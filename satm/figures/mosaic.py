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
"""Smallest height of a shown image in the picture's pixels; every image pixel becomes a square of whole pixels."""

EMPTY = 600
"""Width in pixels of a picture without sets."""

DPI = 100

TIGHT = {"bbox_inches": "tight", "pad_inches": 0.1}
"""Options for saving a picture, cropped to its content, since slanted class names reach beyond the last column."""

FRAME = 250
"""Milliseconds for which a state of an animation is shown; the last one is shown four times as long."""


@dataclass(frozen=True)
class Block:
    """The images of one set in a picture, and the label beside them."""

    label: str
    data: "DistilledDataset"


def clipped(data: "DistilledDataset") -> dict[str, float]:
    """Return `clipped`, the fraction of a set's pixel values outside [0, 1], and the `lowest` and `highest` value."""
    pixels = data.pixels(clip=False)
    outside = ((pixels < 0) | (pixels > 1)).float().mean()
    return {"clipped": float(outside), "lowest": float(pixels.min()), "highest": float(pixels.max())}


def clipped_frame(sets: "Sequence[DistilledDataset]") -> pandas.DataFrame:
    """Return a row per set: its identity and its clipping."""
    names = ("dataset", "ipc", "method", "seed", "iteration")
    rows = [{**{name: getattr(data, name) for name in names}, **clipped(data)} for data in sets]
    return pandas.DataFrame(rows, columns=[*names, "clipped", "lowest", "highest"])


def clipping_note(frame: pandas.DataFrame) -> str:
    """Return a note on the fraction of values beyond black and white."""
    if frame.empty:
        return ""
    low, high = 100 * frame["clipped"].min(), 100 * frame["clipped"].max()
    share = f"{high:.1f} %" if round(low, 1) == round(high, 1) else f"{low:.1f} to {high:.1f} %"
    return f"Whitening or normalisation inverted; {share} of the values lie outside [0, 1] and are clipped."


def mosaic(images: "Tensor", labels: "Tensor", classes: int, per_class: int) -> "Tensor":
    """Return `[rows, columns, 3]` in [0, 1]: a column per class, its images below each other, enlarged, on white.

    Images are `[n, C, H, W]` in [0, 1], a single channel is shown grey; labels are `[n]` int64. Columns are the first
    `classes` classes; a class with fewer than `per_class` images leaves white squares.
    """
    import torch

    scale = max(1, math.ceil(TILE / images.shape[2]))
    gap = max(2, scale // 2)
    large = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3).expand(-1, 3, -1, -1)
    height, width = large.shape[2:]
    picture = torch.ones(3, per_class * (height + gap) + gap, classes * (width + gap) + gap)
    for label in range(classes):
        for place, image in enumerate(large[labels == label][:per_class]):
            top, left = gap + place * (height + gap), gap + label * (width + gap)
            picture[:, top : top + height, left : left + width] = image
    return picture.permute(1, 2, 0)


def draw_images(blocks: Sequence[Block], title: str, note: str = "", classes: int = 20, per_class: int = 5) -> "Figure":
    """Return a picture of synthetic images: a block per set, a column per class, class names above each kind of set.

    An image's pixels are enlarged as squares, never interpolated, so that 8 x 8 digits stay recognisable. For each set
    the first `classes` classes and the first `per_class` images of each are shown. The note is in small print below.
    Without sets there are title and note alone.

    Raises:
        UsageError: matplotlib is not installed, or a set's whitening is missing (`DistilledDataset.pixels`).
    """
    pictures = [_mosaic(block.data, classes, per_class).numpy() for block in blocks]
    kinds = [(block.data.class_names, block.data.images.shape[1:]) for block in blocks]
    heads = [kind != above for kind, above in zip(kinds, [None, *kinds], strict=False)]
    names = [block.data.class_names[:classes] for block in blocks]
    slants = [max(map(len, each)) > 7 for each in names]
    between = 12
    left = 20 + 9 * max((len(line) for block in blocks for line in block.label.splitlines()), default=0)
    spaces = [(110 if slant else 40) if head else 0 for head, slant in zip(heads, slants, strict=True)]
    total_width = left + max((picture.shape[1] for picture in pictures), default=EMPTY) + between
    lines = textwrap.wrap(note, max(40, total_width // 6))
    place, below = 24 if title else 0, 12 + 13 * len(lines)
    total_height = place + below + sum(spaces) + sum(picture.shape[0] + between for picture in pictures)
    figure = new_figure(total_width / DPI, total_height / DPI, DPI)
    figure.text(between / total_width, 1 - 4 / total_height, title, va="top", size=12)
    figure.text(between / total_width, 4 / total_height, "\n".join(lines), va="bottom", size=8, color="#444444")
    for block, picture, space, slant, columns in zip(blocks, pictures, spaces, slants, names, strict=True):
        height, width, _ = picture.shape
        place += space
        bottom = total_height - place - height
        box = (left / total_width, bottom / total_height, width / total_width, height / total_height)
        axes = figure.add_axes(box)
        axes.imshow(picture, interpolation="nearest", aspect="equal")
        axes.set_axis_off()
        axes.text(-8, height / 2, block.label, ha="right", va="center", size=10)
        style: dict[str, Any] = {"ha": "left", "rotation": 35} if slant else {"ha": "center"}
        for column, name in enumerate(columns if space else ()):
            axes.text((column + 0.5) * width / len(columns), -6, name[:20], va="bottom", size=8, **style)
        place += height + between
    return figure


def write_animation(states: "Sequence[DistilledDataset]", path: Path, classes: int = 20, per_class: int = 5) -> None:
    """Write the states of a set, one after another, as an animated PNG without loss of colour, atomically.

    Browsers play the animation, other programs show the first state; classes and images as in `draw_images`.

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
