"""Methods in float64 against one another, where they must be equal."""

from typing import Any

import pytest
import torch
from matching import EXPANDING, PARTS, differing, double, make, unlike
from tolerances import DISTINCT, SUMS
from torch import Tensor

from satm.methods.mtt import matching_loss
from satm.methods.parts.problem import Problem
from satm.outer import NO_STATE, MethodState
from satm.params import call_flat

CONCURRENT: dict[str, Any] = {"concurrent": 3, "distance": 1}
SAM: dict[str, Any] = {"rho": 0.2, "keep_divisor": 2}


@pytest.mark.parametrize(
    ("name", "options"),
    [("mtt", {}), ("mtt", {"batch_size": None}), ("datm", EXPANDING), ("satm", SAM), ("mtt-vasso", SAM)],
    ids=str,
)
def test_concurrent_segments_with_beta_1_are_the_method_itself(
    problem: Problem, name: str, options: dict[str, Any]
) -> None:
    alone = make(problem, name, **options)
    both, less = (make(problem, name, **options, **CONCURRENT, beta=beta) for beta in (1.0, 0.9))
    synthetic = double(alone)
    for iteration in (0, 5):
        expected = alone.gradient(synthetic, iteration)
        assert not differing(both.gradient(synthetic, iteration), expected)
        changed = differing(less.gradient(synthetic, iteration), expected)
        assert changed == [part for part in PARTS if getattr(expected, part) is not None]


@pytest.mark.parametrize("name", ["mtt", "satm"])
def test_with_beta_0_the_sampled_segment_has_no_effect(problem: Problem, name: str) -> None:
    synthetic = double(make(problem, name, **CONCURRENT))
    for beta, changed in ((0.0, []), (0.2, ["loss", "images", "step_size"])):
        one, two = (
            make(problem, name, **CONCURRENT, beta=beta, start_epoch=start).gradient(synthetic, 2) for start in (0, 1)
        )
        assert differing(one, two) == changed


def test_an_objective_replaces_the_matching_loss(problem: Problem) -> None:
    matching = make(problem, "mtt")
    synthetic, seen = double(matching), []

    def tripled(student: Tensor, begin: Tensor, target: Tensor) -> Tensor:
        seen.append((begin, target))
        return 3 * matching_loss(student, begin, target)

    own = matching.oracle(synthetic, 2, tripled)(synthetic.images)
    plain = matching.oracle(synthetic, 2)(synthetic.images)
    assert own.loss == pytest.approx(3 * float(plain.loss), rel=SUMS)
    assert unlike(own.images, 3 * plain.images) < SUMS and unlike(own.step_size, 3 * plain.step_size) < SUMS
    assert seen and not torch.equal(*seen[0])


def test_a_segment_without_weight_costs_nothing(problem: Problem) -> None:
    passes: list[int] = []
    problem.module.register_forward_hook(lambda *called: passes.append(1))

    def cost(**options: Any) -> int:
        made = make(problem, "mtt", **options)
        passes.clear()
        made.gradient(double(made), 0)
        return len(passes)

    cost()  # the first measures the memory of a step once
    one = cost()
    assert one > 0
    assert [cost(**CONCURRENT, beta=beta) for beta in (1.0, 0.0, 0.2)] == [one, 3 * one, 4 * one]


@pytest.mark.parametrize("reuse", [True, False])
def test_sam_without_a_radius_is_descent(problem: Problem, reuse: bool) -> None:
    plain = make(problem, "mtt", keep_divisor=2, step_size_gradient="first-order")
    synthetic = double(plain)
    for iteration in (0, 4):
        expected = plain.gradient(synthetic, iteration)
        found = make(problem, "mtt-sam", rho=0, keep_divisor=2, reuse=reuse).gradient(synthetic, iteration)
        assert not differing(found, expected) and found.sharpness == 0
        other = make(problem, "mtt-sam", rho=0.2, keep_divisor=2, reuse=reuse).gradient(synthetic, iteration)
        assert differing(other, expected) == ["images"]
        assert unlike(other.images, expected.images) > DISTINCT


def test_reusing_the_trajectory_changes_a_truncated_gradient_only(problem: Problem) -> None:
    made = make(problem, "mtt-sam", **SAM)
    synthetic = double(made)
    one, other = made.gradient(synthetic, 0), make(problem, "mtt-sam", **SAM, reuse=False).gradient(synthetic, 0)
    assert unlike(one.images, other.images) > DISTINCT
    whole = [
        make(problem, "mtt-sam", rho=0.2, keep_divisor=1, reuse=reuse).gradient(synthetic, 0) for reuse in (True, False)
    ]
    assert not differing(*whole)  # nothing is run before the first differentiated step


def test_asam_on_a_set_of_plus_and_minus_1_is_sam(problem: Problem) -> None:
    sam = make(problem, "mtt-sam", **SAM)
    start = double(sam)
    signs = torch.where(start.images >= 0, 1.0, -1.0).double()
    synthetic = type(start)(signs, start.labels, start.step_size)
    expected = sam.gradient(synthetic, 0)
    assert not differing(make(problem, "mtt-asam", **SAM, eta=0).gradient(synthetic, 0), expected)
    assert differing(make(problem, "mtt-asam", **SAM, eta=0.1).gradient(synthetic, 0), expected) == ["images"]
    assert differing(make(problem, "mtt-asam", **SAM, eta=0).gradient(start, 0), sam.gradient(start, 0)) == ["images"]


def test_gsam_removes_only_an_orthogonal_part(problem: Problem) -> None:
    sam, none, made = (
        make(problem, "mtt-sam", **SAM, labels="learned", reuse=False),
        make(problem, "mtt-gsam", **SAM, labels="learned", reuse=False, alpha=0.0),
        make(problem, "mtt-gsam", **SAM, labels="learned", reuse=False, alpha=0.7),
    )
    synthetic = double(sam)
    sharp, found = sam.gradient(synthetic, 1), made.gradient(synthetic, 1)
    assert not differing(none.gradient(synthetic, 1), sharp)
    assert differing(found, sharp) == ["images"]
    removed = sharp.images - found.images
    assert abs(float((removed * sharp.images).sum())) < SUMS * float(removed.norm() * sharp.images.norm())


def followed(made: Any, images: Tensor, iterations: int) -> list[Tensor]:
    """Return the perturbed hypergradients of some iterations of plain descent, with the memory handed on."""
    start = double(made)
    state: MethodState = NO_STATE
    slopes = []
    for iteration in range(iterations):
        found = made.gradient(type(start)(images, start.labels, start.step_size), iteration, state)
        state = found.state
        images = images - 0.5 * found.images
        slopes.append(found.images)
    return slopes


def test_vasso_with_theta_1_is_sam(problem: Problem) -> None:
    sam = make(problem, "mtt-sam", **SAM)
    images = double(sam).images
    expected = followed(sam, images, 3)
    one, less = (followed(make(problem, "mtt-vasso", **SAM, theta=theta), images, 3) for theta in (1.0, 0.9))
    assert all(torch.equal(here, there) for here, there in zip(one, expected, strict=True))
    assert unlike(less[0], expected[0]) < SUMS  # no average yet, and its length does not matter
    assert unlike(less[1], expected[1]) > DISTINCT


def test_truncation_and_teacher_labels_change_the_gradient(problem: Problem) -> None:
    whole = make(problem, "mtt")
    synthetic = double(whole)
    assert synthetic.labels.dtype == torch.int64
    images = whole.gradient(synthetic, 2).images
    for options in ({"keep_divisor": 2}, {"keep_divisor": 4}, {"keep_divisor": 6}, {"labels": "teacher"}):
        found = make(problem, "mtt", **options).gradient(synthetic, 2)
        assert unlike(found.images, images) > DISTINCT and found.labels is None


def test_start_noise_of_0_is_plain_mtt(problem: Problem) -> None:
    mtt, none, some = make(problem, "mtt"), make(problem, "mtt-robust", start_noise=0), make(problem, "mtt-robust")
    synthetic = double(mtt)
    expected = mtt.gradient(synthetic, 1)
    assert not differing(none.gradient(synthetic, 1), expected)
    assert not differing(make(problem, "mtt", start_noise=0.001).gradient(synthetic, 1), some.gradient(synthetic, 1))
    assert differing(some.gradient(synthetic, 1), expected) == ["loss", "images", "step_size"]


def test_stored_labels_are_those_of_the_last_teacher(problem: Problem) -> None:
    made = make(problem, "tesla")
    synthetic = double(made)
    assert made.finish(synthetic, 0) is synthetic
    seen = []
    for iteration in (1, 2, 9):
        generator = problem.generator("iteration", iteration - 1)
        expert, start = (int(torch.randint(most, (1,), generator=generator)) for most in (2, 3))
        weights = made.experts.snapshot(expert, start + 2).double()
        found = made.finish(synthetic, iteration)
        assert torch.equal(found.labels, call_flat(problem.module, weights, synthetic.images))
        assert found.images is synthetic.images and found.step_size is synthetic.step_size
        assert not found.labels.requires_grad
        seen.append(found.labels)
    assert not torch.equal(seen[0], seen[1]) or not torch.equal(seen[0], seen[2])
    hard = make(problem, "mtt")
    assert hard.finish(synthetic, 5) is synthetic


@pytest.mark.parametrize("labels", ["hard", "learned", "teacher"])
def test_tesla_is_exact_for_one_step_only(problem: Problem, labels: str) -> None:
    for steps in (1, 2):
        options: dict[str, Any] = {"inner_steps": steps, "labels": labels, "step_size_gradient": "exact"}
        published, exact = (make(problem, "tesla", **options, engine=engine) for engine in ("tesla", "reverse"))
        synthetic = double(exact)
        one, other = published.gradient(synthetic, 0), exact.gradient(synthetic, 0)
        for part in PARTS:
            if getattr(other, part) is None:
                assert getattr(one, part) is None and part == "labels"
            elif steps == 1 or part == "loss":
                assert unlike(getattr(one, part), getattr(other, part)) < SUMS, part
            else:
                assert unlike(getattr(one, part), getattr(other, part)) > DISTINCT, part


def test_teslas_code_halves_the_gradient_of_the_images(problem: Problem) -> None:
    options: dict[str, Any] = {"labels": "learned", "concurrent": 2, "distance": 2}
    paper, code = (make(problem, "tesla", **options, tesla_scale=scale) for scale in ("paper", "code"))
    synthetic = double(paper)
    one, other = paper.gradient(synthetic, 0), code.gradient(synthetic, 0)
    assert differing(one, other) == ["images"]
    assert torch.equal(other.images, 0.5 * one.images)


@pytest.mark.parametrize(
    ("name", "base", "options"),
    [
        ("ftd", "mtt", {}),
        ("datm", "mtt", {"labels": "learned"}),
        ("contra", "datm", {"concurrent": 2, "distance": 2}),
        ("tesla", "mtt", {"labels": "teacher", "engine": "tesla", "step_size_gradient": "first-order"}),
        ("mtt-ema", "mtt", {"keep_divisor": 3, "step_size_gradient": "first-order"}),
        ("satm-fi", "satm", {}),
        ("satm-da", "satm", {**EXPANDING, "labels": "learned"}),
        ("mtt-sam", "satm", {"gamma": 0.0}),
    ],
)
def test_a_method_is_the_composition_of_its_parts(
    problem: Problem, name: str, base: str, options: dict[str, Any]
) -> None:
    shared = {key: value for key, value in options.items() if key in ("concurrent", "distance", *EXPANDING)}
    one, other = make(problem, name, **shared), make(problem, base, **options)
    synthetic = double(one)
    for iteration in (0, 6):
        assert not differing(one.gradient(synthetic, iteration), other.gradient(synthetic, iteration))
