"""Sharpness-aware trajectory matching (SATM)."""

from typing import ClassVar, Literal

from pydantic import Field

from satm.errors import UsageError
from satm.methods.base import MethodOptions, Problem, Synthetic, register
from satm.methods.matching import TrajectoryMatching
from satm.methods.matching_options import MatchingOptions
from satm.outer import NOTHING, Memory, OuterGradient, sharpness_aware, smoothing_noise, steepest


class SatmOptions(MatchingOptions):
    """Options of SATM; what the paper leaves open has a default found on held-out images, see the README."""

    step_size_gradient: Literal["exact", "first-order", "fixed"] = "first-order"
    """How the inner step size is learned; the paper uses Eq. 12, the first-order gradient."""
    keep_divisor: int = Field(3, ge=1)
    """Differentiate through the last int(inner_steps / keep_divisor) steps of each unroll (section 4.2 and A.9)."""
    rho: float = Field(0.1, ge=0)
    """Length of the step to the sharpest neighbour, in the norm over the whole set; not given in the paper."""
    gamma: float = Field(0.001, ge=0)
    """Strength of the smoothing noise relative to each image's norm; not given in the paper."""
    noise: Literal["std", "variance"] = "std"
    """What gamma times the norm is: the noise's standard deviation or its variance. The paper writes a covariance and
    says 'magnitude proportional to the norm'; only a standard deviation is: it keeps its ratio to the image when images
    are scaled, so one gamma serves normalised and whitened images."""
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
    Differs: Algorithm 1 counts the second loop from N - tau; here, as in Eq. 11, tau is the index where it starts.
    """

    options: ClassVar[type[MethodOptions]] = SatmOptions
    settings: SatmOptions

    def __init__(self, options: SatmOptions, problem: Problem) -> None:
        super().__init__(options, problem)
        self.restart = options.inner_steps - options.kept if options.restart is None else options.restart
        if self.restart >= options.inner_steps:
            raise UsageError(f"restart {self.restart} leaves no step of {options.inner_steps}; use a smaller index")

    def gradient(self, synthetic: Synthetic, iteration: int, memory: Memory = NOTHING) -> OuterGradient:
        """Return the hypergradient at the sharpest neighbour of the synthetic set."""
        options = self.settings
        oracle = self.oracle(synthetic, self.problem.generator("iteration", iteration), iteration)
        generator = self.problem.generator("noise", iteration)
        noise = smoothing_noise(synthetic.images, generator, options.gamma, options.noise)
        ascent = steepest(options.rho)
        return sharpness_aware(oracle, synthetic.images, ascent, last=options.kept, restart=self.restart, noise=noise)[
            0
        ]
