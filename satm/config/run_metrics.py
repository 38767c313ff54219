"""Numbers about distillations, each from the metrics of their iterations; pure functions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas

from satm.errors import pick

SPIKE = 3.0
"""An iteration is a spike where the norm of its hypergradient is above so many times the run's median."""

CONVERGED = 0.05
"""A loss has converged once so small a fraction of its whole fall is left."""


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


def _of(values: pandas.Series) -> Measure:
    values = values.dropna()
    return (
        Measure(float(values.mean()), float(values.std()), len(values))
        if len(values)
        else Measure(math.nan, math.nan, 0)
    )


def _seconds(runs: Sequence[pandas.DataFrame]) -> pandas.Series:
    # The first iteration also warms up: libraries load, memory is taken, kernels are chosen.
    parts: list[pandas.Series] = [run["seconds"].iloc[1:] if len(run) > 1 else run["seconds"] for run in runs]
    found: pandas.Series = pandas.concat(parts)
    return found


def _memory(runs: Sequence[pandas.DataFrame]) -> Measure:
    return _of(pandas.Series([run["peak_memory_bytes"].max() / 1e9 for run in runs]))


def _time(runs: Sequence[pandas.DataFrame]) -> Measure:
    return _of(_seconds(runs))


def _thousand(runs: Sequence[pandas.DataFrame]) -> Measure:
    found = _of(_seconds(runs))
    return Measure(found.mean / 3.6, found.std / 3.6, found.n)


def _hours(runs: Sequence[pandas.DataFrame]) -> Measure:
    return _of(pandas.Series([run["seconds"].sum() / 3600 for run in runs]))


def _norm(runs: Sequence[pandas.DataFrame]) -> Measure:
    return _of(pandas.concat([run["hypergradient_norm"] for run in runs]))


def _spikes(runs: Sequence[pandas.DataFrame]) -> Measure:
    norms = [run["hypergradient_norm"].dropna() for run in runs]
    return _of(pandas.Series([float((norm > SPIKE * norm.median()).mean()) for norm in norms if len(norm)]))


def _sharpness(first: bool) -> Callable[[Sequence[pandas.DataFrame]], Measure]:
    def found(runs: Sequence[pandas.DataFrame]) -> Measure:
        parts = []
        for run in runs:
            values = run["sharpness"].dropna()
            tenth = max(1, len(values) // 10)
            parts.append(values.iloc[:tenth] if first else values.iloc[-tenth:])
        return _of(pandas.concat(parts))

    return found


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


def _iterations(runs: Sequence[pandas.DataFrame]) -> Measure:
    return _of(pandas.Series([converged(run["loss"].dropna()) for run in runs]))


MEASURES: dict[str, Callable[[Sequence[pandas.DataFrame]], Measure]] = {
    "memory_gb": _memory,
    "seconds": _time,
    "hours_per_1000_iterations": _thousand,
    "training_hours": _hours,
    "iterations_to_converge": _iterations,
    "hypergradient_norm_mean": _norm,
    "hypergradient_norm_spikes": _spikes,
    "sharpness_first_tenth": _sharpness(first=True),
    "sharpness_last_tenth": _sharpness(first=False),
}
"""Every measure by its name: the metrics of the runs of one cell, one frame per seed -> the number.

memory_gb: the most that an iteration held, 1e9 bytes, mean over seeds; seconds: of an iteration, over all but the first
of each run; hours_per_1000_iterations: the same in other units; training_hours: of a whole distillation;
iterations_to_converge: see `converged`; hypergradient_norm_mean: over the iterations, its std their spread;
hypergradient_norm_spikes: fraction of the iterations above `SPIKE` times the median; sharpness_first_tenth and
_last_tenth: mean over the first and last tenth of the iterations."""


def measure(name: str, runs: Sequence[pandas.DataFrame]) -> Measure:
    """Return a measure of the runs of one cell.

    Args:
        name: of `MEASURES`.
        runs: the metrics of each seed, at least one; of each iteration one row.

    Raises:
        UsageError: there is no such measure.
    """
    return pick(name, MEASURES, "measure")(runs)
