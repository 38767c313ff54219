"""Tables of texts, as csv, Markdown, LaTeX, HTML and on a terminal."""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas

from satm.config import Layout
from satm.results.exhibits import FORMS, page_metadata, stated_by_exhibit
from satm.storage.files import atomic_path
from satm.storage.identity import Identity, hash_bytes

if TYPE_CHECKING:
    from rich.console import Console

SPECIAL = str.maketrans(
    {"\\": r"\textbackslash{}", "±": r"$\pm$", "^": r"\^{}", "~": r"\~{}"} | {sign: rf"\{sign}" for sign in "&%_#${}"}
)
"""LaTeX code of special characters."""

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
"""Style of a table's HTML page, light or dark as the reader's browser prefers."""


@dataclass(frozen=True)
class Grid:
    """A table of texts, with a title for the terminal and the page, and sentences below as notes."""

    title: str
    headings: Sequence[str]
    lines: Sequence[Sequence[str]]
    """Texts, one per heading; a text between two pairs of stars is bold."""
    left: Sequence[str]
    """Headings of text columns, which are aligned at the left."""
    notes: Sequence[str]

    def markdown(self) -> str:
        """Return the table as Markdown, with the notes below."""
        rule = ["---" if heading in self.left else "---:" for heading in self.headings]
        body = "\n".join(f"| {' | '.join(line)} |" for line in (self.headings, rule, *self.lines))
        return "\n\n".join([body, *self.notes]) + "\n"

    def latex(self) -> str:
        """Return the table as a LaTeX tabular for the package booktabs; the notes are comments."""
        columns = "".join("l" if heading in self.left else "r" for heading in self.headings)
        head, *rest = [" & ".join(map(_latex, line)) + r" \\" for line in (self.headings, *self.lines)]
        comments = [f"% {note}" for note in self.notes]
        begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
        return "\n".join([*comments, begin, r"\toprule", head, r"\midrule", *rest, r"\bottomrule", end]) + "\n"

    def table(self) -> str:
        """Return the table, without title and notes, as an HTML fragment."""
        kinds = [' class="text"' if heading in self.left else "" for heading in self.headings]

        def row(line: Sequence[str], tag: str) -> str:
            cells = (f"<{tag}{kind}>{_html(text)}</{tag}>" for kind, text in zip(kinds, line, strict=True))
            return f"<tr>{''.join(cells)}</tr>"

        body = "\n".join(row(line, "td") for line in self.lines)
        return f"<table>\n<thead>{row(self.headings, 'th')}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"

    def show(self, console: "Console") -> None:
        """Print the table on a terminal, without the notes."""
        from rich.table import Table

        table = Table(title=self.title)
        for heading in self.headings:
            table.add_column(heading, justify="left" if heading in self.left else "right")
        for line in self.lines:
            table.add_row(*line)
        console.print(table)


@dataclass(frozen=True)
class Contents:
    """Contents of a table's files: a frame for csv, grids for Markdown, LaTeX and an HTML page."""

    frame: pandas.DataFrame
    grids: Sequence[Grid]
    title: str = ""
    """Title of the page; empty: that of the grid."""
    beside: Mapping[str, pandas.DataFrame] = field(default_factory=dict)
    """Frames for further csv files, by the suffix to the table's name."""
    shown: Sequence[Grid] = ()
    """Grids for the terminal; empty: `grids`."""

    def write(self, layout: Layout, name: str, identity: Identity | None = None) -> None:
        """Write all forms of the table of this name (errors: `atomic_path`).

        The page states the identity, and the hashes of the other forms.
        """
        markdown, latex = ("\n".join(form(grid) for grid in self.grids) for form in (Grid.markdown, Grid.latex))
        forms = {".csv": csv_text(self.frame), ".md": markdown, ".tex": latex}
        forms |= {f"{added}.csv": csv_text(frame) for added, frame in self.beside.items()}
        page = Path(layout.table(name, "html"))
        earlier = (stated_by_exhibit(page) or {}).get(FORMS, {})
        for ending in {*earlier} - {*forms}:  # of the kind that the table had before
            page.with_name(f"{name}{ending}").unlink(missing_ok=True)
        for ending, text in forms.items():
            write_text(page.with_name(f"{name}{ending}"), text)
        hashes = {FORMS: {ending: hash_bytes(text.encode()) for ending, text in forms.items()}}
        write_text(page, self.page({**identity, **hashes} if identity else None))

    def page(self, identity: Identity | None = None) -> str:
        """Return the grids with their notes as one self-contained HTML page, which states the identity, if any."""
        title = html.escape(self.title or self.grids[0].title)
        parts = []
        for grid in self.grids:
            above = f"<h2>{html.escape(grid.title)}</h2>\n" if len(self.grids) > 1 else ""
            notes = "\n".join(f"<p>{html.escape(note)}</p>" for note in grid.notes)
            parts.append(f"{above}{grid.table()}\n{notes}\n")
        begin = f'<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        stated = page_metadata(identity) if identity else ""
        return f"{begin}{stated}<style>{STYLE}</style>\n<h1>{title}</h1>\n{''.join(parts)}</html>\n"

    def show(self, console: "Console") -> None:
        """Print the grids on a terminal."""
        for grid in self.shown or self.grids:
            grid.show(console)


def write_forms(layout: Layout, name: str, **forms: str) -> None:
    """Write texts of a table as its files, by their endings (errors: `atomic_path`)."""
    for kind, text in forms.items():
        write_text(Path(layout.table(name, kind)), text)


def write_text(path: Path, text: str) -> None:
    """Write a text as a file (errors: `atomic_path`)."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def csv_text(frame: pandas.DataFrame) -> str:
    """Return a frame as csv, numbers to six digits."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def percent(mean: float, std: float = float("nan")) -> str:
    """Return a fraction in percent with its deviation, if any; an empty text if it is missing."""
    return number(100 * mean, 100 * std, ".1f")


def number(mean: float, std: float = float("nan"), form: str = ".4g", form_std: str = "") -> str:
    """Return a number with its deviation, if any, by format specifications; an empty text if it is missing."""
    if pandas.isna(mean):
        return ""
    return f"{mean:{form}}" if pandas.isna(std) else f"{mean:{form}} ± {std:{form_std or form}}"


def text_of(value: Any, form: str = "") -> str:
    """Return a value as a text, by a format specification; an empty text if it is missing."""
    return "" if pandas.isna(value) else f"{value:{form}}"


def in_numbers(counts: Iterable[int], what: str, rest: str = "") -> str:
    """Return the different counts of something as text: `1 network`, or with a rest `3 or 5 pairs of classes`."""
    different = sorted(set(counts)) or [0]
    return f"{' or '.join(map(str, different))} {what}{'' if different == [1] else 's'}{rest}"


def networks_in_words(options: Mapping[str, Mapping[str, object]]) -> str:
    """Describe networks from their resolved options by name; without names if all are the same."""
    texts = {
        name: ", ".join([str(values["network"]), *(f"{key} {values[key]}" for key in values if key != "network")])
        for name, values in options.items()
    }
    different = set(texts.values())
    return different.pop() if len(different) == 1 else "; ".join(f"{name}: {text}" for name, text in texts.items())


def _bold(text: str) -> tuple[bool, str]:
    """Return whether a text is between two pairs of stars, and the text without them."""
    bold = len(text) > 4 and text.startswith("**") and text.endswith("**")
    return bold, text[2:-2] if bold else text


def _html(text: str) -> str:
    bold, text = _bold(text)
    return f"<b>{html.escape(text)}</b>" if bold else html.escape(text)


def _latex(text: str) -> str:
    bold, text = _bold(text)
    escaped = text.translate(SPECIAL)
    return rf"\textbf{{{escaped}}}" if bold else escaped
