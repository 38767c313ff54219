"""Matching training trajectories (MTT)."""

from satm.methods.base import Synthetic, register
from satm.methods.matching import TrajectoryMatching
from satm.outer import NOTHING, Memory, OuterGradient, descent


@register("mtt")
class Mtt(TrajectoryMatching):
    """Match the student's end to the expert's, by plain descent on the hypergradient.

    Composition: SGD experts; real images, hard labels; uniform segments; exact estimator and step-size gradient;
    descent.

    Source: Cazenavette et al. 2022, section "Long-range parameter matching" and its public code.
    """

    def gradient(self, synthetic: Synthetic, iteration: int, memory: Memory = NOTHING) -> OuterGradient:
        """Return the hypergradient at the synthetic set."""
        oracle = self.oracle(synthetic, self.problem.generator("iteration", iteration), iteration)
        return descent(oracle, synthetic.images, self.settings.kept)
