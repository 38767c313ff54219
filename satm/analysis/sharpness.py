"""Rise of the matching loss at the worst neighbour of a synthetic set."""

from collections.abc import Iterator

from satm.config.methods import MatchingOptions
from satm.methods.parts.matching import TrajectoryMatching
from satm.methods.parts.problem import Synthetic
from satm.seeds import make_generator


def measure_sharpness(
    matching: TrajectoryMatching[MatchingOptions], synthetic: Synthetic, rho: float, segments: int
) -> Iterator[dict[str, float]]:
    """Yield the loss, the loss at the neighbour and their difference, for one expert segment after another.

    ``eps = rho * g / |g|`` with the exact hypergradient g of the images over all inner steps, the norm over the whole
    set; sharpness is ``L(phi + eps) - L(phi)``, both without noise and from the expert's start. The outer step of the
    method is not used; draws depend on the problem's axes and the number of the segment only.

    Source: SATM section 4.3.2.
    Differs: there it is logged during distillation, with truncated hypergradients and a reused trajectory, which only
        SATM has; here it is the same for every method.
    """
    for index in range(segments):
        generator = make_generator("sharpness", *matching.problem.cell, index)
        oracle = matching.oracle_of(synthetic, generator, matching.segments(generator, None))
        exact = oracle(synthetic.images)
        norm = exact.images.norm()
        eps = rho * exact.images / norm if norm > 0 else exact.images
        loss, perturbed = exact.loss, oracle(synthetic.images + eps, last=1).loss
        yield {"loss": float(loss), "perturbed_loss": float(perturbed), "sharpness": float(perturbed - loss)}
