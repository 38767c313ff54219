"""Tables of accuracies of networks trained on synthetic sets, beside the published numbers."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain, product
from typing import Any, Literal

import pandas
from pydantic import Field, ValidationInfo, field_validator, model_validator

from satm.config import FULL, PAIRED, TABLES, Cell, Layout, OneOrMore, Options, Resolver, budgets
from satm.errors import UsageError, pick, suggest
from satm.results.columns import COST
from satm.tables.accuracy_grid import ALL, WATCHED, paired_grid, results_grid, rows_grid, step_size_notes
from satm.tables.base import Row, TableKind, beside_published
from satm.tables.published import PUBLISHED, WIDE, load_published, printed, published_name
from satm.tables.reader import Reader
from satm.tables.render import Contents, Grid, in_numbers, networks_in_words
from satm.tables.statistics import PAIRED_COLUMNS, paired
from satm.workflow.asked import trained_network

RAW = "-no-ema"
"""Suffix, in the data file, of a method whose sets are averaged by default and here are not."""


class Prepared(Options):
    """Datasets on which some methods of a table are tested in place of those of its rows."""

    method: OneOrMore[str]
    """Methods of the table."""
    ipc: OneOrMore[int] = ()
    """Images per class; empty: all."""
    dataset: dict[str, str] = Field(min_length=1)
    """The dataset with other preparation, a variant (`variant_of`), by the dataset of the table."""


@TABLES.named("accuracy")
class AccuracyTable(TableKind):
    """The cells of one results table.

    In a cell the methods that are only published come first. After the last ipc of a dataset come the networks trained
    on all real images (`full`), at ipc `ALL`. Published numbers of a wider ConvNet have separate cells.

    Columns: accuracy_mean, accuracy_std (sample standard deviation) and n over the networks of all seeds and repeats
    that did not diverge, on the images of `split`; diverged, the number that did; selection, the criterion by which the
    tested iteration of the synthetic set was chosen; average, `ema` if the set is a moving average over the iterations,
    else `raw`; step_size, whether that of the tested networks is learned with the set, searched or fixed (several
    joined by `+`); published_mean and published_std (on test images), published_network, published_source, the table
    that prints them; difference, accuracy_mean minus published_mean; watched_mean, the best accuracy on test images
    that a distillation recorded with this network (option `watch`), mean over the seeds; seconds of one distillation,
    mean over the seeds; peak_memory_bytes, the largest of any. Accuracies are fractions. Unknown values are missing. If
    sets are averaged, the row of the averages, which represents the method, is followed by one of the raw sets, whose
    published numbers are those of the method without averages.
    """

    kind: Literal["accuracy"] = "accuracy"
    """Accuracies of networks trained on the synthetic sets."""
    networks: tuple[str, ...] = Field(("convnet",), min_length=1)
    """Networks that are trained on the synthetic sets; with several the table has a row for each."""
    split: Literal["test", "validation"] = "test"
    """Real images on which accuracies are measured; `validation` for choosing options (set `split` in the stage
    evaluate too, and `validation` in the dataset)."""
    sharpness: tuple[str, ...] = ()
    """Methods whose sharpness is measured and compared, the first against each other one."""
    compare: tuple[tuple[str, str], ...] = ()
    """Pairs of methods whose paired difference in accuracy is shown with its interval; empty: satm and mtt, if the
    table has both."""
    full: tuple[Literal["experts", "strong"], ...] = ()
    """Recipes of the networks trained on all real images that are shown beside the sets (`FULL`)."""
    methods_on: dict[str, tuple[str, ...]] = {}
    """Methods that are tested with a network, by network; a network without an entry: all."""
    prepared: tuple[Prepared, ...] = ()
    """Datasets with the same images, prepared otherwise, for some methods; the later of two that fit counts."""
    published_as: dict[str, str] = {}
    """Names of methods in the published data, if they differ from those here."""
    published: tuple[str, ...] = ()
    """Methods, by their names in `satm/tables/published_results.csv`, that are shown with published numbers only,
    beside those that the paper's own table prints."""

    @field_validator("published")
    @classmethod
    def _only_published(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if value and info.data.get("split") == "validation":
            raise ValueError("published numbers are of test images, split is 'validation'; leave one of them out")
        for name in value:
            if name in info.data.get("methods", ()):
                beside = "which has its published numbers beside the measured ones"
                raise ValueError(f"methods names {name!r} too, {beside}; leave it out of published")
        return value

    columns = {
        **{"dataset": "str", "ipc": "int64", "network": "str", "method": "str"},
        **{"accuracy_mean": "float64", "accuracy_std": "float64", "n": "Int64", "diverged": "Int64"},
        **dict.fromkeys(("selection", "average", "split", "step_size"), "object"),
        **dict.fromkeys(("published_mean", "published_std"), "float64"),
        **dict.fromkeys(("published_network", "published_source"), "object"),
        **dict.fromkeys(("difference", "watched_mean", "seconds"), "float64"),
        "peak_memory_bytes": "Int64",
    }
    counted = ("accuracy_mean", "published_mean", "published_std")

    @model_validator(mode="after")
    def _knows_what_it_names(self) -> "AccuracyTable":
        named = {
            "published_as": self.published_as,
            "methods_on": chain(*self.methods_on.values()),
            "prepared": chain(*(other.method for other in self.prepared)),
            "sharpness": self.sharpness,
            "compare": chain(*self.compare),
        }
        for option, methods in named.items():
            for method in methods:
                if method not in self.methods:
                    hint = suggest(method, [*self.methods])
                    raise ValueError(f"{option} names {method!r}, which is not among methods; add it there.{hint}")
        for pair in self.compare:
            if pair[0] == pair[1]:
                raise ValueError(f"compare has {pair[0]!r} against itself; name two methods")
        for network in self.methods_on:
            if network not in self.networks:
                raise ValueError(f"methods_on names {network!r}, which is not among networks; add it there")
        return self

    def check(self, resolver: Resolver) -> None:
        """Raise a UsageError if a dataset in place of another has other images."""
        for name, other in chain(*(each.dataset.items() for each in self.prepared)):
            if (of := pick(other, resolver.datasets, "dataset").variant_of) != name:
                raise UsageError(f"prepared has {other} in place of {name}, but its variant_of is {of!r}; correct it")

    def cells_of(self, dataset: str, ipc: int, method: str) -> list[Cell]:
        """Return the distillations of all seeds, on the dataset as `prepared` for the method."""
        tested = dataset
        for other in self.prepared:
            if method in other.method and ipc in (other.ipc or (ipc,)):
                tested = other.dataset.get(dataset, tested)
        return super().cells_of(tested, ipc, method)

    def tested_with(self, network: str) -> tuple[str, ...]:
        """Return the methods that are tested with a network, in the table's order."""
        tested = self.methods_on.get(network, self.methods)
        return tuple(method for method in self.methods if method in tested)

    def files(self, layout: Layout, name: str) -> list[str]:
        """Return the evaluations and metrics of all distillations, their sharpness, and those of all real images."""
        return [
            *(layout.evaluation(cell, each) for each in self.networks for cell in self.cells(self.tested_with(each))),
            *(layout.metrics(cell) for cell in self.cells()),
            *(layout.analysis("sharpness", cell) for cell in self.cells(self.sharpness)),
            *(layout.full(*place) for place in product(self.datasets, self.full, self.networks)),
        ]

    def make(self, reader: Reader, name: str) -> Contents:
        """Return the contents of the table's files, including the paired comparison as `NAME-paired.csv` (`PAIRED`)."""
        frame, pairs = self.frame(reader, name), self.paired_frame(reader)
        shown = [rows_grid(frame), *([] if pairs.empty else [paired_grid(pairs)])]
        return Contents(frame, [self.grid(reader, name, frame)], beside={PAIRED: pairs}, shown=shown)

    def frame(self, reader: Reader, name: str) -> pandas.DataFrame:
        """Return one row per dataset, ipc, network and method."""
        frame = super().frame(reader, name)
        return frame.assign(difference=frame["accuracy_mean"] - frame["published_mean"])

    def rows(self, reader: Reader, name: str) -> list[Row]:
        """Return the rows without the differences."""
        rows: list[Row] = []
        for dataset, ipcs in self.datasets.items():
            for ipc in ipcs:
                for network in self.networks:
                    rows += self._cell_rows(reader, name, dataset, ipc, network)
                if self.split == "test" and "convnet" in self.networks and WIDE not in self.networks:
                    place = {"dataset": dataset, "ipc": ipc, "network": WIDE}
                    rows += beside_published(place, (), _own_numbers(name, dataset, ipc, WIDE))
            for network in self.networks:
                rows += self._full_rows(reader, name, dataset, network)
        return rows

    def paired_frame(self, reader: Reader) -> pandas.DataFrame:
        """Return the paired differences of methods, with a 95 % interval (`paired`).

        One row per dataset, ipc, network, quantity and pair: `compare`, then the first of `sharpness` with each other
        one. Quantities: accuracy (fraction, images of the table's split) and, if `sharpness` is set, sharpness (of the
        outer loss; smaller is flatter), once for all networks. For averaged sets the averages are compared.

        Raises:
            UsageError: a file that it needs is missing, broken, or of another run; pairs without a partner.
        """
        rows: list[Row] = []
        pairs = (*self.compare, *((self.sharpness[0], other) for other in self.sharpness[1:]))
        if not pairs and {"satm", "mtt"} <= set(self.methods):
            pairs = (("satm", "mtt"),)
        for (dataset, ipc), network, pair in product(budgets(self.datasets), self.networks, dict.fromkeys(pairs)):
            place = {"dataset": dataset, "ipc": ipc, "network": network, "method": pair[0], "reference": pair[1]}
            both = [self.cells_of(dataset, ipc, method) for method in pair]
            tested: list[str | None] = [network] if set(pair) <= set(self.tested_with(network)) else []
            if set(pair) <= set(self.sharpness) and network == self.networks[0]:
                tested.append(None)
            differences = [reader.attempt(self._difference, reader, both, each) for each in tested]
            rows += [{**place, **difference} for difference in differences if difference]
        return pandas.DataFrame(rows, columns=list(PAIRED_COLUMNS))

    def grid(self, reader: Reader, name: str, frame: pandas.DataFrame) -> Grid:
        """Return the accuracies in percent, in the paper's layout."""
        return results_grid(frame, name, self._notes(reader, name, frame))

    def _cell_rows(self, reader: Reader, name: str, dataset: str, ipc: int, network: str) -> list[Row]:
        """Return the rows of one cell: methods that are only published, then those of the table."""
        published = self._published(name, dataset, ipc, network) if self.split == "test" else {}
        place = {"dataset": dataset, "ipc": ipc, "network": network}
        measured: list[tuple[str, str, Row]] = []
        for method in self.tested_with(network):
            rows = reader.attempt(self._measured, reader, self.cells_of(dataset, ipc, method), network) or [{}]
            printed_as = self.published_as.get(method, method)
            measured += [(method, f"{printed_as}{RAW if index else ''}", row) for index, row in enumerate(rows)]
        return beside_published(place, measured, published)

    def _full_rows(self, reader: Reader, name: str, dataset: str, network: str) -> list[Row]:
        """Return the rows of networks trained on all real images; the first recipe beside the published number."""
        own = _own_numbers(name, dataset, ALL, network) if self.split == "test" else {}
        published = next(iter(own.values()), {})
        place = {"dataset": dataset, "ipc": ALL, "network": network}
        full = [reader.attempt(self._full, reader, dataset, network, recipe) or {} for recipe in self.full]
        measured = [(f"full-{recipe}", "" if index else "full", full[index]) for index, recipe in enumerate(self.full)]
        return beside_published(place, measured, {"full": published} if published else {})

    def _published(self, name: str, dataset: str, ipc: int, network: str) -> dict[str, Row]:
        """Return the published numbers by method, as fractions, in the paper's order; those of `published` come last.

        Numbers of a wide network are used only for methods of `published` that have no other in this cell.
        """
        frame = load_published()
        networks = ["convnet", WIDE] if network == "convnet" else [network]
        frame = frame[(frame["metric"] == "test_accuracy") & frame["eval_arch"].isin(networks)]
        for method in self.published:
            pick(method, dict.fromkeys(frame["method"]), "method with published numbers", f"table {name}")
        frame = frame[(frame["dataset"] == published_name(dataset)) & (frame["ipc"] == ipc) & frame["value"].notna()]
        known = {place: rank for rank, place in enumerate(PUBLISHED.get(name, ()))}
        ranks = [known.get(place, len(known)) for place in zip(frame["source"], frame["table"], strict=True)]
        frame = frame.assign(rank=ranks, wide=frame["eval_arch"] == WIDE, aside=frame["task"] != "in-domain")
        own: dict[str, Row] = {}
        every: dict[str, Row] = {}
        for row in frame.sort_values(["wide", "rank", "aside"], kind="stable").to_dict("records"):
            method, rank, values = row["method"], row["rank"], _values(row)
            if rank < len(known) and row["eval_arch"] == network and (rank == 0 or method in self.methods):
                own.setdefault(method, values)
            every.setdefault(method, values)
        return own | {method: every[method] for method in self.published if method in every and method not in own}

    def _measured(self, reader: Reader, cells: Sequence[Cell], network: str) -> list[Row]:
        """Return the measurements at the sets of all seeds: of averages first, then of raw sets."""
        evaluations = reader.accuracies(cells, network, self.split)
        runs = [reader.metrics(cell) for cell in cells]
        costs = pandas.concat([run[[*COST]] for run in runs])
        cost = {"seconds": costs["seconds"].sum() / len(cells), "peak_memory_bytes": costs["peak_memory_bytes"].max()}
        same = self.split == "test" and trained_network(reader.resolver, cells[0]) == network
        watched = {"watched_mean": _watched(runs)} if same else {}
        first, *raw = ({**_summary(rows, self.split), **cost} for rows in evaluations)
        return [{**first, **watched}, *raw]

    def _full(self, reader: Reader, dataset: str, network: str, recipe: str) -> Row:
        """Return the accuracy of networks trained on all real images, with the cost of one training."""
        rows = reader.full(dataset, recipe, network)
        cost = {"seconds": rows["seconds"].mean(), "peak_memory_bytes": rows["peak_memory_bytes"].max()}
        return {**_summary(rows, self.split), **cost}

    def _difference(self, reader: Reader, both: Sequence[Sequence[Cell]], network: str | None) -> Row:
        """Return the difference of two methods in accuracy, or without a network in sharpness."""
        if network is None:
            one, two = (reader.analysis("sharpness", cells) for cells in both)
            return {"quantity": "sharpness", **paired(one, two, "sharpness", "segment")}
        one, two = (reader.accuracies(cells, network, self.split)[0] for cells in both)
        return {"quantity": "accuracy", **paired(one, two, "accuracy", "repeat")}

    def _notes(self, reader: Reader, name: str, frame: pandas.DataFrame) -> list[str]:
        networks = in_numbers(frame["n"].dropna(), "network")
        described = {
            f"{network} on {dataset}" if len(self.datasets) > 1 else network: reader.resolver.network(network, dataset)
            for network, dataset in product(self.networks, self.datasets)
        }
        notes = [
            f"{self.split.capitalize()} accuracy in percent, mean ± sample standard deviation over {networks}, "
            f"all seeds of the distillation together. Network: {networks_in_words(described)}. Bold: the best of a row "
            "among the published numbers, and among the measured ones of one selection."
        ]
        published = frame[frame["published_mean"].notna()]
        if set(published["method"]) - set(self.published):
            sources = ", ".join(f"{source} {table}" for source, table in PUBLISHED[name])
            notes.append(
                f"Published: {sources} (the later ones for measured methods that the first does not print), with a "
                "ConvNet of width 128. A difference says little if the network is smaller, or epochs or iterations are "
                "fewer."
            )
        unmeasured = published[published["method"].isin(self.published)]
        for source, rows in unmeasured.groupby("published_source", sort=False):
            notes.append(f"{', '.join(dict.fromkeys(rows['method']))}: published in {source}, not measured here.")
        if ((published["published_network"] == WIDE) & (published["network"] != WIDE)).any():
            notes.append("[wide]: published for a wider ConvNet, not compared with the others.")
        if averaged := list(dict.fromkeys(frame.loc[frame["average"] == "ema", "method"])):
            notes.append(
                f"{', '.join(averaged)}: exponential moving averages over the iterations; beside them, as `raw`, the "
                "sets of the iteration itself."
            )
        for other in self.prepared:
            where = f" at {', '.join(map(str, other.ipc))} images per class" if other.ipc else ""
            notes.append(f"{', '.join(other.method)}{where}: images as in {', '.join(other.dataset.values())}.")
        if frame["watched_mean"].notna().any():
            notes.append(
                f"({WATCHED}): the highest accuracy on test images that was recorded during the distillation, mean "
                "over its seeds. Public code reports such a maximum, which is optimistic; it is not the result."
            )
        notes += [*step_size_notes(frame), *reader.notes]
        if self.full:
            recipes = "; ".join(f"full-{recipe}: {FULL[recipe]}" for recipe in self.full)
            notes.append(f"IPC all: trained on all real images, unless the campaign changes the recipe: {recipes}.")
        return notes + [
            f"[{mark}]: the synthetic set of the iteration that was best on {mark} images, not the last."
            for mark in sorted(set(frame["selection"].dropna()) - {"last"})
        ]


def _own_numbers(name: str, dataset: str, ipc: int, network: str) -> dict[str, Row]:
    """Return the legible published accuracies of one cell of the table's own source, by method."""
    frame = printed(name, dataset)
    legible = frame["metric"].eq("test_accuracy") & frame["eval_arch"].eq(network) & frame["value"].notna()
    frame = frame[legible & (frame["ipc"].isna() if ipc == ALL else frame["ipc"].eq(ipc))]
    return {row["method"]: _values(row) for row in frame.to_dict("records")}


def _watched(runs: Sequence[pandas.DataFrame]) -> float:
    """Return the mean of the best recorded accuracies on test images; NaN if a run recorded none."""
    best = [run["test_accuracy"].max() if "test_accuracy" in run.columns else math.nan for run in runs]
    return sum(best) / len(best)


def _values(row: Mapping[Any, Any]) -> Row:
    """Return columns of a table from a row of the data file."""
    return {
        **{"published_mean": row["value"] / 100, "published_std": row["std"] / 100},
        **{"published_network": row["eval_arch"], "published_source": f"{row['source']} {row['table']}"},
    }


def _summary(rows: pandas.DataFrame, split: str) -> Row:
    """Return columns of a table from the rows of an evaluation."""
    accuracy = rows["accuracy"]
    return {
        **{"accuracy_mean": accuracy.mean(), "accuracy_std": accuracy.std()},
        **{"n": int(accuracy.notna().sum()), "diverged": int(accuracy.isna().sum())},
        **{"selection": rows["selection"].iloc[0], "average": rows["average"].iloc[0], "split": split},
        "step_size": "+".join(sorted(set(rows["step_size"]) - {""})) or None,
    }
