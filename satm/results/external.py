"""Readers of synthetic sets made by other code (`satm.results.fitting` adapts the sets to a dataset).

No code in a file is ever run: pickles are loaded as plain tensors or refused.

Shapes: n images of C x H x W; K classes.
"""

import logging
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from satm.config import DatasetOptions, existing
from satm.data.convert import KINDS
from satm.data.decode import decode_part, describe_faults
from satm.data.listing import Fault, Part, Walk, class_name, natural_order, paths_part
from satm.data.sources.parquet import open_tables, parquet_part
from satm.errors import UsageError
from satm.results.distilled import DistilledDataset, load_distilled
from satm.storage.tensors import open_tensors

LOG = logging.getLogger("satm")

TENSORS = (".pt", ".pth", ".safetensors")
"""Extensions of tensor files."""


@dataclass(frozen=True)
class ExternalSet:
    """A set as stored in its files; types and shapes are not checked yet."""

    where: str
    """Path of the images, for messages."""
    images: Tensor
    """`[n, C, H, W]`, uint8 for pictures, any type for tensors."""
    labels: Tensor | None
    """`[n]` or `[n, K]`; None: stored elsewhere or nowhere."""
    step_size: Tensor | None
    """One number; None: stored elsewhere or nowhere."""
    class_names: tuple[str, ...] | None = None
    """Names by label, where folders or files give them."""
    layout: Literal["tensors", "parquet", "folder", "distilled"] = "tensors"
    """Format of the files."""
    distilled: DistilledDataset | None = None
    """The whole set, if this project stored it."""


def read_set(path: Path, image_column: str | None = None, label_column: str | None = None) -> ExternalSet:
    """Return the set in a file or folder of images; the columns are those of `DatasetOptions`, for parquet.

    Formats: `.pt`, `.pth` or `.safetensors` with tensors; one or a folder of `.parquet` with images; or CLASS/image.

    Raises:
        UsageError: the path is missing, damaged or of another format, or reading it would run code.
    """
    if path.is_dir():
        tables = _by_name(file for file in Walk().entries(path) if file.suffix == ".parquet")
        return _read_parquet(path, tables, image_column, label_column) if tables else _read_folder(path)
    if path.is_file() and path.suffix == ".parquet":
        return _read_parquet(path, [path], image_column, label_column)
    content, whole = _read_tensors(path)
    if whole is not None:
        parts = whole.images, whole.labels, whole.step_size, whole.class_names
        return ExternalSet(str(path), *parts, "distilled", whole)
    images = _take(path, content, "images", "", expected="one tensor of images, or several named images and labels")
    labels, step_size = _find(path, content, "labels"), _find(path, content, "step_size", "lr")
    return ExternalSet(str(path), images, labels, step_size, _names(content) if labels is not None else None)


def read_labels(path: Path) -> Tensor:
    """Return the labels in a tensor file: its only tensor, or the one named labels; raises as `read_set`."""
    return _take(path, _read_tensors(path)[0], "labels", "", expected="one tensor of labels, or one named labels")


def read_step_size(path: Path) -> Tensor:
    """Return the step size in a tensor file: its only number, or the one named step_size or lr; as `read_set`."""
    expected = "one number, or one named step_size or lr"
    return _take(path, _read_tensors(path)[0], "step_size", "lr", "", expected=expected)


def beside(path: Path, what: str) -> Path | None:
    """Return the file beside `images_best.pt` with its labels or step size (`what`); None if there is none.

    It is `labels_best.pt`, else `labels.pt`; for the step size `lr_best.pt`, else `lr.pt`.
    """
    if path.suffix not in TENSORS:
        return None
    candidates = [path.with_name(path.name.replace("images", what)), path.with_name(f"{what}{path.suffix}")]
    return next((file for file in candidates if file != path and file.is_file()), None)


def _read_tensors(path: Path) -> tuple[dict[str, Any], DistilledDataset | None]:
    """Return the content of a file by name, a lone tensor under "", and the set if this project stored it."""
    if existing(path).suffix not in TENSORS:
        raise UsageError(
            f"{path} is of an unknown format, expected {', '.join(TENSORS)} with tensors, .parquet with images, or a "
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
    """Return the content of a file of torch.save: tensors, numbers, texts and containers of them only."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files of other versions of torch
            _check_parts(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged bytes torch raises errors of many unrelated kinds
        again = "save the tensors alone, torch.save({'images': images, 'labels': labels}, path)"
        if call := re.search(r"GLOBAL (\S+)", str(error)):
            raise UsageError(
                f"{path} is refused: reading it would call {call[1]}, and a file that calls anything could run any "
                f"code; if you trust its author, load it yourself and {again}"
            ) from error
        problem = "damaged, incomplete, or not a tensor file of torch.save"
        raise UsageError(f"{path} is {problem}; fetch it again, or {again}") from error


def _check_parts(path: Path) -> None:
    """Raise BadZipFile if a checksum in an archive of torch.save is wrong, which torch does not check."""
    if zipfile.is_zipfile(path):  # the older format has no checksums
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                if part.CRC:  # 0: torch was configured to leave it out
                    archive.read(part)


def _number(value: object) -> object:
    return torch.tensor(value) if isinstance(value, int | float) else value


def _names(content: Mapping[str, object]) -> tuple[str, ...] | None:
    """Return the names of the classes, a list of texts beside the tensors, if there is one."""
    for name in ("class_names", "classes"):
        names = content.get(name)
        if isinstance(names, list | tuple) and names and all(isinstance(text, str) for text in names):
            return tuple(names)
    return None


def _find(path: Path, content: Mapping[str, object], *names: str) -> Tensor | None:
    """Return the tensor under the first name that the file has; None if it has none of them."""
    if (name := next((name for name in names if name in content), None)) is None:
        return None
    if not isinstance(value := content[name], Tensor):
        raise UsageError(f"{path} holds a {type(value).__name__} {name or 'alone'}, expected a tensor; save it as one")
    return value


def _take(path: Path, content: Mapping[str, object], *names: str, expected: str) -> Tensor:
    if (tensor := _find(path, content, *names)) is None:
        raise UsageError(f"{path} holds {', '.join(content) or 'nothing'}, expected {expected}; save it in that form")
    return tensor


def _read_parquet(path: Path, files: list[Path], image_column: str | None, label_column: str | None) -> ExternalSet:
    options = DatasetOptions(source="parquet", image_column=image_column, label_column=label_column)
    tables = open_tables(files, options)
    if len({table.class_names for table in tables}) > 1:
        raise UsageError(f"the files in {path} have different class names; use files of one set")
    return _pictures(path, parquet_part(tables), tables[0].class_names, "parquet")


def _read_folder(path: Path) -> ExternalSet:
    walk = Walk()
    folders = _by_name(folder for folder in walk.entries(path) if folder.is_dir())
    if not folders:
        raise UsageError(f"{path} holds neither parquet files nor class folders; expected CLASS/image in it")
    items = [(file, label) for label, folder in enumerate(folders) for file in _by_name(walk.images(folder))]
    names = tuple(map(class_name, folders))
    return _pictures(path, paths_part(items), names, "folder", walk.faults)


def _by_name(paths: Iterable[Path]) -> list[Path]:
    """Return paths by name, numbers in it by value, as labels in a file of their own are expected to be sorted."""
    return sorted(paths, key=lambda path: natural_order(path.name))


def _pictures(
    path: Path,
    part: Part,
    names: tuple[str, ...] | None,
    layout: Literal["parquet", "folder"],
    faults: Sequence[Fault] = (),
) -> ExternalSet:
    decoded = decode_part(part, tuple(sorted(set(part.labels))), None, None)
    if faults := [*faults, *decoded.faults]:
        raise UsageError(f"{path}: {describe_faults(faults, len(part.labels))}")
    for kind in KINDS:
        if number := decoded.done[kind]:
            LOG.info("%s: %d images %s", path, number, kind)
    images = decoded.split.images[:, :1].contiguous() if decoded.grey == len(part.labels) else decoded.split.images
    return ExternalSet(str(path), images, torch.tensor(part.labels, dtype=torch.int64), None, names, layout)
