"""Tidy rows as parquet, with the circumstances of the run that wrote them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas
import pyarrow
from pyarrow import parquet

from satm.errors import UsageError
from satm.files import atomic_path
from satm.results.columns import Columns

METADATA_KEY = b"satm"
"""Under which a parquet schema holds the run's circumstances, as one JSON text."""


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Columns, metadata: Mapping[str, Any]) -> None:
    """Write rows as parquet, atomically.

    Args:
        path: where to.
        rows: values by column; equal rows give equal bytes of the columns.
        columns: the columns of this kind of file; no rows give a file with the fixed columns.
        metadata: JSON values (`run_metadata`).

    Raises:
        ValueError: a row has a column too many or too few.
        RunError: the disk is full or the folder cannot be written.
    """
    schema = columns.schema(rows).with_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    table = pyarrow.Table.from_pylist([dict(row) for row in rows], schema=schema)
    with atomic_path(path) as part:
        parquet.write_table(table, part)


def read_rows(path: Path, columns: Columns) -> pandas.DataFrame:
    """Return the rows of a file written by `write_rows`; a missing optional number is NaN.

    A column that came with a later version (`Columns.since`) is filled in where the file lacks it.

    Raises:
        UsageError: the file is missing, cut short, or of another kind.
    """
    expected = columns.schema([])
    table = _completed(_read_table(path, columns), columns, expected)
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
    frame: pandas.DataFrame = table.to_pandas()
    return frame


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
        UsageError: the file is missing, cut short, or was not written by `write_rows`.
    """
    content: dict[str, Any] = json.loads(_read_table(path, columns).schema.metadata[METADATA_KEY])
    return content


def _read_table(path: Path, columns: Columns) -> pyarrow.Table:
    if not path.is_file():
        raise UsageError(f"{columns.what} {path} does not exist; make it first")
    try:
        table = parquet.read_table(path, partitioning=None)
    except (pyarrow.ArrowException, OSError) as error:
        text = " ".join(str(error).split())
        raise UsageError(
            f"{columns.what} {path} is not a whole parquet file ({text}); delete it and make it again"
        ) from error
    if METADATA_KEY not in (table.schema.metadata or {}):
        raise UsageError(
            f"{columns.what} {path} was not written by satm (it carries no 'satm' metadata); make it again"
        )
    return table
