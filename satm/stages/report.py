"""The stages `table`, `figure` and `cost`, whose results people read."""

import contextlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path

from satm.config import ACCOUNTING, OVERVIEW, Resolver, root_of
from satm.cost.forecast import Pace, cost, cost_grid
from satm.cost.spent import accounting
from satm.cost.workload import assumptions
from satm.errors import MissingRun, UsageError
from satm.figures.base import figure_of
from satm.figures.style import save
from satm.results.columns import PACE
from satm.results.exhibits import FORMS, state_in_picture
from satm.results.rows import read_rows
from satm.run.lock import in_workflow
from satm.run.progress import Progress
from satm.storage.identity import hash_file
from satm.tables.base import table_of
from satm.tables.overview import markdown, overview, page, sentences
from satm.tables.reader import Reader
from satm.tables.render import Contents, csv_text, write_forms, write_text
from satm.tables.scale_note import reductions
from satm.version import shipped
from satm.workflow.commands import workflow_command
from satm.workflow.jobs import campaigns_of, jobs

LOG = logging.getLogger("satm")

PACE_FILE = shipped("pace/h200.parquet", "results/reference/pace/h200.parquet")
"""The pace that was measured on an H200."""


def make_table(resolver: Resolver, name: str, partial: bool = False) -> None:
    """Write a table as csv, md, tex and html, and show it; with `partial` cells that were not run yet are empty."""
    table, reader = table_of(resolver, name), Reader(resolver, partial, reductions(resolver, "tables", name))
    identity = reader.identity("table", name)  # of the files as they are before they are read
    with _alternatives(resolver, resolver.layout.table(name)):
        contents = table.make(reader, name)
    contents.write(resolver.layout, name, identity)
    contents.show(Progress.console())
    _warn(reader)


def make_overview(resolver: Resolver) -> None:
    """Write the results of a campaign so far as csv, md and, for the report's first page, html."""
    results, root = overview(resolver), resolver.layout.root
    forms = {"csv": csv_text(results.frame), "md": markdown(results, root), "html": page(results, root)}
    write_forms(resolver.layout, OVERVIEW, **forms)
    for text in sentences(results, root):
        LOG.info("%s", text)


def make_accounting(resolver: Resolver) -> None:
    """Write the cost of a campaign's jobs so far as csv, md, tex and html, and show it.

    Raises:
        UsageError: there is no campaign, or it cannot be used.
    """
    if resolver.path is None:
        raise UsageError("accounting needs a campaign; name one with --config")
    root = resolver.layout.root
    spent, console = accounting(campaigns_of(resolver.path), root), Progress.console()
    contents = Contents(spent.frame, [spent.rules, spent.cells], f"{root}: cost so far", shown=[spent.rules])
    contents.write(resolver.layout, ACCOUNTING)
    contents.show(console)
    for note in spent.rules.notes:
        console.print(note)
    LOG.info("%d cells of tables -> %s", len(spent.cells.lines), resolver.layout.table(ACCOUNTING, "md"))


def make_figure(resolver: Resolver, name: str, partial: bool = False) -> None:
    """Draw a figure as png and pdf, and write the numbers that it shows as csv.

    With `partial`, missing results are left out, and the figure says so.
    """
    figure, reader = figure_of(resolver, name), Reader(resolver, partial, reductions(resolver, "figures", name))
    identity = reader.identity("figure", name)
    with _alternatives(resolver, resolver.layout.figure(name)):
        drawn = figure.draw(reader)
    pdf, png, csv = (Path(resolver.layout.figure(name, kind)) for kind in ("pdf", "png", "csv"))
    save(drawn.figure, pdf, drawn.tight)
    write_text(csv, csv_text(drawn.frame))
    if drawn.png is None:
        save(drawn.figure, png, drawn.tight)
    else:
        drawn.png(png)
    state_in_picture(png, {**identity, FORMS: {path.suffix: hash_file(path) for path in (pdf, csv)}})
    _warn(reader)
    LOG.info("figure %s -> %s, %s, %s", name, png, pdf, csv)


@contextlib.contextmanager
def _alternatives(resolver: Resolver, path: str) -> Iterator[None]:
    """Add to the message about a missing result what else can be done about it than to make that result by hand."""
    try:
        yield
    except MissingRun as error:
        if in_workflow():
            raise
        everything = workflow_command(resolver, path)
        ways = [f"everything that is missing with: {everything}"] if everything else []
        text = "; or ".join([str(error), *ways, "leave it out with --partial"])
        raise MissingRun(text) from error


def _warn(reader: Reader) -> None:
    for text in dict.fromkeys(reader.missing):
        LOG.warning("left out: %s", text)
    for text in (*reader.gaps, *reader.doubts):
        LOG.warning("%s", text)


def predict_cost(config: Path, pace: Path, start_seconds: float) -> None:
    """Show the predicted cost of a campaign's tables and figures on the machine of a measured pace.

    Raises:
        UsageError: the campaign or the file of the pace cannot be used, or the seconds are negative.
    """
    if not (start_seconds >= 0 and math.isfinite(start_seconds)):
        raise UsageError(f"--start-seconds must be at least 0, got {start_seconds:g}; use 0 or more")
    campaigns, root = campaigns_of(config), root_of(config)
    resolver = campaigns.of(root)
    rows = read_rows(pace, PACE)
    if rows.empty:
        raise UsageError(f"{pace} has no measurements; make it with `python -m satm bench pace --config {config}`")
    measured = Pace(rows)
    # A processor is just `cpu`; any other name is that of a GPU.
    planned = jobs(campaigns, root)
    forecast = cost(resolver, planned, measured, at_once=measured.device != "cpu")
    grid, console = cost_grid(f"{config}: predicted cost", forecast, measured, start_seconds), Progress.console()
    grid.show(console)
    for note in [*grid.notes, *assumptions(resolver, planned)]:
        console.print(note)
