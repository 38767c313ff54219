"""Tables of a campaign, made as the command makes them, without the command."""

import io

import pandas
from rich.console import Console

from satm.config import Resolver
from satm.tables.base import table_of
from satm.tables.reader import Reader
from satm.tables.render import Contents


def frame_of(resolver: Resolver, name: str, partial: bool = False) -> pandas.DataFrame:
    """Return the numbers of a table."""
    return table_of(resolver, name).frame(Reader(resolver, partial), name)


def made(resolver: Resolver, name: str, partial: bool = False) -> Contents:
    """Return a table that was written."""
    contents = table_of(resolver, name).make(Reader(resolver, partial), name)
    contents.write(resolver.layout, name)
    return contents


def shown(contents: Contents) -> str:
    """Return what a table looks like on a terminal."""
    console = Console(record=True, width=180, file=io.StringIO())
    contents.show(console)
    return console.export_text()
