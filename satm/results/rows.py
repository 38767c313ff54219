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
from satm.storage.files import AGAIN, atomic_path, expect
from satm.storage.identity import hash_bytes

METADATA_KEY = b"satm"
"""Under which a parquet schema holds the run's circumstances, as one JSON text."""

METADATA_HASH, ROWS_HASH = b"satm_sha256", "rows_sha256"
"""Under which a parquet schema holds the hash of that text, and the text that of the rows."""


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Columns, metadata: Mapping[str, Any]) -> None:
    """Write rows as parquet, atomically.

    Args:
        path: where to.
        rows: values by column; equal rows give equal bytes of the columns.
        columns: the columns of this kind of file; no rows give a file with the fixed columns.
        metadata: JSON values (`run_metadata`); the hash of the rows goes with them.

    Raises:
        ValueError: a row has a column too many or too few.
        RunError: the disk is full or the folder cannot be written.
    """
    table = pyarrow.Table.from_pylist([dict(row) for row in rows], schema=columns.schema(rows))
    text = json.dumps({**metadata, ROWS_HASH: hash_rows(table)}, sort_keys=True)
    table = table.replace_schema_metadata({METADATA_KEY: text, METADATA_HASH: hash_bytes(text.encode())})
    with atomic_path(path) as part:
        parquet.write_table(table, part)


def read_rows(path: Path, columns: Columns) -> pandas.DataFrame:
    """Return the rows of a file written by `write_rows`; a missing optional number is NaN.

    A column that came with a later version (`Columns.since`) is filled in where the file lacks it.

    Raises:
        UsageError: the file is missing, cut short, changed, or of another kind.
    """
    return read_run(path, columns)[0]


def read_run(path: Path, columns: Columns) -> tuple[pandas.DataFrame, dict[str, Any]]:
    """Return the rows as `read_rows` and the circumstances as `read_rows_metadata`, from one look at the file."""
    expected = columns.schema([])
    whole, circumstances = _read_table(path, columns.what)
    table = _completed(whole, columns, expected)
    found = [name for name in table.column_names if name in columns.fields]
    if found != expected.names or (not columns.extra and len(table.column_names) != len(found)):
        raise UsageError(
            f"{columns.what} {path} has the columns {', '.join(table.column_names)}, expected "
            f"{', '.join(expected.names)}; delete it and make it again"
        )
    wrong = [field.name for field in expected if table.schema.field(field.name).type != field.type]
    if wrong:
        raise UsageError(
            f"{columns.what} {path} holds another type in {', '.join(wrong)} than expected; delete it and make it again"
        )
    if empty := [name for name in expected.names if name not in columns.optional and table[name].null_count]:
        raise UsageError(f"{columns.what} {path} lacks values of {', '.join(empty)}; delete it and make it again")
    frame: pandas.DataFrame = table.to_pandas()
    return frame, circumstances


def _completed(table: pyarrow.Table, columns: Columns, expected: pyarrow.Schema) -> pyarrow.Table:
    """Return the table of an earlier version with the columns that have come since; any other one as it is."""
    absent = [name for name in expected.names if name in columns.since and name not in table.column_names]
    if table.column_names[: len(expected) - len(absent)] != [name for name in expected.names if name not in absent]:
        return table
    for name in absent:
        values = pyarrow.array([columns.since[name]] * len(table), expected.field(name).type)
        table = table.add_column(expected.get_field_index(name), expected.field(name), values)
    return table


def read_rows_metadata(path: Path, columns: Columns) -> dict[str, Any]:
    """Return the circumstances of the run that wrote the file.

    Raises:
        UsageError: the file is missing, cut short, changed, or was not written by `write_rows`.
    """
    return _read_table(path, columns.what)[1]


def _read_table(path: Path, what: str) -> tuple[pyarrow.Table, dict[str, Any]]:
    """Return the rows of a file written by `write_rows`, of whatever kind, and the circumstances of its run.

    A file of an earlier version, which has no hashes, is read too.

    Args:
        path: where from.
        what: the word for the file in messages.

    Raises:
        UsageError: the file is missing, cut short, changed, or was not written by `write_rows`.
    """
    if not path.is_file():
        raise UsageError(f"{what} {path} does not exist; make it first")
    try:
        table = parquet.read_table(path, partitioning=None)
        table.validate(full=True)  # texts that are none, and places outside of a column, are found here
        str(table.schema)  # and here names that are none
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise UsageError(f"{what} {path} is not a whole parquet file ({text}); {AGAIN}") from error
    return table, _circumstances(table, path, what)


def _circumstances(table: pyarrow.Table, path: Path, what: str) -> dict[str, Any]:
    held = table.schema.metadata or {}
    if METADATA_KEY not in held:
        raise UsageError(f"{what} {path} was not written by satm (it carries no 'satm' metadata); make it again")
    try:
        found = json.loads(held[METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what} {path} has damaged metadata ({error}); {AGAIN}") from error
    content: dict[str, Any] = expect({"metadata": found}, {"metadata": dict}, f"{what} {path}")["metadata"]
    stated = content.pop(ROWS_HASH, None)
    if stated is None and METADATA_HASH not in held:
        return content
    if held.get(METADATA_HASH) != hash_bytes(held[METADATA_KEY]).encode() or stated != hash_rows(table):
        raise UsageError(f"{what} {path} was changed: it does not have the hash that it states; {AGAIN}")
    return content


def hash_rows(table: pyarrow.Table) -> str:
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
