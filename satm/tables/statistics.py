"""Intervals of means, paired differences, and scores of distilled images beyond their accuracy."""

import math
import statistics
from collections.abc import Sequence

import pandas

from satm.errors import UsageError

PAIRED_COLUMNS = (
    *("dataset", "ipc", "network", "quantity", "method", "reference", "method_mean", "reference_mean"),
    *("difference", "low", "high", "n", "over", "pooled_deviations"),
)
"""Columns of a table of paired differences."""


def spread(values: pandas.Series, by: str | pandas.Series) -> pandas.DataFrame:
    """Return mean, sample standard deviation and n of values by group."""
    return values.groupby(by).agg(["mean", "std", "count"]).rename(columns={"count": "n"})


def student_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Return the mean of values and the Student's t interval of their expectation, NaN for a single value."""
    from scipy.special import stdtrit

    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return mean, math.nan, math.nan
    half = float(stdtrit(count - 1, (1 + confidence) / 2)) * statistics.stdev(values) / math.sqrt(count)
    return mean, mean - half, mean + half


def pooled_deviations(one: Sequence[float], two: Sequence[float]) -> float:
    """Return the difference of two means, one - two, in units of the root of the mean of both sample variances."""
    if min(len(one), len(two)) < 2:
        return math.nan
    pooled = math.sqrt((statistics.variance(one) + statistics.variance(two)) / 2)
    return (statistics.fmean(one) - statistics.fmean(two)) / pooled if pooled > 0 else math.nan


def paired(one: pandas.DataFrame, two: pandas.DataFrame, value: str, inner: str) -> dict[str, object]:
    """Return the mean difference of a column `value`, one - two, with its 95 % interval (Student's t).

    Pairs are the seeds of the distillation, after averaging over each seed's networks or segments; with one seed they
    are the networks or segments themselves, and the interval does not cover the choice of the seed. `over` names them.
    low and high are missing with a single pair. pooled_deviations is the difference of the means over all networks or
    segments in pooled standard deviations.

    `one` and `two` are the rows of two methods; `inner` is the column that distinguishes the rows of one seed.

    Raises:
        UsageError: pairs without a partner.
    """
    key = "seed" if one["seed"].nunique() > 1 else inner
    first, second = (frame.groupby(key)[value].mean() for frame in (one, two))
    if not first.index.equals(second.index):
        raise UsageError(
            f"the methods compared have different {key}s ({list(first.index)} and {list(second.index)}), so their "
            f"{value} cannot be paired; make both with the same options"
        )
    difference, low, high = student_interval((first - second).tolist())
    return {
        **{"method_mean": float(first.mean()), "reference_mean": float(second.mean())},
        **{"difference": difference, "low": low, "high": high, "n": len(first)},
        "over": "seeds" if key == "seed" else f"{inner}s of one seed",
        "pooled_deviations": pooled_deviations(*(frame[value].dropna().tolist() for frame in (one, two))),
    }


def label_robust_score(improvement: float, gap: float, weight: float = 0.5) -> float:
    """Return the label-robust score, 0 to 1: the quality of images independent of their labels.

    ``(exp(a) - exp(-1)) / (exp(1) - exp(-1))`` with ``a = weight * improvement - (1 - weight) * gap``. It is 0.27 for
    no improvement over random images and no gap to real data. The improvement ("improvement over
    random", IOR) is the accuracy of the set with its own labels minus that of random images with labels of the same
    kind; the gap ("hard label recovery", HLR) that of all real images minus that of the set, both with hard labels.

    Source: Li et al. 2025, DD-Ranking (arXiv 2505.13300); weight 0.5 as its leaderboard.
    """
    return _scaled(weight * improvement - (1 - weight) * gap)


def augmentation_robust_score(augmented: float, plain: float, weight: float = 0.5) -> float:
    """Return the augmentation-robust score, 0 to 1: the quality of images independent of augmentation.

    ``(exp(b) - exp(-1)) / (exp(1) - exp(-1))`` with ``b = weight * augmented + (1 - weight) * plain``, the improvements
    over random images with and without augmentation of both.

    Source: the same, from its public code (`aug_robust.py`); weight 0.5.
    """
    return _scaled(weight * augmented + (1 - weight) * plain)


def _scaled(exponent: float) -> float:
    return (math.exp(exponent) - math.exp(-1)) / (math.exp(1) - math.exp(-1))
