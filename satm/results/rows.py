"""Tidy rows as parquet, with the circumstances of the run that wrote them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas
import pyarrow
from pyarrow import parquet

from satm.errors import UsageError
from satm.results.columns import Columns
from satm.storage.files import AGAIN, atomic_path, expect, require_file
from satm.storage.identity import hash_bytes

METADATA_KEY = b"satm"
"""Key of the run's circumstances, one JSON text, in a parquet schema."""

METADATA_HASH, ROWS_HASH = b"satm_sha256", "rows_sha256"
"""Key, in the schema, of the hash of that text, and key, in the text, of the hash of the rows."""


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Columns, metadata: Mapping[str, Any]) -> None:
    """Write rows and the circumstances of their run (`run_metadata`, JSON values) as parquet, atomically.

    Equal rows give equal bytes of the columns. Without rows the file has the fixed columns alone.

    Raises:
        ValueError: a row has an unknown column or lacks a value.
        RunError: the disk is full or the folder cannot be written.
    """
    table = pyarrow.Table.from_pylist([dict(row) for row in rows], schema=columns.schema(rows))
    text = json.dumps({**metadata, ROWS_HASH: _hash_rows(table)}, sort_keys=True)
    table = table.replace_schema_metadata({METADATA_KEY: text, METADATA_HASH: hash_bytes(text.encode())})
    # pyarrow opens no path that is not UTF-8 here, as umlauts are not in the locale C: it gets open files.
    with atomic_path(path) as part, part.open("wb") as file:
        parquet.write_table(table, file)


def read_rows(path: Path, columns: Columns) -> pandas.DataFrame:
    """Return the rows of a file, as `read_run`."""
    return read_run(path, columns)[0]


def read_rows_metadata(path: Path, columns: Columns) -> dict[str, Any]:
    """Return the circumstances of the run that wrote a file, without checking its columns; raises as `read_run`."""
    return _read_table(path, columns.what)[1]


def read_run(path: Path, columns: Columns) -> tuple[pandas.DataFrame, dict[str, Any]]:
    """Return the rows of a file written by `write_rows`, and the circumstances of their run.

    A missing optional number is NaN. Columns that files of earlier versions lack (`Columns.since`) are added.

    Raises:
        UsageError: the file is missing, incomplete, changed, or of another kind.
    """
    expected = columns.schema([])
    table, circumstances = _read_table(path, columns.what)
    table = _add_missing(table, columns, expected)
    fixed = [name for name in table.column_names if name in columns.fields]
    if fixed != expected.names or (not columns.extra and len(table.column_names) != len(fixed)):
        names, known = ", ".join(table.column_names), ", ".join(expected.names)
        raise UsageError(f"{columns.what} {path} has the columns {names}, expected {known}; {AGAIN}")
    if wrong := [field.name for field in expected if table.schema.field(field.name).type != field.type]:
        raise UsageError(f"{columns.what} {path} has values of an unexpected type in {', '.join(wrong)}; {AGAIN}")
    if empty := [name for name in expected.names if name not in columns.optional and table[name].null_count]:
        raise UsageError(f"{columns.what} {path} lacks values of {', '.join(empty)}; {AGAIN}")
    return table.to_pandas(), circumstances


def _add_missing(table: pyarrow.Table, columns: Columns, expected: pyarrow.Schema) -> pyarrow.Table:
    """Return the table of an earlier version with the columns added since; any other table unchanged."""
    absent = [name for name in expected.names if name in columns.since and name not in table.column_names]
    if table.column_names[: len(expected) - len(absent)] != [name for name in expected.names if name not in absent]:
        return table
    for name in absent:
        field = expected.field(name)
        values = pyarrow.array([columns.since[name]] * len(table), field.type)
        table = table.add_column(expected.get_field_index(name), field, values)
    return table


def _read_table(path: Path, what: str) -> tuple[pyarrow.Table, dict[str, Any]]:
    """Return the rows of a file and the circumstances of its run; files of earlier versions have no hashes."""
    require_file(path, what)
    try:
        with path.open("rb") as file:
            table = parquet.read_table(file, partitioning=None)
        table.validate(full=True)  # finds invalid UTF-8 and offsets outside a column
        str(table.schema)  # finds invalid names
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise UsageError(f"{what} {path} is not a whole parquet file ({text}); {AGAIN}") from error
    stored = table.schema.metadata or {}
    if METADATA_KEY not in stored:
        raise UsageError(f"{what} {path} was not written by satm (it has no 'satm' metadata); make it again")
    try:
        content = json.loads(stored[METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what} {path} has damaged metadata ({error}); {AGAIN}") from error
    metadata: dict[str, Any] = expect({"metadata": content}, {"metadata": dict}, f"{what} {path}")["metadata"]
    rows_hash = metadata.pop(ROWS_HASH, None)
    if rows_hash is None and METADATA_HASH not in stored:
        return table, metadata
    if stored.get(METADATA_HASH) != hash_bytes(stored[METADATA_KEY]).encode() or rows_hash != _hash_rows(table):
        raise UsageError(f"{what} {path} was changed: it does not have the hash that it states; {AGAIN}")
    return table, metadata


def _hash_rows(table: pyarrow.Table) -> str:
    """Return the SHA-256 of names, types and values of all columns, in hexadecimal."""
    digest = hashlib.sha256()
    for column, values in zip(table.schema, table.columns, strict=True):
        digest.update(json.dumps([column.name, str(column.type), len(values)]).encode())
        digest.update(values.is_null().to_numpy().tobytes())
        if pyarrow.types.is_integer(column.type) or pyarrow.types.is_floating(column.type):
            digest.update(values.fill_null(0).to_numpy().tobytes())
        else:
            digest.update(json.dumps(values.to_pylist(), default=str).encode())
    return digest.hexdigest()
