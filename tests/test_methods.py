"""Methods: SATM against a slow twin and reduced to MTT, the draws of an iteration, the contract of every method."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from satm.config import DatasetOptions
from satm.data import DATASETS, load_dataset
from satm.errors import UsageError
from satm.experts import TrajectoryStore
from satm.methods import METHODS, IterativeMethod, Mtt, Problem, Random, Satm, Synthetic, resolve
from satm.methods.matching import MatchingOptions, matching_loss
from satm.methods.satm import SatmOptions
from satm.methods.segments import uniform
from satm.outer import OuterGradient, Smoothing, smoothed
from satm.params import call_flat
from satm.unroll import Hypergradient, Point

BASE: dict[str, Any] = {
    "inner_steps": 6,
    "expert_epochs": 2,
    "max_start_epoch": 3,
    "batch_size": 4,
    "step_size": 0.2,
}


def double(made: Mtt | Satm) -> Synthetic:
    synthetic = made.start()
    return replace(synthetic, images=synthetic.images.double(), step_size=synthetic.step_size.double())


def satm(problem: Problem, **options: Any) -> Satm:
    return Satm(SatmOptions(**BASE, **options), problem)


def unlike(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("engine", ["mixed", "reverse"])
@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_satm_without_its_parts_is_mtt(problem: Problem, engine: str, augment: bool, batch_size: int | None) -> None:
    shared: dict[str, Any] = {**BASE, "engine": engine, "augment": augment, "batch_size": batch_size}
    mtt = Mtt(MatchingOptions(**shared), problem)
    reduced = SatmOptions(**shared, rho=0, gamma=0, keep_divisor=1, step_size_gradient="exact")
    other = Satm(reduced, problem)
    synthetic = double(mtt)
    for iteration in (0, 5):
        one, two = mtt.gradient(synthetic, iteration), other.gradient(synthetic, iteration)
        for part in ("loss", "images", "step_size"):
            assert torch.equal(getattr(one, part), getattr(two, part)), part
        assert one.sharpness is None and two.sharpness == 0
    for changed, part in ({"rho": 0.1}, "images"), ({"gamma": 0.1}, "step_size"), ({"keep_divisor": 2}, "images"):
        unequal = Satm(SatmOptions(**{**reduced.model_dump(), **changed}), problem).gradient(synthetic, 5)
        assert unlike(getattr(unequal, part), getattr(one, part)) > 1e-4, changed


def twin(made: Satm, synthetic: Synthetic, iteration: int) -> OuterGradient:
    """Algorithm 1 of SATM with plain autograd: two loops, dictionaries left out, nothing shared but the draws."""
    options, problem = made.settings, made.problem
    generator = problem.generator("iteration", iteration)
    segment = made.segment(generator)
    assert made.problem.experts is not None
    start = problem.experts.snapshot(segment.expert, segment.start).double()
    target = problem.experts.snapshot(segment.expert, segment.end).double()
    batches = made._batches(len(synthetic.images), generator)
    assert batches is not None
    draws = [problem.augmentation.draw(generator, len(batches[0]), 8) for _ in range(options.inner_steps)]
    noise = torch.randn(synthetic.images.shape, generator=problem.generator("noise", iteration), dtype=torch.float64)
    norms = synthetic.images.flatten(1).norm(dim=1)
    scale = options.gamma * norms if options.noise == "std" else (options.gamma * norms).sqrt()
    kept = int(options.inner_steps / options.keep_divisor)
    iota = options.inner_steps - kept
    tau = iota if options.restart is None else options.restart

    def unroll(images: Tensor, weights: Tensor, begin: int) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        path, gradients = {begin: weights}, []
        for step in range(begin, options.inner_steps):
            if step <= max(iota, begin):
                weights = weights.detach().requires_grad_()
            pixels = problem.augmentation.apply(images[batches[step]], draws[step])
            loss = functional.cross_entropy(call_flat(problem.module, weights, pixels), synthetic.labels[batches[step]])
            gradients.append(torch.autograd.grad(loss, weights, create_graph=True)[0])
            weights = weights - synthetic.step_size * gradients[-1]
            path[step + 1] = weights
        loss = (weights - target).square().sum() / (start - target).square().sum()
        return loss, weights, [path.get(step) for step in range(options.inner_steps)], gradients

    noisy = (synthetic.images + noise * scale[:, None, None, None]).requires_grad_()
    first, end, path, gradients = unroll(noisy, start, 0)
    ascent, end_gradient = torch.autograd.grad(first, [noisy, end])
    step_size = -torch.dot(end_gradient, sum(gradients).detach())
    sharp = (synthetic.images + options.rho * ascent / ascent.norm()).requires_grad_()
    second, _, _, _ = unroll(sharp, path[tau].detach(), tau)
    images = torch.autograd.grad(second, sharp)[0]
    return OuterGradient(first.detach(), images, None, step_size, (second - first).detach())


@pytest.mark.parametrize("engine", ["mixed", "reverse"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rho": 0.5, "gamma": 0.02},
        {"noise": "variance", "gamma": 0.01},
        {"keep_divisor": 2, "restart": 1},
        {"keep_divisor": 2, "restart": 5},
        {"keep_divisor": 6},
        {"keep_divisor": 1, "rho": 0.2},
    ],
    ids=str,
)
def test_satm_is_its_algorithm_written_out(problem: Problem, engine: str, options: dict[str, Any]) -> None:
    made = satm(problem, engine=engine, **options)
    synthetic = double(made)
    for iteration in (0, 3):
        found, expected = made.gradient(synthetic, iteration), twin(made, synthetic, iteration)
        for part in ("loss", "images", "step_size", "sharpness"):
            assert unlike(getattr(found, part), getattr(expected, part)) < 1e-9, part


def test_another_restart_and_the_noise_matter(problem: Problem) -> None:
    base = satm(problem, keep_divisor=2, rho=0.3)
    synthetic = double(base)
    images = base.gradient(synthetic, 0).images
    assert torch.equal(satm(problem, keep_divisor=2, rho=0.3, restart=3).gradient(synthetic, 0).images, images)
    for changed in ({"restart": 1}, {"restart": 5}, {"gamma": 0.1}, {"noise": "variance"}):
        other = satm(problem, **{"keep_divisor": 2, "rho": 0.3, **changed}).gradient(synthetic, 0)
        assert unlike(other.images, images) > 1e-5, changed


class Watched:
    """An oracle that remembers what it was asked and answers with one gradient."""

    def __init__(self, gradient: Tensor, losses: Sequence[float] = (1.0, 1.5)) -> None:
        self.gradient, self.losses, self.asked = gradient, list(losses), []

    def __call__(self, images: Tensor, **options: Any) -> Hypergradient:
        self.asked.append((images, options))
        loss = torch.tensor(self.losses[len(self.asked) - 1])
        step_size = torch.tensor(float(len(self.asked)))
        points = {index: Point(torch.full((3,), 7.0), {}) for index in options.get("keep_points", ())}
        return Hypergradient(loss, self.gradient, None, step_size, None, torch.zeros(3), points)


def test_a_zero_hypergradient_divides_by_nothing() -> None:
    images = torch.randn(2, 1, 4, 4)
    oracle = Watched(torch.zeros_like(images))
    found = smoothed(oracle, images, torch.Generator(), Smoothing(0.1, 0.0, "std", 2, 1))
    assert torch.equal(oracle.asked[1][0], images)
    assert torch.equal(found.images, torch.zeros_like(images))


def test_what_the_two_unrolls_are_asked_and_what_is_taken_from_each() -> None:
    images = torch.randn(2, 1, 4, 4)
    gradient = torch.randn(2, 1, 4, 4)
    oracle = Watched(gradient, (1.0, 1.25))
    found = smoothed(oracle, images, torch.Generator(), Smoothing(0.5, 0.0, "std", 4, 6))
    (first, asked), (second, again) = oracle.asked
    assert torch.equal(first, images) and asked == {"last": 4, "keep_points": (6,)}
    assert float((second - images).norm()) == pytest.approx(0.5)
    assert float(((second - images) * gradient).sum()) == pytest.approx(0.5 * float(gradient.norm()))
    assert again["first"] == 6 and again["last"] == 4 and torch.equal(again["start"].weights, torch.full((3,), 7.0))
    assert (float(found.loss), float(found.step_size), float(found.sharpness)) == (1.0, 1.0, 0.25)


@pytest.mark.parametrize("kind", ["std", "variance"])
def test_the_noise_is_proportional_to_each_images_norm(kind: Any) -> None:
    images = torch.cat([torch.full((1, 1, 100, 100), value) for value in (0.01, 1.0, 0.0)])
    oracle = Watched(torch.ones_like(images))
    smoothed(oracle, images, torch.Generator().manual_seed(1), Smoothing(0.1, 0.02, kind, 1, 0))
    noise = (oracle.asked[0][0] - images).double().flatten(1)
    for index, norm in enumerate((1.0, 100.0)):
        expected = 0.02 * norm if kind == "std" else (0.02 * norm) ** 0.5
        assert float(noise[index].std()) == pytest.approx(expected, rel=0.05)
        assert abs(float(noise[index].mean())) < 0.05 * expected
    assert not noise[2].any()
    assert abs(float(torch.corrcoef(noise[:2])[0, 1])) < 0.05


def test_sharpness_is_positive_up_the_hill(problem: Problem) -> None:
    made = satm(problem, rho=0.01, gamma=0, keep_divisor=1)
    found = made.gradient(double(made), 0)
    descent = Mtt(MatchingOptions(**BASE), problem).gradient(double(made), 0)
    assert float(found.sharpness) == pytest.approx(0.01 * float(descent.images.norm()), rel=0.1)


def test_segments_are_uniform_over_experts_and_starts() -> None:
    generator = torch.Generator().manual_seed(0)
    found = [uniform(generator, 3, 2, 6, 4) for _ in range(2400)]
    counts = Counter((segment.expert, segment.start) for segment in found)
    assert set(counts) == {(expert, start) for expert in range(3) for start in range(2, 6)}
    assert all(140 <= count <= 260 for count in counts.values())
    assert all(segment.end == segment.start + 4 for segment in found)


@pytest.mark.parametrize(("count", "size", "steps"), [(10, 4, 9), (12, 4, 7), (6, 5, 4)])
def test_batches_are_drawn_without_repetition(problem: Problem, count: int, size: int, steps: int) -> None:
    options = MatchingOptions(**{**BASE, "batch_size": size, "inner_steps": steps})
    batches = Mtt(options, problem)._batches(count, torch.Generator().manual_seed(0))
    assert batches is not None and len(batches) == steps
    rounds = count // size
    for first in range(0, steps, rounds):
        drawn = torch.cat(batches[first : first + rounds])
        assert all(len(batch) == size for batch in batches) and len(drawn.unique()) == len(drawn)
        assert int(drawn.min()) >= 0 and int(drawn.max()) < count
    assert len({tuple(batch.tolist()) for batch in batches}) > 1


def test_without_a_smaller_batch_size_all_images_are_taken(problem: Problem) -> None:
    for size in (None, 6, 7):
        made = Mtt(MatchingOptions(**{**BASE, "batch_size": size}), problem)
        assert made._batches(6, torch.Generator()) is None


def test_the_matching_loss() -> None:
    start, target = torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0])
    assert matching_loss(target, start, target) == 0
    assert matching_loss(start, start, target) == 1
    assert float(matching_loss(torch.tensor([3.0, 3.0]), start, target)) == pytest.approx(1 / 25)


@pytest.mark.parametrize("kind", ["exact", "first-order", "fixed"])
def test_how_the_step_size_is_learned(problem: Problem, kind: str) -> None:
    synthetic = double(Mtt(MatchingOptions(**BASE), problem))
    found = Mtt(MatchingOptions(**BASE, step_size_gradient=kind), problem).gradient(synthetic, 0)
    exact = Mtt(MatchingOptions(**BASE), problem).gradient(synthetic, 0)
    assert torch.equal(found.images, exact.images)
    assert torch.equal(found.step_size, exact.step_size) == (kind == "exact")
    assert (float(found.step_size) == 0) == (kind == "fixed")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_start_epoch": 4}, "from epoch 3 over 2 epochs ends at epoch 5, the experts have 4; lower max_start"),
        ({"expert_epochs": 5}, "from epoch 2 over 5 epochs ends at epoch 7, the experts have 4"),
        ({"min_start_epoch": 3}, r"got \[3, 3\); raise max_start_epoch"),
    ],
)
def test_segments_that_the_experts_do_not_have_are_refused(problem: Problem, options: Any, text: str) -> None:
    for name in ("mtt", "satm"):
        kind, checked = resolve({"method": name, **BASE, **options})
        with pytest.raises(UsageError, match=text):
            kind(checked, problem)


@pytest.mark.parametrize(
    ("options", "text"),
    [({"keep_divisor": 7}, r"int\(6 / 7\) keeps no step"), ({"restart": 6}, "restart 6 leaves no step of 6")],
)
def test_satms_own_mistakes_are_refused(problem: Problem, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        satm(problem, **options)


def test_the_last_segment_is_reached(problem: Problem) -> None:
    made = Mtt(MatchingOptions(**{**BASE, "max_start_epoch": 3, "expert_epochs": 2}), problem)
    ends = {made.segment(torch.Generator().manual_seed(seed)).end for seed in range(60)}
    assert ends == {2, 3, 4}


def test_experts_that_do_not_move_are_refused(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrajectoryStore, "snapshot", lambda self, expert, epoch: torch.ones(4))
    made = Mtt(MatchingOptions(**BASE), problem)
    with pytest.raises(UsageError, match=r"expert \d did not move from epoch"):
        made.gradient(made.start(), 0)


def test_matching_without_experts_is_refused(problem: Problem) -> None:
    with pytest.raises(UsageError, match="needs experts"):
        Mtt(MatchingOptions(**BASE), replace(problem, experts=None))


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_keeps_the_contract(problem: Problem, name: str) -> None:
    problem = replace(problem, module=problem.module.float())
    values = {key: value for key, value in BASE.items() if key in METHODS[name].options.model_fields}
    kind, options = resolve({"method": name, **values})
    assert kind.name == name and kind is METHODS[name] and kind.__doc__
    made = kind(options, problem if kind.needs_experts else replace(problem, experts=None))
    synthetic = made.start()
    assert synthetic.images.shape == (6, 1, 8, 8) and synthetic.images.dtype == torch.float32
    assert synthetic.labels.tolist() == [0, 0, 1, 1, 2, 2] and float(synthetic.step_size) == pytest.approx(0.2)
    real = problem.preprocessor.apply(problem.data.train.images)
    assert all(any(torch.equal(image, other) for other in real) for image in synthetic.images)
    if not isinstance(made, IterativeMethod):
        return
    before = synthetic.images.clone()
    one, two, other = made.gradient(synthetic, 3), made.gradient(synthetic, 3), made.gradient(synthetic, 4)
    assert torch.equal(synthetic.images, before)
    assert one.images.shape == before.shape and one.images.dtype == torch.float32 and one.labels is None
    assert torch.isfinite(one.images).all() and torch.isfinite(one.loss) and torch.isfinite(one.step_size)
    assert torch.equal(one.images, two.images) and torch.equal(one.step_size, two.step_size)
    assert not torch.equal(one.images, other.images)
    for tensor in (one.loss, one.images, one.step_size):
        assert not tensor.requires_grad


def test_the_start_depends_on_dataset_ipc_and_seed_but_not_on_the_method(problem: Problem) -> None:
    def start(*axes: Any) -> Tensor:
        return replace(problem, axes=axes).real_images()[0]

    base = start("noise", 2, "any", 0)
    assert torch.equal(start("noise", 2, "mtt", 0), base)
    assert not torch.equal(start("noise", 2, "any", 1), base)
    assert len(start("noise", 4, "any", 0)) == 12


@pytest.mark.parametrize(
    ("ipc", "text"),
    [(5, r"5 images per class were asked for, class 0 \(a\) of noise has 4"), (0, "ipc.*got 0"), (-1, "ipc.*got -1")],
)
def test_impossible_numbers_of_images_are_refused(problem: Problem, ipc: int, text: str) -> None:
    made = Random(Random.options(), replace(problem, axes=("noise", ipc, "random", 0), ipc=ipc))
    with pytest.raises(UsageError, match=text):
        made.start()


def test_unknown_methods_and_options_name_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown method 'mt'; known: mtt, random, satm. Did you mean 'mtt'?"):
        resolve({"method": "mt"})
    with pytest.raises(UsageError, match=r"unknown option 'rhoo'.*Did you mean 'rho'?"):
        resolve({"method": "satm", "rhoo": 1})
    with pytest.raises(UsageError, match="step_size: input should be greater than 0, got 0"):
        resolve({"method": "mtt", "step_size": 0})


def test_every_dataset_has_a_loader_and_options() -> None:
    assert set(DATASETS) == set(DatasetOptions.model_fields["source"].annotation.__args__)
    data = load_dataset("digits", DatasetOptions(source="digits"))
    assert data.classes == 10 and data.train.images.dtype == torch.uint8
