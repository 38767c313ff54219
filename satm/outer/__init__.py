"""Outer steps: which hypergradients they need, and the gradient for the synthetic set that they form."""

from satm.outer.base import NOTHING, Answer, Memory, Oracle, OuterGradient, Points
from satm.outer.descent import descent
from satm.outer.noise import smoothing_noise
from satm.outer.sharpness_aware import (
    Ascent,
    adaptive,
    orthogonal,
    sharpness_aware,
    steepest,
    without_surrogate_gap,
)

__all__ = [
    "NOTHING",
    "Answer",
    "Ascent",
    "Memory",
    "Oracle",
    "OuterGradient",
    "Points",
    "adaptive",
    "descent",
    "orthogonal",
    "sharpness_aware",
    "smoothing_noise",
    "steepest",
    "without_surrogate_gap",
]
