"""Back-propagation through time (BPTT), truncated (T-BPTT), and along unrolls of random length (R-BPTT).

A fresh network is trained on the synthetic set; the outer loss is its loss on real images.

Composition of `bptt`: experts none; init gaussian; labels hard; segments none; objective real-loss; estimator exact;
step size fixed; outer descent. Adam inside and outside, clipped hypergradients.

`t-bptt`: as `bptt`, estimator truncated.
`r-bptt`: as `bptt`, estimator random length.

Source: RaT-BPTT section 2 and appendix C; growing inner steps: C.5 (BPTT-Increasing Windows).
Not given: the distribution of R-BPTT's random lengths; uniform from 1 to N here.
Differs: learned labels in the paper are positive, unnormalised numbers, which its public code clips at 0; here they are
    logits, as for all methods here: the network is trained on their softmax.
"""

from typing import TYPE_CHECKING

from pydantic import Field

from satm.config.methods import UnrolledOptions
from satm.methods.parts.window import Window, Windows, check_window, window_length
from satm.methods.recipe import UNROLLED, recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from satm.methods.parts.unrolled import UnrolledTraining
    from satm.outer import MethodState


class BpttOptions(UnrolledOptions):
    """Options of BPTT."""

    grow_from: int | None = Field(None, ge=1)
    """Inner steps of the first iteration, which grow linearly to `inner_steps` in the last; None: always all of them.
    10 of 180 in RaT-BPTT's Figure 8."""


class TbpttOptions(UnrolledOptions):
    """Options of T-BPTT."""

    window: int | None = Field(None, ge=1)
    """Differentiated inner steps (T in RaT-BPTT); None: all of them."""


def check_growth(options: BpttOptions) -> "Iterator[str]":
    """Yield whether `grow_from` is more than all inner steps."""
    first, steps = options.grow_from, options.inner_steps
    if first is not None and first > steps:
        yield f"grow_from {first} is more than {steps} inner_steps; lower grow_from or raise inner_steps"


def whole(training: "UnrolledTraining[BpttOptions]", iteration: int, state: "MethodState") -> Window:
    """Return all inner steps, or with `grow_from` the number that this iteration has reached."""
    options = training.options
    if options.grow_from is None:
        return Window(0, options.inner_steps)
    done = iteration / max(1, options.iterations - 1)
    return Window(0, round(options.grow_from + done * (options.inner_steps - options.grow_from)))


def last(training: "UnrolledTraining[TbpttOptions]", iteration: int, state: "MethodState") -> Window:
    """Return the last T inner steps."""
    length = window_length(training.options)
    return Window(training.options.inner_steps - length, length)


def random_length(training: "UnrolledTraining[UnrolledOptions]", iteration: int, state: "MethodState") -> Window:
    """Return the first inner steps, a random number of them."""
    from satm.methods.parts.placement import uniform

    generator = training.problem.generator("window", iteration)
    return Window(0, 1 + uniform(generator, training.options.inner_steps - 1))


recipe("bptt", UNROLLED, BpttOptions, Windows(whole), check=check_growth)
recipe("t-bptt", UNROLLED, TbpttOptions, Windows(last), {"estimator": "truncated"}, check_window)
recipe("r-bptt", UNROLLED, UnrolledOptions, Windows(random_length), {"estimator": "random length"})
