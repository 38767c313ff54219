"""Baselines: what classes are compared by, episodes against torch's SGD, selections and what they refuse."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import twins
from drawing import torch_generator
from matching import classes
from tolerances import LOOPS, ROUNDING, SUMS, TRAINING
from torch import Tensor
from torch.nn import functional

from satm.config import Cell, load_campaign
from satm.config.methods import SelectionOptions
from satm.data import Augmentation
from satm.distill import Run, begin, distill
from satm.errors import UsageError
from satm.methods import METHODS, dc, resolve
from satm.methods.dc import DcOptions
from satm.methods.parts.method import Method
from satm.methods.parts.problem import Problem, Synthetic
from satm.methods.recipe import CHOSEN_BY_EXPERTS, Recipe
from satm.params import load_flat
from satm.stages.checkpoint import RunState

CLASSWISE = ("dc", "dsa", "dm")


def make(problem: Problem, name: str, **options: Any) -> Any:
    kind, settings = resolve({"method": name, **options})
    return kind(settings, problem)


def exact(method: Method[Any]) -> Synthetic:
    """Return the method's start in float64, a little away from the real images."""
    start = method.start()
    noise = torch.randn(start.images.shape, generator=torch_generator(3), dtype=torch.float64)
    return replace(start, images=start.images.double() + 0.1 * noise, step_size=start.step_size.double())


def network(problem: Problem, weights: Tensor) -> Any:
    module = problem.build(0)
    load_flat(module, weights)
    return module


def test_the_distance_lies_between_0_and_2_for_each_channel() -> None:
    one = [torch.randn(3, 2, 3, 3, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)]
    squares = torch.cat([part.flatten(1).square().sum(1) for part in one])  # one per channel: 3 + 2
    for factor, distance in ((1.0, 0.0), (3.0, 0.0), (-1.0, 2.0), (-0.5, 2.0)):
        epsilon = dc.EPSILON / (abs(factor) * squares + dc.EPSILON)  # which it adds to 1 - cosine
        expected = float((distance + (1 - distance) * epsilon).sum())
        found = float(dc.gradient_distance([factor * part for part in one], one))
        assert found == pytest.approx(expected, abs=SUMS)
    none = [torch.zeros_like(part) for part in one]
    assert float(dc.gradient_distance(none, one)) == 5


def test_real_and_synthetic_images_are_augmented_alike(problem: Problem) -> None:
    whole = replace(problem, ipc=4)
    method = make(whole, "dm")
    start = replace(method.start(), images=method.start().images.double())
    assert all(float(method.gradient(start, iteration).loss) < SUMS**2 for iteration in range(20))  # squares
    changed = [method.comparison(start, 0, whole.generator("iteration", iteration)).draw for iteration in range(20)]
    assert len({name for draw in changed for name, _ in draw.steps}) > 3


@pytest.mark.parametrize("ipc", [200, 400, 600])  # two classes at a time, one, more than an embedding takes at once
def test_classes_embedded_together_do_not_affect_each_other(problem: Problem, ipc: int) -> None:
    method = make(replace(problem, ipc=ipc), "dm", init="gaussian")
    synthetic = exact(method)
    found = method.gradient(synthetic, 2)
    module = network(problem, problem.fresh_weights("network", 2))
    loss, images = twins.dm(module, synthetic.images, list(classes(method, synthetic, 2)))
    torch.testing.assert_close(found.loss, loss, rtol=SUMS, atol=0)
    torch.testing.assert_close(found.images, images, rtol=TRAINING, atol=ROUNDING)


def run_all(method: Method[Any], run: Run | None = None) -> Tensor:
    held = begin(method) if run is None else run
    return distill(method, held, None, lambda row: None, lambda kept: None).synthetic.images


def test_dsa_without_families_is_dc(problem: Problem) -> None:
    plain = replace(problem, augmentation=Augmentation("", "image"))
    options = {"iterations": 7, "outer_loop": 3, "inner_loop": 2, "batch_size": 4}
    found = {name: run_all(make(plain, name, **options)) for name in ("dc", "dsa")}
    assert torch.equal(found["dc"], found["dsa"])
    assert torch.equal(found["dc"], run_all(make(problem, "dc", **options)))
    assert torch.equal(found["dc"], run_all(make(problem, "dsa", augment=False, **options)))
    assert not torch.equal(found["dc"], run_all(make(problem, "dsa", **options)))


@pytest.mark.parametrize("name", ["dc", "dsa"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_an_episode_trains_its_network_as_torch_does(problem: Problem, name: str, momentum: float) -> None:
    options = {"outer_loop": 3, "inner_loop": 2, "batch_size": 4, "lr_network": 0.3}
    more = {"momentum_network": momentum, "weight_decay_network": 0.01}
    method = make(problem, name, **options, **more)
    synthetic = exact(method)
    module = network(problem, problem.fresh_weights("network", 3))
    optimiser = torch.optim.SGD(module.parameters(), lr=0.3, momentum=momentum, weight_decay=0.01)
    found = method.gradient(synthetic, 3)
    for iteration in (4, 5):
        synthetic = replace(synthetic, images=synthetic.images - found.images)
        generator = problem.generator("train", iteration)
        orders = [torch.randperm(6, generator=generator) for _ in range(2)]
        families = Augmentation(problem.augmentation.strategy if name == "dsa" else "", "image")
        for batch in [part for order in orders for part in (order[:4], order[4:])]:
            draw = families.draw(generator, len(batch), 8)
            optimiser.zero_grad()
            loss = functional.cross_entropy(
                module(families.apply(synthetic.images[batch], draw)), synthetic.labels[batch]
            )
            loss.backward()
            optimiser.step()
        weights = torch.cat([part.detach().reshape(-1) for part in module.parameters()])
        found = method.gradient(synthetic, iteration, found.state)
        loss, images = twins.dc(module, synthetic.images, list(classes(method, synthetic, iteration)))
        torch.testing.assert_close(found.loss, loss, rtol=TRAINING, atol=SUMS)
        # 1 - cosine of nearly parallel gradients loses digits, which its gradient divides by their lengths.
        torch.testing.assert_close(found.images, images, rtol=100 * TRAINING, atol=SUMS)
        if iteration == 4:
            torch.testing.assert_close(found.state["weights"], weights, rtol=LOOPS, atol=SUMS)
    assert not found.state  # the next iteration begins an episode
    fresh = method.gradient(synthetic, 6, found.state).state["weights"]
    assert torch.equal(fresh, problem.fresh_weights("network", 6))


def test_an_episode_of_one_update_does_not_train_its_network(problem: Problem) -> None:
    method = make(replace(problem, ipc=1), "dc")
    assert dc.loops(1, method.options) == (1, 1)
    assert not method.gradient(exact(method), 5).state


@pytest.mark.parametrize(
    ("ipc", "expected"), [(1, (1, 1)), (3, (1, 1)), (10, (10, 50)), (29, (20, 25)), (50, (50, 10)), (100, (50, 10))]
)
def test_loops_default_to_the_published_ones(ipc: int, expected: tuple[int, int]) -> None:
    assert dc.loops(ipc, DcOptions()) == expected


@pytest.mark.parametrize("name", CLASSWISE)
def test_resuming_within_an_episode_gives_the_same_bytes(problem: Problem, tmp_path: Path, name: str) -> None:
    single = replace(problem, build=lambda seed: problem.build(seed).float())
    loops = {} if name == "dm" else {"outer_loop": 4, "inner_loop": 2, "batch_size": 4, "momentum_network": 0.5}
    options = {"iterations": 23, "ema": 0.5, "lr_images": 0.5, **loops}
    state = RunState(tmp_path, {}, "")

    def on_safe(held: Run) -> None:
        if held.now.iteration == 10:
            state.save(held)

    found = distill(make(single, name, **options), begin(make(single, name, **options)), None, print_nothing, on_safe)
    again = state.load(torch.device("cpu")) or pytest.fail("nothing was kept")
    assert set(again.now.method_state) == (set() if name == "dm" else {"weights", "buffer"})  # 10 is within 8 to 11
    other = distill(make(single, name, **options), again, None, print_nothing, lambda run: None)
    assert torch.equal(other.synthetic.images, found.synthetic.images)
    assert found.raw is not None and other.raw is not None and torch.equal(other.raw.images, found.raw.images)
    assert float(found.synthetic.step_size) == pytest.approx(0.01) and found.synthetic.labels.dtype == torch.int64
    assert not torch.equal(found.raw.images, make(single, name).start().images)


def print_nothing(row: object) -> None:
    """Take a row of metrics."""


@pytest.mark.parametrize(("name", "rate"), [("dc", 0.3), ("dsa", 0.3), ("dm", 0.3)])
def test_distilling_lowers_the_distance_in_unseen_networks(problem: Problem, name: str, rate: float) -> None:
    method = make(problem, name, iterations=25, lr_images=rate)
    start = method.start()
    moved = replace(start, images=run_all(method))

    def mean(synthetic: Synthetic) -> float:
        losses = [float(method.gradient(synthetic, iteration).loss) for iteration in range(1000, 1010)]
        return math.fsum(losses) / len(losses)

    assert mean(moved) < 0.95 * mean(start)


def test_gaussian_start_is_the_same_for_each_method(problem: Problem) -> None:
    images = make(problem, "dc", init="gaussian").start().images
    assert torch.equal(images, make(problem, "dm", init="gaussian").start().images)
    assert not torch.equal(images, make(problem, "dc").start().images)


@pytest.mark.parametrize("name", CLASSWISE)
@pytest.mark.parametrize("labels", ["learned", "teacher"])
def test_soft_labels_are_refused(problem: Problem, name: str, labels: str) -> None:
    text = f"labels '{labels}' does not fit method '{name}', whose objective compares images class by class .* use "
    with pytest.raises(UsageError, match=text) as caught:
        make(problem, name, labels=labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CLASSWISE)
def test_correct_images_need_experts(problem: Problem, name: str) -> None:
    with pytest.raises(UsageError, match=f"init 'correct' needs experts, method '{name}' uses none"):
        make(problem, name, init="correct")


def test_a_selection_is_a_function_of_features(problem: Problem) -> None:
    def last(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
        return torch.arange(len(features))[-count:]

    made = Recipe("last", CHOSEN_BY_EXPERTS, SelectionOptions, last, None, {})(SelectionOptions(), problem)
    images = made.start().images
    wanted = problem.data.train.images[[2, 3, 6, 7, 10, 11]]
    assert torch.equal(images, problem.preprocessor.apply(wanted))
    assert "last" not in METHODS


@pytest.mark.parametrize("ipc", [0, 5])
def test_selecting_more_images_than_a_class_has_is_refused(problem: Problem, ipc: int) -> None:
    with pytest.raises(
        UsageError, match=rf"'k-center' can choose 1 to 4 images of class 0 \(a\) of noise, ipc is {ipc};"
    ):
        make(replace(problem, ipc=ipc), "k-center")


def test_selection_without_experts_is_refused(problem: Problem) -> None:
    with pytest.raises(UsageError, match=r"'k-center' needs experts; train them with `python -m satm experts`"):
        make(replace(problem, experts=None), "k-center")


@pytest.mark.parametrize(
    ("method", "dataset", "ipc", "expected"),
    [
        ("dc", "cifar10", 10, {"iterations": 10000, "outer_loop": 10, "inner_loop": 50, "init": "gaussian"}),
        ("dsa", "cifar100", 50, {"iterations": 50000, "outer_loop": 50, "inner_loop": 10, "lr_images": 0.1}),
        ("dm", "tiny-imagenet", 1, {"iterations": 20000, "lr_images": 1}),
    ],
)
def test_presets_hold_the_published_settings(method: str, dataset: str, ipc: int, expected: dict[str, object]) -> None:
    resolver = load_campaign(None)
    values = resolver.method(Cell(dataset, ipc, method))
    assert {name: values[name] for name in expected} == expected
    schedule = resolver.evaluation(Cell(dataset, ipc, method))
    assert schedule.lr == "learned" and values["step_size"] == 0.01
    assert (schedule.epochs, schedule.augment) == ((300, False) if method == "dc" else (1000, True))
