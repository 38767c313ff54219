"""Pictures of results. matplotlib comes with the extra `figures` and is imported only when a picture is drawn."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas
import torch
from torch import Tensor

from satm.errors import UsageError
from satm.files import atomic_path
from satm.results import DistilledDataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST_CLASSES = 20
LARGEST_PER_CLASS = 5
"""How many classes and images per class a picture shows; more would be too small to see."""

TILE = 64
"""Least height of a shown image in the picture's pixels; every image pixel becomes a square of whole pixels."""

DPI = 100

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^vPX"
"""Of the lines, in turn: colours that people with any kind of colour vision tell apart (Okabe and Ito)."""

PANEL = (4.6, 3.6)
"""Width and height of one panel of curves, in inches."""


def synthetic_grid(sets: Mapping[str, DistilledDataset], path: Path, title: str) -> None:
    """Draw synthetic images of several methods, atomically: a block per method, a column per class.

    Shows the first 20 classes and the first 5 images of each. An image's pixels are enlarged as squares, never
    interpolated, so that 8 x 8 digits stay what they are.

    Args:
        sets: synthetic sets of the same classes, by the method's name.
        path: where to; the ending (png, pdf, svg) says the format.
        title: above the picture.

    Raises:
        UsageError: there are no sets, they have other classes or sizes of image than each other, matplotlib is not
            installed, or a set's whitening is missing (`DistilledDataset.pixels`).
        RunError: the disk is full or the folder cannot be written.
    """
    _save(_draw(sets, title), path)


def accuracy_curves(panels: Mapping[str, Mapping[str, pandas.DataFrame]], paths: Sequence[Path]) -> None:
    """Draw accuracy against the number of classes seen, atomically: a line per method in a band of one deviation.

    Args:
        panels: by title, and in each by method: columns mean and std, fractions, indexed by the number of classes.
        paths: where to; the ending (png, pdf, svg) says the format.

    Raises:
        UsageError: there are no panels, or matplotlib is not installed.
        RunError: the disk is full or the folder cannot be written.
    """
    if not panels:
        raise UsageError("a figure of curves needs at least one panel, got none; name a dataset and images per class")
    figure = _figure(PANEL[0] * len(panels), PANEL[1])
    figure.set_layout_engine("constrained")
    drawn = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, curves) in zip(drawn, panels.items(), strict=True):
        for index, (method, curve) in enumerate(curves.items()):
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            dashed = ("-", "--", ":")[index // len(COLOURS) % 3]
            seen, mean, std = curve.index.to_numpy(), 100 * curve["mean"], 100 * curve["std"].fillna(0)
            axes.plot(seen, mean, dashed, color=colour, marker=marker, markersize=4, linewidth=1.5, label=method)
            axes.fill_between(seen, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
        axes.set_xticks(sorted({int(seen) for curve in curves.values() for seen in curve.index}))
        axes.set_xlabel("classes seen")
        axes.set_ylabel("accuracy on them, percent")
        axes.set_title(title, size=11)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    for path in paths:
        _save(figure, path)


def _figure(wide: float, tall: float) -> "Figure":
    """Return an empty figure of so many inches.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "pictures need matplotlib, which is not installed; install it with: pip install 'satm[figures]'"
        ) from error
    figure = Figure(figsize=(wide, tall), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: "Figure", path: Path) -> None:
    """Write a figure in the format that the ending says, atomically."""
    kind = path.suffix.removeprefix(".")
    if kind not in (known := figure.canvas.get_supported_filetypes()):
        raise UsageError(f"cannot draw {path}: the ending is {kind!r}, expected one of {', '.join(sorted(known))}")
    with atomic_path(path) as part:
        # Without the writer's name and date: the same content gives the same bytes.
        nothing = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
        # Cut to what is drawn: slanted class names reach beyond the last column.
        figure.savefig(part, format=kind, metadata=nothing.get(kind), bbox_inches="tight", pad_inches=0.1)


def mosaic(images: Tensor, labels: Tensor, classes: int, per_class: int) -> Tensor:
    """Return `[rows, columns, 3]` in [0, 1]: a column per class, its images below each other, enlarged, on white.

    Args:
        images: `[n, C, H, W]` in [0, 1]; one channel is shown grey.
        labels: `[n]` int64.
        classes: columns; classes from 0.
        per_class: rows of images; a class with fewer leaves white squares.
    """
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


def _draw(sets: Mapping[str, DistilledDataset], title: str) -> "Figure":
    kinds = {(data.class_names, data.images.shape[1:]) for data in sets.values()}
    if len(kinds) != 1:
        found = "; ".join(f"{len(names)} classes of {tuple(shape)}" for names, shape in kinds) or "none"
        raise UsageError(f"a picture needs synthetic sets of the same classes and size of image, got {found}")
    names = next(iter(sets.values())).class_names[:LARGEST_CLASSES]
    fullest = max(int(data.classes.bincount().max()) for data in sets.values())
    per_class = min(fullest, LARGEST_PER_CLASS)
    blocks = {
        method: mosaic(data.pixels(), data.classes, len(names), per_class).numpy() for method, data in sets.items()
    }
    tall, wide, _ = next(iter(blocks.values())).shape
    long = max(len(name) for name in names) > 7
    left, top, between = 20 + 9 * max(len(method) for method in blocks), 110 if long else 60, 12
    total_wide, total_tall = left + wide + between, top + len(blocks) * (tall + between)
    figure = _figure(total_wide / DPI, total_tall / DPI)
    figure.text(between / total_wide, 1 - between / total_tall, title, va="top", size=12)
    for index, (method, block) in enumerate(blocks.items()):
        bottom = total_tall - top - index * (tall + between) - tall
        axes = figure.add_axes((left / total_wide, bottom / total_tall, wide / total_wide, tall / total_tall))
        axes.imshow(block, interpolation="nearest", aspect="equal")
        axes.set_axis_off()
        axes.text(-8, tall / 2, method, ha="right", va="center", size=10)
        if index == 0:
            step = wide / len(names)
            for column, name in enumerate(names):
                how = {"ha": "left", "rotation": 35} if long else {"ha": "center"}
                axes.text((column + 0.5) * step, -6, name[:20], va="bottom", size=8, **how)
    return figure
