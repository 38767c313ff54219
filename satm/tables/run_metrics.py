"""Tables of numbers about distillations, beside the published ones: memory, time, norms, convergence."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pandas
from pydantic import Field

from satm.config import TABLES, Layout, budgets
from satm.errors import UsageError, pick
from satm.tables.base import Number, TableKind
from satm.tables.published import PUBLISHED, printed, source_of
from satm.tables.reader import Reader
from satm.tables.render import Grid, number, text_of

SPIKE = 3.0
"""An iteration is a spike where the norm of its hypergradient is above so many times the run's median."""

CONVERGED = 0.05
"""A loss has converged once so small a fraction of its whole fall is left."""

RunMetric = Literal[
    "memory_gb",
    "seconds",
    "hours_per_1000_iterations",
    "training_hours",
    "iterations_to_converge",
    "hypergradient_norm_mean",
    "hypergradient_norm_spikes",
    "sharpness_first_tenth",
    "sharpness_last_tenth",
]
"""Numbers about a distillation.

memory_gb: the most that an iteration held, 1e9 bytes, mean over seeds; seconds: of an iteration, over all but the first
of each run; hours_per_1000_iterations: the same in other units; training_hours: of a whole distillation;
iterations_to_converge: see `converged`; hypergradient_norm_mean: over the iterations, its std their spread;
hypergradient_norm_spikes: fraction of the iterations above `SPIKE` times the median; sharpness_first_tenth and
_last_tenth: mean over the first and last tenth of the iterations."""

COLUMNS = {
    **{"dataset": "str", "ipc": "int64", "method": "str", "measure": "str"},
    **{"mean": "float64", "std": "float64", "n": "Int64"},
    **{"published": "float64", "published_std": "float64", "published_source": "object"},
}
"""Columns of a table; all but the first four can be missing."""

HEADINGS = ("measure", "dataset", "IPC", "method", "published", "measured", "n")


@TABLES.named("run-metrics")
class RunMetricsTable(TableKind):
    """A table of numbers about distillations, each from the metrics of their iterations.

    Columns: mean, std and n as in `RunMetric`, in the units that the measure's name says; published and published_std
    as printed. Numbers that a paper prints without saying at how many images per class stand in every cell of their
    dataset. What does not exist is missing.
    """

    kind: Literal["run-metrics"] = "run-metrics"
    """Memory, time, norms and convergence of distillations."""
    measures: tuple[RunMetric, ...] = Field(min_length=1)
    """Which numbers (`satm.tables.run_metrics.RunMetric`)."""
    after: int = Field(0, ge=0)
    """So many iterations at the start of each run are left out, as the first ones can be far from the rest."""
    published_as: dict[str, str] = {}
    """Names in the published data of methods that have another name here."""

    def files(self, layout: Layout, name: str) -> list[str]:
        """Return the metrics of all distillations."""
        return [layout.metrics(cell) for cell in self.cells()]

    def frame(self, reader: Reader, name: str) -> pandas.DataFrame:
        """Return one row per measure, dataset, ipc and method; methods that are only published come first in a cell."""
        rows: list[dict[str, object]] = []
        for metric in self.measures:
            for dataset, ipc in budgets(self.datasets):
                published = _published(name, metric, dataset, ipc)
                cell = {"dataset": dataset, "ipc": ipc, "measure": metric}
                measured = []
                for method in self.methods:
                    found = reader.attempt(partial(self._measured, reader, metric, dataset, ipc, method))
                    beside = published.pop(self.published_as.get(method, method), {})
                    measured.append({**cell, "method": method, **(vars(found) if found else {}), **beside})
                rows += [{**cell, "method": one, **values} for one, values in published.items()] + measured
        return pandas.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)

    def _measured(self, reader: Reader, metric: RunMetric, dataset: str, ipc: int, method: str) -> "Measure":
        runs = []
        for cell in self.cells_of(dataset, ipc, method):
            run = reader.metrics(cell)
            kept = run[run["iteration"] > self.after]
            if kept.empty:
                raise UsageError(
                    f"the run of {method} on {dataset} at ipc {ipc}, seed {cell.seed}, has {len(run)} iterations and "
                    f"`after: {self.after}` leaves none of them; take a smaller `after`"
                )
            runs.append(kept)
        return measure(metric, runs)

    def grid(self, reader: Reader, name: str, frame: pandas.DataFrame) -> Grid:
        """Return the numbers in their own units."""
        lines = [
            [
                *(row["measure"].replace("_", " "), row["dataset"], str(row["ipc"]), row["method"]),
                number(row["published"], row["published_std"], form_std=".2g"),
                number(row["mean"], row["std"], form_std=".2g"),
                text_of(row["n"]),
            ]
            for row in frame.to_dict("records")
        ]
        notes = [
            "Seconds of an iteration: over all iterations but the first of each run. Memory: the most that an "
            "iteration held, on a GPU the tensors of PyTorch, on a CPU the whole process; 1 GB is 10^9 bytes. A "
            "published time or memory is that of another machine.",
        ]
        if self.after:
            notes.append(f"The first {self.after} iterations of each run are left out.")
        if name in PUBLISHED:
            notes.append(f"Published: {source_of(name)}.")
        return Grid(name, HEADINGS, lines, HEADINGS[:4], [*notes, *reader.notes])

    def numbers(self, frame: pandas.DataFrame) -> Sequence[Number]:
        """Return the numbers of the table's methods, and what is published of them."""
        own = frame[frame["method"].isin(self.methods)]
        return [(row["mean"], row["published"], row["published_std"]) for row in own.to_dict("records")]


def _published(name: str, metric: str, dataset: str, ipc: int) -> dict[str, dict[str, object]]:
    """Return what is published by method."""
    frame = printed(name, dataset)
    kept = frame["metric"].eq(metric) & (frame["ipc"].eq(ipc) | frame["ipc"].isna())
    return {
        row["method"]: {
            "published": row["value"],
            "published_std": row["std"],
            "published_source": source_of(name),
        }
        for row in frame[kept].to_dict("records")
    }


@dataclass(frozen=True)
class Measure:
    """One number.

    Args:
        mean: its value.
        std: sample standard deviation; NaN where there is nothing to take it over.
        n: how many values it is the mean of.
    """

    mean: float
    std: float
    n: int


def measure(metric: str, runs: Sequence[pandas.DataFrame]) -> Measure:
    """Return a number about the runs of one cell.

    Args:
        metric: which number, of `RunMetric`.
        runs: the metrics of each seed, at least one; of each iteration one row.

    Raises:
        UsageError: there is no such number.
    """
    values = pick(metric, _VALUES, "measure")(runs).dropna()
    if not len(values):
        return Measure(math.nan, math.nan, 0)
    scale = 3.6 if metric == "hours_per_1000_iterations" else 1.0
    return Measure(float(values.mean()) / scale, float(values.std()) / scale, len(values))


def converged(loss: pandas.Series) -> float:
    """Return after how many iterations a loss has fallen but for `CONVERGED` of its whole fall; NaN if it never fell.

    The loss of one iteration is noisy, as each matches another segment: a running mean over a twentieth of the
    iterations is followed, from its first whole value to its lowest one.

    Args:
        loss: by iteration.
    """
    window = max(1, len(loss) // 20)
    running = loss.rolling(window).mean().dropna()
    if not len(running) or not running.iloc[0] > running.min():
        return math.nan
    limit = running.min() + CONVERGED * (running.iloc[0] - running.min())
    return float((running <= limit).to_numpy().argmax() + window)


def _seconds(runs: Sequence[pandas.DataFrame]) -> pandas.Series:
    # The first iteration also warms up: libraries load, memory is taken, kernels are chosen.
    found: pandas.Series = pandas.concat([run["seconds"].iloc[1:] if len(run) > 1 else run["seconds"] for run in runs])
    return found


def _spikes(run: pandas.DataFrame) -> float:
    norm = run["hypergradient_norm"].dropna()
    return float((norm > SPIKE * norm.median()).mean()) if len(norm) else math.nan


def _sharpness(runs: Sequence[pandas.DataFrame], first: bool) -> pandas.Series:
    parts = []
    for run in runs:
        values = run["sharpness"].dropna()
        tenth = max(1, len(values) // 10)
        parts.append(values.iloc[:tenth] if first else values.iloc[-tenth:])
    found: pandas.Series = pandas.concat(parts)
    return found


def _of_each(value: Callable[[pandas.DataFrame], float]) -> Callable[[Sequence[pandas.DataFrame]], pandas.Series]:
    """Return a function that gives a value of each run."""
    return lambda runs: pandas.Series([value(run) for run in runs])


_VALUES: dict[str, Callable[[Sequence[pandas.DataFrame]], pandas.Series]] = {
    "memory_gb": _of_each(lambda run: float(run["peak_memory_bytes"].max() / 1e9)),
    "seconds": _seconds,
    "hours_per_1000_iterations": _seconds,
    "training_hours": _of_each(lambda run: float(run["seconds"].sum() / 3600)),
    "iterations_to_converge": _of_each(lambda run: converged(run["loss"].dropna())),
    "hypergradient_norm_mean": lambda runs: pandas.concat([run["hypergradient_norm"] for run in runs]),
    "hypergradient_norm_spikes": _of_each(_spikes),
    "sharpness_first_tenth": partial(_sharpness, first=True),
    "sharpness_last_tenth": partial(_sharpness, first=False),
}
"""The values that each number is the mean of."""
