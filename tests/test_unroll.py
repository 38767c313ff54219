"""The hypergradient in float64 against finite differences, plain autograd, torch's optimisers, and itself."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import twins
from drawing import torch_generator
from matching import unlike
from tolerances import DISTINCT, LOOPS, ROUNDING, SINGLE_LOOPS, SUMS
from torch import Tensor, nn
from torch.nn import functional
from twins import Iteration, Segment

from satm.data import Augmentation
from satm.errors import UsageError
from satm.methods.parts.problem import Synthetic
from satm.networks import build
from satm.networks.training import soft_cross_entropy
from satm.params import call_flat, flatten, load_flat, unflatten
from satm.unroll import ENGINES, Adam, Hypergradient, Momentum, Point, Rule, Sgd, hypergradient

RULES: dict[str, Rule] = {
    "sgd": Sgd(),
    "sgd-decay": Sgd(weight_decay=0.1),
    "momentum": Momentum(0.8, weight_decay=0.05),
    "nesterov": Momentum(0.8, nesterov=True, weight_decay=0.05),
    "adam": Adam(0.8, 0.95, eps=1e-2),
    "adam-decay": Adam(0.8, 0.95, eps=1e-2, weight_decay=0.1),
    "adamw": Adam(0.8, 0.95, eps=1e-2, weight_decay=0.1, decoupled=True),
}
EXACT = ["mixed", "reverse"]
FULL = "color_crop_cutout_flip_scale_rotate"


@dataclass(frozen=True)
class Case:
    """A whole problem; `solve` differentiates it, `outer` is the function that is differentiated."""

    module: nn.Module
    images: Tensor
    labels: Tensor
    start: Tensor
    rule: Rule
    steps: int
    step_size: float = 0.3
    batches: Sequence[Tensor] | None = None
    augment: Callable[[Tensor, int], Tensor] | None = None
    loss: Callable[[Tensor, Tensor], Tensor] = soft_cross_entropy
    more: dict[str, Any] = field(default_factory=dict)

    def objective(self, weights: Tensor) -> Tensor:
        target = torch.linspace(-1, 1, len(weights), dtype=weights.dtype)
        return (weights - target).square().sum() + 0.1 * (3 * weights).sin().sum()

    def solve(self, engine: str = "mixed", **options: Any) -> Hypergradient:
        arguments: dict[str, Any] = {
            "steps": self.steps,
            "start": self.start,
            "rule": self.rule,
            "loss": self.loss,
            "batches": self.batches,
            "augment": self.augment,
            "engine": engine,
            **options,
        }
        return hypergradient(self.module, self.images, self.labels, self.step_size, self.objective, **arguments)

    def outer(self, **changed: Any) -> float:
        return float(replace(self, **changed).solve(last=1).loss)


def scalar_case(rule: Rule) -> Case:
    """Five parameters, targets of real numbers, a squared loss."""
    generator = torch_generator(0)
    module = nn.Sequential(nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 1)).double()
    images, labels, start = (torch.randn(size, generator=generator).double() for size in ((4, 2), (4, 1), (5,)))
    return Case(module, images, labels, start, rule, steps=6, loss=functional.mse_loss)


def conv_case(rule: Rule, norm: str = "layer") -> Case:
    """A ConvNet on soft labels, mini-batches and augmentation in each step."""
    generator = torch_generator(1)
    values = {"network": "convnet", "depth": 1, "width": 2, "norm": norm, "activation": "sigmoid"}
    module = build(values, 3, 3, 8, seed=0).double()
    images = torch.randn(5, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    steps = 5
    batches = [torch.randperm(5, generator=generator)[:3] for _ in range(steps)]
    augmentation = Augmentation(FULL, "image", "multiple")
    draws = [augmentation.draw(generator, 3, 8) for _ in range(steps)]
    noise = torch.randn(flatten(module).shape, generator=generator, dtype=torch.float64)
    start = flatten(module) + 0.1 * noise
    return Case(
        module,
        images,
        labels,
        start,
        rule,
        steps,
        batches=batches,
        augment=lambda batch, step: augmentation.apply(batch, draws[step]),
    )


def cases() -> list[Any]:
    found = [pytest.param(scalar_case(rule), id=f"five-{name}") for name, rule in RULES.items()]
    found += [pytest.param(conv_case(rule), id=f"conv-{name}") for name, rule in RULES.items()]
    return [*found, pytest.param(conv_case(Sgd(), "instance"), id="conv-instance")]


def plain(case: Case, detach_before: int = 0, hold_gradients: bool = False) -> dict[str, Tensor]:
    """The slow obvious twin: names and dictionaries, torch.func and one backward pass through everything."""
    images, labels, start = (
        tensor.clone().requires_grad_(tensor.is_floating_point()) for tensor in (case.images, case.labels, case.start)
    )
    step_size = torch.tensor(case.step_size, dtype=torch.float64, requires_grad=True)
    weights, state = start, case.rule.start(start.detach())
    for step in range(case.steps):
        if step == detach_before and step:
            weights = weights.detach()
            state = {name: value.detach() for name, value in state.items()}
        chosen = slice(None) if case.batches is None else case.batches[step]
        pixels = images[chosen] if case.augment is None else case.augment(images[chosen], step)
        given = weights if weights.requires_grad and not hold_gradients else weights.detach().requires_grad_()
        outputs = torch.func.functional_call(case.module, unflatten(case.module, given), (pixels,))
        gradient = torch.autograd.grad(case.loss(outputs, labels[chosen]), given, create_graph=True)[0]
        gradient = gradient.detach() if hold_gradients else gradient
        if isinstance(case.rule, Sgd):
            direction = gradient + case.rule.weight_decay * weights
        else:
            direction, state = case.rule.direction(weights, state, gradient)
        if step < detach_before:
            direction = direction.detach()
            weights = (weights - case.step_size * direction).detach()
        else:
            weights = weights - step_size * direction
    loss = case.objective(weights)
    leaves = {"images": images, "labels": labels, "step_size": step_size, "start": start}
    leaves = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    found = torch.autograd.grad(loss, [*leaves.values()], allow_unused=True, materialize_grads=True)
    return {"loss": loss.detach(), "end": weights.detach(), **dict(zip(leaves, found, strict=True))}


@pytest.mark.parametrize("case", cases())
def test_both_engines_give_the_central_differences(case: Case) -> None:
    mixed, reverse = case.solve("mixed"), case.solve("reverse")
    assert mixed.loss == reverse.loss
    generator = torch_generator(3)
    for name in ("images", "labels", "step_size", "start"):
        one, other = getattr(mixed, name), getattr(reverse, name)
        value = torch.as_tensor(getattr(case, name), dtype=torch.float64)
        assert one.shape == value.shape
        assert unlike(one, other) <= LOOPS, name
        ways = [torch.randn(value.shape, generator=generator, dtype=torch.float64)]
        if value.ndim:  # single entries, those with the largest share and one other
            for entry in (int(one.abs().argmax()), 0):
                way = torch.zeros(value.numel(), dtype=torch.float64)
                way[entry] = 1
                ways.append(way.view(value.shape))
        for way in ways:

            def at(shift: float, value: Tensor = value, way: Tensor = way, name: str = name) -> float:
                moved = value + shift * way
                return case.outer(**{name: float(moved) if name == "step_size" else moved})

            # The error is of order h**4 times derivatives, large where Adam divides by little; rounding adds 1e-10.
            coarse, fine = ((8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h) for h in (5e-5, 1.25e-5))
            left = abs(coarse - fine) + 2e-8 * float(one.norm())
            assert float((one * way).sum()) == pytest.approx(fine, rel=2e-7, abs=left), name


@pytest.mark.parametrize("case", cases())
def test_hypergradient_equals_plain_autograd(case: Case) -> None:
    found, expected = case.solve(), plain(case)
    for name in ("loss", "end", "images", "labels", "step_size", "start"):
        assert unlike(getattr(found, name), expected[name]) <= LOOPS, name


FACTORS: dict[str, list[Any]] = {
    "norm": ["instance", "none", "batch", "layer", "group"],
    "activation": ["relu", "sigmoid", "leakyrelu"],
    "pooling": ["average", "none", "max"],
    "size": [8, 5, 32, 7, 28, 12],
    "channels": [3, 1],
    "depth": [1, 2],
    "rule": list(RULES),
    "augment": [FULL, "", *FULL.split("_")],
    "mode": ["multiple", "single"],
    "batch": [None, 3, 1],
    "images": [4, 1, 5],
    "labels": ["soft", "hard"],
    "last": [None, 1, 2],
    "stored": [0, 3, 1, 2],
}


def mixture(seed: int) -> dict[str, Any]:
    """Choose a value of each factor: in turn for the factors one after another, the others by chance."""
    draw = random.Random(seed)
    return {
        name: values[(seed // (place + 1)) % len(values)] if draw.random() < 0.5 else draw.choice(values)
        for place, (name, values) in enumerate(FACTORS.items())
    }


def test_the_mixtures_have_all_values() -> None:
    for name, values in FACTORS.items():
        assert {str(mixture(seed)[name]) for seed in range(60)} == set(map(str, values)), name


@pytest.mark.parametrize("seed", [*range(60), 96])
def test_whole_unrolls_of_the_search_space_equal_plain_autograd(seed: int) -> None:
    chosen = mixture(seed)
    size, generator = 96 if seed == 96 else chosen["size"], torch_generator(seed)
    options = {name: chosen[name] for name in ("depth", "norm", "activation", "pooling")}
    values = {"network": "convnet", "width": 8, **options}
    module = build(values, chosen["channels"], 3, size, seed=seed).double()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):  # in the search space it uses the statistics of the batch
            part.running_mean = part.running_var = part.num_batches_tracked = None
            part.track_running_stats = False
    steps, count, batch = 3, chosen["images"], chosen["batch"]
    images = torch.randn(count, chosen["channels"], size, size, generator=generator, dtype=torch.float64)
    soft = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    batches = None if batch is None else [torch.randperm(count, generator=generator)[:batch] for _ in range(steps)]
    each = count if batches is None else len(batches[0])
    augmentation = Augmentation(chosen["augment"], "image", chosen["mode"])
    case = Case(
        module,
        images,
        soft if chosen["labels"] == "soft" else soft.argmax(1),
        flatten(module),
        RULES[chosen["rule"]],
        steps,
        step_size=0.05,
        batches=batches,
        augment=augmentation.per_step(generator, [each] * steps, size),
        loss=soft_cross_entropy,
    )
    last = chosen["last"]
    expected = plain(case, steps - (last or steps))
    for engine, stored in (("mixed", chosen["stored"]), ("reverse", None)):
        found = case.solve(engine, last=last, stored=stored)
        for name in ("loss", "end", "images", "labels", "step_size", "start"):
            value = getattr(found, name)
            if value is not None:
                assert unlike(value, expected[name]) <= LOOPS, (engine, name, chosen)


@pytest.mark.parametrize("engine", EXACT)
@pytest.mark.parametrize("name", list(RULES))
def test_truncation_equals_detaching_by_hand(engine: str, name: str) -> None:
    case = conv_case(RULES[name])
    for last in (1, 2, case.steps - 1):
        found, expected = case.solve(engine, last=last), plain(case, detach_before=case.steps - last)
        for part in ("loss", "end", "images", "labels", "step_size"):
            assert unlike(getattr(found, part), expected[part]) <= LOOPS, (part, last)
        assert found.start is None


@pytest.mark.parametrize("engine", list(ENGINES))
def test_truncation_to_all_steps_is_exact(engine: str) -> None:
    case = conv_case(Momentum())
    whole = case.solve(engine)
    for last in (case.steps, case.steps + 3):
        found = case.solve(engine, last=last)
        for part in ("loss", "images", "labels", "step_size", "start", "end"):
            assert torch.equal(getattr(found, part), getattr(whole, part)), part
    assert unlike(case.solve(engine, last=2).images, whole.images) > DISTINCT


@pytest.mark.parametrize("engine", EXACT)
@pytest.mark.parametrize("last", [None, 1, 3])
@pytest.mark.parametrize("case", [conv_case(Sgd()), scalar_case(Sgd())], ids=["conv", "five"])
def test_first_order_step_size_is_autograd_with_inner_gradients_held(case: Case, engine: str, last: int | None) -> None:
    found = case.solve(engine, last=last, step_size_gradient="first-order")
    expected = plain(case, hold_gradients=True)
    assert unlike(found.step_size, expected["step_size"]) <= SUMS
    assert unlike(found.step_size, case.solve(engine).step_size) > DISTINCT
    assert torch.equal(found.images, case.solve(engine, last=last).images)


def test_a_single_step_has_the_same_exact_and_first_order_step_size() -> None:
    case = replace(conv_case(Sgd()), steps=1, batches=conv_case(Sgd()).batches[:1])
    one, other = case.solve(), case.solve(step_size_gradient="first-order")
    assert unlike(one.step_size, other.step_size) <= SUMS


def test_every_engine_is_exact_or_teslas() -> None:
    assert {*EXACT, "tesla"} == set(ENGINES)


@pytest.mark.parametrize("name", list(RULES))
def test_tesla_is_exact_for_one_step(name: str) -> None:
    whole = conv_case(RULES[name])
    assert whole.batches is not None
    case = replace(whole, steps=1, batches=whole.batches[:1])
    point = whole.solve(keep_points=(4,)).points[4]  # with a state that is not zero
    for here, options in ((case, {}), (whole, {"start": point, "first": 4}), (whole, {"last": 1})):
        one, other = here.solve("tesla", **options), here.solve("reverse", **options)
        for part in ("loss", "end", "images", "labels", "step_size"):
            assert unlike(getattr(one, part), getattr(other, part)) <= SUMS, (part, options)


@pytest.mark.parametrize("name", list(RULES))
def test_tesla_is_not_exact_for_two_steps(name: str) -> None:
    whole = conv_case(RULES[name])
    assert whole.batches is not None
    case = replace(whole, steps=2, batches=whole.batches[:2])
    one, other = case.solve("tesla"), case.solve("reverse")
    assert unlike(one.loss, other.loss) <= SUMS and unlike(one.end, other.end) <= SUMS
    for part in ("images", "labels", "step_size"):
        assert unlike(getattr(one, part), getattr(other, part)) > DISTINCT, part


@dataclass(frozen=True)
class Matched(Case):
    """A case whose objective is that of trajectory matching."""

    @property
    def target(self) -> Tensor:
        return self.start + 0.3 * torch.linspace(-1, 1, len(self.start), dtype=torch.float64)

    def objective(self, weights: Tensor) -> Tensor:
        return (weights - self.target).square().sum() / (self.start - self.target).square().sum()


@pytest.mark.parametrize("soft", [True, False])
def test_tesla_is_its_formula_written_out(soft: bool) -> None:
    held = {name: getattr(conv_case(Sgd()), name) for name in Case.__dataclass_fields__}
    case = Matched(**held) if soft else Matched(**{**held, "labels": held["labels"].argmax(1)})
    assert case.batches is not None and case.augment is not None
    segment = Segment(case.start, case.target)
    here = Iteration(case.module, case.batches, case.augment, case.steps, [segment])
    step_size = torch.tensor(case.step_size, dtype=torch.float64)
    twin = twins.tesla(here, Synthetic(case.images, case.labels, step_size))
    made, exact = case.solve("tesla"), case.solve("reverse")
    assert unlike(made.loss, twin.loss) <= SUMS
    assert unlike(made.images, twin.images) <= LOOPS and unlike(made.step_size, twin.step_size) <= LOOPS
    assert unlike(made.images, exact.images) > DISTINCT and unlike(made.step_size, exact.step_size) > DISTINCT
    if soft:
        assert made.labels is not None and twin.labels is not None and unlike(made.labels, twin.labels) <= LOOPS
    else:
        assert made.labels is None


@pytest.mark.parametrize("name", list(RULES))
def test_tesla_holds_weights_and_state_of_every_step(name: str) -> None:
    case = conv_case(RULES[name])
    assert case.batches is not None and case.augment is not None
    found = case.solve("tesla", keep_points=range(case.steps))
    end = found.end.clone().requires_grad_()
    slope = torch.autograd.grad(case.objective(end), end)[0]
    images, labels = (tensor.clone().requires_grad_() for tensor in (case.images, case.labels))
    moved = torch.zeros((), dtype=torch.float64)
    for step, chosen in enumerate(case.batches):
        point = found.points[step]
        given = point.weights.clone().requires_grad_()
        outputs = call_flat(case.module, given, case.augment(images[chosen], step))
        gradient = torch.autograd.grad(case.loss(outputs, labels[chosen]), given, create_graph=True)[0]
        moved = moved - case.step_size * (slope @ case.rule.direction(point.weights, point.state, gradient)[0])
    of_images, of_labels = torch.autograd.grad(moved, [images, labels])
    assert found.labels is not None
    assert unlike(found.images, of_images) <= LOOPS and unlike(found.labels, of_labels) <= LOOPS


def test_teslas_step_size_is_learned_with_inner_gradients_held() -> None:
    case = conv_case(Sgd())
    held = plain(case, hold_gradients=True)["step_size"]
    assert unlike(case.solve("tesla").step_size, held) <= SUMS
    assert unlike(case.solve("tesla", last=2, step_size_gradient="first-order").step_size, held) <= SUMS
    assert unlike(case.solve("tesla", last=2).step_size, held) > DISTINCT


def test_tesla_passes_the_end_gradient_to_the_start() -> None:
    case = conv_case(Momentum())
    found = case.solve("tesla")
    end = found.end.clone().requires_grad_()
    assert found.start is not None
    assert torch.equal(found.start, torch.autograd.grad(case.objective(end), end)[0])
    assert case.solve("tesla", last=2).start is None


TWINS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda weights: torch.optim.SGD(weights, 0.3),
    "sgd-decay": lambda weights: torch.optim.SGD(weights, 0.3, weight_decay=0.1),
    "momentum": lambda weights: torch.optim.SGD(weights, 0.3, momentum=0.8, weight_decay=0.05),
    "nesterov": lambda weights: torch.optim.SGD(weights, 0.3, momentum=0.8, nesterov=True, weight_decay=0.05),
    "adam": lambda weights: torch.optim.Adam(weights, 0.3, (0.8, 0.95), 1e-2),
    "adam-decay": lambda weights: torch.optim.Adam(weights, 0.3, (0.8, 0.95), 1e-2, weight_decay=0.1),
    "adamw": lambda weights: torch.optim.AdamW(weights, 0.3, (0.8, 0.95), 1e-2, weight_decay=0.1),
}


@pytest.mark.parametrize("name", list(RULES))
def test_the_inner_rules_are_torchs_optimisers(name: str) -> None:
    case = conv_case(RULES[name])
    load_flat(case.module, case.start)
    optimiser = TWINS[name](case.module.parameters())
    assert case.batches is not None and case.augment is not None
    for step in range(case.steps):
        optimiser.zero_grad()
        chosen = case.batches[step]
        case.loss(case.module(case.augment(case.images[chosen], step)), case.labels[chosen]).backward()
        optimiser.step()
    assert unlike(case.solve().end, flatten(case.module)) <= SUMS


@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam-decay"])
def test_resuming_from_a_kept_point_equals_the_whole_unroll(engine: str, name: str) -> None:
    case = conv_case(RULES[name])
    for last, where in ((2, 1), (2, 3), (2, 4), (None, 2), (None, 0)):
        whole = case.solve(engine, last=last, keep_points=(where,))
        assert list(whole.points) == [where]
        rest = case.solve(engine, last=1, start=whole.points[where], first=where)
        same = case.solve(engine, last=1)
        for part in ("loss", "end", "images", "labels", "step_size"):
            assert torch.equal(getattr(rest, part), getattr(same, part)), (part, last, where)
    kept = case.solve(engine, last=1, keep_points=range(case.steps + 1)).points
    assert torch.equal(kept[0].weights, case.start) and torch.equal(kept[case.steps].weights, case.solve().end)
    again = case.solve(engine, start=kept[2], first=2)
    truncated = case.solve(engine, last=case.steps - 2)
    assert again.start is not None and truncated.start is None
    assert unlike(again.images, truncated.images) <= ROUNDING


class Unused(nn.Module):
    """A network one of whose parameters takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.ones(3))
        self.layers = nn.Sequential(nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs) + 0 * self.idle.sum()


@pytest.mark.parametrize("engine", list(ENGINES))
def test_adam_with_a_gradient_of_exactly_zero_is_finite(engine: str) -> None:
    case = scalar_case(Adam(0.8, 0.95))
    start = torch.cat([torch.ones(3, dtype=torch.float64), case.start])
    wider = replace(case, module=Unused().double(), start=start)
    found, expected = wider.solve(engine), case.solve(engine)
    assert torch.equal(found.end[:3], start[:3])
    for part in ("images", "labels"):
        assert torch.isfinite(getattr(found, part)).all()
    narrow = hypergradient(
        wider.module,
        wider.images,
        wider.labels,
        wider.step_size,
        lambda weights: case.objective(weights[3:]),
        steps=case.steps,
        start=start,
        rule=wider.rule,
        loss=wider.loss,
        engine=engine,
    )
    assert unlike(narrow.images, expected.images) <= SUMS
    assert unlike(narrow.step_size, expected.step_size) <= SUMS


@pytest.mark.parametrize("engine", EXACT)
@pytest.mark.parametrize("norm", [nn.InstanceNorm2d, nn.BatchNorm2d])
def test_hypergradient_works_for_any_module(engine: str, norm: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 2, 3), norm(2, affine=True, track_running_stats=False), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2)
    ).double()
    images = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    case = Case(module, images, torch.randn(3, 2, dtype=torch.float64), flatten(module), Sgd(), 3)
    case = replace(case, loss=functional.mse_loss)
    found, expected = case.solve(engine), plain(case)
    for part in ("images", "labels", "step_size", "start"):
        assert unlike(getattr(found, part), expected[part]) <= LOOPS, part


def test_integer_labels_have_no_gradient() -> None:
    case = conv_case(Sgd())
    labels = case.labels.argmax(1)
    found, other = replace(case, labels=labels).solve(), replace(case, labels=labels).solve("reverse")
    assert found.labels is None and other.labels is None
    hard = functional.one_hot(labels, 3).double()
    twin = plain(replace(case, labels=hard, loss=functional.cross_entropy))
    assert unlike(found.images, twin["images"]) <= LOOPS


def test_the_modules_own_weights_are_the_default_start_and_a_number_is_a_step_size() -> None:
    case = conv_case(Sgd())
    load_flat(case.module, case.start)
    found = case.solve(start=None, step_size_gradient="exact")
    tensor = replace(case, step_size=torch.tensor(case.step_size, dtype=torch.float64)).solve()
    assert torch.equal(found.images, tensor.images)


def tensors(found: Hypergradient) -> list[Tensor]:
    held = [found.loss, found.images, found.labels, found.step_size, found.start, found.end]
    for point in found.points.values():
        held += [point.weights, *point.state.values()]
    return [tensor for tensor in held if tensor is not None]


@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize("last", [None, 2])
def test_nothing_keeps_a_graph_and_no_argument_changes(engine: str, last: int | None) -> None:
    case = conv_case(Momentum())
    where = case.solve(engine, keep_points=(0,)).points[0]
    given = [case.images, case.labels, case.start, *case.module.parameters(), where.weights, where.state["buffer"]]
    before = [tensor.detach().clone() for tensor in given]
    flags = [tensor.requires_grad for tensor in given]
    found = case.solve(engine, last=last, keep_points=range(case.steps + 1), step_size_gradient="first-order")
    again = case.solve(engine, last=last, start=where)
    for tensor in [*tensors(found), *tensors(again)]:
        assert not tensor.requires_grad and tensor.grad_fn is None
    for tensor, value, flag in zip(given, before, flags, strict=True):
        assert torch.equal(tensor, value) and tensor.requires_grad == flag and tensor.grad is None
    assert not where.weights.requires_grad
    assert torch.equal(found.images, again.images)


def test_callers_gradients_and_no_grad_have_no_effect() -> None:
    case = conv_case(Sgd())
    images = case.images.clone().requires_grad_()
    for engine in ENGINES:
        with torch.no_grad():
            found = replace(case, images=images).solve(engine)
        assert images.grad is None and not found.images.requires_grad
        assert torch.equal(found.images, case.solve(engine).images)


@pytest.mark.parametrize("engine", list(ENGINES))
def test_dropout_and_tracked_batch_statistics_are_refused(engine: str) -> None:
    images, labels = torch.randn(4, 1, 4, 4), torch.tensor([0, 1, 0, 1])
    for part, text in ((nn.Dropout(0.5), "dropout"), (nn.BatchNorm2d(1), "running statistics")):
        module = nn.Sequential(part, nn.Flatten(), nn.Linear(16, 2))

        def solve(module: nn.Module = module) -> Hypergradient:
            return hypergradient(module, images, labels, 0.1, lambda w: w.square().sum(), steps=2, engine=engine)

        with pytest.raises(ValueError, match=text):
            solve()
        module.eval()
        buffers = [buffer.clone() for buffer in module.buffers()]
        assert torch.isfinite(solve().images).all()
        assert all(torch.equal(one, other) for one, other in zip(buffers, module.buffers(), strict=True))


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"first": 5}, "first 5 and steps 5"),
        ({"first": -1}, "first -1"),
        ({"steps": 0}, "steps 0"),
        ({"last": 0}, "at least 1"),
        ({"batches": [torch.tensor([0])]}, "1 batches and 5 steps"),
        ({"start": torch.zeros(4)}, "of this network.s .* parameters, got shape"),
        ({"engine": "mixd"}, "Did you mean 'mixed'"),
        ({"keep_points": (6,)}, "keep_points"),
    ],
)
def test_inconsistent_arguments_are_refused(changed: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        conv_case(Sgd()).solve(**changed)


def test_images_and_labels_that_do_not_fit_are_refused() -> None:
    case = conv_case(Sgd())
    with pytest.raises(ValueError, match="5 images and 4 labels"):
        replace(case, labels=case.labels[:4]).solve()
    with pytest.raises(ValueError, match="floating point"):
        replace(case, images=case.images.to(torch.uint8)).solve()
    with pytest.raises(UsageError, match="unknown engine 'forward'; known: mixed, reverse, tesla"):
        case.solve(engine="forward")


def test_flat_parameters_keep_order_and_own_their_memory() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    vector = flatten(module)
    assert vector.shape == (13,) and not vector.requires_grad
    vector += 1  # owns its memory
    assert not torch.equal(vector, flatten(module))
    inputs = torch.randn(4, 2)
    called = call_flat(module, vector, inputs)
    load_flat(module, vector)
    assert torch.equal(called, module(inputs))
    assert {name: part.shape for name, part in unflatten(module, vector).items()} == {
        name: part.shape for name, part in module.named_parameters()
    }
    with pytest.raises(ValueError, match=r"13 parameters, got shape \(12,\)"):
        load_flat(module, vector[:12])


def test_a_point_is_not_changed_by_going_on_from_it() -> None:
    case = conv_case(Momentum())
    for engine in ENGINES:
        point: Point = case.solve(engine, last=2, keep_points=(2,)).points[2]
        weights, buffer = point.weights.clone(), point.state["buffer"].clone()
        case.solve(engine, start=point, first=2)
        assert torch.equal(point.weights, weights) and torch.equal(point.state["buffer"], buffer)
        assert not point.weights.requires_grad


class Body(nn.Module):
    """A network whose subclasses do what no hypergradient can be computed through."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Linear(144, 3)
        self.register_buffer("count", torch.zeros(()))

    def body(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.norm(self.first(x))).flatten(1))


class Changes(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.sub_(0.5))


class Draws(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x + torch.randn(8))


class Counts(Body):
    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.body(x) * float(self.count)


class Replaces(Body):
    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return self.body(x) * float(self.count)


class Detaches(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.from_numpy(x.detach().numpy()))


class Stops(Body):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.first(x)
        return self.last(self.norm(x).flatten(1))


class Answers(Body):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.body(x), x


class Fails(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.nothing(x)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (Changes, r"step with 2 images of \[1, 8, 8\] fails \(RuntimeError: a view of a leaf .* in-place operation\)"),
        (Draws, "another gradient when it is repeated, because it draws random numbers or changes a buffer"),
        (
            Counts,
            "another gradient when it is repeated, because it draws random numbers or changes a buffer; take that",
        ),
        (Replaces, "another gradient when it is repeated, because it draws random numbers or changes a buffer"),
        (Detaches, r"does not depend on the images; look for detach\(\), no_grad\(\) or NumPy in the network"),
        (Stops, r"does not depend on the images; look for detach\(\), no_grad\(\) or NumPy in the network"),
        (Answers, r"fails \(TypeError: cross_entropy_loss\(\): .*\); check the network, images, labels and loss"),
        (Fails, r"fails \(AttributeError: 'Fails' object has no attribute 'nothing'\); check the network"),
        (lambda: Body().half(), "images and weights must be float32 or float64, got torch.float16"),
        (lambda: torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, 3))), r"fails \(RuntimeError: .*Jitted"),
        (nn.Flatten, "expected a network with weights to train, got one that has no parameters"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "that has parameters without a shape; call it once on"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3).double()), r"fails \(RuntimeError: .*dtype"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(63, 3)), r"fails \(RuntimeError: .*shapes cannot be multiplied"),
    ],
)
@pytest.mark.parametrize("engine", list(ENGINES))
def test_what_no_hypergradient_can_be_computed_through_is_refused(
    engine: str, make: Callable[[], nn.Module], text: str
) -> None:
    module = make()
    half = text.endswith("float16")
    images, state = torch.randn(2, 1, 8, 8, dtype=torch.float16 if half else torch.float32), torch.get_rng_state()
    for _ in range(2):  # also when it was seen before
        with pytest.raises(ValueError, match=text):
            hypergradient(module, images, torch.tensor([0, 2]), 0.1, torch.sum, steps=3, engine=engine, stored=0)
    assert torch.equal(torch.get_rng_state(), state)


class Reseeds(Body):
    """A network that draws the same numbers each time, as few do."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x + torch.randn(8, generator=torch_generator(1)))


def test_pure_networks_are_taken_whatever_they_are_made_of() -> None:
    images, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])

    def found(module: nn.Module) -> Tensor:
        return hypergradient(module, images, labels, 0.1, lambda weights: weights.square().sum(), steps=3).images

    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    assert torch.equal(found(torch.compile(plain)), found(plain))
    assert torch.equal(found(plain.requires_grad_(False)), found(plain))
    assert float(found(Reseeds()).norm()) > 0


class Calls(Body):
    """A network that counts its calls, which changes nothing, and whose bias has a gradient of rounding errors."""

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return self.body(x)


@pytest.mark.parametrize("stored", [0, 1, 3])
def test_a_counter_and_a_sum_of_pixels_are_no_obstacle(stored: int) -> None:
    images, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 2, 1])

    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x.sum((2, 3)))

    for module in (Calls(), Sums()):
        found = [
            hypergradient(module, images, labels, 0.1, lambda weights: weights.square().sum(), steps=3, **options)
            for options in ({"engine": "reverse"}, {"stored": stored})
        ]
        torch.testing.assert_close(found[0].images, found[1].images, rtol=SINGLE_LOOPS, atol=SINGLE_LOOPS / 100)


@pytest.mark.parametrize("layer", [nn.SiLU(), nn.Mish(), nn.GELU(), nn.ReLU()])
def test_bytes_do_not_depend_on_stored_steps_for_any_activation(layer: nn.Module) -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.Flatten(), nn.Linear(144, 3))
    images, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 2, 1])
    found = [
        hypergradient(
            module, images, labels, 0.1, lambda weights: weights.square().sum(), steps=4, stored=stored
        ).images
        for stored in (0, 2, 4)
    ]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_loss_for_one_length_of_batch_and_an_objective_of_no_weights() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    images, labels, weights = torch.randn(16, 1, 8, 8), torch.arange(16) % 3, torch.rand(16)

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return (functional.cross_entropy(logits, targets, reduction="none") * weights).mean()

    assert float(hypergradient(module, images, labels, 0.1, torch.sum, steps=2, loss=loss).images.norm()) >= 0
    for engine in ENGINES:
        with pytest.raises(ValueError, match="the objective does not depend on the last weights"):
            hypergradient(module, images, labels, 0.1, lambda end: torch.ones(()), steps=2, engine=engine)
    with pytest.raises(ValueError, match="stored must be at least 0, got -1"):
        hypergradient(module, images, labels, 0.1, torch.sum, steps=2, stored=-1)
