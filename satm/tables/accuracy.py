"""Tables of accuracies: what networks trained on synthetic sets reach, beside the published numbers."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import pandas
from pydantic import Field, ValidationInfo, field_validator, model_validator

from satm.config import FULL, TABLES, Layout, budgets
from satm.errors import UsageError, pick, suggest
from satm.tables.accuracy_grid import ALL, paired_grid, results_grid, rows_grid, step_size_notes
from satm.tables.base import Number, TableKind
from satm.tables.comparison import PAIRED_COLUMNS, paired
from satm.tables.published import PUBLISHED, WIDE, load_published, printed, published_name
from satm.tables.reader import Reader
from satm.tables.render import Contents, Grid, in_numbers, networks_in_words

COLUMNS = {
    **{"dataset": "str", "ipc": "int64", "network": "str", "method": "str"},
    **{"accuracy_mean": "float64", "accuracy_std": "float64", "n": "Int64", "diverged": "Int64"},
    **dict.fromkeys(("selection", "average", "split", "step_size"), "object"),
    **dict.fromkeys(("published_mean", "published_std"), "float64"),
    **dict.fromkeys(("published_network", "published_source"), "object"),
    **{"difference": "float64", "seconds": "float64", "peak_memory_bytes": "Int64"},
}
"""Columns of a table; capital letters mark the types that can be missing."""

RAW = "-no-ema"
"""Ends the name, in the data file, of a method whose sets are not averaged although they are by default."""


@TABLES.named("accuracy")
class AccuracyTable(TableKind):
    """The cells of one results table.

    In a cell the methods that are only published come first. After the last ipc of a dataset come the networks trained
    on all real images (`full`), at ipc `ALL`. Published numbers of a wider ConvNet have cells of their own.

    Columns: accuracy_mean, accuracy_std (sample standard deviation) and n over the networks of all seeds and repeats
    that did not diverge, on the images that `split` names; diverged, how many did; selection, which iteration of the
    synthetic set was tested; average, `ema` where the set is a moving average over the iterations, else `raw`;
    step_size, whether that of the tested networks is learned with the set, searched or fixed (several joined by `+`);
    published_mean and published_std (of test images), published_network that they are of, published_source, the table
    that prints them; difference, accuracy_mean minus published_mean; seconds of one distillation, mean over the seeds;
    peak_memory_bytes, the largest of any. Accuracies are fractions. What does not exist is missing. Where sets are
    averaged, the row of the averages, which stands for the method, is followed by one of the raw sets, whose published
    numbers are those of the method without averages.
    """

    kind: Literal["accuracy"] = "accuracy"
    """Accuracies of networks trained on the synthetic sets."""
    networks: tuple[str, ...] = Field(("convnet",), min_length=1)
    """Networks that are trained on the synthetic sets; with several the table has a row for each."""
    split: Literal["test", "validation"] = "test"
    """Real images that the accuracies are of; `validation` for choosing options (set `split` in the stage evaluate too,
    and `validation` in the dataset)."""
    sharpness: tuple[str, ...] = ()
    """Methods whose sharpness is measured and compared, the first against each other one."""
    compare: tuple[tuple[str, str], ...] = ()
    """Pairs of methods whose difference in accuracy is told with its interval, paired; empty: satm and mtt, where the
    table has both."""
    full: tuple[Literal["experts", "strong"], ...] = ()
    """Recipes by which networks trained on all real images are shown beside the sets (`FULL`)."""
    methods_on: dict[str, tuple[str, ...]] = {}
    """Networks that some of the methods only are tested with, and these methods; other networks: all."""
    published_as: dict[str, str] = {}
    """Names in the published data of methods that have another name here."""
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
                raise ValueError(
                    f"methods names {name!r} too, which has its published numbers beside the measured ones; leave it "
                    "out of published"
                )
        return value

    @model_validator(mode="after")
    def _knows_what_it_names(self) -> "AccuracyTable":
        named = {
            "published_as": [*self.published_as],
            "methods_on": [method for methods in self.methods_on.values() for method in methods],
            "sharpness": [*self.sharpness],
            "compare": [method for pair in self.compare for method in pair],
        }
        for option, methods in named.items():
            for method in methods:
                if method not in self.methods:
                    hint = suggest(method, [*self.methods])
                    raise ValueError(f"{option} names {method!r}, which is not among methods; add it there.{hint}")
        for network in self.methods_on:
            if network not in self.networks:
                raise ValueError(f"methods_on names {network!r}, which is not among networks; add it there")
        return self

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The pairs that are compared: `compare`, then the first of `sharpness` against each other one."""
        found = (*self.compare, *((self.sharpness[0], other) for other in self.sharpness[1:]))
        if not found and {"satm", "mtt"} <= set(self.methods):
            found = (("satm", "mtt"),)
        return tuple(dict.fromkeys(found))

    def tested_networks(self) -> tuple[str, ...]:
        """Return the networks that are trained on the synthetic sets."""
        return self.networks

    def tested_with(self, network: str) -> tuple[str, ...]:
        """Return the methods that are tested with a network, in the table's order."""
        chosen = self.methods_on.get(network, self.methods)
        return tuple(method for method in self.methods if method in chosen)

    def files(self, layout: Layout, name: str) -> list[str]:
        """Return the evaluations and metrics of all distillations, their sharpness, and those of all real images."""
        found = [
            layout.evaluation(cell, network)
            for network in self.networks
            for cell in self.cells(self.tested_with(network))
        ]
        found += [layout.metrics(cell) for cell in self.cells()]
        found += [layout.analysis("sharpness", cell) for cell in self.cells(self.sharpness)]
        places = [
            (dataset, recipe, network) for dataset in self.datasets for recipe in self.full for network in self.networks
        ]
        return found + [layout.full(*place) for place in places]

    def make(self, reader: Reader, name: str) -> Contents:
        """Return what is written of the table; beside it the paired comparison as `NAME-paired.csv`."""
        frame, pairs = self.frame(reader, name), self.paired_frame(reader)
        shown = [rows_grid(frame), *([] if pairs.empty else [paired_grid(pairs)])]
        return Contents(frame, [self.grid(reader, name, frame)], beside={"-paired": pairs}, shown=shown)

    def frame(self, reader: Reader, name: str) -> pandas.DataFrame:
        """Return one row per dataset, ipc, network and method."""
        rows: list[dict[str, object]] = []
        for dataset, ipcs in self.datasets.items():
            for ipc in ipcs:
                for network in self.networks:
                    rows += self._cell_rows(reader, name, dataset, ipc, network)
                if WIDE not in self.networks:
                    rows += self._wide_rows(name, dataset, ipc)
            for network in self.networks:
                rows += self._full_rows(reader, name, dataset, network)
        frame = pandas.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
        return frame.assign(difference=frame["accuracy_mean"] - frame["published_mean"])

    def paired_frame(self, reader: Reader) -> pandas.DataFrame:
        """Return how much a method differs from another one, paired, with a 95 % interval (`satm.tables.comparison`).

        One row per dataset, ipc, network, quantity and pair of `pairs`. Quantities: accuracy (fraction, images of the
        table's split) and, where `sharpness` is set, sharpness (of the outer loss; smaller is flatter), once for all
        networks. Of averaged sets the averages are compared.

        Raises:
            UsageError: a file that it needs is missing, broken, or of another run; pairs without a partner.
        """
        rows: list[dict[str, object]] = []
        for dataset, ipc in budgets(self.datasets):
            for network in self.networks:
                for pair in self.pairs:
                    both = set(pair)
                    compared = []
                    if both <= set(self.tested_with(network)):
                        compared.append(partial(self._accuracies, reader, dataset, ipc, network, pair))
                    if both <= set(self.sharpness) and network == self.networks[0]:
                        compared.append(partial(self._sharpnesses, reader, dataset, ipc, pair))
                    cell = {"dataset": dataset, "ipc": ipc, "network": network, "method": pair[0], "reference": pair[1]}
                    found = [reader.attempt(compare) for compare in compared]
                    rows += [{**cell, **values} for values in found if values is not None]
        return pandas.DataFrame(rows, columns=list(PAIRED_COLUMNS))

    def grid(self, reader: Reader, name: str, frame: pandas.DataFrame) -> Grid:
        """Return the accuracies in percent, in the paper's layout."""
        return results_grid(frame, name, self._notes(reader, name, frame))

    def numbers(self, frame: pandas.DataFrame) -> Sequence[Number]:
        """Return the accuracies of the table's methods and of all real images, and what is published of them."""
        own = frame[frame["method"].isin(self.methods) | frame["method"].str.startswith("full-")]
        records = own.to_dict("records")
        return [(row["accuracy_mean"], row["published_mean"], row["published_std"]) for row in records]

    def _cell_rows(self, reader: Reader, name: str, dataset: str, ipc: int, network: str) -> list[dict[str, object]]:
        """Return the rows of one cell: methods that are only published, then those of the table."""
        published = self._published(name, dataset, ipc, network) if self.split == "test" else {}
        cell = {"dataset": dataset, "ipc": ipc, "network": network}
        rows: list[dict[str, object]] = []
        for one in self.tested_with(network):
            named = self.published_as.get(one, one)
            main, *beside = reader.attempt(partial(self._measured, reader, dataset, ipc, network, one)) or [{}]
            rows.append({**cell, "method": one, **main, **published.pop(named, {})})
            rows += [{**cell, "method": one, **raw, **published.pop(f"{named}{RAW}", {})} for raw in beside]
        return [{**cell, "method": one, **values} for one, values in published.items()] + rows

    def _wide_rows(self, name: str, dataset: str, ipc: int) -> list[dict[str, object]]:
        """Return the rows of a cell of published numbers of a wider ConvNet that the table's own source prints."""
        if self.split != "test" or "convnet" not in self.networks:
            return []
        cell = {"dataset": dataset, "ipc": ipc, "network": WIDE}
        values = {row["method"]: _values(row) for row in _own(name, dataset, ipc, WIDE).to_dict("records")}
        return [{**cell, "method": method, **published} for method, published in values.items()]

    def _full_rows(self, reader: Reader, name: str, dataset: str, network: str) -> list[dict[str, object]]:
        """Return the rows of networks trained on all real images; the first recipe beside the published number."""
        own = [_values(row) for row in _own(name, dataset, ALL, network).to_dict("records")]
        published = own[0] if own and self.split == "test" else {}
        cell = {"dataset": dataset, "ipc": ALL, "network": network}
        if published and not self.full:
            return [{**cell, "method": "full", **published}]
        rows: list[dict[str, object]] = []
        for recipe in self.full:
            full = reader.attempt(partial(self._full, reader, dataset, network, recipe)) or {}
            rows.append({**cell, "method": f"full-{recipe}", **full, **({} if rows else published)})
        return rows

    def _published(self, name: str, dataset: str, ipc: int, network: str) -> dict[str, dict[str, object]]:
        """Return what is published by method, as fractions, in the paper's order; methods asked for by name come last.

        Numbers of a wide network stand only for methods asked for by name that have no other in this cell.
        """
        frame = load_published()
        shown = ["convnet", WIDE] if network == "convnet" else [network]
        frame = frame[(frame["metric"] == "test_accuracy") & frame["eval_arch"].isin(shown)]
        for method in self.published:
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
            if rank < len(known) and not other and (rank == 0 or method in self.methods):
                own.setdefault(method, values)
            asked.setdefault(method, values)
        return {**own, **{one: asked[one] for one in self.published if one in asked and one not in own}}

    def _measured(self, reader: Reader, dataset: str, ipc: int, network: str, method: str) -> list[dict[str, object]]:
        """Return what was measured in one cell; of averages first, then of raw sets."""
        evaluations = self._evaluations(reader, dataset, ipc, network, method)
        seconds, memory = [], []
        for cell in self.cells_of(dataset, ipc, method):
            metrics = reader.metrics(cell)
            seconds.append(float(metrics["seconds"].sum()))
            memory += metrics["peak_memory_bytes"].tolist()
        cost = {"seconds": sum(seconds) / len(seconds), "peak_memory_bytes": max(memory, default=None)}
        return [{**_summary(rows, self.split), **cost} for rows in evaluations]

    def _full(self, reader: Reader, dataset: str, network: str, recipe: str) -> dict[str, object]:
        """Return what networks trained on all real images reach; the cost is that of one such training."""
        rows = reader.full(dataset, recipe, network)
        cost = {"seconds": rows["seconds"].mean(), "peak_memory_bytes": rows["peak_memory_bytes"].max()}
        return {"method": f"full-{recipe}", **_summary(rows, self.split), **cost}

    def _evaluations(self, reader: Reader, dataset: str, ipc: int, network: str, method: str) -> list[pandas.DataFrame]:
        """Return the rows of one cell on the images that the table is about, all seeds; averages first, then raw."""
        found = []
        for cell in self.cells_of(dataset, ipc, method):
            frame = reader.evaluation(cell, network)
            frame = frame[frame["split"] == self.split]
            if frame.empty:
                path = reader.resolver.layout.evaluation(cell, network)
                raise UsageError(f"evaluation {path} has no accuracies on {self.split} images; make it again")
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
                f"the evaluations of {method} on {dataset}, ipc {ipc}, are of averaged sets at some seeds and only of "
                "raw ones at others, which are not comparable; make them again with one"
            )
        return [rows[rows["average"] == average] for average in averages[0]]

    def _accuracies(
        self, reader: Reader, dataset: str, ipc: int, network: str, pair: tuple[str, str]
    ) -> dict[str, object]:
        """Return how two methods differ in accuracy."""
        one, two = (self._evaluations(reader, dataset, ipc, network, each)[0] for each in pair)
        return {"quantity": "accuracy", **paired(one, two, "accuracy", "repeat")}

    def _sharpnesses(self, reader: Reader, dataset: str, ipc: int, pair: tuple[str, str]) -> dict[str, object]:
        """Return how two methods differ in sharpness."""
        one, two = (reader.analysis("sharpness", self.cells_of(dataset, ipc, each)) for each in pair)
        return {"quantity": "sharpness", **paired(one, two, "sharpness", "segment")}

    def _notes(self, reader: Reader, name: str, frame: pandas.DataFrame) -> list[str]:
        networks = in_numbers(frame["n"].dropna(), "network")
        several = len(self.datasets) > 1
        described = {
            f"{network} on {dataset}" if several else network: reader.resolver.network(network, dataset)
            for network in self.networks
            for dataset in self.datasets
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
                "ConvNet of width 128. A difference says little where the network, the epochs or the iterations are "
                "fewer."
            )
        asked = published[published["method"].isin(self.published)]
        for source, rows in asked.groupby("published_source", sort=False):
            notes.append(f"{', '.join(dict.fromkeys(rows['method']))}: published in {source}, not measured here.")
        if ((published["published_network"] == WIDE) & (published["network"] != WIDE)).any():
            notes.append("[wide]: published for a wider ConvNet, and not compared with the others.")
        if averaged := list(dict.fromkeys(frame.loc[frame["average"] == "ema", "method"])):
            notes.append(
                f"{', '.join(averaged)}: exponential moving averages over the iterations; beside them, as `raw`, the "
                "sets of the iteration itself."
            )
        notes += [*step_size_notes(frame), *reader.notes]
        if self.full:
            recipes = "; ".join(f"full-{recipe}: {FULL[recipe]}" for recipe in self.full)
            notes.append(f"IPC all: trained on all real images, as the campaign may change it: {recipes}.")
        marks = sorted(set(frame["selection"].dropna()) - {"last"})
        notes += [
            f"[{mark}]: the synthetic set of the iteration that was best on {mark} images, not the last."
            for mark in marks
        ]
        return notes


def _own(name: str, dataset: str, ipc: int, network: str) -> pandas.DataFrame:
    """Return the published accuracies of one cell of the table's own source, those that are legible."""
    frame = printed(name, dataset)
    kept = frame["metric"].eq("test_accuracy") & frame["eval_arch"].eq(network) & frame["value"].notna()
    return frame[kept & (frame["ipc"].isna() if ipc == ALL else frame["ipc"].eq(ipc))]


def _values(row: Mapping[Any, Any]) -> dict[str, object]:
    return {
        "published_mean": row["value"] / 100,
        "published_std": row["std"] / 100,
        "published_network": row["eval_arch"],
        "published_source": f"{row['source']} {row['table']}",
    }


def _summary(rows: pandas.DataFrame, split: str) -> dict[str, object]:
    return {
        "accuracy_mean": rows["accuracy"].mean(),
        "accuracy_std": rows["accuracy"].std(),
        "n": int(rows["accuracy"].notna().sum()),
        "diverged": int(rows["accuracy"].isna().sum()),
        "selection": rows["selection"].iloc[0],
        "average": rows["average"].iloc[0],
        "split": split,
        "step_size": "+".join(sorted(set(rows["step_size"]) - {""})) or None,
    }
