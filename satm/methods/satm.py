"""Sharpness-aware trajectory matching (SATM)."""

from typing import ClassVar, Literal

from pydantic import Field

from satm.errors import UsageError
from satm.methods.base import MethodOptions, Problem, Synthetic, register
from satm.methods.matching import MatchingOptions, TrajectoryMatching
from satm.outer import OuterGradient, Smoothing, smoothed


class SatmOptions(MatchingOptions):
    """Options of SATM; what the paper leaves open has a default found on held-out images, see the README."""

    step_size_gradient: Literal["exact", "first-order", "fixed"] = "first-order"
    """How the inner step size is learned; the paper uses Eq. 12, the first-order gradient."""
    rho: float = Field(0.1, ge=0)
    """Length of the step to the sharpest neighbour, in the norm over the whole set; not given in the paper."""
    gamma: float = Field(0.001, ge=0)
    """Strength of the smoothing noise relative to each image's norm; not given in the paper."""
    noise: Literal["std", "variance"] = "std"
    """What gamma times the norm is: the noise's standard deviation or its variance. The paper writes a covariance and
    says 'magnitude proportional to the norm'; only a standard deviation is: it keeps its ratio to the image when images
    are scaled, so one gamma serves normalised and whitened images."""
    keep_divisor: int = Field(3, ge=1)
    """Differentiate through the last int(inner_steps / keep_divisor) steps of each unroll (section 4.2 and A.9)."""
    restart: int | None = Field(None, ge=0)
    """Index of the step from which the second unroll goes on along the first (tau); None: the first differentiated
    step (iota), as in all of the paper's experiments."""


@register("satm")
class Satm(TrajectoryMatching):
    """Match the student's end to the expert's at the set's sharpest neighbour.

    Composition: SGD experts; real images, hard labels; uniform segments; truncated estimator, first-order step-size
    gradient; smoothed sharpness-aware descent with a reused trajectory.

    Source: "Dataset Condensation with Sharpness-Aware Trajectory Matching", Algorithm 1, Eq. 9 to 12, Table 6.
    Not given there: rho, gamma, the start of the step size, the outer momentum, the iterations.
    """

    options: ClassVar[type[MethodOptions]] = SatmOptions
    settings: SatmOptions

    def __init__(self, options: SatmOptions, problem: Problem) -> None:
        super().__init__(options, problem)
        last = options.inner_steps // options.keep_divisor
        restart = options.inner_steps - last if options.restart is None else options.restart
        if last < 1:
            raise UsageError(
                f"int({options.inner_steps} / {options.keep_divisor}) keeps no step; lower keep_divisor or raise "
                "inner_steps"
            )
        if restart >= options.inner_steps:
            raise UsageError(f"restart {restart} leaves no step of {options.inner_steps}; use a smaller index")
        self.constants = Smoothing(options.rho, options.gamma, options.noise, last, restart)

    def gradient(self, synthetic: Synthetic, iteration: int) -> OuterGradient:
        """Return the hypergradient at the sharpest neighbour of the synthetic set."""
        oracle = self.oracle(synthetic, self.problem.generator("iteration", iteration))
        return smoothed(oracle, synthetic.images, self.problem.generator("noise", iteration), self.constants)
