"""Tables of architecture searches: rank correlations of synthetic sets, beside the published numbers."""

import math
from collections.abc import Sequence
from itertools import product
from math import nan
from typing import Literal, Self

import pandas
from pydantic import model_validator

from satm.config import CANDIDATES, TABLES, CandidateOptions, Cell, Layout, SearchOptions, refuse_many
from satm.evaluation.search import TOPS, candidates, mean_accuracies, rank
from satm.results.columns import NAS
from satm.tables.base import Number, Row, TableKind
from satm.tables.published import printed, source_of
from satm.tables.reader import Reader, refuse_repeats
from satm.tables.render import Grid, in_numbers, number, percent, text_of

METRICS = {f"spearman_{top}": f"spearman_{top}" for top in TOPS}
METRICS |= {"selected_accuracy": "nas_best_model_accuracy", "minutes": "search_time_min"}
"""Columns that have published numbers, and the metric in the data file."""

REAL = Cell("", 0, "real")
"""Used in place of a synthetic set: the candidates are trained on all real images of a dataset."""


@TABLES.named("search")
class SearchTable(SearchOptions, TableKind):
    """An architecture search with synthetic sets in place of the real images, and its table.

    Columns: seeds, number of synthetic sets; candidates, number of ranked networks; spearman_…, rank correlation of the
    accuracies after training on the set and on the real images, over the best candidates or all
    (`satm.evaluation.search.TOPS`), mean and sample standard deviation over the sets; selected_accuracy, accuracy after
    training on the real images of the candidate that is best by the set, mean and deviation likewise; best_accuracy,
    that of the best candidate; selected, the options of the selected candidate in the order of
    `satm.evaluation.search.SPACE`, with several sets each different one; proxy_minutes, time on one set, and
    real_minutes on the real images, which alone select in the row `real`; published_…, if a paper has this search. A
    candidate's accuracy is the mean over its networks. Unknown values are missing.
    """

    kind: Literal["search"] = "search"
    """An architecture search."""
    top_by: Literal["real", "proxy"] = "real"
    """Accuracies that determine the best 5, 10 and 20 candidates, over which ranks are correlated."""

    columns = {
        **{"dataset": "str", "ipc": "int64", "method": "str", "seeds": "Int64", "candidates": "Int64"},
        **{f"spearman_{top}{kind}": "float64" for top in TOPS for kind in ("", "_std")},
        **dict.fromkeys(("selected_accuracy", "selected_accuracy_std", "best_accuracy"), "float64"),
        **{"selected": "object", "proxy_minutes": "float64", "real_minutes": "float64"},
        **{f"published_{column}": "float64" for column in METRICS},
        "published_source": "object",
    }

    @model_validator(mode="after")
    def _has_not_too_many_files(self) -> Self:
        refuse_many(math.ceil((self.sample or CANDIDATES) / self.per_job) * (len(self.cells()) + len(self.datasets)))
        return self

    def files(self, layout: Layout, name: str) -> list[str]:
        """Return the accuracies of the candidates on all sets and on the real images."""
        return [
            *(layout.nas(cell, name, part) for cell in self.cells() for part in self.parts()),
            *(layout.nas_real(dataset, name, part) for dataset in self.datasets for part in self.parts()),
        ]

    def size(self) -> dict[str, object]:
        """Return the number of candidates, their width and their training."""
        return {
            **{"candidates": self.sample, "times the width of candidates": self.width_factor},
            **{"epochs on proxy images": self.proxy.epochs, "networks on proxy images": self.proxy.repeats},
            **{"epochs on real images": self.real.epochs, "networks on real images": self.real.repeats},
        }

    def rows(self, reader: Reader, name: str) -> list[Row]:
        """Return one row per dataset, ipc and method, and a row `real` (ipc 0) of each dataset."""
        rows: list[Row] = []
        for dataset, ipcs in self.datasets.items():
            on_real = reader.attempt(self._runs, reader, name, [REAL._replace(dataset=dataset)])
            for ipc, method in product(ipcs, self.methods):
                on_sets = reader.attempt(self._runs, reader, name, self.cells_of(dataset, ipc, method))
                rows.append(self._row(name, Cell(dataset, ipc, method), on_sets, on_real))
            rows.append(self._row(name, REAL._replace(dataset=dataset), on_real, on_real))
        return rows

    def _runs(self, reader: Reader, name: str, cells: Sequence[Cell]) -> list[pandas.DataFrame]:
        """Return the rows of all parts on each synthetic set, or on the real images (`REAL`)."""
        layout, runs = reader.resolver.layout, []
        for cell in cells:
            frames = {}
            for part in self.parts():
                path = layout.nas(cell, name, part) if cell.ipc else layout.nas_real(cell.dataset, name, part)
                names = {**(cell.axes if cell.ipc else {"dataset": cell.dataset}), "search": name, "part": part}
                fixed = {} if cell.ipc else {"ipc": cell.ipc, "method": cell.method}
                frames[path], _ = reader.run("nas" if cell.ipc else "nas_real", NAS, names, fixed)
            refuse_repeats(frames, NAS)
            runs.append(pandas.concat(frames.values(), ignore_index=True))
        return runs

    def _row(
        self, name: str, cell: Cell, sets: Sequence[pandas.DataFrame] | None, real: Sequence[pandas.DataFrame] | None
    ) -> Row:
        """Return a row from the ranking by each set; only published numbers if results are missing."""
        row = {"dataset": cell.dataset, "ipc": cell.ipc, "method": cell.method, **_published(name, cell)}
        if sets is None or real is None:
            return row
        # Refuses sets and real images of different candidates.
        rankings = [rank(mean_accuracies(rows), mean_accuracies(real[0]), self.top_by) for rows in sets]
        minutes = [float(rows["seconds"].sum()) / 60 for rows in (*real, *sets)]
        measured = {f"spearman_{top}": pandas.Series([one.spearman[top] for one in rankings]) for top in TOPS}
        measured["selected_accuracy"] = pandas.Series([one.selected_accuracy for one in rankings])
        networks = candidates(self.width_factor)
        return {
            **row,
            **{"seeds": len(rankings), "candidates": rankings[0].candidates},
            **{column: values.mean(skipna=False) for column, values in measured.items()},
            **{f"{column}_std": values.std(skipna=False) for column, values in measured.items()},
            "best_accuracy": rankings[0].best_accuracy,
            "selected": ", ".join(dict.fromkeys(str(networks[one.selected]) for one in rankings)),
            "proxy_minutes": sum(minutes[1:]) / len(sets) if cell.ipc else nan,
            "real_minutes": minutes[0],
        }

    def grid(self, reader: Reader, name: str, frame: pandas.DataFrame) -> Grid:
        """Return the numbers as texts, with columns of published numbers if there are any."""
        frame = frame.assign(minutes=frame["proxy_minutes"].fillna(frame["real_minutes"]))
        headings = {f"spearman_{top}": top.replace("top", "top ") for top in TOPS}
        headings |= {"selected_accuracy": "selected", "minutes": "minutes"}
        published = [column for column in METRICS if frame[f"published_{column}"].notna().any()]
        head = ["dataset", "IPC", "method"]
        for column, heading in headings.items():
            head += [heading, f"{heading} (published)"] if column in published else [heading]
        lines = []
        for row in frame.to_dict("records"):
            cells = [row["dataset"], "all" if row["ipc"] == 0 else str(row["ipc"]), row["method"]]
            for column in headings:
                cells.append(_text(column, row[column], row.get(f"{column}_std", nan)))
                if column in published:
                    cells.append(_text(column, row[f"published_{column}"], nan))
            lines.append([*cells, percent(row["best_accuracy"]), text_of(row["candidates"]), text_of(row["selected"])])
        title = "Architecture search: rank correlations; accuracies in percent"
        head += ["best", "candidates", "selected network"]
        return Grid(title, head, lines, (*head[:3], head[-1]), [*self._notes(frame), *reader.notes])

    def numbers(self, frame: pandas.DataFrame) -> Sequence[Number]:
        """Return the numbers of the synthetic sets that have published ones."""
        records = frame[frame["ipc"] > 0].assign(minutes=frame["proxy_minutes"]).to_dict("records")
        return [(row[column], row[f"published_{column}"], nan) for row in records for column in METRICS]

    def _notes(self, frame: pandas.DataFrame) -> list[str]:
        sets = in_numbers(frame.loc[frame["ipc"] > 0, "seeds"].dropna(), "synthetic set")
        counts = " or ".join(map(str, sorted(set(frame["candidates"].dropna())))) or "0"
        whose = "the real images" if self.top_by == "real" else "the synthetic set"
        notes = [
            f"Spearman's rank correlation of the accuracies of {counts} of {CANDIDATES} ConvNets after training on a "
            "synthetic set and after training on all real images (row `real`: with itself), over the best 5, 10 and 20 "
            f"by {whose}, and over all; mean ± sample standard deviation over {sets}. Empty: fewer candidates, "
            "or all of equal accuracy.",
            "selected: accuracy in percent, after training on the real images, of the candidate that is best by the "
            "set; best: of the best one there. minutes: of training and testing all candidates, one after another. "
            "selected network: width, depth, norm, activation, pooling.",
            *([f"Widths are {self.width_factor:g} times the papers'."] if self.width_factor != 1 else []),
            f"On synthetic sets: {_recipe(self.proxy)}. On real images: {_recipe(self.real)}.",
        ]
        if source := next(iter(frame["published_source"].dropna()), None):
            notes.append(
                f"Published: {source}, over all {CANDIDATES} candidates; optimiser and step size are not given there."
            )
        return notes


def _published(name: str, cell: Cell) -> Row:
    """Return the published numbers of a row by column; empty if there are none."""
    frame = printed(name, cell.dataset)
    own = frame["method"].eq(cell.method) & frame["ipc"].eq(cell.ipc) if cell.ipc else frame["method"].eq("full")
    values = dict(zip(frame.loc[own, "metric"], frame.loc[own, "value"], strict=True))
    if METRICS["selected_accuracy"] in values:
        values[METRICS["selected_accuracy"]] /= 100
    known = {f"published_{column}": values[metric] for column, metric in METRICS.items() if metric in values}
    return {**known, "published_source": source_of(name)} if known else {}


def _text(column: str, mean: float, std: float) -> str:
    """Return a number of a column: percent, a correlation or minutes."""
    if column == "selected_accuracy":
        return percent(mean, std)
    return number(mean, std, ".1f" if column == "minutes" else ".2f")


def _recipe(options: CandidateOptions) -> str:
    """Describe the training of the candidates."""
    rate = "the set's learned step size" if options.lr == "learned" else f"step size {options.lr:g}"
    return (
        f"{in_numbers([options.repeats], 'network')} of each candidate, {in_numbers([options.epochs], 'epoch')}, "
        f"{options.optimiser}, {rate}, {options.split} accuracy"
    )
