"""Intervals against SciPy's, scores against numbers worked out by hand."""

import math

import numpy
import pytest
from drawing import numpy_generator
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tolerances import SUMS

from satm.tables.statistics import (
    augmentation_robust_score,
    label_robust_score,
    pooled_deviations,
    student_interval,
)


@pytest.mark.parametrize("values", [[0.1, 0.4], [0.31, 0.28, 0.35], list(numpy.linspace(0, 1, 30) ** 2)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_interval_is_students(values: list[float], confidence: float) -> None:
    mean, low, high = student_interval(values, confidence)
    expected = stats.t.interval(confidence, len(values) - 1, numpy.mean(values), stats.sem(values))
    assert mean == pytest.approx(numpy.mean(values)) and (low, high) == pytest.approx(expected)


def test_the_interval_agrees_with_the_bootstrap_where_there_are_many() -> None:
    values = numpy_generator(0).exponential(size=400)
    found = stats.bootstrap((values,), numpy.mean, confidence_level=0.95, rng=numpy_generator(1))
    _, low, high = student_interval(values.tolist())
    width = found.confidence_interval.high - found.confidence_interval.low
    # The bootstrap knows that the values are skewed, which shifts both ends.
    assert (low, high) == pytest.approx(tuple(found.confidence_interval), abs=0.1 * width)


def test_a_single_value_has_no_interval() -> None:
    mean, low, high = student_interval([0.5])
    assert mean == 0.5 and math.isnan(low) and math.isnan(high)


def test_a_difference_in_pooled_deviations() -> None:
    one, two = [0.2, 0.4], [0.1, 0.1, 0.4]  # sample variances 0.02 and 0.03, means 0.3 and 0.2
    assert pooled_deviations(one, two) == pytest.approx(0.1 / math.sqrt(0.025))
    assert pooled_deviations(two, one) == -pooled_deviations(one, two)
    assert math.isnan(pooled_deviations([0.3], two)) and math.isnan(pooled_deviations([0.3, 0.3], [0.2, 0.2]))


@pytest.mark.parametrize(
    ("improvement", "gap", "weight", "expected"),
    [
        (1.0, -1.0, 0.5, 1.0),  # the most that can be
        (-1.0, 1.0, 0.5, 0.0),  # the least
        (0.0, 0.0, 0.5, (1 - 1 / math.e) / (math.e - 1 / math.e)),
        (0.2, 0.4, 0.5, (math.exp(-0.1) - 1 / math.e) / (math.e - 1 / math.e)),
        (0.2, 0.4, 0.75, (math.exp(0.05) - 1 / math.e) / (math.e - 1 / math.e)),
    ],
)
def test_label_robust_scores_by_hand(improvement: float, gap: float, weight: float, expected: float) -> None:
    assert label_robust_score(improvement, gap, weight) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("augmented", "plain", "expected"),
    [(1.0, 1.0, 1.0), (-1.0, -1.0, 0.0), (0.3, 0.1, (math.exp(0.2) - 1 / math.e) / (math.e - 1 / math.e))],
)
def test_augmentation_robust_scores_by_hand(augmented: float, plain: float, expected: float) -> None:
    assert augmentation_robust_score(augmented, plain) == pytest.approx(expected)
    weighted = augmentation_robust_score(augmented, plain, weight=1.0)
    assert weighted == pytest.approx((math.exp(augmented) - 1 / math.e) / (math.e - 1 / math.e))


DIFFERENCES = st.floats(-1, 1)
"""Of two accuracies."""


@given(DIFFERENCES, DIFFERENCES, DIFFERENCES, st.floats(0, 1))
def test_scores_are_fractions_that_grow_with_what_is_gained(
    one: float, two: float, fixed: float, weight: float
) -> None:
    low, high = sorted((one, two))
    growing = [
        [label_robust_score(low, fixed, weight), label_robust_score(high, fixed, weight)],
        [label_robust_score(fixed, high, weight), label_robust_score(fixed, low, weight)],  # the gap is what is missing
        [augmentation_robust_score(low, fixed, weight), augmentation_robust_score(high, fixed, weight)],
        [augmentation_robust_score(fixed, low, weight), augmentation_robust_score(fixed, high, weight)],
    ]
    for worse, better in growing:
        assert -SUMS <= worse <= better + SUMS <= 1 + 2 * SUMS
