"""Encoded images with labels, as a source lists them before decoding, and functions to list files in folders."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from satm.config import DatasetOptions, data_path
from satm.errors import UsageError

Encoded = bytes | Path | Image.Image
"""The bytes of an image file, its path, or a decoded image."""


@dataclass(frozen=True)
class Part:
    """The encoded images of one split."""

    labels: list[int]
    """One per image; their range is checked later."""
    images: Iterable[Encoded]
    """In the order of the labels; read once."""
    where: Callable[[int], str]
    """Name of the image at an index, for messages."""


@dataclass(frozen=True)
class Listing:
    """The images of a dataset."""

    train: Part
    test: Part
    class_names: tuple[str, ...] | None
    """Names by label; None: unknown, the classes are 0 to the largest training label."""


def paths_part(items: list[tuple[Path, int]]) -> Part:
    """List image files with their labels."""
    return Part([label for _, label in items], [path for path, _ in items], lambda index: str(items[index][0]))


def decoded_part(pixels: NDArray[np.uint8], labels: list[int], where: str) -> Part:
    """List decoded images, `[n, H, W]` grey or `[n, H, W, 3]`; messages name `where` and the index."""
    return Part(labels, map(Image.fromarray, pixels), lambda index: f"{where} image {index}")


def existing_folder(options: DatasetOptions) -> Path:
    """Return the folder of a dataset; UsageError if it does not exist."""
    folder = data_path(options)
    if not folder.is_dir():
        raise UsageError(f"the dataset's folder {folder} does not exist; create it, or set `path` or SATM_DATA")
    return folder


def entries(folder: Path) -> list[Path]:
    """Return the visible files and folders in a folder, sorted by name; none if the folder does not exist."""
    return sorted(path for path in folder.glob("*") if not path.name.startswith("."))


def class_name(folder: Path) -> str:
    """Return the name of a class's folder, the same in locales without its letters, such as C."""
    return folder.name.encode(errors="surrogateescape").decode(errors="surrogateescape")


def files_in(folder: Path) -> list[Path]:
    """Return the visible files in a folder, sorted by name; UsageError if it has a subfolder."""
    files = entries(folder)
    for path in files:
        if not path.is_file():
            raise UsageError(f"{path} is a folder among images; move its images up, or move it elsewhere")
    return files
