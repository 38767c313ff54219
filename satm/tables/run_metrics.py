"""Tables of numbers about distillations, beside the published ones: memory, time, norms, convergence."""

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Literal, NamedTuple

import pandas
from pydantic import Field

from satm.config import TABLES, Cell, Layout, Resolver, budgets
from satm.errors import UsageError, pick
from satm.methods import resolve
from satm.tables.base import Row, TableKind, beside_published
from satm.tables.published import PUBLISHED, printed, source_of
from satm.tables.reader import Reader
from satm.tables.render import Grid, number, text_of

SPIKE = 3.0
"""An iteration is a spike if the norm of its hypergradient exceeds this multiple of the run's median."""

CONVERGED = 0.05
"""A loss has converged once this fraction of its total decrease is left."""

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

memory_gb: peak memory of an iteration, 1e9 bytes, mean over seeds; seconds: of an iteration, over all but the first of
each run; hours_per_1000_iterations: the same in other units; training_hours: of a whole distillation;
iterations_to_converge: see `converged`; hypergradient_norm_mean: mean and std over the iterations;
hypergradient_norm_spikes: fraction of the iterations above `SPIKE` times the median; sharpness_first_tenth and
_last_tenth: mean over the first and last tenth of the iterations."""

HEADINGS = ("measure", "dataset", "IPC", "method", "published", "measured", "n")


@TABLES.named("run-metrics")
class RunMetricsTable(TableKind):
    """A table of numbers about distillations, each from the metrics of their iterations.

    Columns: mean, std and n as in `RunMetric`, in the units in the measure's name; published and published_std as
    printed. Numbers printed without a number of images per class are in every cell of their dataset. Unknown values are
    missing.
    """

    kind: Literal["run-metrics"] = "run-metrics"
    """Memory, time, norms and convergence of distillations."""
    measures: tuple[RunMetric, ...] = Field(min_length=1)
    """Names of the numbers (`satm.tables.run_metrics.RunMetric`)."""
    after: int = Field(0, ge=0)
    """Number of first iterations of each run that are left out, as they can be far from the rest."""
    published_as: dict[str, str] = {}
    """Names of methods in the published data, if they differ from those here."""

    columns = {
        **{"dataset": "str", "ipc": "int64", "method": "str", "measure": "str"},
        **{"mean": "float64", "std": "float64", "n": "Int64"},
        **{"published": "float64", "published_std": "float64", "published_source": "object"},
    }
    counted = ("mean", "published", "published_std")

    def check(self, resolver: Resolver) -> None:
        """Refuse `after` that leaves no iteration of a method."""
        for cell in dict.fromkeys(cell._replace(seed=0) for cell in self.cells()):
            _, options = resolve(resolver.method(cell))
            iterations = getattr(options, "iterations", None)
            if iterations is not None and self.after >= iterations:
                raise UsageError(
                    f"{cell.method} on {cell.dataset} at ipc {cell.ipc} has {iterations} iterations and `after: "
                    f"{self.after}` leaves none of them; use a smaller `after`"
                )

    def files(self, layout: Layout, name: str) -> list[str]:
        """Return the metrics of all distillations."""
        return [layout.metrics(cell) for cell in self.cells()]

    def rows(self, reader: Reader, name: str) -> list[Row]:
        """Return one row per measure, dataset, ipc and method; methods that are only published come first in a cell."""
        rows: list[Row] = []
        for metric, (dataset, ipc) in product(self.measures, budgets(self.datasets)):
            published = _published(name, metric, dataset, ipc)
            place = {"dataset": dataset, "ipc": ipc, "measure": metric}
            measured: list[tuple[str, str, Row]] = []
            for method in self.methods:
                result = reader.attempt(self._measured, reader, metric, self.cells_of(dataset, ipc, method))
                printed_as = self.published_as.get(method, method)
                measured.append((method, printed_as, result._asdict() if result else {}))
            rows += beside_published(place, measured, published)
        return rows

    def _measured(self, reader: Reader, metric: RunMetric, cells: Sequence[Cell]) -> "Measure":
        """Return a number about the runs of all seeds."""
        runs = []
        for cell in cells:
            run = reader.metrics(cell)
            runs.append(run[run["iteration"] > self.after])
            if runs[-1].empty:
                raise UsageError(
                    f"the run of {cell.method} on {cell.dataset} at ipc {cell.ipc}, seed {cell.seed}, has {len(run)} "
                    f"iterations and `after: {self.after}` leaves none of them; use a smaller `after`"
                )
        return measure(metric, runs)

    def grid(self, reader: Reader, name: str, frame: pandas.DataFrame) -> Grid:
        """Return the numbers in the units of each measure."""
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
            "Seconds of an iteration: over all iterations but the first of each run. Memory: peak of an iteration, on "
            "a GPU of PyTorch's tensors, on a CPU of the whole process; 1 GB is 10^9 bytes. Published times and memory "
            "are those of another machine."
        ]
        if self.after:
            notes.append(f"The first {self.after} iterations of each run are left out.")
        if name in PUBLISHED:
            notes.append(f"Published: {source_of(name)}.")
        return Grid(name, HEADINGS, lines, HEADINGS[:4], [*notes, *reader.notes])


def _published(name: str, metric: str, dataset: str, ipc: int) -> dict[str, Row]:
    """Return the published numbers by method."""
    frame = printed(name, dataset)
    own = frame["metric"].eq(metric) & (frame["ipc"].eq(ipc) | frame["ipc"].isna())
    return {
        row["method"]: {"published": row["value"], "published_std": row["std"], "published_source": source_of(name)}
        for row in frame[own].to_dict("records")
    }


class Measure(NamedTuple):
    """One number about the runs of a cell."""

    mean: float
    std: float
    """Sample standard deviation; NaN of a single value."""
    n: int
    """Number of values."""


def measure(metric: str, runs: Sequence[pandas.DataFrame]) -> Measure:
    """Return the number of this name (`RunMetric`) about the runs of one cell.

    Args:
        metric: name of the number; `UsageError` for an unknown one.
        runs: the metrics of each seed, at least one; one row per iteration.
    """
    value = pick(metric, _VALUES, "measure")
    values = pandas.concat([pandas.Series(value(run)) for run in runs]).dropna()
    return Measure(float(values.mean()), float(values.std()), len(values))


def converged(loss: pandas.Series) -> float:
    """Return the number of iterations until a loss has converged (`CONVERGED`); NaN if it never fell.

    The loss, a value per iteration, is noisy, as each iteration matches another segment. Its decrease is therefore that
    of a running mean over a twentieth of the iterations, from the first full window to the lowest value.
    """
    window = max(1, len(loss) // 20)
    running = loss.rolling(window).mean().dropna()
    if not len(running) or not running.iloc[0] > running.min():
        return math.nan
    limit = running.min() + CONVERGED * (running.iloc[0] - running.min())
    return float((running <= limit).to_numpy().argmax() + window)


def _seconds(run: pandas.DataFrame) -> pandas.Series:
    # The first iteration includes the warm-up: libraries load, memory is allocated, kernels are chosen.
    return run["seconds"].iloc[1:] if len(run) > 1 else run["seconds"]


def _spikes(run: pandas.DataFrame) -> float:
    norm = run["hypergradient_norm"].dropna()
    return float((norm > SPIKE * norm.median()).mean()) if len(norm) else math.nan


def _tenth(run: pandas.DataFrame, last: bool) -> pandas.Series:
    """Return the first or last tenth of the sharpness, at least one value."""
    values = run["sharpness"].dropna()
    count = max(1, len(values) // 10)
    return values.tail(count) if last else values.head(count)


_VALUES: dict[str, Callable[[pandas.DataFrame], float | pandas.Series]] = {
    "memory_gb": lambda run: float(run["peak_memory_bytes"].max() / 1e9),
    "seconds": _seconds,
    "hours_per_1000_iterations": lambda run: _seconds(run) / 3.6,
    "training_hours": lambda run: float(run["seconds"].sum() / 3600),
    "iterations_to_converge": lambda run: converged(run["loss"].dropna()),
    "hypergradient_norm_mean": lambda run: run["hypergradient_norm"],
    "hypergradient_norm_spikes": _spikes,
    "sharpness_first_tenth": lambda run: _tenth(run, last=False),
    "sharpness_last_tenth": lambda run: _tenth(run, last=True),
}
"""Functions from a run to the values whose mean over all seeds is the number."""
