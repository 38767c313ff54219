"""What a kind of table is: options, the files it needs, and how it is made of them.

A new kind is one module here: a class with `@TABLES.named("NAME")` that derives from `TableKind`, has the option
`kind: Literal["NAME"] = "NAME"` and defines `files`, `frame` and `grid`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas

from satm.config import Resolver, TableOptions
from satm.tables.render import Contents, Grid

if TYPE_CHECKING:
    from satm.tables.reader import Reader

Number = tuple[float, float, float]
"""A measured number, the published one and its deviation; NaN where there is none."""


class TableKind(TableOptions):
    """A table of some kind: its options, and how it is made of the files of other stages."""

    def frame(self, reader: "Reader", name: str) -> pandas.DataFrame:
        """Return the numbers of the table, accuracies as fractions.

        Args:
            reader: of the files.
            name: of the table.

        Raises:
            UsageError: a file that it needs is missing (the text has the command that makes it), broken, or of another
                run.
        """
        raise TypeError(f"{type(self).__name__} must define frame()")

    def grid(self, reader: "Reader", name: str, frame: pandas.DataFrame) -> Grid:
        """Return the numbers as people read them, accuracies in percent."""
        raise TypeError(f"{type(self).__name__} must define grid()")

    def numbers(self, frame: pandas.DataFrame) -> Sequence[Number]:
        """Return the numbers that an overview counts, measured or to be measured."""
        return []

    def make(self, reader: "Reader", name: str) -> Contents:
        """Return what is written of the table.

        Raises:
            UsageError: as `frame`.
        """
        frame = self.frame(reader, name)
        return Contents(frame, [self.grid(reader, name, frame)])


def table_of(resolver: Resolver, name: str) -> TableKind:
    """Return a table of a campaign.

    Raises:
        UsageError: there is no such table.
    """
    table = resolver.table(name)
    assert isinstance(table, TableKind)
    return table
