"""Results tables: pure functions of the parquet files that distillation, evaluation and analysis left behind.

Accuracies are fractions in every frame and csv, percent (as papers print them) in Markdown, LaTeX and the terminal.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas
from rich.console import Console
from rich.table import Table

from satm.config import FULL, TableOptions
from satm.errors import UsageError, pick
from satm.tables.reader import Reader
from satm.tables.render import Grid, csv_text, in_numbers, networks_in_words, write_forms
from satm.tables.statistics import pooled_deviations, student_interval
from satm.version import PACKAGE

PUBLISHED = {
    "table2": (("satm", "Table 2"), ("contra", "Table 1")),
    **{f"table{number}": (("satm", f"Table {number}"),) for number in (3, 4, 5, 9, 10, 11, 12)},
    **{f"ftd-table{number}": (("ftd", f"Table {number}"),) for number in (1, 2, 3, 4)},
    **{f"contra-table{number}": (("contra", f"Table {number}"),) for number in (1, 2, 3, 6, 8)},
    "contra-table4": (("contra", "Table 4 left"),),
    **{f"ratbptt-table{number}": (("ratbptt", f"Table {number}"),) for number in (1, 2)},
    "ratbptt-figure4": (("ratbptt", "Figure 4 (table)"),),
    "ratbptt-c7": (("ratbptt", "Appendix C.7 (text)"),),
}
"""Where a table's published numbers come from, as (source, table) of the data file. The first is the table itself; the
later ones only fill in for methods that are measured and that it does not print (`random` in Table 2)."""

COLUMNS = {
    "dataset": "str",
    "ipc": "int64",
    "network": "str",
    "method": "str",
    "accuracy_mean": "float64",
    "accuracy_std": "float64",
    "n": "Int64",
    "diverged": "Int64",
    "selection": "object",
    "average": "object",
    "split": "object",
    "step_size": "object",
    "published_mean": "float64",
    "published_std": "float64",
    "published_network": "object",
    "published_source": "object",
    "difference": "float64",
    "seconds": "float64",
    "peak_memory_bytes": "Int64",
}
"""Columns of a results table; capital letters mark the types that can be missing."""

PAIRED_COLUMNS = (
    "dataset",
    "ipc",
    "network",
    "quantity",
    "method",
    "reference",
    "method_mean",
    "reference_mean",
    "difference",
    "low",
    "high",
    "n",
    "over",
    "pooled_deviations",
)

WIDE = "convnet-wide"
"""Network, in the data file, of published numbers that are of a wider ConvNet than the others."""

ALL = 0
"""Stands for the number of images per class where networks are trained on all real images."""


@functools.cache
def load_published() -> pandas.DataFrame:
    """Return the published numbers: source, table, task, dataset, ipc, method, eval_arch, metric, value, std, note.

    Values are as printed, accuracies in percent. A missing value is illegible; a missing std or ipc was not printed.
    """
    return pandas.read_csv(PACKAGE / "tables" / "published_results.csv")


def published_name(dataset: str) -> str:
    """Return the name, in the data file, of the images of a dataset, however they are prepared."""
    return dataset.removesuffix("-standardised")


def results_table(reader: Reader, name: str) -> pandas.DataFrame:
    """Return one row per dataset, ipc, network and method of a table.

    In a cell the methods that are only published come first. After the last ipc of a dataset come the networks trained
    on all real images (`full`), at ipc `ALL`. Published numbers of a wider ConvNet have cells of their own.

    Columns: accuracy_mean, accuracy_std (sample standard deviation) and n over the networks of all seeds and repeats
    that did not diverge, on the images that `split` names; diverged, how many did; selection, which iteration of the
    synthetic set was tested; average, `ema` where the set is a moving average over the iterations, else `raw`;
    step_size, whether that of the tested networks is
    learned with the set, searched or fixed (several joined by `+`); published_mean and published_std (of test images),
    published_network that they are of, published_source, the table that prints them; difference, accuracy_mean minus
    published_mean; seconds of one distillation, mean over the seeds; peak_memory_bytes, the largest of any. Accuracies
    are fractions. What does not exist is missing. Where sets are averaged, the row of the averages, which stands for
    the method, is followed by one of the raw sets, whose published numbers are those of the method without averages.

    Raises:
        UsageError: no such table; a file that it needs is missing (the text has the command that makes it), broken, or
            of another run.
    """
    options = _options(reader, name)
    rows: list[dict[str, object]] = []
    for dataset, ipcs in options.datasets.items():
        for ipc in ipcs:
            for network in options.networks:
                rows += _cell_rows(reader, name, options, dataset, ipc, network)
            if WIDE not in options.networks:
                rows += _wide_rows(name, options, dataset, ipc)
        for network in options.networks:
            rows += _full_rows(reader, name, options, dataset, network)
    frame = pandas.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    return frame.assign(difference=frame["accuracy_mean"] - frame["published_mean"])


def paired_table(reader: Reader, name: str) -> pandas.DataFrame:
    """Return how much a method differs from another one, paired, with a 95 % interval (Student's t).

    The methods compared are the pairs of the table's options: `compare`, and of `sharpness` the first against each
    other one; without both satm against mtt where the table has them. One row per dataset, ipc, network, quantity and
    pair. Quantities: accuracy (fraction, images of the table's split) and, where `sharpness` is set, sharpness (of the
    outer loss; smaller is flatter), once for all networks. Pairs are the seeds of the distillation, each the mean over
    its networks or segments; with one seed they are the networks or the segments themselves, so that the interval does
    not cover the choice of the seed. `over` says which. low and high are missing with a single pair. Of averaged sets
    the averages are compared. pooled_deviations is the difference of the means over all networks or segments in pooled
    standard deviations (`satm.tables.statistics`).

    Raises:
        UsageError: no such table; a file that it needs is missing, broken, or of another run; pairs without a partner.
    """
    options = _options(reader, name)
    rows: list[dict[str, object]] = []
    for dataset, ipc, network in _cells(options):
        for method, reference in options.pairs:
            both = {method, reference}
            pair = {"dataset": dataset, "ipc": ipc, "network": network, "method": method, "reference": reference}
            compared = []
            if both <= set(options.tested_with(network)):
                compared.append(partial(_accuracies, reader, options, dataset, ipc, network, method, reference))
            if both <= set(options.sharpness) and network == options.networks[0]:
                compared.append(partial(_sharpnesses, reader, options, dataset, ipc, method, reference))
            told = [reader.attempt(compare) for compare in compared]
            rows += [{**pair, **found} for found in told if found is not None]
    return pandas.DataFrame(rows, columns=list(PAIRED_COLUMNS))


def write_table(reader: Reader, name: str) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Write a table as csv, md, tex and html and its paired comparison as `NAME-paired.csv`; return both frames.

    Raises:
        UsageError: as `results_table` and `paired_table`.
        RunError: the disk is full or the folder cannot be written.
    """
    frame, paired = results_table(reader, name), paired_table(reader, name)
    layout = reader.resolver.layout
    grid = results_grid(frame, name, _notes(reader, name, frame))
    write_forms(layout, f"{name}-paired", csv=csv_text(paired))
    write_forms(layout, name, csv=csv_text(frame), md=grid.markdown(), tex=grid.latex(), html=grid.page())
    return frame, paired


def results_grid(frame: pandas.DataFrame, title: str = "", notes: Sequence[str] = ()) -> Grid:
    """Return a results table in the paper's layout, percent: datasets, ipc, networks down, methods across.

    Bold is the best of a row among the published numbers and among the measured ones of one selection; networks trained
    on all real images are left out of that.
    """
    columns, names = _columns(frame), _row_names(frame)
    lines = [[*place[: len(names)], *texts] for *place, texts in _lines(frame, columns)]
    header = [*names, *(f"{method} (published)" if kind else method for kind, method in columns)]
    return Grid(title, header, lines, names, notes)


def show_table(console: Console, frame: pandas.DataFrame, paired: pandas.DataFrame) -> None:
    """Print a results table and its paired comparison, accuracies in percent."""
    results = Table(title=f"{' and '.join(sorted(set(frame['split'].dropna())))} accuracy, percent".capitalize())
    texts = ("dataset", "network", "method", "selection", "step size")
    for column in (*texts[:1], "ipc", *texts[1:3], "accuracy", "n", *texts[3:], "published", "seconds", "peak MiB"):
        results.add_column(column, justify="left" if column in texts else "right")
    for name, row in zip(_names(frame), frame.to_dict("records"), strict=True):
        memory = row["peak_memory_bytes"]
        results.add_row(
            row["dataset"],
            str(row["ipc"]),
            row["network"],
            name,
            percent(row["accuracy_mean"], row["accuracy_std"]),
            "" if pandas.isna(row["n"]) else str(row["n"]),
            "" if pandas.isna(row["selection"]) else row["selection"],
            "" if pandas.isna(row["step_size"]) else row["step_size"],
            percent(row["published_mean"], row["published_std"]) + _mark(row, True),
            "" if pandas.isna(row["seconds"]) else f"{row['seconds']:.0f}",
            "" if pandas.isna(memory) else f"{memory / 2**20:.0f}",
        )
    console.print(results)
    if paired.empty:
        return
    differences = Table(title="Paired differences with 95 % intervals (accuracy in percent)")
    for column in ("dataset", "ipc", "network", "quantity", "difference", "interval", "means", "n", "over"):
        differences.add_column(column)
    for row in paired.to_dict("records"):
        scale, digits = (100, 2) if row["quantity"] == "accuracy" else (1, 4)
        names = ("difference", "low", "high", "method_mean", "reference_mean")
        difference, low, high, mine, other = (f"{scale * row[name]:.{digits}f}" for name in names)
        differences.add_row(
            row["dataset"],
            str(row["ipc"]),
            row["network"],
            row["quantity"],
            f"{row['method']} - {row['reference']}: {difference}",
            f"{low} to {high}",
            f"{mine}, {other}",
            str(row["n"]),
            row["over"],
        )
    console.print(differences)


def _options(reader: Reader, name: str) -> TableOptions:
    return pick(
        name, reader.resolver.campaign.tables, f"results table in {reader.resolver.path or 'the built-in campaign'}"
    )


def _cells(options: TableOptions) -> list[tuple[str, int, str]]:
    return [
        (dataset, ipc, network)
        for dataset, ipcs in options.datasets.items()
        for ipc in ipcs
        for network in options.networks
    ]


def _cell_rows(
    reader: Reader, name: str, options: TableOptions, dataset: str, ipc: int, network: str
) -> list[dict[str, object]]:
    """Return the rows of one cell: methods that are only published, then those of the table."""
    published = _published(name, dataset, ipc, network, options) if options.split == "test" else {}
    cell = {"dataset": dataset, "ipc": ipc, "network": network}
    rows: list[dict[str, object]] = []
    for one in options.tested_with(network):
        named = options.published_as.get(one, one)
        main, *beside = reader.attempt(partial(_measured, reader, options, dataset, ipc, network, one)) or [{}]
        rows.append({**cell, "method": one, **main, **published.pop(named, {})})
        rows += [{**cell, "method": one, **raw, **published.pop(f"{named}{RAW}", {})} for raw in beside]
    return [{**cell, "method": one, **values} for one, values in published.items()] + rows


def _wide_rows(name: str, options: TableOptions, dataset: str, ipc: int) -> list[dict[str, object]]:
    """Return the rows of a cell of published numbers of a wider ConvNet that the table's own source prints."""
    if options.split != "test" or "convnet" not in options.networks:
        return []
    cell = {"dataset": dataset, "ipc": ipc, "network": WIDE}
    values = {row["method"]: _values(row) for row in _own(name, dataset, ipc, WIDE).to_dict("records")}
    return [{**cell, "method": method, **held} for method, held in values.items()]


def _full_rows(reader: Reader, name: str, options: TableOptions, dataset: str, network: str) -> list[dict[str, object]]:
    """Return the rows of networks trained on all real images; the first recipe stands beside the published number."""
    printed = [_values(row) for row in _own(name, dataset, ALL, network).to_dict("records")]
    published = printed[0] if printed and options.split == "test" else {}
    cell = {"dataset": dataset, "ipc": ALL, "network": network}
    if published and not options.full:
        return [{**cell, "method": "full", **published}]
    rows: list[dict[str, object]] = []
    for recipe in options.full:
        full = reader.attempt(partial(_full, reader, options, dataset, network, recipe)) or {}
        rows.append({**cell, "method": f"full-{recipe}", **full, **({} if rows else published)})
    return rows


RAW = "-no-ema"
"""Ends the name, in the data file, of a method whose sets are not averaged although they are by default."""


def _own(name: str, dataset: str, ipc: int, network: str) -> pandas.DataFrame:
    """Return the published accuracies of one cell of the table's own source, those that are legible."""
    frame = load_published()
    places = PUBLISHED.get(name)
    if places is None:
        return frame.iloc[:0]
    source, table = places[0]
    kept = frame["source"].eq(source) & frame["table"].eq(table) & frame["metric"].eq("test_accuracy")
    kept &= frame["dataset"].eq(published_name(dataset)) & frame["eval_arch"].eq(network) & frame["value"].notna()
    return frame[kept & (frame["ipc"].isna() if ipc == ALL else frame["ipc"].eq(ipc))]


def _values(row: Mapping[Any, Any]) -> dict[str, object]:
    return {
        "published_mean": row["value"] / 100,
        "published_std": row["std"] / 100,
        "published_network": row["eval_arch"],
        "published_source": f"{row['source']} {row['table']}",
    }


def _published(name: str, dataset: str, ipc: int, network: str, options: TableOptions) -> dict[str, dict[str, object]]:
    """Return what is published by method, as fractions, in the paper's order; methods asked for by name come last.

    Numbers of a wide network stand only for methods asked for by name that have no other in this cell.
    """
    frame = load_published()
    shown = ["convnet", WIDE] if network == "convnet" else [network]
    frame = frame[(frame["metric"] == "test_accuracy") & frame["eval_arch"].isin(shown)]
    for method in options.published:
        pick(method, dict.fromkeys(frame["method"]), f"method with published numbers in table {name}")
    dataset = published_name(dataset)
    frame = frame[(frame["dataset"] == dataset) & (frame["ipc"] == ipc) & frame["value"].notna()]
    known = {place: rank for rank, place in enumerate(PUBLISHED.get(name, ()))}
    ranks = [known.get(place, len(known)) for place in zip(frame["source"], frame["table"], strict=True)]
    frame = frame.assign(rank=ranks, wide=frame["eval_arch"] == WIDE, aside=frame["task"] != "in-domain")
    own: dict[str, dict[str, object]] = {}
    asked: dict[str, dict[str, object]] = {}
    for row in frame.sort_values(["wide", "rank", "aside"], kind="stable").to_dict("records"):
        method, rank, values = row["method"], row["rank"], _values(row)
        other = row["wide"] and network != WIDE
        if rank < len(known) and not other and (rank == 0 or method in options.methods):
            own.setdefault(method, values)
        asked.setdefault(method, values)
    return {**own, **{method: asked[method] for method in options.published if method in asked and method not in own}}


def _evaluations(
    reader: Reader, options: TableOptions, dataset: str, ipc: int, network: str, method: str
) -> list[pandas.DataFrame]:
    """Return the rows of one cell on the images that the table is about, all seeds; of averages first, then of raw."""
    found = []
    for cell in options.cells_of(dataset, ipc, method):
        frame = reader.evaluation(cell, network)
        frame = frame[frame["split"] == options.split]
        if frame.empty:
            path = reader.resolver.layout.evaluation(cell, network)
            raise UsageError(f"evaluation {path} has no accuracies on {options.split} images; make it again")
        found.append(frame)
    rows = pandas.concat(found, ignore_index=True)
    if len(kinds := sorted(set(rows["selection"]))) > 1:
        raise UsageError(
            f"the evaluations of {method} on {dataset}, ipc {ipc}, mix the selections {', '.join(kinds)}, "
            "which are not comparable; make them again with one"
        )
    averages = [sorted(set(frame["average"])) for frame in found]
    if any(kinds != averages[0] for kinds in averages):
        raise UsageError(
            f"the evaluations of {method} on {dataset}, ipc {ipc}, are of averaged sets at some seeds and only of raw "
            "ones at others, which are not comparable; make them again with one"
        )
    return [rows[rows["average"] == average] for average in averages[0]]


def _accuracies(
    reader: Reader, options: TableOptions, dataset: str, ipc: int, network: str, method: str, reference: str
) -> dict[str, object]:
    """Return how two methods differ in accuracy."""
    one, two = (_evaluations(reader, options, dataset, ipc, network, each)[0] for each in (method, reference))
    return {"quantity": "accuracy", **_paired(one, two, "accuracy", "repeat")}


def _sharpnesses(
    reader: Reader, options: TableOptions, dataset: str, ipc: int, method: str, reference: str
) -> dict[str, object]:
    """Return how two methods differ in sharpness."""
    one, two = (reader.analysis("sharpness", options.cells_of(dataset, ipc, each)) for each in (method, reference))
    return {"quantity": "sharpness", **_paired(one, two, "sharpness", "segment")}


def _measured(
    reader: Reader, options: TableOptions, dataset: str, ipc: int, network: str, method: str
) -> list[dict[str, object]]:
    """Return what was measured in one cell; of averages first, then of raw sets."""
    evaluations = _evaluations(reader, options, dataset, ipc, network, method)
    seconds, memory = [], []
    for cell in options.cells_of(dataset, ipc, method):
        metrics = reader.metrics(cell)
        seconds.append(float(metrics["seconds"].sum()))
        memory += metrics["peak_memory_bytes"].tolist()
    cost = {"seconds": sum(seconds) / len(seconds), "peak_memory_bytes": max(memory, default=None)}
    return [{**_summary(rows, options), **cost} for rows in evaluations]


def _full(reader: Reader, options: TableOptions, dataset: str, network: str, recipe: str) -> dict[str, object]:
    """Return what networks trained on all real images reach; the cost is that of one such training."""
    rows = reader.full(dataset, recipe, network)
    cost = {"seconds": rows["seconds"].mean(), "peak_memory_bytes": rows["peak_memory_bytes"].max()}
    return {"method": f"full-{recipe}", **_summary(rows, options), **cost}


def _summary(rows: pandas.DataFrame, options: TableOptions) -> dict[str, object]:
    return {
        "accuracy_mean": rows["accuracy"].mean(),
        "accuracy_std": rows["accuracy"].std(),
        "n": int(rows["accuracy"].notna().sum()),
        "diverged": int(rows["accuracy"].isna().sum()),
        "selection": rows["selection"].iloc[0],
        "average": rows["average"].iloc[0],
        "split": options.split,
        "step_size": "+".join(sorted(set(rows["step_size"]) - {""})) or None,
    }


def _paired(one: pandas.DataFrame, two: pandas.DataFrame, value: str, inner: str) -> dict[str, object]:
    """Return the mean difference one - two with its interval; pairs are seeds, or with one seed `inner`."""
    key = "seed" if one["seed"].nunique() > 1 else inner
    first, second = (frame.groupby(key)[value].mean() for frame in (one, two))
    if not first.index.equals(second.index):
        raise UsageError(
            f"the methods compared have different {key}s ({list(first.index)} and {list(second.index)}), so their "
            f"{value} cannot be paired; make both with the same options"
        )
    differences = first - second
    mean, low, high = student_interval(differences.tolist())
    return {
        "method_mean": float(first.mean()),
        "reference_mean": float(second.mean()),
        "difference": mean,
        "low": low,
        "high": high,
        "n": len(differences),
        "over": "seeds" if key == "seed" else f"{inner}s of one seed",
        "pooled_deviations": pooled_deviations(*(frame[value].dropna().tolist() for frame in (one, two))),
    }


def _names(frame: pandas.DataFrame) -> list[str]:
    """Return the method of each row, with `, raw` where the same cell has a row of averages too."""
    records = frame.to_dict("records")
    cells = [(row["dataset"], row["ipc"], row["network"], row["method"]) for row in records]
    averaged = {cell for cell, row in zip(cells, records, strict=True) if row["average"] == "ema"}
    return [
        f"{row['method']}, raw" if cell in averaged and row["average"] == "raw" else str(row["method"])
        for cell, row in zip(cells, records, strict=True)
    ]


def _columns(frame: pandas.DataFrame) -> list[tuple[bool, str]]:
    """Return (whether published, name) of each column of the paper's layout."""
    found = []
    names = pandas.Series(_names(frame), index=frame.index)
    for published, column in ((True, "published_mean"), (False, "accuracy_mean")):
        shown = frame[column].notna() if published else frame[column].notna() | (frame["diverged"] > 0).fillna(False)
        found += [(published, str(name)) for name in dict.fromkeys(names[shown])]
    return found


def _lines(frame: pandas.DataFrame, columns: Sequence[tuple[bool, str]]) -> list[tuple[str, str, str, list[str]]]:
    """Return dataset (empty where it repeats), ipc, network and the cells of each row, the best ones in bold."""
    records = zip(_names(frame), frame.to_dict("records"), strict=True)
    held = {(row["dataset"], row["ipc"], row["network"], name): row for name, row in records}
    found: list[tuple[str, str, str, list[str]]] = []
    last = None
    for dataset, ipc, network in dict.fromkeys(place[:3] for place in held):
        shown: list[tuple[float, str, str]] = []
        for published, method in columns:
            kind = "published" if published else "accuracy"
            row = held.get((dataset, ipc, network, method), {})
            mean, std = row.get(f"{kind}_mean", math.nan), row.get(f"{kind}_std", math.nan)
            rivals = row.get("published_network") if published else f"selection {row.get('selection')}"
            lost = row.get("diverged", 0)
            if not published and math.isnan(mean) and pandas.notna(lost) and lost > 0:
                shown.append((math.nan, str(rivals), "diverged"))
                continue
            mark = "" if math.isnan(mean) else _mark(row, published)
            shown.append((round(100 * mean, 1), str(rivals), f"{percent(mean, std)}{mark}" or "-"))
        cells = []
        for mean, rivals, text in shown:
            means = [other for other, kind, _ in shown if kind == rivals and not math.isnan(other)]
            cells.append(f"**{text}**" if len(means) > 1 and mean == max(means) else text)
        found.append(("" if dataset == last else dataset, "all" if ipc == ALL else str(ipc), network, cells))
        last = dataset
    return found


def _row_names(frame: pandas.DataFrame) -> list[str]:
    """Return the headings in front of the cells; the network's only where there are several."""
    return ["dataset", "IPC", *(["network"] if frame["network"].nunique() > 1 else [])]


def _mark(row: Mapping[Any, Any], published: bool) -> str:
    """Return what is said of a number that is not to be compared with the others without a thought."""
    if published:
        return " [wide]" if row.get("published_network") == WIDE != row.get("network") else ""
    lost = row.get("diverged", 0)
    some = f" [{lost} diverged]" if pandas.notna(lost) and lost > 0 else ""
    return some if row["selection"] == "last" else f"{some} [{row['selection']}]"


def percent(mean: float, std: float) -> str:
    """Return a fraction in percent with its deviation, where there is one; an empty text where it is missing."""
    if pandas.isna(mean):
        return ""
    return f"{100 * mean:.1f}" if pandas.isna(std) else f"{100 * mean:.1f} ± {100 * std:.1f}"


def _notes(reader: Reader, name: str, frame: pandas.DataFrame) -> list[str]:
    options = _options(reader, name)
    networks = in_numbers(frame["n"].dropna(), "network")
    several = len(options.datasets) > 1
    described = {
        f"{network} on {dataset}" if several else network: reader.resolver.network(network, dataset)
        for network in options.networks
        for dataset in options.datasets
    }
    notes = [
        f"{options.split.capitalize()} accuracy in percent, mean ± sample standard deviation over {networks}, "
        f"all seeds of the distillation together. Network: {networks_in_words(described)}. Bold: the best of a row "
        "among the published numbers, and among the measured ones of one selection."
    ]
    printed = frame[frame["published_mean"].notna()]
    if set(printed["method"]) - set(options.published):
        sources = ", ".join(f"{source} {table}" for source, table in PUBLISHED[name])
        notes.append(
            f"Published: {sources} (the later ones for measured methods that the first does not print), with a ConvNet "
            "of width 128. A difference says little where the network, the epochs or the iterations are fewer."
        )
    for source, rows in printed[printed["method"].isin(options.published)].groupby("published_source", sort=False):
        notes.append(f"{', '.join(dict.fromkeys(rows['method']))}: published in {source}, not measured here.")
    if ((printed["published_network"] == WIDE) & (printed["network"] != WIDE)).any():
        notes.append("[wide]: published for a wider ConvNet, and not compared with the others.")
    if averaged := list(dict.fromkeys(frame.loc[frame["average"] == "ema", "method"])):
        notes.append(
            f"{', '.join(averaged)}: exponential moving averages over the iterations; beside them, as `raw`, the sets "
            "of the iteration itself."
        )
    notes += [*_step_sizes(frame), *reader.notes]
    if options.full:
        recipes = "; ".join(f"full-{recipe}: {FULL[recipe]}" for recipe in options.full)
        notes.append(f"IPC all: trained on all real images, as the campaign may change it: {recipes}.")
    marks = sorted(set(frame["selection"].dropna()) - {"last"})
    notes += [
        f"[{mark}]: the synthetic set of the iteration that was best on {mark} images, not the last." for mark in marks
    ]
    return notes


def _step_sizes(frame: pandas.DataFrame) -> list[str]:
    """Say where the step sizes of the tested networks come from, unless all were learned with their sets."""
    told = frame[frame["accuracy_mean"].notna() & ~frame["method"].str.startswith("full-")]
    if told["step_size"].isna().any() or set(told["step_size"]) <= {"learned"}:  # files of earlier versions do not say
        return []
    parts = []
    for kind, rows in told.groupby("step_size"):
        where = rows.groupby("network", sort=False)["method"].agg(lambda names: ", ".join(dict.fromkeys(names)))
        parts.append(f"{kind} - " + "; ".join(f"{network}: {names}" for network, names in where.items()))
    return [f"Step size of the tested networks: {'. '.join(parts)}."]
