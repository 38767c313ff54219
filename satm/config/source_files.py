"""The files that the images of a dataset are read from, and what tells whether they have changed since.

Nothing here imports torch: a campaign is compared with its sources when it is planned.
"""

import os
import re
from pathlib import Path
from typing import Any

from satm.config.datasets import DatasetOptions, data_path
from satm.errors import UsageError
from satm.storage.identity import hash_json

JUNK = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "__pycache__", "lost+found"),
    *("$recycle.bin", "system volume information"),
}
"""Files and folders that systems put among images, in small letters."""

NOTES = {
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".md", ".rst", ".xml", ".yaml", ".yml", ".html", ".htm", ".log"),
    *(".ini", ".url", ".lnk", ".db"),
}
"""Endings of files beside images that hold none."""

MAYBE_PARQUET = ("parquet", "cifar10", "cifar100", "tiny-imagenet")
"""Sources that read image-parquet files where there are some."""

SIZED = 10_000
"""Largest number of files whose sizes are looked up, which takes a request each on a network file system."""


def in_any_locale(name: str) -> str:
    """Return a file's name, the same in locales without its letters, such as C."""
    return name.encode(errors="surrogateescape").decode(errors="surrogateescape")


def is_junk(path: Path) -> bool:
    """Return whether something among images is hidden, junk of a system, or a note."""
    name = path.name.lower()
    return name.startswith(".") or name in JUNK or (path.suffix.lower() in NOTES and not path.is_dir())


def test_folder(folder: Path) -> Path | None:
    """Return the folder of test images beside `train/`, the first of `test/`, `valid/` and `val/` that exists."""
    return next((folder / name for name in ("test", "valid", "val") if (folder / name).is_dir()), None)


def holds_parquet(folder: Path) -> bool:
    """Return whether a parquet file is anywhere below a folder."""
    return next(folder.rglob("*.parquet"), None) is not None


def matching_files(options: DatasetOptions, part: str) -> list[Path]:
    """Return the image-parquet files of a split, `train` or `test`, sorted by name.

    Of the alternatives `{a,b}` in the pattern, the first that matches a file is used.

    Raises:
        UsageError: no file matches, or the pattern cannot be used.
    """
    folder, pattern = data_path(options), getattr(options, part)
    for alternative in _alternatives(pattern):
        if os.pardir in Path(alternative).parts:
            raise UsageError(f"the pattern {pattern!r} of `{part}` leads out of {folder}; give one below it")
        try:
            if files := sorted(path for path in folder.glob(alternative) if path.is_file()):
                return files
        except (ValueError, NotImplementedError) as error:
            raise UsageError(
                f"the pattern {pattern!r} of `{part}` cannot be used ({error}); give one relative to `path`"
            ) from error
    raise UsageError(
        f"no file in {folder} matches {pattern!r}, the pattern of `{part}`; "
        f"put the files there or correct `path` or `{part}`"
    )


def _alternatives(pattern: str) -> list[str]:
    """Expand the braces `{a,b}` of a pattern; return the alternatives in order."""
    if not (braces := re.search(r"\{([^{}]*)\}", pattern)):
        return [pattern]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [one for middle in braces[1].split(",") for one in _alternatives(before + middle + after)]


def source_state(options: DatasetOptions) -> dict[str, Any] | None:
    """Return what identifies the files of a dataset without reading them: their number, total size and a hash.

    The hash is that of their names below the dataset's folder and their sizes; with more than `SIZED` files of their
    names alone, and the total size is None. A file that keeps name and size but has another content is not noticed.

    Returns:
        `{"files": number, "bytes": total size, "hash": SHA-256}`; None: there are none, or the source is not one of
        files that may change (`digits`, an archive whose hash is known).
    """
    try:
        folder = data_path(options)
        files = _source_files(options, folder)
    except (OSError, UsageError):
        return None
    if not files:
        return None
    sized = len(files) <= SIZED
    sizes = {_name(use, path, folder): _size(path) if sized else None for use, path in files}
    total = sum(size or 0 for size in sizes.values()) if sized else None
    return {"files": len(files), "bytes": total, "hash": hash_json(sizes)}


def _source_files(options: DatasetOptions, folder: Path) -> list[tuple[str, Path]]:
    """Return the files that a source reads, as its file in `satm/data/sources/` does, each after what it is used for.

    The use is empty where the name of the file tells it.
    """
    if options.source == "folder":
        parts = [folder / "train", test_folder(folder) or folder / "test"]
        return [("", file) for part in parts for each in _entries(part) for file in _entries(each)]
    if options.source == "tiny-imagenet" and (folder / "wnids.txt").is_file():
        classes = [each / "images" for each in _entries(folder / "train")]
        images = [file for each in [*classes, folder / "val" / "images"] for file in _entries(each)]
        lists = [folder / "wnids.txt", folder / "val" / "val_annotations.txt"]
        return [("", file) for file in [*lists, *images]]
    if options.source in MAYBE_PARQUET and holds_parquet(folder):
        return [(part, file) for part in ("train", "test") for file in matching_files(options, part)]
    return []


def _name(use: str, path: Path, folder: Path) -> str:
    """Return a file's use and its name below a folder."""
    name = in_any_locale(path.relative_to(folder).as_posix())
    return f"{use}:{name}" if use else name


def _size(path: Path) -> int | None:
    """Return the size of a file in bytes; None: of a link to nothing, or of what may not be looked at."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder, without junk; nothing if it is no folder or may not be read."""
    try:
        return [path for path in folder.iterdir() if not is_junk(path)]
    except OSError:
        return []
