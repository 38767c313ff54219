"""Correlations of the matching losses of different epochs while one of them is matched. Nothing here imports torch.

Shapes: E epochs, t measurements along a distillation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy


def correlations(losses: Sequence[numpy.ndarray]) -> numpy.ndarray:
    """Return `[E, E]`: entry (i, j) is Pearson's correlation of the losses of epoch i and epoch j while i is matched.

    ``r_ij = cov(L_i, L_j) / (std(L_i) * std(L_j))`` over the measurements of the distillation that matches epoch i,
    whose losses of all epochs are `[t, E]`; t may differ. The diagonal is 1. NaN where a loss is constant.

    Source: ConTra section 4.2, Eq. 7.
    """
    epochs = len(losses)
    matrix = numpy.full((epochs, epochs), numpy.nan)
    for matched, values in enumerate(losses):
        centred = values - values.mean(0)
        norms = numpy.sqrt((centred**2).sum(0))
        with numpy.errstate(invalid="ignore", divide="ignore"):
            matrix[matched] = centred[:, matched] @ centred[:, :epochs] / (norms[matched] * norms[:epochs])
    return matrix


@dataclass(frozen=True)
class Triangle:
    """Summary of the correlations on one side of the diagonal."""

    mean: float
    negative: float  # fraction below 0
    count: int  # without NaN


def triangle(matrix: numpy.ndarray, lower: bool) -> Triangle:
    """Summarise the entries below the diagonal (later epochs matched, earlier ones watched) or above it."""
    places = numpy.tril_indices(len(matrix), -1) if lower else numpy.triu_indices(len(matrix), 1)
    values = matrix[places][~numpy.isnan(matrix[places])]
    if not len(values):
        return Triangle(numpy.nan, numpy.nan, 0)
    return Triangle(float(values.mean()), float((values < 0).mean()), len(values))
