"""Intervals of means, and scores that say what distilled images are worth by themselves."""

import math
import statistics
from collections.abc import Sequence

CONFIDENCE = 0.95
"""Of every interval."""


def student_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Return the mean of values and the interval that covers their expectation with this confidence (Student's t).

    Args:
        values: at least one; of a single one the interval is NaN.
        confidence: fraction.
    """
    from scipy.special import stdtrit

    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return mean, math.nan, math.nan
    half = float(stdtrit(count - 1, (1 + confidence) / 2)) * statistics.stdev(values) / math.sqrt(count)
    return mean, mean - half, mean + half


def pooled_deviations(one: Sequence[float], two: Sequence[float]) -> float:
    """Return the difference of two means, one - two, in units of the root of the mean of both sample variances.

    Args:
        one: values.
        two: values of the other group; NaN is returned where a group has fewer than two or no value differs.
    """
    if min(len(one), len(two)) < 2:
        return math.nan
    pooled = math.sqrt((statistics.variance(one) + statistics.variance(two)) / 2)
    return (statistics.fmean(one) - statistics.fmean(two)) / pooled if pooled > 0 else math.nan


def label_robust_score(improvement: float, gap: float, weight: float = 0.5) -> float:
    """Return the label-robust score, 0 to 1: how good images are whatever labels they come with.

    ``(exp(a) - exp(-1)) / (exp(1) - exp(-1))`` with ``a = weight * improvement - (1 - weight) * gap``. It is 0.27 where
    nothing is gained over random images and nothing is missing to real data.

    Args:
        improvement: accuracy of the set with its own labels minus that of random images with labels of the same kind
            ("improvement over random", IOR).
        gap: accuracy of all real images minus that of the set, both with hard labels ("hard label recovery", HLR).
        weight: of the improvement.

    Source: Li et al. 2025, DD-Ranking (arXiv 2505.13300); weight 0.5 as its leaderboard.
    """
    return _scaled(weight * improvement - (1 - weight) * gap)


def augmentation_robust_score(augmented: float, plain: float, weight: float = 0.5) -> float:
    """Return the augmentation-robust score, 0 to 1: how good images are whatever augmentation they are trained with.

    ``(exp(b) - exp(-1)) / (exp(1) - exp(-1))`` with ``b = weight * augmented + (1 - weight) * plain``.

    Args:
        augmented: improvement over random images where both are augmented.
        plain: the same where neither is.
        weight: of the augmented one.

    Source: the same, from its public code (`aug_robust.py`); weight 0.5.
    """
    return _scaled(weight * augmented + (1 - weight) * plain)


def _scaled(exponent: float) -> float:
    return (math.exp(exponent) - math.exp(-1)) / (math.exp(1) - math.exp(-1))
