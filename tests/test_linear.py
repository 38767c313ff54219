"""Images as weighted sums of a basis: against plain autograd and no basis at all, and what it may store."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from drawing import torch_generator
from matching import single, unlike
from tolerances import ROUNDING, SUMS, TRAINING

from satm.distill import begin, compose, distill
from satm.errors import UsageError
from satm.methods import resolve
from satm.methods.parts.linear import Linear
from satm.methods.parts.problem import Problem

BASE: dict[str, Any] = {"inner_steps": 4, "step_size": 0.02, "iterations": 4, "lr_images": 0.01, "lr_weights": 0.01}


def make(problem: Problem, **options: Any) -> Any:
    """Return RaT-BPTT with `BASE` and further options; without a basis nothing that belongs to one."""
    if not options.get("basis"):
        options = {"lr_weights": 0.001, **options}
    kind, checked = resolve({"method": "ratbptt", **BASE, **options})
    return kind(checked, replace(problem, experts=None))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch_generator(seed), dtype=torch.float64)


def test_pulled_back_gradients_equal_autograd() -> None:
    linear = Linear(4, 2)
    numbers = {"basis": random(4, 1, 3, 3).requires_grad_(), "weights": random(6, 4, seed=1).requires_grad_()}
    images, gradient = linear.join(numbers), random(6, 1, 3, 3, seed=2)
    assert images.shape == (6, 1, 3, 3)
    for index in range(6):
        each = sum(numbers["weights"][index, at] * numbers["basis"][at] for at in range(4))
        torch.testing.assert_close(images[index], each)
    expected = torch.autograd.grad(images, list(numbers.values()), gradient)
    found = linear.pull({name: held.detach() for name, held in numbers.items()}, gradient)
    assert list(found) == ["basis", "weights"]
    for one, other in zip(found.values(), expected, strict=True):
        assert unlike(one, other) < ROUNDING


def test_basis_starts_near_the_images() -> None:
    images = random(6, 1, 3, 3)
    whole = Linear(6, 2).split(images)
    assert torch.equal(whole["weights"], torch.eye(6, dtype=torch.float64)) and torch.equal(whole["basis"], images)
    for count, chosen in ((2, [0, 3]), (3, [0, 1, 3]), (5, [0, 1, 2, 3, 4]), (1, [0])):
        linear = Linear(count, 2)
        numbers = linear.split(images)
        joined = linear.join(numbers)
        assert torch.equal(numbers["basis"], images[chosen]) and torch.equal(joined[chosen], images[chosen])
        for index in set(range(6)) - set(chosen):
            solved = torch.linalg.lstsq(images[chosen].flatten(1).t(), images[index].flatten()[:, None]).solution
            nearest = (solved[:, 0] @ images[chosen].flatten(1)).view(1, 3, 3)
            assert unlike(joined[index], nearest * images[index].norm() / nearest.norm()) < TRAINING
            assert float(joined[index].norm()) == pytest.approx(float(images[index].norm()))
    far = torch.zeros(2, 1, 1, 2)
    far[0, ..., 0], far[1, ..., 1] = 1, 1  # an image without any part in the basis stays finite
    assert Linear(1, 2).join(Linear(1, 2).split(far))[1].tolist() == [[[0, 0]]]


@pytest.mark.parametrize("init", ["gaussian", "real"])
def test_full_basis_with_fixed_weights_equals_learned_images(problem: Problem, init: str) -> None:
    problem = replace(problem, ipc=3)
    made = make(problem, basis=6, basis_images=2, lr_weights=0.0, init=init)
    direct = make(replace(problem, ipc=2), init=init)
    runs = [begin(method) for method in (made, direct)]
    for method, run in zip((made, direct), runs, strict=True):
        double = {n: held.double() if held.is_floating_point() else held for n, held in run.now.numbers.items()}
        moments = {n: {k: held.double() for k, held in state.items()} for n, state in run.now.moments.items()}
        run.now = replace(run.now, numbers=double, moments=moments)
        distill(method, run, None, lambda row: None, lambda run: None)
    assert runs[0].now.iteration == 4 and set(runs[0].rates) == {"basis", "weights", "step_size"}
    joined, images = (compose(method, run.now).images for method, run in zip((made, direct), runs, strict=True))
    assert unlike(joined, images) < SUMS
    assert not torch.equal(images, direct.start().images)
    assert [row["loss"] for row in runs[0].rows] == pytest.approx([row["loss"] for row in runs[1].rows], rel=SUMS)


def test_a_run_keeps_the_numbers_and_learns_both(problem: Problem) -> None:
    made = make(single(problem), basis=3, basis_images=4, labels="learned")
    run = begin(made)
    start = run.now.numbers
    assert start["basis"].shape == (3, 1, 8, 8) and start["weights"].shape == (12, 3)
    assert run.now.numbers["labels"].argmax(1).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    found = distill(made, run, None, lambda row: None, lambda run: None)
    assert list(found.numbers) == ["basis", "weights"]
    assert torch.equal(found.synthetic.images, torch.tensordot(found.numbers["weights"], found.numbers["basis"], 1))
    assert all(not torch.equal(found.numbers[name], start[name]) for name in ("basis", "weights"))
    stored = sum(held.numel() for held in found.numbers.values()) + found.synthetic.labels.numel()
    assert stored <= 2 * 3 * (64 + 3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"basis": 5, "basis_images": 5}, "basis 5 with basis_images 5 stores 395 numbers, ipc 2 allows 384; lower"),
        ({"basis": 6}, "basis 6 with basis_images 2 stores 420 numbers, ipc 2 allows 384"),
        ({"basis": 4, "basis_images": 15, "labels": "learned"}, "stores 571 numbers, ipc 2 allows 402"),
        ({"basis": 4, "basis_images": 1}, "basis 4 has more images than basis_images 1 computes, 3 in 3 classes"),
        ({"basis_images": 2}, "basis_images 2 has no effect with basis 0; set basis"),
        ({"lr_weights": 0.5}, "lr_weights 0.5 has no effect with basis 0"),
        ({"basis": 3, "blocks": 2}, "blocks 2 needs images that are learned themselves, basis 3 computes them"),
        ({"basis": 3, "ema": 0.9}, "ema 0.9 needs images that are learned themselves"),
    ],
    ids=str,
)
def test_basis_over_budget_or_with_conflicting_options_is_refused(
    problem: Problem, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        make(problem, **options)
    assert "\n" not in str(caught.value)


def test_a_budget_may_be_used_up_to_the_last_number(problem: Problem) -> None:
    assert make(problem, basis=3, basis_images=21).problem.ipc == 21  # 3 * 64 + 63 * 3 = 381 of 384
    with pytest.raises(UsageError, match="stores 390 numbers, ipc 2 allows 384"):
        make(problem, basis=3, basis_images=22)
