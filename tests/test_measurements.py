"""Analyses beside accuracies, against values computed by hand or written out in the obvious way."""

from dataclasses import replace

import numpy
import pandas
import pytest
import torch
from drawing import torch_generator
from matching import double
from tolerances import LOOPS, SUMS, TRAINING
from torch import Tensor
from torch.nn import functional

from satm.analysis.bounds import curvature, measure_bounds
from satm.analysis.correlation import correlations, triangle
from satm.analysis.trajectory import follow, restart, student
from satm.analysis.variance import gradient_variance, normalised_variance
from satm.config.methods import MatchingOptions
from satm.errors import UsageError
from satm.methods import METHODS
from satm.methods.parts.matching import TrajectoryMatching
from satm.methods.parts.problem import Problem, Synthetic
from satm.networks.training import soft_cross_entropy
from satm.seeds import make_generator

OPTIONS = MatchingOptions(inner_steps=4, expert_epochs=1, max_start_epoch=3, step_size=0.1)


def in_float64(matching: TrajectoryMatching) -> Synthetic:
    start = matching.start()
    return replace(start, images=start.images.double(), step_size=start.step_size.double())


# Correlation


def test_correlations_of_losses_that_move_in_known_ways() -> None:
    time = numpy.linspace(1, 0, 20)
    # Matching epoch 0 helps all; matching epoch 1 harms epoch 0; epoch 2 leaves both as they are but for a sine.
    losses = [
        numpy.stack([time, 3 * time + 1, time**2], 1),
        numpy.stack([1 - time, time, time], 1),
        numpy.stack([numpy.ones(20), numpy.sin(9 * time), time], 1),
    ]
    found = correlations(losses)
    for matched, values in enumerate(losses):
        for watched in range(3):
            pair = pandas.Series(values[:, matched]), pandas.Series(values[:, watched])
            expected = pair[0].corr(pair[1])
            assert found[matched, watched] == pytest.approx(expected, nan_ok=True, abs=SUMS)
    assert found[0, 1] == pytest.approx(1) and found[1, 0] == pytest.approx(-1) and numpy.isnan(found[2, 0])
    low = triangle(found, lower=True)  # of (1, 0), (2, 0), (2, 1), the second is no number
    assert low.count == 2 and low.mean == pytest.approx((-1 + found[2, 1]) / 2)
    assert low.negative == pytest.approx((1 + (found[2, 1] < 0)) / 2)
    assert triangle(found, lower=False).negative == 0
    assert triangle(numpy.full((2, 2), numpy.nan), lower=True).count == 0


def test_monitored_losses_are_those_of_the_held_out_expert(problem: Problem) -> None:
    options = OPTIONS.model_copy(update={"monitor": 3, "monitor_every": 2, "start_epoch": 2})
    matching = TrajectoryMatching(METHODS["mtt"], options, problem)
    synthetic = in_float64(matching)
    assert matching.observe(synthetic, 1) == {}
    found = matching.observe(synthetic, 4)
    assert list(found) == ["monitor_0", "monitor_1", "monitor_2"] and found == matching.observe(synthetic, 0)
    for start, loss in enumerate(found.values()):
        begin, target = (problem.experts.snapshot(1, epoch).double() for epoch in (start, start + 1))  # type: ignore[union-attr]
        # The draws of a segment: no mini-batches, then one augmentation a step.
        generator = problem.generator("monitor", start)
        weights = student(matching, synthetic, begin, 4, generator)
        assert loss == pytest.approx(float((weights - target).square().sum() / (begin - target).square().sum()))
    # The sampled segments are of the other expert, and all begin at one epoch.
    chosen = [matching.segments(torch_generator(seed), 0)[0][1] for seed in range(9)]
    assert {(segment.expert, segment.start, segment.end) for segment in chosen} == {(0, 2, 3)}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"start_epoch": 4}, "start_epoch: a segment from epoch 4 to epoch 5 goes beyond the 4 epochs of the experts"),
        ({"monitor": 5}, "monitor: a segment from epoch 4 to epoch 5 goes beyond the 4 epochs of the experts"),
        ({"start_epoch": 0, "segments": "expanding", "expand_from": 1}, "leave one of them out"),
    ],
)
def test_segments_beyond_the_experts_are_refused(problem: Problem, options: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        TrajectoryMatching(METHODS["mtt"], OPTIONS.model_copy(update=options), problem)


# Errors along the path


def test_the_accumulated_error_is_the_sum_of_its_parts(problem: Problem) -> None:
    matching = TrajectoryMatching(METHODS["mtt"], OPTIONS, problem)
    synthetic = in_float64(matching)

    def test(weights: Tensor) -> tuple[float, float]:
        return float(weights.sum()), float(weights.norm())

    rows = list(follow(matching, synthetic, 1, test))
    assert [(row["start"], row["epoch"]) for row in rows] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert max(row["residual"] for row in rows) < LOOPS
    store = problem.experts
    assert store is not None
    path = [store.snapshot(1, epoch).double() for epoch in range(5)]
    trained = path[0]
    for start, row in enumerate(rows):
        near, there = (
            student(matching, synthetic, weights, 4, make_generator("trajectory", *problem.cell, 1, start))
            for weights in (path[start], trained)
        )
        assert row["matching"] == pytest.approx(float((near - path[start + 1]).norm()))
        assert row["accumulated"] == pytest.approx(float((there - path[start + 1]).norm()))
        shifted = (there - trained) - (near - path[start])
        assert row["initialisation"] == pytest.approx(float(shifted.norm()), abs=SUMS)
        assert row["evaluation_accuracy"] == pytest.approx(float(there.sum()))
        assert row["distillation_loss"] == pytest.approx(float(near.norm()))
        assert row["expert_loss"] == pytest.approx(float(path[start + 1].norm()))
        trained = there
    assert rows[0]["initialisation"] == 0 and rows[0]["accumulated"] == rows[0]["matching"]  # begun in one place


def test_networks_begin_where_the_expert_is_and_make_the_steps_that_are_left(problem: Problem) -> None:
    matching = TrajectoryMatching(
        METHODS["mtt"], OPTIONS.model_copy(update={"augment": False, "expert_epochs": 2}), problem
    )
    synthetic = in_float64(matching)
    rows = list(restart(matching, synthetic, 0, (0, 3), lambda weights: (float(weights.sum()), 0.0)))
    assert [(row["start"], row["steps"]) for row in rows] == [(0, 8), (3, 2)]
    store = problem.experts
    assert store is not None
    weights = store.snapshot(0, 3).double()
    for _ in range(2):  # plain gradient descent, written out
        place = weights.requires_grad_()
        parts = torch.func.functional_call(problem.module, _named(problem, place), (synthetic.images,))
        loss = functional.cross_entropy(parts, synthetic.labels)
        weights = (place - synthetic.step_size * torch.autograd.grad(loss, place)[0]).detach()
    assert rows[1]["evaluation_accuracy"] == pytest.approx(float(weights.sum()), rel=SUMS)


def _named(problem: Problem, vector: Tensor) -> dict[str, Tensor]:
    found, place = {}, 0
    for name, parameter in problem.module.named_parameters():
        found[name] = vector[place : place + parameter.numel()].view_as(parameter)
        place += parameter.numel()
    return found


# Variance


def test_normalised_variance_by_hand() -> None:
    gradients = torch.tensor([[1.0, 2.0], [3.0, 2.0], [5.0, 5.0]])
    # variances 4 and 3, mean 3.5; mean gradient (3, 3), squared norm 18
    assert normalised_variance(gradients) == pytest.approx(3.5 / 18)
    assert normalised_variance(7 * gradients) == pytest.approx(3.5 / 18)


def test_the_variance_is_over_single_real_images(problem: Problem) -> None:
    kind = METHODS["bptt"]
    options = kind.options(inner_steps=3, step_size=0.1, inner="sgd", clip=None, augment=False, augment_real=False)
    method = kind(options, replace(problem, experts=None))
    synthetic = double(method)
    found = gradient_variance(method, synthetic, 2, 4)  # type: ignore[arg-type]
    images, labels = method.real_images(2, problem.generator("iteration", 2))  # type: ignore[attr-defined]
    each = []
    for index in range(4):
        place = synthetic.images.clone().requires_grad_()
        weights = problem.fresh_weights("student", 2).double()
        for _ in range(3):
            outputs = torch.func.functional_call(problem.module, _named(problem, weights.requires_grad_()), (place,))
            loss = soft_cross_entropy(outputs, synthetic.labels)
            weights = weights - synthetic.step_size * torch.autograd.grad(loss, weights, create_graph=True)[0]
        real = images[index : index + 1].double()
        outer = functional.cross_entropy(
            torch.func.functional_call(problem.module, _named(problem, weights), (real,)), labels[index : index + 1]
        )
        each.append(torch.autograd.grad(outer, place)[0].flatten())
    gradients = torch.stack(each)
    assert found["variance"] == pytest.approx(normalised_variance(gradients), rel=TRAINING)
    assert found["norm"] == pytest.approx(float(gradients.mean(0).norm()), rel=TRAINING)


# Bounds


def test_curvature_of_a_quadratic_is_its_eigenvalues() -> None:
    generator = torch_generator(3)
    rotation = torch.linalg.qr(torch.randn(9, 9, generator=generator, dtype=torch.float64))[0]
    values = torch.tensor([-1.5, -0.5, 0.0, 0.1, 0.3, 1.0, 2.0, 3.0, 7.0], dtype=torch.float64)
    matrix = rotation @ torch.diag(values) @ rotation.T
    weights = torch.randn(9, generator=generator, dtype=torch.float64)
    least, most = curvature(lambda place: 0.5 * place @ matrix @ place + place.sum(), weights)
    assert least == pytest.approx(-1.5, rel=0.01) and most == pytest.approx(7.0, rel=0.01)  # `curvature` asks for 1 %


def truncation_bound(
    cut: int, steps: int, step_size: float, convexity: float, end_gradient: float, jacobian: float
) -> float:
    """Return SATM's bound (Proposition 3.1) on the error of a hypergradient that is truncated at a step.

    Differs: printed is ``2^cut * (1 - step_size * convexity)^(steps - cut + 1)``, which the error on a strongly convex
        inner loss can exceed.

    Args:
        cut: inner steps that are not differentiated (iota in SATM).
        steps: N.
        step_size: alpha, at most one over the largest curvature.
        convexity: smallest curvature of the inner loss along the differentiated steps (J); above 0.
        end_gradient: norm of the outer loss's gradient with respect to the last weights.
        jacobian: largest spectral norm of the derivative of the weights after 0 to `cut` steps by the images.
    """
    return 2.0 ** (cut + 1) * (1 - step_size * convexity) ** (steps - cut) * end_gradient * jacobian


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("cut", [0, 3, 6, 9])
def test_the_truncation_error_on_a_strongly_convex_model_is_within_its_bound(seed: int, cut: int) -> None:
    generator = torch_generator(seed)
    size, count, steps = 6, 4, 10
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    hessian = root @ root.T / size + 0.3 * torch.eye(size, dtype=torch.float64)
    mixed = torch.randn(size, count, generator=generator, dtype=torch.float64)
    target, start = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))
    values = torch.linalg.eigvalsh(hessian)
    step_size, convexity = 1 / float(values[-1]), float(values[0])
    phi = torch.randn(count, generator=generator, dtype=torch.float64, requires_grad=True)

    # Inner loss 0.5 w'Hw + w'M phi: its gradient is Hw + M phi, so the unrolled derivative can be written out.
    weights, jacobian, largest = start, torch.zeros(size, count, dtype=torch.float64), 0.0
    late = torch.zeros_like(jacobian)
    for step in range(steps):
        if step <= cut:
            largest = max(largest, float(torch.linalg.matrix_norm(jacobian, 2)))
        weights = weights - step_size * (hessian @ weights + mixed @ phi.detach())
        keep = torch.eye(size, dtype=torch.float64) - step_size * hessian
        jacobian = keep @ jacobian - step_size * mixed
        if step >= cut:
            late = keep @ late - step_size * mixed
    outer = weights - target
    error = float((outer @ (jacobian - late)).norm())
    bound = truncation_bound(cut, steps, step_size, convexity, float(outer.norm()), largest)
    assert error <= bound * (1 + SUMS) if cut else error == 0


def test_the_printed_bound_can_be_exceeded() -> None:
    # One weight w with the gradient w + phi, so that the curvature is 1, and one of two steps kept.
    step_size, convexity, steps, cut = 0.9, 1.0, 2, 1
    jacobian = step_size  # of the weight after one step by phi
    error = (1 - step_size) * jacobian  # times an outer gradient of 1
    assert error > 2**cut * (1 - step_size * convexity) ** (steps - cut + 1) * jacobian
    assert error <= truncation_bound(cut, steps, step_size, convexity, 1.0, jacobian)


def test_errors_of_both_approximations_as_they_are_defined(problem: Problem) -> None:
    matching = TrajectoryMatching(METHODS["mtt"], OPTIONS, problem)
    synthetic, rho = in_float64(matching), 0.2
    rows = list(measure_bounds(matching, synthetic, rho, segments=1, keeps=(1, 3)))
    assert [(row["quantity"], row["kept"]) for row in rows] == [
        *(("truncation", 1), ("reuse", 1)),
        *(("truncation", 3), ("reuse", 3)),
    ]
    generator = make_generator("bounds", *problem.cell, 0)
    oracle = matching.oracle_of(synthetic, generator, [(1.0, matching.segments(generator, None)[0][1])])
    exact = oracle(synthetic.images, keep_points=range(5))
    other = oracle(synthetic.images + rho * exact.images / exact.images.norm(), keep_points=range(5))
    for truncation, reuse in (rows[:2], rows[2:]):
        kept = truncation["kept"]
        assert isinstance(kept, int)
        expected = float((oracle(synthetic.images, last=kept).images - exact.images).norm())
        assert truncation["error"] == pytest.approx(expected, rel=TRAINING)
        assert truncation["relative"] == pytest.approx(expected / float(exact.images.norm()), rel=TRAINING)
        apart = other.points[4 - kept][0].weights - exact.points[4 - kept][0].weights
        assert reuse["error"] == pytest.approx(float(apart.norm()), rel=TRAINING)
        steps = [
            (answer.points[step + 1][0].weights - answer.points[step][0].weights).norm() / 0.1
            for answer in (exact, other)
            for step in range(4)
        ]
        assert reuse["bound"] == pytest.approx(2 * 0.1 * (4 - kept) * float(max(steps)), rel=TRAINING)
        assert float(reuse["error"]) <= float(reuse["bound"])  # type: ignore[arg-type]
        assert float(truncation["lowest_curvature"]) < float(truncation["highest_curvature"])  # type: ignore[arg-type]
