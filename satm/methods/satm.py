"""Sharpness-aware trajectory matching (SATM): match the student's end to the expert's at the set's sharpest neighbour.

Composition of `satm`: experts sgd; init real; labels hard; segments uniform; objective match; estimator truncated; step
size first-order; outer smoothed.

`satm-fi`: as `satm`, experts flat.
`satm-da`: as `satm`, experts flat; init correct; labels learned; segments uniform (expanding if the preset says so).
Iterations with a loss above 1 are skipped.

Source: "Dataset Condensation with Sharpness-Aware Trajectory Matching", Algorithm 1, Eq. 9 to 12, Table 6; SATM-FI:
    Table 10 and section A.8; SATM-DA: Table 12 and section A.10, which name DATM's schedule.
Not given: rho, gamma, the initial step size, the outer momentum, the number of iterations; the README says how the
    defaults of rho and gamma were chosen on held-out images. For SATM-DA only the schedule is given; we infer that
    experts, initial images, labels and the skipping of large losses are DATM's, too.
Differs: Algorithm 1 counts the second loop from N - tau; here, as in Eq. 11, tau is the index where it starts.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from satm.config.methods import MatchingOptions
from satm.methods.datm import ALIGNED
from satm.methods.recipe import MATCHING, recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from satm.methods.parts.matching import TrajectoryMatching
    from satm.methods.parts.problem import Synthetic
    from satm.outer import MethodState, OuterGradient


class SatmOptions(MatchingOptions):
    """Options of SATM."""

    rho: float = Field(0.1, ge=0)
    """Length of the step to the sharpest neighbour, in the norm over the whole set; not given in the paper."""
    gamma: float = Field(0.001, ge=0)
    """Strength of the smoothing noise relative to each image's norm; not given in the paper."""
    noise: Literal["std", "variance"] = "std"
    """Whether gamma times the norm is the noise's standard deviation or its variance. The paper writes a covariance and
    says 'magnitude proportional to the norm'; only a standard deviation is: it keeps its ratio to the image when images
    are scaled, so one gamma serves normalised and whitened images."""
    restart: int | None = Field(None, ge=0)
    """Index of the inner step from which the second unroll reuses the first one's trajectory (tau); None: the first
    differentiated step (iota), as in all of the paper's experiments."""

    @property
    def reuse_from(self) -> int:
        """Inner step from which the second unroll continues (tau)."""
        return self.inner_steps - self.kept if self.restart is None else self.restart


def check(options: SatmOptions) -> "Iterator[str]":
    """Yield whether no step is left for the second unroll."""
    if options.restart is not None and options.restart >= options.inner_steps:
        yield f"restart {options.restart} leaves no step of {options.inner_steps}; use a smaller index"


def step(
    matching: "TrajectoryMatching[SatmOptions]", synthetic: "Synthetic", iteration: int, state: "MethodState"
) -> "OuterGradient":
    """Return the hypergradient at the sharpest neighbour of the synthetic set: Algorithm 1, one outer iteration.

    ``S`` is the set, ``L(S, w)`` the matching loss after the inner steps on S from weights w:

    1. unroll on ``S + noise`` from the expert's start, noise proportional to each image's norm (line 7); the gradient
       ``g`` is truncated to the last steps (Eq. 9), the step size's is first-order (Eq. 12);
    2. ``eps = rho * g / |g|`` (Eq. 10);
    3. unroll on ``S + eps``, without noise, from the first unroll's weights at step tau (Eq. 11): the set moves along
       this gradient.
    """
    from satm.outer import OuterGradient, smoothing_noise, steepest

    options = matching.options
    hypergradient = matching.oracle(synthetic, iteration)
    images, tau = synthetic.images, options.reuse_from
    noise = smoothing_noise(images, matching.problem.generator("noise", iteration), options.gamma, options.noise)
    first = hypergradient(images + noise, last=options.kept, keep_points=(tau,))
    eps = steepest(options.rho)(first.images)
    second = hypergradient(images + eps, last=options.kept, start=first.points[tau], first=tau)
    return OuterGradient(first.loss, second.images, second.labels, first.step_size, second.loss - first.loss)


TRUNCATED: dict[str, Any] = {"keep_divisor": 3, "step_size_gradient": "first-order"}
"""SATM's approximations of the hypergradient: truncation (section 4.2 and A.9) and Eq. 12."""

SMOOTHED = {"outer": "smoothed"}
"""The outer step of `step`: noise, a step to the sharpest neighbour, and a reused trajectory."""

recipe("satm", MATCHING, SatmOptions, step, SMOOTHED, check, **TRUNCATED)
recipe("satm-fi", MATCHING, SatmOptions, step, SMOOTHED, check, **TRUNCATED, experts="flat")
recipe("satm-da", MATCHING, SatmOptions, step, SMOOTHED, check, **TRUNCATED, **ALIGNED)
