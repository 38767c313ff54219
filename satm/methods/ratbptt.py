"""Random truncated back-propagation through time (RaT-BPTT): a window at a random place, and the loss right after it.

Composition of `ratbptt`: experts none; init gaussian; labels hard; segments none; objective real-loss; estimator
window; step size fixed; outer descent. Steps before the window, of length T, are run without a graph; steps after it
are not run.

Source: RaT-BPTT Algorithm 1; other placements: C.2; one window per pass, and the number of iterations in a pass: its
    public code.
Differs: labels as in `bptt`. The public code draws mini-batches of one size per class, independently in each step; here
    they are drawn from all images, without replacement until all were used.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from satm.config import idle_options
from satm.config.methods import UnrolledOptions
from satm.methods.parts.window import Window, Windows, check_window, window_length
from satm.methods.recipe import UNROLLED, recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from satm.methods.parts.unrolled import UnrolledTraining
    from satm.outer import MethodState


class RatBpttOptions(UnrolledOptions):
    """Options of RaT-BPTT."""

    window: int | None = Field(None, ge=1)
    """Differentiated inner steps (T in RaT-BPTT); None: all of them."""
    placement: Literal["uniform", "forward", "backward", "early"] = "uniform"
    """Place of the window: anywhere, with equal probability; moving `forward` from the end to the beginning or
    `backward` from the beginning to the end, by its own length whenever the loss stagnates; or `early` more often than
    late."""
    redraw: Literal["iteration", "pass"] = "iteration"
    """Whether a random window is drawn in each iteration, or once for each pass over the real images as in the public
    code."""
    patience: int = Field(2000, ge=1)
    """Iterations without a lower average loss after which a moving window moves."""
    early_power: float = Field(2.0, ge=1)
    """Exponent of the uniform random number that places an `early` window; a larger one gives earlier windows."""

    @property
    def moves(self) -> bool:
        """Whether the window moves by the loss rather than by chance."""
        return self.placement in ("forward", "backward")


def check(options: RatBpttOptions) -> "Iterator[str]":
    """Yield whether the window does not fit, and options that the placement does not use."""
    yield from check_window(options)
    cause = f"placement {options.placement!r}; set placement to"
    idle = {f"{cause} uniform or early": ("redraw",)} if options.moves else {}
    idle |= {} if options.moves else {f"{cause} forward or backward": ("patience",)}
    idle |= {} if options.placement == "early" else {f"{cause} early": ("early_power",)}
    yield from idle_options(options, idle)


def place(training: "UnrolledTraining[RatBpttOptions]", iteration: int, state: "MethodState") -> Window:
    """Return the T inner steps of an iteration by the option `placement`."""
    from satm.methods.parts import placement

    options, length = training.options, window_length(training.options)
    most = options.inner_steps - length
    if options.moves:
        return Window(placement.moving(state, options.placement, most, length), length)
    number = iteration // training.per_pass if options.redraw == "pass" else iteration
    generator = training.problem.generator("window", number)
    if options.placement == "early":
        return Window(placement.early(generator, most, options.early_power), length)
    return Window(placement.uniform(generator, most), length)


def remember(training: "UnrolledTraining[RatBpttOptions]", state: "MethodState", loss: "Tensor") -> "MethodState":
    """Return the position of a moving window and the statistics of its loss."""
    from satm.methods.parts.placement import follow
    from satm.outer import NO_STATE

    return follow(state, loss, training.options.patience) if training.options.moves else NO_STATE


recipe("ratbptt", UNROLLED, RatBpttOptions, Windows(place, remember), {"estimator": "window"}, check)
