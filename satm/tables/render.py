"""Tables of texts, as csv, Markdown, LaTeX, HTML and on a terminal: what all kinds of table share."""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas

from satm.config import Layout
from satm.storage.files import atomic_path

if TYPE_CHECKING:
    from rich.console import Console

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

    def show(self, console: "Console") -> None:
        """Print it on a terminal, without the notes."""
        from rich.table import Table

        shown = Table(title=self.title)
        for heading in self.headings:
            shown.add_column(heading, justify="left" if heading in self.left else "right")
        for line in self.lines:
            shown.add_row(*line)
        console.print(shown)


@dataclass(frozen=True)
class Contents:
    """What is written of a table.

    Args:
        frame: as csv.
        grids: as Markdown, LaTeX and a page of HTML; several have their titles above them on the page.
        title: of the page; empty: that of the grid.
        beside: frames written as further csv, by what is added to the name of the table.
        shown: on a terminal; empty: the grids.
    """

    frame: pandas.DataFrame
    grids: Sequence[Grid]
    title: str = ""
    beside: Mapping[str, pandas.DataFrame] = field(default_factory=dict)
    shown: Sequence[Grid] = ()

    def write(self, layout: Layout, name: str) -> None:
        """Write all forms of the table of this name.

        Raises:
            RunError: the disk is full or the folder cannot be written.
        """
        for added, frame in self.beside.items():
            write_forms(layout, f"{name}{added}", csv=csv_text(frame))
        markdown, latex = ("\n".join(form(grid) for grid in self.grids) for form in (Grid.markdown, Grid.latex))
        write_forms(layout, name, csv=csv_text(self.frame), md=markdown, tex=latex, html=self.page())

    def page(self) -> str:
        """Return the grids with their notes as one page of HTML that needs nothing else."""
        title = html.escape(self.title or self.grids[0].title)
        parts = []
        for grid in self.grids:
            above = f"<h2>{html.escape(grid.title)}</h2>\n" if len(self.grids) > 1 else ""
            notes = "\n".join(f"<p>{html.escape(note)}</p>" for note in grid.notes)
            parts.append(f"{above}{grid.table()}\n{notes}\n")
        begin = f'<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        return f"{begin}<style>{STYLE}</style>\n<h1>{title}</h1>\n{''.join(parts)}</html>\n"

    def show(self, console: "Console") -> None:
        """Print it on a terminal."""
        for grid in self.shown or self.grids:
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


def percent(mean: float, std: float = float("nan")) -> str:
    """Return a fraction in percent with its deviation, where there is one; an empty text where it is missing."""
    return number(100 * mean, 100 * std, ".1f")


def number(mean: float, std: float = float("nan"), form: str = ".4g", form_std: str = "") -> str:
    """Return a number with its deviation, where there is one; an empty text where it is missing.

    Args:
        mean: the number.
        std: its deviation.
        form: of the number, as Python formats it.
        form_std: of the deviation; empty: as the number.
    """
    if pandas.isna(mean):
        return ""
    return f"{mean:{form}}" if pandas.isna(std) else f"{mean:{form}} ± {std:{form_std or form}}"


def text_of(value: Any) -> str:
    """Return a value as a text; an empty one where it is missing."""
    return "" if pandas.isna(value) else str(value)


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
