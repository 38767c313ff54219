"""What a campaign has made so far: what ran, where it agrees with the papers, what is missing, what it cost.

Pure functions of the tables' frames and of the files behind them.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from satm.config import Resolver
from satm.results.columns import CONTINUAL, EVALUATION, METRICS, NAS
from satm.results.rows import read_run
from satm.tables.base import Number, table_of
from satm.tables.reader import Reader
from satm.tables.render import Grid

AGREEMENT = ("within one", "within two", "outside", "no deviation printed")
"""How far a measured number is from the published one, in published standard deviations."""

COLUMNS = ["table", "cells", "measured", "missing", "published", *AGREEMENT, "hours", "gpu_hours", "peak_memory_gb"]
"""Columns of an overview: a row per table, the last one of all."""

COSTLY = {
    "distilled": METRICS,
    **dict.fromkeys(("evaluation", "variants", "full"), EVALUATION),
    "nas": NAS,
    "continual": CONTINUAL,
}
"""Rows that carry seconds and memory, by the folder that they lie in."""

PLACES = ["order", "step", "repeat"]
"""Columns of continual learning that tell its networks apart; the rows of one carry the same seconds."""


@dataclass(frozen=True)
class Overview:
    """What a campaign has made so far.

    Args:
        frame: a row per table, and one of all, in which each file counts once: cells; measured and missing ones;
            published, how many measured cells have a published number; how many of these are within one or two
            published standard deviations, outside, or without one; hours of all jobs behind it, of these on a GPU; peak
            memory of any.
        missing: what was not run, in words that end with the command that makes it.
        devices: that results come from.
    """

    frame: pandas.DataFrame
    missing: list[str]
    devices: list[str]


def overview(resolver: Resolver) -> Overview:
    """Return what a campaign has made so far.

    Raises:
        UsageError: a file is broken or of another run.
    """
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    files: dict[str, list[str]] = {}
    for name in resolver.campaign.tables:
        table, reader = table_of(resolver, name), Reader(resolver, partial=True)
        rows.append({"table": name, **_counts(table.numbers(table.frame(reader, name)))})
        missing += reader.missing
        files[name] = table.files(resolver.layout, name)
    root = resolver.layout.root
    spent = {path: cost for paths in files.values() for path in paths if (cost := _cost(root, Path(path))) is not None}
    for row in rows:
        row |= _summed([spent[path] for path in files[row["table"]] if path in spent])
    every = {"table": "all", **{column: sum(row[column] for row in rows) for column in _COUNTED}}
    rows.append(every | _summed(list(spent.values())))
    devices = sorted({cost.device for cost in spent.values()})
    return Overview(pandas.DataFrame(rows, columns=COLUMNS), list(dict.fromkeys(missing)), devices)


_COUNTED = ("cells", "measured", "missing", "published", *AGREEMENT)


def _counts(numbers: Sequence[Number]) -> dict[str, int]:
    found = dict.fromkeys(_COUNTED, 0)
    found["cells"] = len(numbers)
    for measured, published, std in numbers:
        found["missing" if pandas.isna(measured) else "measured"] += 1
        if pandas.isna(measured) or pandas.isna(published):
            continue
        found["published"] += 1
        found[agreement(measured, published, std)] += 1
    return found


def agreement(measured: float, published: float, std: float) -> str:
    """Return how far a number is from the published one, a word of `AGREEMENT`."""
    if pandas.isna(std):
        return AGREEMENT[3]
    away = abs(measured - published) - 1e-9  # on the edge, where rounding would decide
    return AGREEMENT[0] if away <= std else AGREEMENT[1] if away <= 2 * std else AGREEMENT[2]


@dataclass(frozen=True)
class _Cost:
    seconds: float
    gpu_seconds: float
    memory: float
    device: str


def _cost(root: str, path: Path) -> _Cost | None:
    """Return what the rows of a file cost; None where there is no such file or it measures no cost.

    Raises:
        UsageError: the file is broken or of another kind.
    """
    columns = COSTLY.get(path.relative_to(root).parts[0])
    if columns is None or path.suffix != ".parquet" or not path.is_file():
        return None
    frame, circumstances = read_run(path, columns)
    if columns is CONTINUAL:
        frame = frame.drop_duplicates(PLACES)
    device = str(circumstances.get("device", "cpu"))
    seconds, memory = float(frame["seconds"].sum()), float(frame["peak_memory_bytes"].max() if len(frame) else 0)
    return _Cost(seconds, 0.0 if device == "cpu" else seconds, memory, device)


def _summed(costs: Sequence[_Cost]) -> dict[str, Any]:
    return {
        "hours": sum(cost.seconds for cost in costs) / 3600,
        "gpu_hours": sum(cost.gpu_seconds for cost in costs) / 3600,
        "peak_memory_gb": max((cost.memory for cost in costs), default=0.0) / 1e9,
    }


HEADINGS = {
    "table": "table",
    "measured": "measured",
    "missing": "not run",
    "published": "with a published number",
    "within one": "within one deviation",
    "within two": "within two",
    "outside": "outside",
    "no deviation printed": "no deviation printed",
    "hours": "hours",
    "gpu_hours": "of these GPU hours",
    "peak_memory_gb": "peak memory, GB",
}


def _grid(found: Overview) -> Grid:
    headings = list(HEADINGS.values())
    lines = [
        [f"{row[column]:.2f}" if isinstance(row[column], float) else str(row[column]) for column in HEADINGS]
        for row in found.frame.to_dict("records")
    ]
    return Grid("", headings, lines, headings[:1], ())


def sentences(found: Overview, root: str) -> list[str]:
    """Return the overview in sentences."""
    whole = found.frame.iloc[-1]
    told = [
        f"{whole['measured']} of {whole['cells']} cells of {len(found.frame) - 1} tables below {root} are measured, "
        f"{whole['missing']} are not run.",
        f"{whole['published']} measured cells have a published number: {whole['within one']} lie within one published "
        f"standard deviation, {whole['within two']} within two, {whole['outside']} outside; {whole[AGREEMENT[3]]} were "
        "printed without one.",
        f"The jobs behind them took {whole['hours']:.1f} hours, of these {whole['gpu_hours']:.1f} on a GPU; the most "
        f"that one held were {whole['peak_memory_gb']:.1f} GB. Devices: {', '.join(found.devices) or 'none'}.",
    ]
    if found.missing:
        told.append(f"The first that is missing: {found.missing[0]}")
    return told


def markdown(found: Overview, root: str) -> str:
    """Return the overview as Markdown."""
    return "\n\n".join([*sentences(found, root), _grid(found).markdown()])


def page(found: Overview, root: str) -> str:
    """Return the overview as a piece of HTML, for the report's first page."""
    told = "".join(f"<p>{html.escape(text)}</p>" for text in sentences(found, root))
    style = (
        "<style>.satm-overview table{border-collapse:collapse;font-size:13px;margin-top:1em}"
        ".satm-overview th,.satm-overview td{padding:3px 9px;text-align:right;border-bottom:1px solid #8884}"
        ".satm-overview th:first-child,.satm-overview td:first-child{text-align:left}"
        ".satm-overview tr:last-child td{font-weight:bold}</style>"
    )
    return (
        f'{style}<div id="satm-overview"><h2>Overview of {html.escape(root)}</h2>{told}'
        f'<div class="satm-overview">{_grid(found).table()}</div></div>\n'
    )
