"""Base of all kinds of table: options, the files that a table needs, and the methods that make it from them.

A new kind is one module here: a class with `@TABLES.named("NAME")` that derives from `TableKind`, has the option
`kind: Literal["NAME"] = "NAME"` and defines `files`, `columns`, `rows` and `grid`.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import nan
from typing import TYPE_CHECKING, ClassVar

import pandas

from satm.config import Resolver, TableOptions
from satm.tables.render import Contents, Grid

if TYPE_CHECKING:
    from satm.tables.reader import Reader

Row = dict[str, object]
"""Values by column."""

Number = tuple[float, float, float]
"""A measured number, the published one and its deviation; NaN if there is none."""


class TableKind(TableOptions):
    """Base of all kinds of table: options, and the methods that make it from the files of other stages."""

    columns: ClassVar[Mapping[str, str]] = {}
    """Types by column, in order; a capital letter marks a column whose values can be missing."""
    counted: ClassVar[tuple[str, str, str]] = ("", "", "")
    """Columns of the numbers counted in the overview, of the published ones and their deviations; empty: none."""

    def rows(self, reader: "Reader", name: str) -> list[Row]:
        """Return the rows of the table; columns may be missing (arguments and errors: `frame`)."""
        raise TypeError(f"{type(self).__name__} must define rows()")

    def frame(self, reader: "Reader", name: str) -> pandas.DataFrame:
        """Return the numbers of the table of this name, accuracies as fractions.

        Raises:
            UsageError: a file that it needs is missing (the text has the command that makes it), broken, or of another
                run.
        """
        return pandas.DataFrame(self.rows(reader, name), columns=list(self.columns)).astype(self.columns)

    def grid(self, reader: "Reader", name: str, frame: pandas.DataFrame) -> Grid:
        """Return the numbers as a table of texts, accuracies in percent."""
        raise TypeError(f"{type(self).__name__} must define grid()")

    def numbers(self, frame: pandas.DataFrame) -> Sequence[Number]:
        """Return the numbers counted in the overview, measured or not: of the table's methods and all real images."""
        value, published, std = self.counted
        if not value:
            return []
        own = frame[frame["method"].isin(self.methods) | frame["method"].str.startswith("full-")]
        return [(row[value], row.get(published, nan), row.get(std, nan)) for row in own.to_dict("records")]

    def make(self, reader: "Reader", name: str) -> Contents:
        """Return the contents of the table's files (errors: `frame`)."""
        frame = self.frame(reader, name)
        return Contents(frame, [self.grid(reader, name, frame)])


def beside_published(place: Row, measured: Iterable[tuple[str, str, Row]], published: Mapping[str, Row]) -> list[Row]:
    """Return the rows of a cell: methods that are only published, then measured ones beside their published numbers.

    `measured` has the method, its name in the published data, and its numbers.
    """
    only = dict(published)
    own = [{**place, "method": method, **row, **only.pop(name, {})} for method, name, row in measured]
    return [{**place, "method": name, **row} for name, row in only.items()] + own


def table_of(resolver: Resolver, name: str) -> TableKind:
    """Return a table of a campaign; `UsageError` for an unknown name."""
    table = resolver.table(name)
    assert isinstance(table, TableKind)
    return table
