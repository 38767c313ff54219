"""The stages `table` and `figure`: what people look at."""

import logging
from pathlib import Path

from satm.config import (
    ACCOUNTING,
    OVERVIEW,
    ContinualOptions,
    FairOptions,
    MeasuresOptions,
    Resolver,
    SearchOptions,
    StartsOptions,
)
from satm.cost.spent import accounting
from satm.errors import UsageError
from satm.figures import FIGURES
from satm.figures.style import save
from satm.run.progress import Progress
from satm.storage.files import atomic_path
from satm.tables import accuracy as tables
from satm.tables import continual as continual_table
from satm.tables import late_start as starts_table
from satm.tables import robustness as fair
from satm.tables import run_metrics as measure_table
from satm.tables import search as nas_table
from satm.tables.overview import markdown, overview, page, sentences
from satm.tables.reader import Reader
from satm.tables.render import Grid, csv_text, page_of, write_forms
from satm.tables.scale_note import reductions
from satm.workflow.jobs import campaigns_of

LOG = logging.getLogger("satm")


def make_table(resolver: Resolver, name: str, partial: bool = False) -> None:
    """Write a table as csv, md, tex and html, and show it.

    With `partial` cells that were not run yet are empty.
    """
    options = resolver.table(name)
    reader = Reader(resolver, partial, reductions(resolver, options, "table", name))
    if isinstance(options, FairOptions):
        fair.write_fair(reader, name, Progress.console())
    elif isinstance(options, SearchOptions):
        nas_table.write_search(reader, name, Progress.console())
    elif isinstance(options, ContinualOptions):
        continual_table.write_continual(reader, name, Progress.console())
    elif isinstance(options, MeasuresOptions):
        measure_table.write_measures(reader, name, Progress.console())
    elif isinstance(options, StartsOptions):
        starts_table.write_starts(reader, name, Progress.console())
    else:
        frame, paired = tables.write_table(reader, name)
        tables.show_table(Progress.console(), frame, paired)
    _warn(reader)


def make_overview(resolver: Resolver) -> None:
    """Write what a campaign has made so far as csv, md and, for the report's first page, html."""
    found, root = overview(resolver), resolver.layout.root
    text, first = markdown(found, root), page(found, root)
    write_forms(resolver.layout, OVERVIEW, csv=csv_text(found.frame), md=text, html=first)
    for text in sentences(found, root):
        LOG.info("%s", text)


def make_accounting(resolver: Resolver) -> None:
    """Write what the jobs of a campaign have taken so far as csv, md, tex and html, and show it.

    Raises:
        UsageError: there is no campaign, or it cannot be used as it is.
    """
    if resolver.path is None:
        raise UsageError("accounting is of the jobs of a campaign; name one with --config, such as config/demo.yaml")
    root = resolver.layout.root
    found = accounting(campaigns_of(resolver.path), root)
    grids, console = [found.rules, found.cells], Progress.console()
    text, tex = ("\n".join(form(grid) for grid in grids) for form in (Grid.markdown, Grid.latex))
    whole = page_of(f"{root}: what it took", grids)
    write_forms(resolver.layout, ACCOUNTING, csv=csv_text(found.frame), md=text, tex=tex, html=whole)
    found.rules.show(console)
    for note in found.rules.notes:
        console.print(note)
    LOG.info("%d cells of tables -> %s", len(found.cells.lines), resolver.layout.table(ACCOUNTING, "md"))


def make_figure(resolver: Resolver, name: str, partial: bool = False) -> None:
    """Draw a figure as png and pdf, and write the numbers that it shows as csv.

    With `partial` what was not run yet is left out, and the figure says so.
    """
    options = resolver.figure(name)
    reader = Reader(resolver, partial, reductions(resolver, options, "figure", name))
    drawn = FIGURES[options.kind](reader, options)
    pdf, png, csv = (Path(resolver.layout.figure(name, kind)) for kind in ("pdf", "png", "csv"))
    save(drawn.figure, pdf, drawn.tight)
    if drawn.png is None:
        save(drawn.figure, png, drawn.tight)
    else:
        drawn.png(png)
    with atomic_path(csv) as part:
        part.write_text(csv_text(drawn.frame))
    _warn(reader)
    LOG.info("figure %s -> %s, %s, %s", name, png, pdf, csv)


def _warn(reader: Reader) -> None:
    for text in dict.fromkeys(reader.missing):
        LOG.warning("left out: %s", text)
