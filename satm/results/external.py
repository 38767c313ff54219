"""Files of synthetic sets made by other code, read as they are (`satm.results.fitting` makes them fit a dataset).

No code in a file is ever run: pickles are loaded as plain tensors or not at all.

Shapes: n images of C x H x W; K classes.
"""

import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from satm.config import DatasetOptions
from satm.data.decode import decode_part
from satm.data.listing import Part, entries, files_in, paths_part
from satm.data.sources.parquet import Table, parquet_part
from satm.errors import UsageError
from satm.results.distilled import DistilledDataset, load_distilled
from satm.storage.tensors import open_tensors

TENSORS = (".pt", ".pth", ".safetensors")
"""Endings of files that hold tensors."""


@dataclass(frozen=True)
class ExternalSet:
    """A set as it lies in its files."""

    where: str
    """Path of the images, for messages."""
    images: Tensor
    """`[n, C, H, W]` where nothing is wrong; uint8 for pictures, any type for tensors."""
    labels: Tensor | None
    """`[n]` or `[n, K]` where nothing is wrong; None: beside the images there are none."""
    step_size: Tensor | None
    """One number where nothing is wrong; None: beside the images there is none."""
    class_names: tuple[str, ...] | None = None
    """What the labels of pictures mean, where folders or files name it."""
    layout: Literal["tensors", "parquet", "folder", "distilled"] = "tensors"
    """What was found at the path."""
    made: DistilledDataset | None = None
    """The whole set, where it is one that this project stored."""


def read_set(path: Path, image_column: str | None = None, label_column: str | None = None) -> ExternalSet:
    """Return a set from the file or folder with its images.

    Args:
        path: `.pt`, `.pth` or `.safetensors` with tensors, `.parquet` or a folder of such files with encoded images, or
            a folder of class folders of images.
        image_column: as `DatasetOptions.image_column`, for parquet.
        label_column: as `DatasetOptions.label_column`, for parquet.

    Raises:
        UsageError: nothing is there, it is damaged or of none of these kinds, or reading it would run code.
    """
    if path.is_dir():
        tables = [file for file in entries(path) if file.suffix == ".parquet"]
        return _read_parquet(path, tables, image_column, label_column) if tables else _read_folder(path)
    if path.is_file() and path.suffix == ".parquet":
        return _read_parquet(path, [path], image_column, label_column)
    content, made = _read_tensors(path)
    if made is not None:
        return ExternalSet(str(path), made.images, made.labels, made.step_size, made.class_names, "distilled", made)
    images = _take(path, content, "images", "", expected="one tensor of images, or several named images and labels")
    return ExternalSet(str(path), images, _find(path, content, "labels"), _find(path, content, "step_size", "lr"))


def read_labels(path: Path) -> Tensor:
    """Return the labels in a file of tensors: the only one, or the one named labels.

    Raises:
        UsageError: as `read_set`.
    """
    content, _ = _read_tensors(path)
    return _take(path, content, "labels", "", expected="one tensor of labels, or one named labels")


def read_step_size(path: Path) -> Tensor:
    """Return the step size in a file of tensors: the only number, or the one named step_size or lr.

    Raises:
        UsageError: as `read_set`.
    """
    content, _ = _read_tensors(path)
    return _take(path, content, "step_size", "lr", "", expected="one number, or one named step_size or lr")


def beside(path: Path, what: str) -> Path | None:
    """Return the file that holds `what` for the images in a file of tensors, by its name; None where there is none.

    `images_best.pt` goes with `labels_best.pt`, else with `labels.pt`; so do the step sizes, `lr_best.pt`.
    """
    if path.suffix not in TENSORS:
        return None
    candidates = [path.with_name(path.name.replace("images", what)), path.with_name(f"{what}{path.suffix}")]
    return next((file for file in candidates if file != path and file.is_file()), None)


def _read_tensors(path: Path) -> tuple[dict[str, Any], DistilledDataset | None]:
    """Return what a file holds by name, a lone tensor under the empty name; and the set if this project stored it."""
    if not path.is_file():
        raise UsageError(f"{path} does not exist; correct the path, or put the file there")
    if path.suffix not in TENSORS:
        raise UsageError(
            f"{path} is none of the files that are read: {', '.join(TENSORS)} with tensors, .parquet with images, a "
            "folder CLASS/image; convert it"
        )
    if path.suffix == ".safetensors":
        with open_tensors(path, "file") as file:
            content: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            stated = file.stated or {}
        return content, load_distilled(path) if stated.get("kind") == "distilled" else None
    loaded = _load(path)
    if isinstance(loaded, Mapping):
        return {str(name): _number(value) for name, value in loaded.items()}, None
    if isinstance(loaded, list | tuple) and len(loaded) in (2, 3):
        return {name: _number(value) for name, value in zip(("images", "labels", "lr"), loaded, strict=False)}, None
    return {"": _number(loaded)}, None


def _load(path: Path) -> object:
    """Return the content of a file of torch.save, if it is tensors, numbers, texts and containers of them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on files of other ages
            _check_parts(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged bytes torch raises errors of many unrelated kinds
        again = "save the tensors alone, torch.save({'images': images, 'labels': labels}, path)"
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise UsageError(
                f"{path} is refused: reading it would call {found[1]}, and a file that calls anything could run any "
                f"code; where you trust its maker, load it yourself and {again}"
            ) from error
        raise UsageError(
            f"{path} is damaged, cut short, or no file of tensors that torch.save wrote; fetch it again, or {again}"
        ) from error


def _check_parts(path: Path) -> None:
    """Compare the parts of an archive of torch.save with their checksums, which torch does not.

    Raises:
        zipfile.BadZipFile: one was changed.
    """
    if not zipfile.is_zipfile(path):
        return  # the format before, which has none
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if part.CRC:  # 0 where torch was told to leave it out
                with archive.open(part) as file:
                    while file.read(2**20):
                        pass


def _number(value: object) -> object:
    return torch.tensor(value) if isinstance(value, int | float) else value


def _find(path: Path, content: Mapping[str, object], *names: str) -> Tensor | None:
    """Return what the first of some names holds; None where there is none of them."""
    name = next((name for name in names if name in content), None)
    if name is None:
        return None
    value = content[name]
    if not isinstance(value, Tensor):
        raise UsageError(f"{path} holds a {type(value).__name__} {name or 'alone'}, expected a tensor; save it as one")
    return value


def _take(path: Path, content: Mapping[str, object], *names: str, expected: str) -> Tensor:
    found = _find(path, content, *names)
    if found is None:
        raise UsageError(f"{path} holds {', '.join(content) or 'nothing'}, expected {expected}; save it so")
    return found


def _read_parquet(path: Path, files: list[Path], image_column: str | None, label_column: str | None) -> ExternalSet:
    options = DatasetOptions(source="parquet", image_column=image_column, label_column=label_column)
    tables = [Table.open(file, options) for file in files]
    if len({table.class_names for table in tables}) > 1:
        raise UsageError(f"the files in {path} have different class names; use files of one set")
    return _pictures(path, parquet_part(tables), tables[0].class_names, "parquet")


def _read_folder(path: Path) -> ExternalSet:
    folders = [folder for folder in entries(path) if folder.is_dir()]
    if not folders:
        raise UsageError(f"{path} holds neither parquet files nor class folders; expected CLASS/image in it")
    items = [(file, label) for label, folder in enumerate(folders) for file in files_in(folder)]
    return _pictures(path, paths_part(items), tuple(folder.name for folder in folders), "folder")


def _pictures(
    path: Path, part: Part, names: tuple[str, ...] | None, layout: Literal["parquet", "folder"]
) -> ExternalSet:
    split, grey = decode_part(part, tuple(sorted(set(part.labels))), None, None)
    images = split.images[:, :1].contiguous() if grey else split.images
    return ExternalSet(str(path), images, torch.tensor(part.labels, dtype=torch.int64), None, names, layout)
