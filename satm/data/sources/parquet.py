"""The source `parquet`: image-parquet files in the layout of Hugging Face, an image column and a label column."""

import itertools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from satm.config import DatasetOptions
from satm.data.listing import Listing, Part, existing_folder
from satm.data.sources import DATASETS
from satm.errors import UsageError

ROWS_AT_ONCE = 1024
"""Rows of a file whose encoded images are in memory at the same time."""


@DATASETS.named("parquet")
def parquet(options: DatasetOptions) -> Listing:
    """List image-parquet files: an image column (struct of bytes and path) and a column of integer labels.

    The files of a split are those that match its pattern, sorted by name. Of the alternatives `{a,b}` in a pattern,
    the first that matches a file is used, so a dataset with test and validation files is tested on the former. Class
    names come from the `huggingface` entry of the schema, if there is one.
    """
    folder = existing_folder(options)
    train, test = (_matching(folder, getattr(options, part), part) for part in ("train", "test"))
    if both := set(train) & set(test):
        raise UsageError(f"{min(both)} matches the patterns of both `train` and `test`; make one of them narrower")
    train_tables, test_tables = ([Table.open(path, options) for path in paths] for paths in (train, test))
    first = train_tables[0]
    for table in train_tables + test_tables:
        if table.class_names != first.class_names:
            raise UsageError(f"{table.path} and {first.path} have different class names; use files of one dataset")
    return Listing(parquet_part(train_tables), parquet_part(test_tables), first.class_names)


@dataclass(frozen=True)
class Table:
    """One image-parquet file: its path, the name of its image column, and its labels."""

    path: Path
    image: str
    labels: list[int]
    class_names: tuple[str, ...] | None

    @classmethod
    def open(cls, path: Path, options: DatasetOptions) -> "Table":
        """Find the columns of a file and read its labels; UsageError if it is damaged or lacks the columns."""
        try:
            with path.open("rb") as file:
                schema = pq.read_schema(file)
                image = _image_column(path, schema, options.image_column)
                label = _label_column(path, schema, options.label_column)
                column = pq.read_table(file, columns=[label], partitioning=None, page_checksum_verification=True)
            labels = column.column(label).to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # column names may be damaged text
            raise _damaged(path, error) from error
        if None in labels:
            raise UsageError(f"{path} row {labels.index(None)}: column {label!r} has no label; correct it")
        return cls(path, image, labels, _class_names(schema, label))

    def encoded(self) -> Iterator[bytes]:
        """Yield the bytes of each image, with a few rows in memory at a time."""
        try:
            with self.path.open("rb") as opened, pq.ParquetFile(opened, page_checksum_verification=True) as file:
                batches = file.iter_batches(ROWS_AT_ONCE, columns=[f"{self.image}.bytes"])
                contents = (content for batch in batches for content in batch.column(0).field("bytes"))
                for row, content in enumerate(contents):
                    if not content.is_valid:
                        raise UsageError(
                            f"{self.path} row {row}: column {self.image!r} has no bytes; "
                            "store the images themselves, not only their paths"
                        )
                    yield content.as_py()
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path, error) from error


def parquet_part(tables: list[Table]) -> Part:
    """List the images of several files, one file after another."""

    def where(index: int) -> str:
        for table in tables:
            if index < len(table.labels):
                return f"{table.path} row {index}"
            index -= len(table.labels)
        raise IndexError(index)

    labels = [label for table in tables for label in table.labels]
    return Part(labels, itertools.chain.from_iterable(table.encoded() for table in tables), where)


def holds_parquet(folder: Path) -> bool:
    """Return whether a parquet file is anywhere below a folder."""
    return next(folder.rglob("*.parquet"), None) is not None


def _damaged(path: Path, error: Exception) -> UsageError:
    text = " ".join(str(error).split())
    return UsageError(f"{path} is not a whole parquet file ({text}); it is damaged or cut short: fetch it again")


def _image_column(path: Path, schema: pa.Schema, name: str | None) -> str:
    structs = [field for field in schema if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0]
    usable: list[str] = [field.name for field in structs if pa.types.is_binary(field.type.field("bytes").type)]
    if name is None and len(usable) == 1:
        return usable[0]
    if name in usable:
        return name
    got = "no `image_column` is given" if name is None else f"`image_column` is {name!r}"
    raise UsageError(
        f"{path}: {got}, and the columns that are a struct of bytes and path are {usable or 'none'} "
        f"of {schema.names}; name one of them in `image_column`"
    )


def _label_column(path: Path, schema: pa.Schema, name: str | None) -> str:
    for column in [name] if name else ("label", "fine_label"):
        if column in schema.names:
            if not pa.types.is_integer(kind := schema.field(column).type):
                raise UsageError(f"{path}: column {column!r} holds {kind}, expected integer labels; name another one")
            return column
    raise UsageError(
        f"{path} has no column {name or 'label'!r}, only {schema.names}; name the column of labels in `label_column`"
    )


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Return the class names that the schema's `huggingface` entry has for the labels, if any."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _matching(folder: Path, pattern: str, part: str) -> list[Path]:
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
