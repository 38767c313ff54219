"""MTT with sharpness-aware minimisation (SAM)."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from satm.methods.base import MethodOptions, Synthetic, register
from satm.methods.matching import TrajectoryMatching
from satm.methods.truncated import TruncatedOptions
from satm.outer import NOTHING, Ascent, Memory, OuterGradient, sharpness_aware, steepest


class MttSamOptions(TruncatedOptions):
    """Options of MTT with SAM."""

    rho: float = Field(0.1, ge=0)
    """Length of the step to the sharpest neighbour, in the norm over the whole set."""
    reuse: bool = True
    """The second unroll goes on along the first from the first differentiated step, instead of starting anew."""


@register("mtt-sam")
class MttSam(TrajectoryMatching):
    """MTT that follows the hypergradient at the set's sharpest neighbour.

    Composition: as `mtt`, truncated, first-order step-size gradient, reused trajectory; SAM.

    Source: SAM: Foret et al. 2021.
    """

    options: ClassVar[type[MethodOptions]] = MttSamOptions
    settings: MttSamOptions

    def gradient(self, synthetic: Synthetic, iteration: int, memory: Memory = NOTHING) -> OuterGradient:
        """Return the hypergradient at the neighbour."""
        return self.sharpened(synthetic, iteration, steepest(self.settings.rho))[0]

    def sharpened(self, synthetic: Synthetic, iteration: int, ascent: Ascent) -> tuple[OuterGradient, Tensor]:
        """Return the hypergradient at the neighbour that an ascent leads to, and the one at the set."""
        options = self.settings
        oracle = self.oracle(synthetic, self.problem.generator("iteration", iteration), iteration)
        restart = options.inner_steps - options.kept if options.reuse else 0
        return sharpness_aware(oracle, synthetic.images, ascent, last=options.kept, restart=restart)
