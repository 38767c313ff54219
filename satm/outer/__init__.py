"""Outer steps: the hypergradients that each needs, and the gradient for the synthetic set that it computes."""

from satm.outer.base import NO_STATE, HypergradientFn, MethodState, OuterGradient, OuterValue, Points, Span
from satm.outer.steps import (
    Ascent,
    adaptive,
    descent,
    orthogonal,
    sharpness_aware,
    smoothing_noise,
    steepest,
    without_surrogate_gap,
)
