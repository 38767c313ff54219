"""Errors of a truncated hypergradient and of a reused trajectory, their bounds, and the curvature that those assume.

Shapes: n synthetic images of C x H x W, P parameters, N inner steps, of which the last N - cut are differentiated.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from satm.config.methods import MatchingOptions
from satm.errors import UsageError
from satm.methods.parts.matching import TrajectoryMatching
from satm.methods.parts.problem import Synthetic
from satm.networks.training import soft_cross_entropy
from satm.outer import Points
from satm.params import call_flat
from satm.seeds import make_generator

TOLERANCE = 1e-2
"""Relative accuracy of a curvature."""


def truncation_bound(
    cut: int, steps: int, step_size: float, convexity: float, end_gradient: float, jacobian: float
) -> float:
    """Return the bound on the error of a hypergradient that is truncated at a step.

    ``2^(cut + 1) * (1 - step_size * convexity)^(steps - cut) * end_gradient * jacobian``

    Args:
        cut: inner steps that are not differentiated (iota in SATM).
        steps: N.
        step_size: alpha, at most one over the largest curvature.
        convexity: smallest curvature of the inner loss along the differentiated steps (J); above 0.
        end_gradient: norm of the outer loss's gradient with respect to the last weights.
        jacobian: largest spectral norm of the derivative of the weights after 0 to `cut` steps by the images.

    Source: SATM Proposition 3.1.
    Differs: printed is ``2^cut * (1 - step_size * convexity)^(steps - cut + 1)``, which the error on a strongly convex
        inner loss can exceed.
    """
    return 2.0 ** (cut + 1) * (1 - step_size * convexity) ** (steps - cut) * end_gradient * jacobian


def reuse_bound(step_size: float, restart: int, gradient: float) -> float:
    """Return the bound on the distance of two trajectories that begin in one place, after some steps.

    ``2 * step_size * restart * gradient``: either trajectory moves by at most the step size times the norm of its
    gradient in a step.

    Args:
        step_size: alpha.
        restart: steps (tau in SATM).
        gradient: largest norm of the inner gradient on either trajectory.

    Source: SATM Theorem 3.2, ``alpha * tau * (2 * sigma + beta * rho)``.
    Differs: the theorem calls sigma a smoothness, its proof uses it as a bound on the gradient's norm, which is what is
        measured here; the term with beta is then not needed, since both trajectories are measured.
    """
    return 2 * step_size * restart * gradient


def curvature(loss: Callable[[Tensor], Tensor], weights: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest eigenvalue of a loss's Hessian, by Lanczos' method.

    Args:
        loss: `weights [P] -> []`.
        weights: `[P]` where.
    """

    def product(vector: numpy.ndarray) -> numpy.ndarray:
        place = weights.detach().requires_grad_()
        direction = torch.from_numpy(numpy.ascontiguousarray(vector)).to(place).reshape(place.shape)
        with torch.enable_grad():
            gradient = torch.autograd.grad(loss(place), place, create_graph=True)[0]
            found = torch.autograd.grad(gradient, place, direction)[0]
        return found.double().cpu().numpy()

    size = len(weights)
    operator = LinearOperator((size, size), matvec=product, dtype=numpy.float64)
    begin = numpy.random.default_rng(0).standard_normal(size)  # ARPACK's own start is not the same each time
    ends = []
    for which in ("SA", "LA"):
        try:
            values = eigsh(operator, k=1, which=which, v0=begin, tol=TOLERANCE, maxiter=50, return_eigenvectors=False)
        except ArpackNoConvergence as error:
            values = error.eigenvalues
        ends.append(float(values[0]) if len(values) else float("nan"))
    return ends[0], ends[1]


def kept_steps(steps: int, divisors: Sequence[int]) -> list[int]:
    """Return how many of the last inner steps are kept: ``int(steps / divisor)``, ascending, each above 0, not all.

    Raises:
        UsageError: no divisor keeps a part of them.
    """
    if keeps := sorted({steps // divisor for divisor in divisors if divisor > 1 and steps // divisor}):
        return keeps
    raise UsageError(f"the divisors {list(divisors)} of {steps} inner steps keep no part of them; use 2 or more")


def measure_bounds(
    matching: TrajectoryMatching[MatchingOptions], synthetic: Synthetic, rho: float, segments: int, keeps: Sequence[int]
) -> Iterator[dict[str, float | int | str | None]]:
    """Yield the errors of both approximations, one expert segment after another.

    Rows of the quantity `truncation`, one per number of kept steps: `error`, the norm of the exact minus the truncated
    hypergradient of the images, `relative` to the exact one; the smallest and largest curvature of the inner loss on
    all images, not augmented, where the kept part begins. Rows of `reuse`, one per restart at N minus a number of kept
    steps: `error`, the distance of the two trajectories there, `relative` to the distance travelled until then, and its
    `bound`. The perturbation is ``rho * g / |g|`` with g the exact hypergradient.

    Args:
        matching: says what is matched.
        synthetic: the set.
        rho: length of the perturbation.
        segments: how many.
        keeps: numbers of kept steps, each at least 1 and below N.

    Source: SATM sections 3.3.1 and 3.3.2.
    """
    options, problem = matching.options, matching.problem
    steps, step_size = options.inner_steps, float(synthetic.step_size)
    every = range(steps + 1)

    def inner(weights: Tensor) -> Tensor:
        return soft_cross_entropy(call_flat(problem.module, weights, synthetic.images), synthetic.labels)

    for index in range(segments):
        generator = make_generator("bounds", *problem.cell, index)
        sampled = matching.segments(generator, None)[0][1]
        oracle = matching.oracle_of(synthetic, generator, [(1.0, sampled)])
        exact = oracle(synthetic.images, keep_points=every)
        norm = exact.images.norm()
        shifted = oracle(synthetic.images + rho * exact.images / norm, last=1, keep_points=every)
        path, other = (_weights(answer.points, every) for answer in (exact, shifted))
        gradient = float(max((way[1:] - way[:-1]).norm(dim=1).max() for way in (path, other))) / step_size
        common = {"segment": index, "steps": steps, "step_size": step_size, "rho": rho, "gradient": gradient}
        for keep in sorted(keeps):
            cut = steps - keep
            error = float((oracle(synthetic.images, last=keep).images - exact.images).norm())
            least, most = curvature(inner, path[cut])
            yield {
                **common,
                "quantity": "truncation",
                "kept": keep,
                "error": error,
                "relative": error / float(norm),
                "bound": None,
                "lowest_curvature": least,
                "highest_curvature": most,
            }
            apart, travelled = float((other[cut] - path[cut]).norm()), float((path[cut] - path[0]).norm())
            yield {
                **common,
                "quantity": "reuse",
                "kept": keep,
                "error": apart,
                "relative": apart / travelled if cut else 0.0,
                "bound": reuse_bound(step_size, cut, gradient),
                "lowest_curvature": None,
                "highest_curvature": None,
            }


def _weights(points: Mapping[int, Points], steps: Sequence[int]) -> Tensor:
    """Return `[len(steps), P]` weights of the one student at some steps."""
    return torch.stack([points[step][0].weights for step in steps])
