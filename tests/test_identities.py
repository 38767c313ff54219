"""Methods in float64 against one another where they must be equal, and against what they do written out."""

from typing import Any

import pytest
import torch
from matching import EXPANDING, PARTS, Drawn, differing, double, make, unlike
from torch import Tensor

from satm import hypergradient
from satm.methods.parts import matching
from satm.methods.parts.problem import Problem
from satm.methods.parts.segments import Segment
from satm.outer import NOTHING, Memory
from satm.params import call_flat
from satm.unroll import Hypergradient

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


def test_a_segment_without_weight_costs_nothing(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []

    def counting(*arguments: Any, **options: Any) -> Hypergradient:
        called.append(1)
        return hypergradient(*arguments, **options)

    monkeypatch.setattr(matching, "hypergradient", counting)
    for beta, count in ((1.0, 1), (0.0, 3), (0.2, 4)):
        made = make(problem, "mtt", **CONCURRENT, beta=beta)
        called.clear()
        made.gradient(double(made), 0)
        assert len(called) == count


@pytest.mark.parametrize(("augment", "batch_size"), [(True, 4), (True, None), (False, 4)])
@pytest.mark.parametrize(("beta", "distance"), [(0.0, 1), (0.3, None)])
def test_concurrent_segments_are_the_weighted_mean_of_single_ones(
    problem: Problem, beta: float, distance: int | None, batch_size: int | None, augment: bool
) -> None:
    made = make(problem, "contra", concurrent=3, distance=distance, beta=beta, batch_size=batch_size, augment=augment)
    synthetic = double(made)
    found, drawn = made.gradient(synthetic, 3), Drawn.of(made, 3)
    sampled = drawn.segments[0][1]
    fixed = [Segment(sampled.expert, start, start + 2) for start in (0, 1, 2)]
    singles = [drawn.plain(synthetic, segment) for segment in fixed]
    extra = drawn.plain(synthetic, sampled)
    for part in PARTS:
        mean = torch.stack([getattr(one, part) for one in singles]).mean(0)
        expected = beta * getattr(extra, part) + (1 - beta) * mean
        assert unlike(getattr(found, part), expected) < 1e-12, part
        assert unlike(getattr(found, part), getattr(singles[0], part)) > 1e-4, part


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
        assert unlike(other.images, expected.images) > 1e-4


def test_reuse_is_a_shortcut_that_matters(problem: Problem) -> None:
    made = make(problem, "mtt-sam", **SAM)
    synthetic = double(made)
    one, other = made.gradient(synthetic, 0), make(problem, "mtt-sam", **SAM, reuse=False).gradient(synthetic, 0)
    assert unlike(one.images, other.images) > 1e-5
    whole = [
        make(problem, "mtt-sam", rho=0.2, keep_divisor=1, reuse=reuse).gradient(synthetic, 0) for reuse in (True, False)
    ]
    assert not differing(*whole)  # nothing is run before the first differentiated step


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("concurrent", [{}, {"concurrent": 2, "distance": 2, "beta": 0.4}], ids=["one", "three"])
def test_sam_is_two_hypergradients_written_out(problem: Problem, reuse: bool, concurrent: dict[str, Any]) -> None:
    made = make(problem, "mtt-sam", **SAM, **concurrent, labels="learned", reuse=reuse)
    synthetic = double(made)
    drawn = Drawn.of(made, 1)

    def total(found: list[Hypergradient], part: str) -> Tensor:
        """Return the weighted sum over the students."""
        weighted = [weight * getattr(one, part) for (weight, _), one in zip(drawn.segments, found, strict=True)]
        return torch.stack(weighted).sum(0)

    first = [
        drawn.plain(synthetic, segment, last=3, step_size_gradient="first-order", keep_points=(3,))
        for _, segment in drawn.segments
    ]
    ascent = total(first, "images")
    near = synthetic.images + 0.2 * ascent / ascent.norm()
    again = [{"start": one.points[3], "first": 3} if reuse else {} for one in first]  # each student on its own path
    second = [
        drawn.plain(synthetic, segment, images=near, last=3, **more)
        for (_, segment), more in zip(drawn.segments, again, strict=True)
    ]
    found = made.gradient(synthetic, 1)
    for part, unroll, other in (
        ("images", second, first),
        ("labels", second, first),
        ("loss", first, second),
        ("step_size", first, second),
    ):
        assert unlike(getattr(found, part), total(unroll, part)) < 1e-12, part
        assert unlike(getattr(found, part), total(other, part)) > 1e-4, part
    assert float(found.sharpness) == pytest.approx(float(total(second, "loss") - found.loss), rel=1e-9)


def test_asam_on_a_set_of_plus_and_minus_1_is_sam(problem: Problem) -> None:
    sam = make(problem, "mtt-sam", **SAM)
    start = double(sam)
    signs = torch.where(start.images >= 0, 1.0, -1.0).double()
    synthetic = type(start)(signs, start.labels, start.step_size)
    expected = sam.gradient(synthetic, 0)
    assert not differing(make(problem, "mtt-asam", **SAM, eta=0).gradient(synthetic, 0), expected)
    assert differing(make(problem, "mtt-asam", **SAM, eta=0.1).gradient(synthetic, 0), expected) == ["images"]
    assert differing(make(problem, "mtt-asam", **SAM, eta=0).gradient(start, 0), sam.gradient(start, 0)) == ["images"]


def test_asam_moves_in_the_norm_of_the_pixels(problem: Problem) -> None:
    made = make(problem, "mtt-asam", **SAM, eta=0.3, reuse=False)
    synthetic = double(made)
    drawn = Drawn.of(made, 1)
    segment = drawn.segments[0][1]
    slope = drawn.plain(synthetic, segment, last=3).images
    size = synthetic.images.abs() + 0.3
    near = synthetic.images + 0.2 * size**2 * slope / (size * slope).norm()
    found, second = made.gradient(synthetic, 1), drawn.plain(synthetic, segment, images=near, last=3)
    assert unlike(found.images, second.images) < 1e-12
    assert (
        unlike(make(problem, "mtt-asam", **SAM, eta=0.0, reuse=False).gradient(synthetic, 1).images, second.images)
        > 1e-6
    )


def test_gsam_leaves_out_what_is_orthogonal(problem: Problem) -> None:
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
    assert abs(float((removed * sharp.images).sum())) < 1e-12 * float(removed.norm() * sharp.images.norm())
    drawn = Drawn.of(made, 1)
    first = drawn.plain(synthetic, drawn.segments[0][1], last=3).images
    cosine = (first * sharp.images).sum() / (first.norm() * sharp.images.norm())
    along = first.norm() * cosine * sharp.images / sharp.images.norm()
    assert unlike(removed, 0.7 * (first - along)) < 1e-10


def followed(made: Any, images: Tensor, iterations: int) -> list[Tensor]:
    """Return the perturbed hypergradients of some iterations of plain descent, with the memory handed on."""
    start = double(made)
    memory: Memory = NOTHING
    slopes = []
    for iteration in range(iterations):
        found = made.gradient(type(start)(images, start.labels, start.step_size), iteration, memory)
        memory = found.memory
        images = images - 0.5 * found.images
        slopes.append(found.images)
    return slopes


def test_vasso_with_theta_1_is_sam(problem: Problem) -> None:
    sam = make(problem, "mtt-sam", **SAM)
    images = double(sam).images
    expected = followed(sam, images, 3)
    one, less = (followed(make(problem, "mtt-vasso", **SAM, theta=theta), images, 3) for theta in (1.0, 0.9))
    assert all(torch.equal(here, there) for here, there in zip(one, expected, strict=True))
    assert unlike(less[0], expected[0]) < 1e-12  # no average yet, and its length does not matter
    assert unlike(less[1], expected[1]) > 1e-5


def test_vasso_is_its_average_written_out(problem: Problem) -> None:
    made = make(problem, "mtt-vasso", **SAM, theta=0.3, reuse=False)
    start = double(made)
    found = followed(made, start.images, 3)
    images, direction = start.images, torch.zeros_like(start.images)
    for iteration in range(3):
        drawn = Drawn.of(made, iteration)
        segment = drawn.segments[0][1]
        direction = 0.7 * direction + 0.3 * drawn.plain(start, segment, images=images, last=3).images
        near = images + 0.2 * direction / direction.norm()
        slope = drawn.plain(start, segment, images=near, last=3).images
        assert unlike(found[iteration], slope) < 1e-10, iteration
        images = images - 0.5 * slope


@pytest.mark.parametrize("divisor", [1, 2, 4, 6])
def test_keep_divisor_is_the_number_of_differentiated_steps(problem: Problem, divisor: int) -> None:
    made = make(problem, "mtt", keep_divisor=divisor)
    synthetic = double(made)
    drawn = Drawn.of(made, 2)
    found = made.gradient(synthetic, 2)
    expected = drawn.plain(synthetic, drawn.segments[0][1], last=int(6 / divisor))
    for part in ("loss", "images", "step_size"):
        assert torch.equal(getattr(found, part), getattr(expected, part)), part
    whole = drawn.plain(synthetic, drawn.segments[0][1])
    assert (unlike(found.images, whole.images) > 1e-4) == (divisor > 1)


def test_start_noise_of_0_is_none(problem: Problem) -> None:
    mtt, none, some = make(problem, "mtt"), make(problem, "mtt-robust", start_noise=0), make(problem, "mtt-robust")
    synthetic = double(mtt)
    expected = mtt.gradient(synthetic, 1)
    assert not differing(none.gradient(synthetic, 1), expected)
    assert not differing(make(problem, "mtt", start_noise=0.001).gradient(synthetic, 1), some.gradient(synthetic, 1))
    assert differing(some.gradient(synthetic, 1), expected) == ["loss", "images", "step_size"]


def test_start_noise_moves_the_student_and_not_the_measure(problem: Problem) -> None:
    made = make(problem, "mtt-robust", start_noise=0.05, concurrent=2, distance=2, beta=0.4)
    synthetic = double(made)
    drawn = Drawn.of(made, 1)
    found = made.gradient(synthetic, 1)
    singles: list[Hypergradient] = []
    for _, segment in drawn.segments:
        origin = drawn.snapshot(segment.expert, segment.start)
        noise = torch.randn(origin.shape, generator=drawn.generator).double()
        singles.append(drawn.plain(synthetic, segment, start=origin + 0.05 * noise))
    for part in ("loss", "images", "step_size"):
        expected = sum(w * getattr(one, part) for w, one in zip((0.4, 0.3, 0.3), singles, strict=True))
        assert unlike(getattr(found, part), expected) < 1e-12, part
    clean = drawn.plain(synthetic, drawn.segments[0][1])
    assert unlike(singles[0].images, clean.images) > 1e-3


def test_a_teacher_labels_what_the_student_sees(problem: Problem) -> None:
    made = make(problem, "mtt", labels="teacher")
    synthetic = double(made)
    assert synthetic.labels.dtype == torch.int64
    drawn = Drawn.of(made, 1)
    segment = drawn.segments[0][1]
    logits = call_flat(problem.module, drawn.snapshot(segment.expert, segment.end), synthetic.images).detach()
    found, expected = made.gradient(synthetic, 1), drawn.plain(synthetic, segment, labels=logits)
    assert found.labels is None
    for part in ("loss", "images", "step_size"):
        assert torch.equal(getattr(found, part), getattr(expected, part)), part
    assert unlike(found.images, make(problem, "mtt").gradient(synthetic, 1).images) > 1e-3


def test_each_student_has_its_own_teacher(problem: Problem) -> None:
    made = make(problem, "mtt", labels="teacher", concurrent=2, distance=2, beta=0.0)
    synthetic = double(made)
    drawn = Drawn.of(made, 1)
    singles = []
    for _, segment in drawn.segments[1:]:
        logits = call_flat(problem.module, drawn.snapshot(segment.expert, segment.end), synthetic.images).detach()
        singles.append(drawn.plain(synthetic, segment, labels=logits).images)
    assert unlike(made.gradient(synthetic, 1).images, (singles[0] + singles[1]) / 2) < 1e-12


def test_the_stored_labels_are_the_last_teachers(problem: Problem) -> None:
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
                assert unlike(getattr(one, part), getattr(other, part)) < 1e-12, part
            else:
                assert unlike(getattr(one, part), getattr(other, part)) > 1e-6, part


def test_the_scale_of_teslas_code_is_half_on_the_images(problem: Problem) -> None:
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
