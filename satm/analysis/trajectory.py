"""Distance of networks trained on a synthetic set from an expert's trajectory, along all of it.

Shapes: n synthetic images of C x H x W, P parameters, N inner steps for M epochs of the expert.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from satm.config.methods import MatchingOptions
from satm.methods.parts.matching import TrajectoryMatching
from satm.methods.parts.problem import Synthetic
from satm.networks.training import TrainingImages, measure, soft_cross_entropy
from satm.params import flatten, load_flat
from satm.seeds import make_generator
from satm.unroll import InnerLoop, Point, Sgd
from satm.unroll.batches import mini_batches

Test = Callable[[Tensor], tuple[float, float]]
"""`weights [P] -> (accuracy, loss)` on real test images."""


def student(
    matching: TrajectoryMatching[MatchingOptions],
    synthetic: Synthetic,
    weights: Tensor,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Return `[P]` weights after some steps of the method's inner loop, with the set's own step size and labels.

    The generator, on the CPU, draws batches and augmentation.
    """
    options, problem, images = matching.options, matching.problem, synthetic.images
    batches = mini_batches(len(images), options.batch_size, steps, generator, problem.device)
    count = len(images) if batches is None else len(batches[0])
    augment = problem.augmentation.per_step(generator, [count] * steps, images.shape[-1], images.device)
    loop = InnerLoop(problem.module, soft_cross_entropy, Sgd(), steps, batches, augment if options.augment else None)
    return loop.run(Point(weights.detach(), {}), images, synthetic.labels, synthetic.step_size).weights


def follow(
    matching: TrajectoryMatching[MatchingOptions], synthetic: Synthetic, expert: int, test: Test
) -> Iterator[dict[str, float | int]]:
    """Yield the errors of one segment of M epochs after another, from the start of an expert's trajectory to its end.

    With ``student_t(w)`` the weights after the N steps of segment t from w, the expert's ``w*_t`` and the trained
    network's ``w_t = student_t-1(w_t-1)`` from ``w_0 = w*_0``:

    - accumulated error ``e_t+1 = w_t+1 - w*_t+1``, the distance from the expert,
    - matching error ``d_t+1 = student_t(w*_t) - w*_t+1``, that of the segment alone, started at the expert,
    - initialisation error ``i_t = (student_t(w_t) - w_t) - (student_t(w*_t) - w*_t)``, due to the other start,

    so that ``e_t+1 = e_t + i_t + d_t+1``, and the last error is the sum of all of the others. Rows hold Euclidean norms
    over the P weights; `residual` is the norm of that identity's rounding error, relative to the accumulated error.

    Each row also has accuracy and loss of the expert (`expert_…`), of the trained network (`evaluation_…`) and of
    ``student_t(w*_t)`` (`distillation_…`), all after the segment. A segment draws the same batches and augmentation for
    both of its networks; epochs beyond the last whole segment are left out.

    Source: FTD Eq. 5 to 8, Figure 1; ConTra Definitions 1 and 2, Theorem 1 (Eq. 6).
    """
    options, store = matching.options, matching.experts
    like = flatten(matching.problem.module).to(synthetic.images)
    length = options.expert_epochs
    trained = store.snapshot(expert, 0).to(like)
    total = torch.zeros_like(trained)
    for start in range(0, store.epochs - length + 1, length):
        origin, target = (store.snapshot(expert, epoch).to(like) for epoch in (start, start + length))
        axes = ("trajectory", *matching.problem.cell, expert, start)
        near, there = (
            student(matching, synthetic, weights, options.inner_steps, make_generator(*axes))
            for weights in (origin, trained)
        )
        error, matched, initial = there - target, near - target, (there - trained) - (near - origin)
        total += matched + initial
        trained, norm = there, float(error.norm())
        row: dict[str, float | int] = {"start": start, "epoch": start + length}
        row |= {"accumulated": norm, "matching": float(matched.norm()), "initialisation": float(initial.norm())}
        row["residual"] = float((error - total).norm()) / max(norm, torch.finfo(error.dtype).tiny)
        for name, weights in (("expert", target), ("evaluation", there), ("distillation", near)):
            row[f"{name}_accuracy"], row[f"{name}_loss"] = test(weights)
        yield row


def restart(
    matching: TrajectoryMatching[MatchingOptions], synthetic: Synthetic, expert: int, starts: Sequence[int], test: Test
) -> Iterator[dict[str, float | int]]:
    """Yield accuracy and loss of networks trained from the expert's weights at each of `starts` to its last epoch.

    They take N / M steps for each remaining epoch.

    Source: FTD A.1, Table 6.
    """
    options, store = matching.options, matching.experts
    like = flatten(matching.problem.module).to(synthetic.images)
    for start in starts:
        steps = (store.epochs - start) * options.inner_steps // options.expert_epochs
        generator = make_generator("restart", *matching.problem.cell, expert, start)
        weights = student(matching, synthetic, store.snapshot(expert, start).to(like), steps, generator)
        accuracy, loss = test(weights)
        row = {"start": start, "epoch": store.epochs, "steps": steps, "evaluation_accuracy": accuracy}
        yield {**row, "evaluation_loss": loss}


def measure_trajectory(
    matching: TrajectoryMatching[MatchingOptions],
    synthetic: Synthetic,
    real: TrainingImages,
    experts: Sequence[int],
    starts: Sequence[int],
) -> Iterator[dict[str, float | int | str]]:
    """Yield the rows of `follow` (kind `path`) and of `restart`, tested on real images with integer labels."""
    module = matching.problem.build(0).to(real.labels.device)

    def test(weights: Tensor) -> tuple[float, float]:
        load_flat(module, weights)
        return measure(module, real)

    for expert in experts:
        for row in follow(matching, synthetic, expert, test):
            yield {"kind": "path", "expert": expert, "steps": matching.options.inner_steps, **row}
        for row in restart(matching, synthetic, expert, starts, test):
            yield {"kind": "restart", "expert": expert, **row}
