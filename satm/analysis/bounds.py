"""Errors of a truncated hypergradient and of a reused trajectory, and their bounds.

Shapes: n synthetic images of C x H x W, P parameters, N inner steps, of which the last N - cut are differentiated.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from satm.config.methods import MatchingOptions
from satm.methods.parts.matching import TrajectoryMatching
from satm.methods.parts.problem import Synthetic
from satm.networks.training import soft_cross_entropy
from satm.params import call_flat
from satm.seeds import make_generator


def curvature(loss: Callable[[Tensor], Tensor], weights: Tensor) -> tuple[float, float]:
    """Return the smallest and largest eigenvalue of the Hessian of `loss`, `[P] -> []`, to 1 %, by Lanczos' method."""

    def product(vector: numpy.ndarray) -> numpy.ndarray:
        place = weights.detach().requires_grad_()
        direction = torch.from_numpy(numpy.ascontiguousarray(vector)).to(place).reshape(place.shape)
        with torch.enable_grad():
            gradient = torch.autograd.grad(loss(place), place, create_graph=True)[0]
            return torch.autograd.grad(gradient, place, direction)[0].double().cpu().numpy()

    operator = LinearOperator((len(weights), len(weights)), matvec=product, dtype=numpy.float64)
    begin = numpy.random.default_rng(0).standard_normal(len(weights))  # ARPACK's own start changes from run to run
    ends = []
    for which in ("SA", "LA"):
        try:
            values = eigsh(operator, k=1, which=which, v0=begin, tol=1e-2, maxiter=50, return_eigenvectors=False)
        except ArpackNoConvergence as error:
            values = error.eigenvalues
        ends.append(float(values[0]) if len(values) else float("nan"))
    return ends[0], ends[1]


def measure_bounds(
    matching: TrajectoryMatching[MatchingOptions], synthetic: Synthetic, rho: float, segments: int, keeps: Sequence[int]
) -> Iterator[dict[str, float | int | str | None]]:
    """Yield the errors of both approximations, one expert segment after another.

    Each number of `keeps`, at least 1 and below N, has two rows:

    - `truncation`: `error`, the norm of the exact minus the truncated hypergradient of the images, `relative` to the
      exact one; the smallest and largest curvature of the inner loss on all images, not augmented, where the kept part
      begins.
    - `reuse` from that step: `error`, the distance of the two trajectories there, `relative` to the distance travelled
      until then; its `bound` ``2 * step_size * steps * gradient``, since either trajectory moves in a step by at most
      the step size times `gradient`, the largest norm of the inner gradient on both. The perturbation between them is
      ``rho * g / |g|`` with the exact hypergradient g.

    Source: SATM sections 3.3.1 and 3.3.2; the bound is Theorem 3.2, ``alpha * tau * (2 * sigma + beta * rho)``.
    Differs: the theorem calls sigma a smoothness, its proof uses it as a bound on the gradient's norm, which is what is
        measured here; the term with beta is then not needed, since both trajectories are measured.
    """
    options, problem = matching.options, matching.problem
    steps, step_size, every = options.inner_steps, float(synthetic.step_size), range(options.inner_steps + 1)

    def inner(weights: Tensor) -> Tensor:
        return soft_cross_entropy(call_flat(problem.module, weights, synthetic.images), synthetic.labels)

    for index in range(segments):
        generator = make_generator("bounds", *problem.cell, index)
        segment = matching.segments(generator, None)[0][1]
        oracle = matching.oracle_of(synthetic, generator, [(1.0, segment)])
        exact = oracle(synthetic.images, keep_points=every)
        norm = exact.images.norm()
        shifted = oracle(synthetic.images + rho * exact.images / norm, last=1, keep_points=every)
        # [N + 1, P] weights of the one student of each
        path, other = (torch.stack([value.points[step][0].weights for step in every]) for value in (exact, shifted))
        gradient = float(max((way[1:] - way[:-1]).norm(dim=1).max() for way in (path, other))) / step_size
        common: dict[str, float | int | str | None]
        common = {"segment": index, "steps": steps, "step_size": step_size, "rho": rho, "gradient": gradient}
        for keep in sorted(keeps):
            cut = steps - keep
            error = float((oracle(synthetic.images, last=keep).images - exact.images).norm())
            least, most = curvature(inner, path[cut])
            row = {**common, "quantity": "truncation", "kept": keep, "error": error, "relative": error / float(norm)}
            yield {**row, "bound": None, "lowest_curvature": least, "highest_curvature": most}
            apart, travelled = float((other[cut] - path[cut]).norm()), float((path[cut] - path[0]).norm())
            row |= {"quantity": "reuse", "error": apart, "relative": apart / travelled if cut else 0.0}
            bound = 2 * step_size * cut * gradient
            yield {**row, "bound": bound, "lowest_curvature": None, "highest_curvature": None}
