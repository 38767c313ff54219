"""How much the matching loss rises at the worst neighbour of a synthetic set."""

from collections.abc import Iterator

from satm.config.methods import MatchingOptions
from satm.methods.parts.matching import TrajectoryMatching
from satm.methods.parts.problem import Synthetic
from satm.seeds import make_generator


def measure_sharpness(
    matching: TrajectoryMatching[MatchingOptions], synthetic: Synthetic, rho: float, segments: int
) -> Iterator[dict[str, float]]:
    """Yield the loss, the loss at the neighbour and their difference, for one expert segment after another.

    ``eps = rho * g / |g|`` with g the exact hypergradient of the images over all inner steps, the norm over the whole
    set; sharpness is ``L(phi + eps) - L(phi)``, both without noise and from the expert's start.

    Args:
        matching: says what is matched; its own way to move the set is not used.
        synthetic: the set.
        rho: length of eps.
        segments: how many; their draws depend on the problem's axes and the index only.

    Source: SATM section 4.3.2.
    Differs: there it is logged during distillation, with truncated hypergradients and a reused trajectory, which only
        SATM has; here it is the same for every method.
    """
    for index in range(segments):
        generator = make_generator("sharpness", *matching.problem.cell, index)
        oracle = matching.oracle_of(synthetic, generator, matching.segments(generator, None))
        found = oracle(synthetic.images)
        norm = found.images.norm()
        eps = rho * found.images / norm if norm > 0 else found.images
        perturbed = oracle(synthetic.images + eps, last=1)
        yield {
            "loss": float(found.loss),
            "perturbed_loss": float(perturbed.loss),
            "sharpness": float(perturbed.loss - found.loss),
        }
