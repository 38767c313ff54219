"""Tables of texts, as Markdown, LaTeX and on a terminal: what the kinds of table other than results tables share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas
from rich.console import Console
from rich.table import Table

from satm.config import Layout
from satm.files import atomic_path
from satm.tables import csv_text

SPECIAL = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "±": r"$\pm$", "**": ""}
"""What LaTeX writes for a text; bold marks are left out."""


@dataclass(frozen=True)
class Grid:
    """A table of texts.

    Args:
        title: for the terminal.
        headings: of the columns.
        lines: of texts, as many as there are headings.
        left: headings of columns that are not numbers, which begin at the left.
        notes: sentences below.
    """

    title: str
    headings: Sequence[str]
    lines: Sequence[Sequence[str]]
    left: Sequence[str]
    notes: Sequence[str]

    def markdown(self) -> str:
        """Return it as Markdown."""
        rule = ["---" if heading in self.left else "---:" for heading in self.headings]
        body = "\n".join(f"| {' | '.join(line)} |" for line in (self.headings, rule, *self.lines))
        return "\n\n".join([body, *self.notes]) + "\n"

    def latex(self) -> str:
        """Return it as a LaTeX tabular, for the package booktabs; the notes are comments."""
        columns = "".join("l" if heading in self.left else "r" for heading in self.headings)
        head, *rest = [" & ".join(map(_escaped, line)) + r" \\" for line in (self.headings, *self.lines)]
        comments = [f"% {note}" for note in self.notes]
        begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
        return "\n".join([*comments, begin, r"\toprule", head, r"\midrule", *rest, r"\bottomrule", end]) + "\n"

    def show(self, console: Console) -> None:
        """Print it on a terminal, without the notes."""
        shown = Table(title=self.title)
        for heading in self.headings:
            shown.add_column(heading, justify="left" if heading in self.left else "right")
        for line in self.lines:
            shown.add_row(*line)
        console.print(shown)


def write_grid(layout: Layout, name: str, frame: pandas.DataFrame, grid: Grid, console: Console) -> None:
    """Write the frame as csv and the grid as md and tex, and show it.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    for kind, text in (("csv", csv_text(frame)), ("md", grid.markdown()), ("tex", grid.latex())):
        with atomic_path(Path(layout.table(name, kind))) as part:
            part.write_text(text)
    grid.show(console)


def _escaped(text: str) -> str:
    for sign, written in SPECIAL.items():
        text = text.replace(sign, written)
    return text
