"""TESLA: MTT with a gradient that needs the memory of one inner step, and with soft labels from the expert.

Composition of `tesla`: experts sgd; init real; labels teacher; segments uniform; objective match; estimator tesla; step
size first-order; outer descent.

The published gradient (`satm.unroll.engines`) is presented as an exact rearrangement of MTT's. It holds each step's
weights constant, so their dependence on the images of earlier steps is missing: it is exact for one inner step and an
approximation for more. `--engine mixed` gives the exact hypergradient in the memory of one step's activations plus two
weight vectors per step.

Source: Cui et al. 2023 (TESLA) and its public code, which halves the images' gradient (`tesla_scale: code`) and holds
    the inner gradients constant for the step size.
Differs: the stored labels are those of the last iteration's teacher on the final images; the code's are those on the
    images one step earlier.
"""

from satm.config.methods import MatchingOptions
from satm.methods.mtt import step
from satm.methods.recipe import MATCHING, recipe

recipe("tesla", MATCHING, MatchingOptions, step, engine="tesla", labels="teacher", step_size_gradient="first-order")
