"""Sharpness-aware training against loops written out, and the experts made with it."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from drawing import torch_generator
from resuming import check_resumes
from tolerances import DISTINCT, LOOPS, SINGLE, SINGLE_LOOPS, SUMS, TRAINING
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from satm.config import ExpertsOptions
from satm.data import Augmentation
from satm.experts import Snapshot, train_expert
from satm.networks import build
from satm.networks.training import SharpnessAware, TrainingImages, train_epoch
from satm.params import flatten

AXES = ("experts", "noise", 0)
NOTHING = Augmentation("", "image")
RULES = [
    SharpnessAware("paper", 0.05, 1.0),
    SharpnessAware("paper", 0.05, 0.3),
    SharpnessAware("paper", 0.2, 3.0),
    SharpnessAware("code", 0.05, 0.4),
    SharpnessAware("code", 0.5, 0.4, adaptive=True),
]


def name(rule: SharpnessAware) -> str:
    return f"{rule.rule}-{rule.rho}-{rule.alpha}{'-adaptive' if rule.adaptive else ''}"


def images(dtype: torch.dtype = torch.float64) -> TrainingImages:
    generator = torch_generator(0)
    return TrainingImages(torch.randn(20, 1, 8, 8, generator=generator, dtype=dtype), torch.arange(20) % 3)


def network(norm: str = "instance") -> nn.Module:
    return build({"network": "convnet", "depth": 1, "width": 3, "norm": norm}, 1, 3, 8, seed=4)


def epoch(module: nn.Module, rule: SharpnessAware | None, batch_size: int = 8, lr: float = 0.1) -> float:
    optimiser = torch.optim.SGD(module.parameters(), lr, weight_decay=0.01)
    generator = torch_generator(7)
    data = images(next(module.parameters()).dtype)
    return train_epoch(module, optimiser, data, batch_size, NOTHING, generator, sharpness_aware=rule)


def slope(module: nn.Module, weights: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    held = {key: value.clone().requires_grad_() for key, value in weights.items()}
    loss = functional.cross_entropy(functional_call(module, held, (data[0],)), data[1])
    return dict(zip(held, torch.autograd.grad(loss, list(held.values())), strict=True))


def dot(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return sum(float((one[key] * other[key]).sum()) for key in one)


def followed(module: nn.Module, weights: dict[str, Tensor], data: tuple[Tensor, Tensor], rule: SharpnessAware) -> dict:
    """The gradient of the rule, number by number."""
    here = slope(module, weights, data)
    if rule.adaptive:
        length = dot({key: weights[key] * here[key] for key in here}, {key: weights[key] * here[key] for key in here})
        step = {key: rule.rho * weights[key] * weights[key] * here[key] / length**0.5 for key in here}
    else:
        step = {key: rule.rho * here[key] / dot(here, here) ** 0.5 for key in here}
    there = slope(module, {key: weights[key] + step[key] for key in here}, data)
    if rule.rule == "paper":
        return {key: rule.alpha * there[key] + (1 - rule.alpha) * here[key] for key in here}
    share = dot(here, there) / dot(there, there)
    return {key: there[key] - rule.alpha * (here[key] - share * there[key]) for key in here}


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_an_epoch_is_the_rule_written_out(rule: SharpnessAware) -> None:
    module = network().double()
    weights = {key: value.detach().clone() for key, value in module.named_parameters()}
    loss = epoch(module, rule)
    data, total = images(), 0.0
    for chosen in torch.randperm(20, generator=torch_generator(7)).split(8):
        batch = (data.images[chosen], data.labels[chosen])
        total += len(chosen) * float(functional.cross_entropy(functional_call(module, weights, (batch[0],)), batch[1]))
        gradient = followed(module, weights, batch, rule)
        weights = {key: held - 0.1 * (gradient[key] + 0.01 * held) for key, held in weights.items()}
    for key, held in module.named_parameters():
        torch.testing.assert_close(held.detach(), weights[key], rtol=TRAINING, atol=SUMS)
    assert loss == pytest.approx(total / 20, rel=SINGLE)
    plain = network().double()
    epoch(plain, None)
    assert not torch.allclose(flatten(plain), flatten(module), rtol=SINGLE_LOOPS)


@pytest.mark.parametrize(
    "rule",
    [SharpnessAware("paper", 0.0, alpha) for alpha in (0.0, 0.3, 1.0, 3.0)]
    + [SharpnessAware("paper", 0.1, 0.0), SharpnessAware("code", 0.0, 0.0), SharpnessAware("code", 0.0, 0.0, True)],
    ids=name,
)
def test_without_a_step_it_is_plain_descent(rule: SharpnessAware) -> None:
    plain, flat = network(), network()
    assert epoch(plain, None) == epoch(flat, rule)
    assert torch.equal(flatten(plain), flatten(flat))


def batch_gradient(rule: SharpnessAware | None) -> Tensor:
    """The gradient of one batch that holds all images, as the optimiser sees it."""
    module = network().double()
    epoch(module, rule, batch_size=20)
    return torch.cat([held.grad.reshape(-1) for held in module.parameters()])


@pytest.mark.parametrize("adaptive", [False, True])
def test_what_gsam_takes_away_is_orthogonal_to_the_perturbed_gradient(adaptive: bool) -> None:
    rule = SharpnessAware("code", 0.3, 0.0, adaptive)
    perturbed = batch_gradient(rule)
    taken = perturbed - batch_gradient(replace(rule, alpha=1.0))
    assert float(taken.norm()) > DISTINCT * float(perturbed.norm())
    assert abs(float(taken @ perturbed)) < LOOPS * float(perturbed.norm() * taken.norm())
    torch.testing.assert_close(perturbed - batch_gradient(replace(rule, alpha=0.4)), 0.4 * taken)
    along = batch_gradient(None) - taken  # of the plain gradient only what is along the perturbed one is left
    torch.testing.assert_close(along / along.norm(), perturbed / perturbed.norm())


def test_the_step_has_the_length_rho() -> None:
    generator = torch_generator(0)
    weights = {"a": torch.randn(4, generator=generator), "b": torch.randn(2, 3, generator=generator)}
    gradient = {key: torch.randn(held.shape, generator=generator) for key, held in weights.items()}
    for rule in (SharpnessAware("paper", 0.2, 1.0), SharpnessAware("code", 0.2, 0.4)):
        near = rule.neighbour(weights, gradient)
        step = torch.cat([(near[key] - weights[key]).reshape(-1) for key in near])
        assert step.norm() == pytest.approx(0.2, rel=SINGLE)
    near = SharpnessAware("code", 0.2, 0.4, adaptive=True).neighbour(weights, gradient)
    relative = torch.cat([((near[key] - weights[key]) / weights[key].abs()).reshape(-1) for key in near])
    assert relative.norm() == pytest.approx(0.2, rel=SINGLE_LOOPS)


@pytest.mark.parametrize("rule", [SharpnessAware("paper", 0.2, 1.0), SharpnessAware("code", 0.2, 0.4, True)], ids=name)
def test_without_a_slope_there_is_no_step(rule: SharpnessAware) -> None:
    weights, flat = {"a": torch.ones(3)}, {"a": torch.zeros(3)}
    assert rule.neighbour(weights, flat)["a"].tolist() == [1, 1, 1]
    assert rule.combine(flat, flat)["a"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("rule", [RULES[0], RULES[4]], ids=name)
def test_the_second_pass_leaves_batch_statistics_alone(rule: SharpnessAware) -> None:
    plain, flat = network("batch"), network("batch")
    epoch(plain, None, batch_size=20)
    epoch(flat, rule, batch_size=20)
    assert not torch.equal(flatten(plain), flatten(flat))
    for one, other in zip(plain.buffers(), flat.buffers(), strict=True):
        assert torch.equal(one, other)
    assert int(dict(flat.named_buffers())["features.1.num_batches_tracked"]) == 1


def test_an_adaptive_step_of_the_papers_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="adaptive has no effect with the rule 'paper'; use the rule 'code'"):
        SharpnessAware("paper", 0.01, 1.0, adaptive=True)


# Experts


def train(options: ExpertsOptions, after: Snapshot | None = None) -> Iterator[Snapshot]:
    data = images(torch.float32)
    return train_expert(network(), data, options, Augmentation("color_crop_flip", "image"), AXES, after)


FLAT = ExpertsOptions(epochs=4, lr=0.1, batch_size=8, optimiser="flat", rho=0.1)
RECIPES = [
    FLAT,
    FLAT.model_copy(update={"momentum": 0.9, "alpha": 0.3}),
    FLAT.model_copy(update={"flat_rule": "code", "alpha": 0.4, "adaptive": True, "rho": 0.5}),
]


@pytest.mark.parametrize("options", RECIPES, ids=["paper", "momentum", "code"])
def test_flat_experts_are_others_and_can_go_on_from_any_epoch(options: ExpertsOptions, tmp_path: Path) -> None:
    whole = list(train(options))
    plain = list(train(options.model_copy(update={"optimiser": "sgd"})))
    assert torch.equal(whole[0].weights, plain[0].weights)
    assert not torch.allclose(whole[1].weights, plain[1].weights)
    check_resumes(partial(train, options), options.epochs, tmp_path)


def test_flat_without_a_step_is_sgd() -> None:
    flat, plain = FLAT.model_copy(update={"rho": 0.0}), FLAT.model_copy(update={"optimiser": "sgd"})
    for one, other in zip(train(flat), train(plain), strict=True):
        assert torch.equal(one.weights, other.weights)


def test_every_option_of_the_rule_reaches_the_training() -> None:
    def end(**options: object) -> Tensor:
        *_, last = train(FLAT.model_copy(update=options))
        return last.weights

    code = {"flat_rule": "code", "alpha": 0.4}
    found = [end(), end(rho=0.2), end(alpha=0.3), end(**code), end(**code, adaptive=True), end(flat_rule="code")]
    assert len({tuple(weights.tolist()) for weights in found}) == len(found)
