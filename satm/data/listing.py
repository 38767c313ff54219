"""Encoded images with labels, as a source lists them before decoding, and the walk over folders of images."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from satm.config import DatasetOptions, data_path
from satm.config.source_files import in_any_locale, is_junk
from satm.errors import UsageError

Encoded = bytes | Path | Image.Image | None
"""The bytes of an image file, its path, or a decoded image; None: a row without an image."""


@dataclass(frozen=True)
class Part:
    """The encoded images of one split."""

    labels: list[int]
    """One per image; their range is checked later."""
    images: Iterable[Encoded]
    """In the order of the labels; read once."""
    where: Callable[[int], str]
    """Name of the image at an index, for messages."""


class Fault(NamedTuple):
    """An image, or something in the way of images, that cannot be used."""

    where: str
    """Its name."""
    why: str
    """In a few words."""


@dataclass(frozen=True)
class Doubt:
    """A sign that a dataset is not what it should be."""

    text: str
    """With counts, for the log and for messages."""
    allow: str | None = None
    """Value of the option `allow` that accepts it; None: it is only warned of."""


@dataclass(frozen=True)
class Listing:
    """The images of a dataset."""

    train: Part
    test: Part
    class_names: tuple[str, ...] | None
    """Names by label; None: unknown, the classes are 0 to the largest training label."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Names of files that are no images, with their number."""
    faults: tuple[Fault, ...] = ()
    """Files and folders in the way."""
    doubts: tuple[Doubt, ...] = ()
    """Signs that files are missing or of another split."""
    published: bool = False
    """Whether the images are known to be those of the authors, so that their copies are part of the dataset."""


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


BROKEN = "a link to nothing or to itself"
"""What is wrong with a link that cannot be followed."""


@dataclass
class Walk:
    """A walk over folders of images, which remembers what it leaves out and what is in the way."""

    left_out: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)

    def entries(self, folder: Path) -> list[Path]:
        """Return the files and folders in a folder, sorted by name, without hidden ones, junk and notes."""
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        junk = {path for path in found if is_junk(path)}
        self.left_out.update(path.name for path in junk)
        return [path for path in found if path not in junk]

    def images(self, folder: Path) -> list[Path]:
        """Return the files in a folder as `entries`; whatever else is there is a fault."""
        entries = self.entries(folder)
        for path in entries:
            if path.is_dir():
                self.faults.append(
                    Fault(str(path), "a link to a folder" if path.is_symlink() else "a folder among images")
                )
            elif not path.is_file():
                self.faults.append(Fault(str(path), BROKEN if path.is_symlink() else "not a file"))
        return [path for path in entries if path.is_file()]


def class_name(folder: Path) -> str:
    """Return the name of a class's folder, the same in every locale."""
    return in_any_locale(folder.name)


def natural_order(name: str) -> tuple[list[Any], str]:
    """Return the key that sorts names with numbers by value: 2 before 10, frame-9 before frame-10.

    Names that differ in leading zeros only are sorted as text.
    """
    texts = re.split(r"([0-9]+)", name)  # texts and numbers alternate; a number is compared by its length first
    parts = [(len(text.lstrip("0")), text.lstrip("0")) if place % 2 else text for place, text in enumerate(texts)]
    return parts, name
