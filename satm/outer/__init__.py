"""Outer steps: which hypergradients they need, and the gradient for the synthetic set that they form."""

from satm.outer.base import NO_STATE, HypergradientFn, MethodState, OuterGradient, OuterValue, Points
from satm.outer.descent import descent
from satm.outer.noise import smoothing_noise
from satm.outer.sharpness_aware import Ascent, adaptive, orthogonal, sharpness_aware, steepest, without_surrogate_gap
