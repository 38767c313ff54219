"""Tables of texts, as Markdown, LaTeX, HTML and on a terminal: what all kinds of table share."""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas
from rich.console import Console
from rich.table import Table

from satm.config import Layout
from satm.storage.files import atomic_path

SPECIAL = str.maketrans(
    {"\\": r"\textbackslash{}", "±": r"$\pm$", "^": r"\^{}", "~": r"\~{}"} | {sign: rf"\{sign}" for sign in "&%_#${}"}
)
"""What LaTeX writes for a sign."""

STYLE = """
:root { color-scheme: light dark; font: 14px/1.5 system-ui, sans-serif; }
body { margin: 1.5em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid #8886; }
th.text, td.text { text-align: left; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; white-space: normal; }
tbody tr:hover { background: #8882; }
p { max-width: 60em; }
"""
"""Of a table as a page of its own; it takes the reader's choice of light or dark."""


@dataclass(frozen=True)
class Grid:
    """A table of texts.

    Args:
        title: for the terminal and the page.
        headings: of the columns.
        lines: of texts, as many as there are headings; one between two pairs of stars is bold.
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

    def table(self) -> str:
        """Return the table alone as a piece of HTML."""
        kinds = [' class="text"' if heading in self.left else "" for heading in self.headings]
        head = "".join(f"<th{kind}>{html.escape(text)}</th>" for kind, text in zip(kinds, self.headings, strict=True))
        rows = [
            "".join(f"<td{kind}>{_marked(text)}</td>" for kind, text in zip(kinds, line, strict=True))
            for line in self.lines
        ]
        body = "\n".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"

    def page(self) -> str:
        """Return it as a page of HTML that needs nothing else."""
        return page_of(self.title, [self])

    def show(self, console: Console) -> None:
        """Print it on a terminal, without the notes."""
        shown = Table(title=self.title)
        for heading in self.headings:
            shown.add_column(heading, justify="left" if heading in self.left else "right")
        for line in self.lines:
            shown.add_row(*line)
        console.print(shown)


def page_of(title: str, grids: Sequence[Grid]) -> str:
    """Return tables with their notes as one page of HTML that needs nothing else; several have their titles above."""
    begin = f'<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
    parts = []
    for grid in grids:
        above = f"<h2>{html.escape(grid.title)}</h2>\n" if len(grids) > 1 else ""
        notes = "\n".join(f"<p>{html.escape(note)}</p>" for note in grid.notes)
        parts.append(f"{above}{grid.table()}\n{notes}\n")
    return f"{begin}<style>{STYLE}</style>\n<h1>{html.escape(title)}</h1>\n{''.join(parts)}</html>\n"


def write_grid(layout: Layout, name: str, frame: pandas.DataFrame, grid: Grid, console: Console) -> None:
    """Write the frame as csv and the grid as md, tex and html, and show it.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    write_forms(layout, name, csv=csv_text(frame), md=grid.markdown(), tex=grid.latex(), html=grid.page())
    grid.show(console)


def write_forms(layout: Layout, name: str, **forms: str) -> None:
    """Write the forms of a table: texts by the ending of their file.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    for kind, text in forms.items():
        with atomic_path(Path(layout.table(name, kind))) as part:
            part.write_text(text)


def csv_text(frame: pandas.DataFrame) -> str:
    """Return a frame as csv, numbers to six digits."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def in_numbers(counts: Iterable[int], what: str, rest: str = "") -> str:
    """Return how many there are, in words: `1 network`, `3 or 5 pairs of classes`.

    Args:
        counts: how many, in each place.
        what: one of them.
        rest: what follows the word in the plural too.
    """
    many = sorted(set(counts)) or [0]
    return f"{' or '.join(map(str, many))} {what}{'' if many == [1] else 's'}{rest}"


def networks_in_words(options: Mapping[str, Mapping[str, object]]) -> str:
    """Return networks with their options, by name; without names where all are alike.

    Args:
        options: the resolved options of each network, by where it is used.
    """
    told = {
        name: ", ".join([str(values["network"]), *(f"{key} {values[key]}" for key in values if key != "network")])
        for name, values in options.items()
    }
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return "; ".join(f"{name}: {text}" for name, text in told.items())


def _bold(text: str) -> tuple[bool, str]:
    """Return whether a text stands between two pairs of stars, and what does."""
    bold = len(text) > 4 and text.startswith("**") and text.endswith("**")
    return bold, text[2:-2] if bold else text


def _marked(text: str) -> str:
    """Return a text as HTML."""
    bold, text = _bold(text)
    return f"<b>{html.escape(text)}</b>" if bold else html.escape(text)


def _escaped(text: str) -> str:
    """Return a text as LaTeX."""
    bold, text = _bold(text)
    written = text.translate(SPECIAL)
    return rf"\textbf{{{written}}}" if bold else written
