"""Tables of architecture searches: how well synthetic sets rank networks, beside the published numbers.

Pure functions of the parquet files that the stage `nas` left behind. Accuracies are fractions in the frame and csv,
percent in Markdown.
"""

from collections.abc import Sequence
from functools import partial

import pandas
from rich.console import Console

from satm.config import CANDIDATES, CandidateOptions, Cell, SearchOptions
from satm.errors import pick
from satm.evaluation.search import TOPS, Ranking, candidates, mean_accuracies, rank
from satm.results import NAS
from satm.tables.accuracy import load_published, percent
from satm.tables.reader import Reader, refuse_repeats
from satm.tables.render import Grid, in_numbers, write_grid

PUBLISHED = {"ftd-table5": ("ftd", "Table 5"), "contra-table7": ("contra", "Table 7")}
"""Where a search's published numbers are, as (source, table) of the data file, by the name of the search."""

METRICS = {
    **{f"spearman_{top}": f"spearman_{top}" for top in TOPS},
    "selected_accuracy": "nas_best_model_accuracy",
    "minutes": "search_time_min",
}
"""Columns that have published numbers, and the metric in the data file."""

COLUMNS = {
    "dataset": "str",
    "ipc": "int64",
    "method": "str",
    "seeds": "Int64",
    "candidates": "Int64",
    **{f"spearman_{top}{kind}": "float64" for top in TOPS for kind in ("", "_std")},
    "selected_accuracy": "float64",
    "selected_accuracy_std": "float64",
    "best_accuracy": "float64",
    "selected": "object",
    "proxy_minutes": "float64",
    "real_minutes": "float64",
    **{f"published_{column}": "float64" for column in METRICS},
    "published_source": "object",
}
"""Columns of a search's table; all but the first three can be missing."""


def search_table(reader: Reader, name: str) -> pandas.DataFrame:
    """Return one row per dataset, ipc and method of a search, and a row `real` (ipc 0) of each dataset.

    Columns: seeds, how many synthetic sets; candidates, how many networks were ranked; spearman_…, rank correlation of
    the accuracies after training on the set and on the real images, over the best candidates or all
    (`satm.evaluation.search.TOPS`), mean and sample standard deviation over the sets; selected_accuracy, of the
    candidate that is best by the set, when trained on the real images, likewise; best_accuracy, of the best candidate
    there; selected, the options of the first in the order of `satm.evaluation.search.SPACE`, of several sets each
    different one; proxy_minutes, spent on one set, and real_minutes on the real images, which find the best candidate
    alone in the row `real`; published_…, where the search is one of a paper. A candidate's accuracy is the mean over
    its networks. What does not exist is missing.

    Raises:
        UsageError: no such search; a file that it needs is missing (the text has the command that makes it), broken, or
            of another run; sets and real images with different candidates.
    """
    options = _options(reader, name)
    rows: list[dict[str, object]] = []
    for dataset, ipcs in options.datasets.items():
        real = reader.attempt(partial(_rows, reader, name, options, dataset, None))
        for ipc in ipcs:
            for method in options.methods:
                cells = options.cells_of(dataset, ipc, method)
                sets = reader.attempt(partial(_sets, reader, name, options, dataset, cells))
                rows.append(_row(dataset, ipc, method, sets, real, options, name))
        rows.append(_row(dataset, 0, "real", None if real is None else [real], real, options, name))
    return pandas.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def write_search(reader: Reader, name: str, console: Console) -> pandas.DataFrame:
    """Write a search's table as csv, md and tex, show it, and return its frame."""
    frame = search_table(reader, name)
    write_grid(reader.resolver.layout, name, frame, search_grid(reader, name, frame), console)
    return frame


def search_grid(reader: Reader, name: str, frame: pandas.DataFrame) -> Grid:
    """Return a search's table as texts, accuracies in percent."""
    head, *lines = _lines(frame)
    notes = [*_notes(_options(reader, name), frame), *reader.notes]
    title = "Architecture search: rank correlations; accuracies in percent"
    return Grid(title, head, lines, ("dataset", "IPC", "method", "selected network"), notes)


def _options(reader: Reader, name: str) -> SearchOptions:
    return pick(name, reader.resolver.campaign.searches, f"search in {reader.resolver.path or 'the built-in campaign'}")


def _rows(reader: Reader, name: str, options: SearchOptions, dataset: str, cell: Cell | None) -> pandas.DataFrame:
    """Return the rows of all parts on a synthetic set; None: on the real images."""
    layout, found = reader.resolver.layout, {}
    axes: dict[str, object] = cell.axes if cell else {"dataset": dataset}
    for part in options.parts():
        path = layout.nas(cell, name, part) if cell else layout.nas_real(dataset, name, part)
        axes |= {"search": name, "part": part}
        which = {} if cell else {"ipc": 0, "method": "real"}
        found[path], _ = reader.run(path, NAS, "nas" if cell else "nas --real", axes, which)
    refuse_repeats(found, NAS)
    return pandas.concat(found.values(), ignore_index=True)


def _sets(
    reader: Reader, name: str, options: SearchOptions, dataset: str, cells: Sequence[Cell]
) -> list[pandas.DataFrame]:
    """Return the rows on the synthetic sets of some cells."""
    return [_rows(reader, name, options, dataset, cell) for cell in cells]


def _minutes(rows: pandas.DataFrame) -> float:
    return float(rows["seconds"].sum()) / 60


def _ranked(sets: Sequence[pandas.DataFrame], real: pandas.DataFrame, options: SearchOptions) -> list[Ranking]:
    return [rank(mean_accuracies(rows), mean_accuracies(real), options.top_by) for rows in sets]


def _row(
    dataset: str,
    ipc: int,
    method: str,
    sets: Sequence[pandas.DataFrame] | None,
    real: pandas.DataFrame | None,
    options: SearchOptions,
    name: str,
) -> dict[str, object]:
    """Return a row from the ranking by each set; where something is missing, of what is published only."""
    row = {"dataset": dataset, "ipc": ipc, "method": method, **_published(name, dataset, ipc, method)}
    if sets is None or real is None:
        return row
    found, spent = _ranked(sets, real, options), {"real_minutes": _minutes(real)}
    if method != "real":
        spent["proxy_minutes"] = sum(map(_minutes, sets)) / len(sets)
    measured = {f"spearman_{top}": pandas.Series([one.spearman[top] for one in found]) for top in TOPS}
    measured["selected_accuracy"] = pandas.Series([one.selected_accuracy for one in found])
    networks = candidates(options.width_factor)
    return {
        **row,
        "seeds": len(found),
        "candidates": found[0].candidates,
        **{column: values.mean(skipna=False) for column, values in measured.items()},
        **{f"{column}_std": values.std(skipna=False) for column, values in measured.items()},
        "best_accuracy": found[0].best_accuracy,
        "selected": ", ".join(dict.fromkeys(str(networks[one.selected]) for one in found)),
        **spent,
    }


def _published(name: str, dataset: str, ipc: int, method: str) -> dict[str, object]:
    """Return the published numbers of a row by column; nothing where there are none."""
    if name not in PUBLISHED:
        return {}
    source, table = PUBLISHED[name]
    frame = load_published()
    frame = frame[(frame["source"] == source) & (frame["table"] == table) & (frame["dataset"] == dataset)]
    same = (frame["method"] == "full") if method == "real" else (frame["method"] == method) & (frame["ipc"] == ipc)
    values = dict(zip(frame.loc[same, "metric"], frame.loc[same, "value"], strict=True))
    if not values:
        return {}
    if (metric := METRICS["selected_accuracy"]) in values:
        values[metric] /= 100
    known = {f"published_{column}": values[metric] for column, metric in METRICS.items() if metric in values}
    return {**known, "published_source": f"{source} {table}"}


def _lines(frame: pandas.DataFrame) -> list[list[str]]:
    """Return the headings and the rows as texts; a column of published numbers only where there are some."""
    frame = frame.assign(minutes=frame["proxy_minutes"].fillna(frame["real_minutes"]))
    headings = {f"spearman_{top}": top.replace("top", "top ") for top in TOPS}
    headings |= {"selected_accuracy": "selected", "minutes": "minutes"}
    printed = [column for column in METRICS if frame[f"published_{column}"].notna().any()]
    head = ["dataset", "IPC", "method"]
    for column, heading in headings.items():
        head += [heading, f"{heading} (published)"] if column in printed else [heading]
    lines = [[*head, "best", "candidates", "selected network"]]
    for row in frame.to_dict("records"):
        cells = [row["dataset"], "all" if row["ipc"] == 0 else str(row["ipc"]), row["method"]]
        for column in headings:
            cells.append(_text(column, row[column], row.get(f"{column}_std", float("nan"))))
            if column in printed:
                cells.append(_text(column, row[f"published_{column}"], float("nan")))
        counted = ["" if pandas.isna(row[column]) else str(row[column]) for column in ("candidates", "selected")]
        lines.append([*cells, percent(row["best_accuracy"], float("nan")), *counted])
    return lines


def _text(column: str, mean: float, std: float) -> str:
    """Return a number of a column: percent, a correlation or minutes."""
    if column == "selected_accuracy":
        return percent(mean, std)
    if pandas.isna(mean):
        return ""
    if column == "minutes":
        return f"{mean:.1f}"
    return f"{mean:.2f}" if pandas.isna(std) else f"{mean:.2f} ± {std:.2f}"


def _notes(options: SearchOptions, frame: pandas.DataFrame) -> list[str]:
    sets = in_numbers(frame.loc[frame["method"] != "real", "seeds"].dropna(), "synthetic set")
    counts = " or ".join(map(str, sorted(set(frame["candidates"].dropna())))) or "0"
    whose = "the real images" if options.top_by == "real" else "the synthetic set"
    notes = [
        f"Spearman's rank correlation of the accuracies of {counts} of {CANDIDATES} ConvNets after training on a "
        f"synthetic set and after training on all real images (row `real`: with itself), over the best 5, 10 and 20 by "
        f"{whose}, and over all; mean ± sample standard deviation over {sets}. Empty: fewer candidates, "
        "or all of equal accuracy.",
        "selected: accuracy in percent, after training on the real images, of the candidate that is best by the set; "
        "best: of the best one there. minutes: of training and testing all candidates, one after another. selected "
        "network: width, depth, norm, activation, pooling.",
        *([f"Widths are {options.width_factor:g} times the papers'."] if options.width_factor != 1 else []),
        f"On synthetic sets: {_recipe(options.proxy)}. On real images: {_recipe(options.real)}.",
    ]
    if source := next(iter(frame["published_source"].dropna()), None):
        notes.append(
            f"Published: {source}, over all {CANDIDATES} candidates; optimiser and step size are not given there."
        )
    return notes


def _recipe(options: CandidateOptions) -> str:
    rate = "the set's learned step size" if options.lr == "learned" else f"step size {options.lr:g}"
    return (
        f"{in_numbers([options.repeats], 'network')} of each candidate, {in_numbers([options.epochs], 'epoch')}, "
        f"{options.optimiser}, {rate}, {options.split} accuracy"
    )
