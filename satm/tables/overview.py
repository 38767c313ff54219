"""Progress of a campaign: finished and missing runs, agreement with the papers, cost."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas

from satm.config import Resolver
from satm.results.columns import CONTINUAL, EVALUATION, METRICS, NAS
from satm.results.rows import read_run
from satm.tables.base import Number, table_of
from satm.tables.reader import Reader
from satm.tables.render import Grid

AGREEMENT = ("within one", "within two", "outside", "no deviation printed")
"""Distance of a measured number from the published one, in published standard deviations."""

COUNTED = ("cells", "measured", "missing", "published", *AGREEMENT)
"""Columns of an overview that count cells."""

COLUMNS = ["table", *COUNTED, "hours", "gpu_hours", "peak_memory_gb"]
"""Columns of an overview: a row per table, the last one of all."""

HEADINGS = {column: column for column in COLUMNS if column != "cells"} | {
    **{"published": "with a published number", "within one": "within one deviation"},
    **{"gpu_hours": "of these GPU hours", "peak_memory_gb": "peak memory, GB"},
}
"""Headings of the shown columns."""

COSTLY = dict.fromkeys(("evaluation", "variants", "full"), EVALUATION)
COSTLY |= {"distilled": METRICS, "nas": NAS, "continual": CONTINUAL}
"""Kinds of rows with seconds and memory, by their folder."""

PLACES = ["order", "step", "repeat"]
"""Columns of continual learning that identify a network; all rows of a network have the same seconds."""


@dataclass(frozen=True)
class Overview:
    """Progress of a campaign."""

    frame: pandas.DataFrame
    """A row per table, and one of all, in which each file counts once. Columns: numbers of cells, of measured and of
    missing ones; published, the number of measured cells with a published number; the numbers of these within one or
    two published standard deviations, outside, or without one; hours of all jobs behind the table, and of these on a
    GPU; largest peak memory."""
    missing: list[str]
    """Descriptions of missing runs, each with the command that makes it."""
    devices: list[str]
    """Devices of the results."""


def overview(resolver: Resolver) -> Overview:
    """Return the progress of a campaign; `UsageError` if a file is broken or of another run."""
    rows: list[dict[str, Any]] = []
    costs: dict[str, _Cost | None] = {}
    reader = Reader(resolver, partial=True)
    for name in resolver.campaign.tables:
        table = table_of(resolver, name)
        counts = _counts(table.numbers(table.frame(reader, name)))
        files = table.files(resolver.layout, name)
        costs |= {path: _cost(resolver.layout.root, Path(path)) for path in files if path not in costs}
        rows.append({"table": name, **counts, **_total(costs[path] for path in files)})
    counts = {column: sum(row[column] for row in rows) for column in COUNTED}
    rows.append({"table": "all", **counts, **_total(costs.values())})
    devices = sorted({cost.device for cost in costs.values() if cost})
    return Overview(pandas.DataFrame(rows, columns=COLUMNS), list(dict.fromkeys(reader.missing)), devices)


def _counts(numbers: Sequence[Number]) -> dict[str, int]:
    """Return the columns of `COUNTED` for the numbers of a table."""
    measured = [each for each in numbers if not pandas.isna(each[0])]
    published = [agreement(*each) for each in measured if not pandas.isna(each[1])]
    missing = len(numbers) - len(measured)
    counts = {"cells": len(numbers), "measured": len(measured), "missing": missing, "published": len(published)}
    return counts | {word: published.count(word) for word in AGREEMENT}


def agreement(measured: float, published: float, std: float) -> str:
    """Return the distance of a number from the published one, as a word of `AGREEMENT`."""
    if pandas.isna(std):
        return AGREEMENT[3]
    away = abs(measured - published) - 1e-9  # numbers on the edge count as inside, whatever the rounding
    return AGREEMENT[0] if away <= std else AGREEMENT[1] if away <= 2 * std else AGREEMENT[2]


class _Cost(NamedTuple):
    seconds: float
    memory: float
    device: str


def _cost(root: str, path: Path) -> _Cost | None:
    """Return the cost of the rows of a file; None if it does not exist or has no cost."""
    columns = COSTLY.get(path.relative_to(root).parts[0])
    if columns is None or path.suffix != ".parquet" or not path.is_file():
        return None
    frame, circumstances = read_run(path, columns)
    if columns is CONTINUAL:
        frame = frame.drop_duplicates(PLACES)
    device = str(circumstances.get("device", "cpu"))
    seconds, memory = float(frame["seconds"].sum()), float(frame["peak_memory_bytes"].max() if len(frame) else 0)
    return _Cost(seconds, memory, device)


def _total(costs: "Iterable[_Cost | None]") -> dict[str, float]:
    """Return the columns of an overview for the costs of some files."""
    known = [cost for cost in costs if cost]
    return {
        "hours": sum(cost.seconds for cost in known) / 3600,
        "gpu_hours": sum(cost.seconds for cost in known if cost.device != "cpu") / 3600,
        "peak_memory_gb": max((cost.memory for cost in known), default=0.0) / 1e9,
    }


def _grid(state: Overview) -> Grid:
    """Return the numbers as a table of texts."""
    headings = list(HEADINGS.values())
    lines = [
        [f"{row[column]:.2f}" if isinstance(row[column], float) else str(row[column]) for column in HEADINGS]
        for row in state.frame.to_dict("records")
    ]
    return Grid("", headings, lines, headings[:1], ())


def _hours(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"


def sentences(state: Overview, root: str) -> list[str]:
    """Return the overview in sentences."""
    total = state.frame.iloc[-1]
    texts = [
        f"Measured cells of tables below {root}: {total['measured']} of {total['cells']}; missing: {total['missing']}.",
        f"Measured cells with a published number: {total['published']}. Within one published standard deviation: "
        f"{total['within one']}; within two: {total['within two']}; outside: {total['outside']}; published without a "
        f"deviation: {total[AGREEMENT[3]]}.",
        f"Time of their jobs: {_hours(total['hours'])}, on a GPU: {_hours(total['gpu_hours'])}; peak memory: "
        f"{total['peak_memory_gb']:.1f} GB; devices: {', '.join(state.devices) or 'none'}.",
    ]
    if state.missing:
        texts.append(f"First missing file: {state.missing[0]}")
    return texts


def markdown(state: Overview, root: str) -> str:
    """Return the overview as Markdown."""
    return "\n\n".join([*sentences(state, root), _grid(state).markdown()])


def page(state: Overview, root: str) -> str:
    """Return the overview as an HTML fragment, for the report's first page."""
    texts = "".join(f"<p>{html.escape(text)}</p>" for text in sentences(state, root))
    style = (
        "<style>.satm-overview table{border-collapse:collapse;font-size:13px;margin-top:1em}"
        ".satm-overview th,.satm-overview td{padding:3px 9px;text-align:right;border-bottom:1px solid #8884}"
        ".satm-overview th:first-child,.satm-overview td:first-child{text-align:left}"
        ".satm-overview tr:last-child td{font-weight:bold}</style>"
    )
    return (
        f'{style}<div id="satm-overview"><h2>Overview of {html.escape(root)}</h2>{texts}'
        f'<div class="satm-overview">{_grid(state).table()}</div></div>\n'
    )
