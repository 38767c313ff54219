"""The source `parquet`: image-parquet files in the layout of Hugging Face, an image column and a label column."""

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from satm.config import DatasetOptions
from satm.config.source_files import matching_files
from satm.data.listing import Doubt, Listing, Part, existing_folder
from satm.data.sources import DATASETS
from satm.errors import SHOWN, UsageError, some

ROWS_AT_ONCE = 1024
"""Rows of a file whose encoded images are in memory at the same time."""

SPLIT_COLUMNS = {"split", "subset", "partition", "set"}
"""Columns, in small letters, whose texts may say of which split a row is."""

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "validation"),
}
"""Splits by the texts in such a column."""

PLACE = "{path}"
"""Place of the path in a message that is the same for several files."""

SHARD = re.compile(r"(.*?)(\d+)-of-(\d+)(?!\d).*")
"""Name of a file that is one of several: its beginning, its number, their number."""


@DATASETS.named("parquet")
def parquet(options: DatasetOptions) -> Listing:
    """List image-parquet files: an image column (bytes, or a struct of bytes and path) and a column of integer labels.

    The files of a split are those that match its pattern, sorted by name. Of the alternatives `{a,b}` in a pattern,
    the first that matches a file is used, so a dataset with test and validation files is tested on the former. Class
    names come from the `huggingface` entry of the schema, if there is one.
    """
    folder = existing_folder(options)
    train, test = (matching_files(options, part) for part in ("train", "test"))
    if both := set(train) & set(test):
        raise UsageError(f"{min(both)} matches the patterns of both `train` and `test`; make one of them narrower")
    tables = open_tables([*train, *test], options)
    train_tables, test_tables = tables[: len(train)], tables[len(train) :]
    first = train_tables[0]
    for table in tables:
        if table.class_names != first.class_names:
            raise UsageError(f"{table.path} and {first.path} have different class names; use files of one dataset")
    names = [path.relative_to(folder) for path in [*train, *test]]
    doubts = *_shards(names), *_gaps(names), *_other_splits(folder, train_tables, test_tables)
    return Listing(parquet_part(train_tables), parquet_part(test_tables), first.class_names, doubts=doubts)


def open_tables(paths: list[Path], options: DatasetOptions) -> list["Table"]:
    """Open image-parquet files; a UsageError says what is wrong with all of them."""
    tables: list[Table] = []
    problems: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        try:
            tables.append(Table.open(path, options))
        except UsageError as error:
            problems[str(error).replace(str(path), PLACE)].append(str(path))
    if problems:
        raise UsageError("; ".join(text.replace(PLACE, some(files)) for text, files in problems.items()))
    return tables


@dataclass(frozen=True)
class Table:
    """One image-parquet file: path, name of the image column, labels, numbers of rows by the split that they state."""

    path: Path
    image: str
    labels: list[int]
    class_names: tuple[str, ...] | None
    splits: Counter[str]

    @classmethod
    def open(cls, path: Path, options: DatasetOptions) -> "Table":
        """Find the columns of a file and read its labels; UsageError if it is damaged or lacks the columns."""
        try:
            with path.open("rb") as file:
                schema = pq.read_schema(file)
                image = _image_column(path, schema, options.image_column)
                label = _label_column(path, schema, options.label_column)
                names = [label, *(name for name in schema.names if name.lower() in SPLIT_COLUMNS and name != label)][:2]
                columns = pq.read_table(file, columns=names, partitioning=None, page_checksum_verification=True)
            labels, *others = (columns.column(name).to_pylist() for name in names)
            splits = Counter(SPLITS.get(str(value).lower(), "") for other in others for value in other)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # column names may be damaged text
            raise _damaged(path, error) from error
        if count := labels.count(None):
            rows = some([str(row) for row, value in enumerate(labels) if value is None])
            raise UsageError(
                f"{path}: column {label!r} has no label in {count} of {len(labels)} rows: {rows}; correct it"
            )
        return cls(path, image, labels, _class_names(schema, label), splits)

    def encoded(self) -> Iterator[bytes | None]:
        """Yield the bytes of each image, None where there are none, with a few rows in memory at a time."""
        try:
            with self.path.open("rb") as opened, pq.ParquetFile(opened, page_checksum_verification=True) as file:
                is_struct = pa.types.is_struct(file.schema_arrow.field(self.image).type)
                column = f"{self.image}.bytes" if is_struct else self.image
                for batch in file.iter_batches(ROWS_AT_ONCE, columns=[column]):
                    images = batch.column(0)
                    yield from (images.field("bytes") if is_struct else images).to_pylist()
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


def _shards(paths: list[Path]) -> list[Doubt]:
    """Return a doubt for files numbered like 00000-of-00003 of which some are missing."""
    groups: dict[tuple[str, str], set[int]] = defaultdict(set)
    for path in paths:
        if shard := SHARD.fullmatch(path.stem):
            groups[str(path.with_name(shard[1])), shard[3]].add(int(shard[2]))
    doubts = []
    for (start, count), numbers in groups.items():
        first = 1 if int(count) in numbers and 0 not in numbers else 0
        expected = range(first, first + int(count))
        if absent := len(expected) - sum(number in expected for number in numbers):
            names = (f"{start}{number:0{len(count)}}" for number in expected if number not in numbers)
            listed = some(list(itertools.islice(names, SHOWN)), absent)
            doubts.append(
                Doubt(f"{absent} of the {int(count)} files {start}*-of-{count} are missing: {listed}", "missing-shards")
            )
    return doubts


def _gaps(paths: list[Path]) -> list[Doubt]:
    """Return a doubt for files with numbers at their end between which some are missing."""
    groups: dict[str, set[int]] = defaultdict(set)
    for path in paths:
        if (numbered := re.fullmatch(r"(.*?)(\d+)", path.stem)) and not SHARD.fullmatch(path.stem):
            groups[str(path.with_name(numbered[1]))].add(int(numbered[2]))
    return [
        Doubt(f"{absent} numbers are missing among the files {start}*, between {min(numbers)} and {max(numbers)}")
        for start, numbers in groups.items()
        if (absent := max(numbers) - min(numbers) + 1 - len(numbers))
    ]


def _other_splits(folder: Path, train: list["Table"], test: list["Table"]) -> list[Doubt]:
    """Return a doubt for rows that are used for training or testing and state another split."""
    doubts = []
    for tables, use, stated, allow in (
        (train, "training", "test", "other-split"),
        (test, "test", "train", "other-split"),
        (train, "training", "validation", None),
    ):
        if named := [f"{one.path.relative_to(folder)} ({one.splits[stated]})" for one in tables if one.splits[stated]]:
            count, total = sum(one.splits[stated] for one in tables), sum(len(one.labels) for one in tables)
            text = f"{count} of {total} {use} rows state in their file that they are {stated} rows: {some(named)}"
            doubts.append(Doubt(text, allow))
    return doubts


def _damaged(path: Path, error: Exception) -> UsageError:
    text = " ".join(str(error).split())
    return UsageError(f"{path} is not a whole parquet file ({text}); it is damaged or cut short: fetch it again")


def _image_column(path: Path, schema: pa.Schema, name: str | None) -> str:
    structs = [field for field in schema if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0]
    structs_of_bytes: list[str] = [field.name for field in structs if _is_bytes(field.type.field("bytes").type)]
    plain: list[str] = [field.name for field in schema if _is_bytes(field.type)]
    usable = structs_of_bytes or plain
    if name is None and len(usable) == 1:
        return usable[0]
    if name in [*structs_of_bytes, *plain]:
        return name
    got = "no `image_column` is given" if name is None else f"`image_column` is {name!r}"
    raise UsageError(
        f"{path}: {got}, and the columns of bytes, or of a struct of bytes and path, are "
        f"{[*structs_of_bytes, *plain] or 'none'} of {schema.names}; name one of them in `image_column`"
    )


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


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
