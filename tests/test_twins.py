"""Every registered method against its twin in `twins.py`, in float64: same draws, same numbers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import twins
from drawing import torch_generator
from matching import EXPANDING, classes, double, drawn, inner, make, unlike
from tolerances import TRAINING
from torch import Tensor
from twins import Gradients

from satm.methods import METHODS
from satm.methods.parts.problem import Problem, Synthetic
from satm.methods.recipe import CLASS_MATCHING, MATCHING
from satm.methods.selection import herding, k_center
from satm.outer import NO_STATE
from satm.params import load_flat

Twin = Callable[[Any, Synthetic, int, dict[str, Tensor]], Gradients]
"""`(method, set, iteration, state)`; the state is the twin's own, to be kept between iterations."""


def plain(made: Any, synthetic: Synthetic, iteration: int, state: dict[str, Tensor]) -> Gradients:
    return twins.mtt(drawn(made, synthetic, iteration), synthetic, made.options.step_size_gradient)


def tesla(made: Any, synthetic: Synthetic, iteration: int, state: dict[str, Tensor]) -> Gradients:
    return twins.tesla(drawn(made, synthetic, iteration), synthetic)


def satm(made: Any, synthetic: Synthetic, iteration: int, state: dict[str, Tensor]) -> Gradients:
    options, here = made.options, drawn(made, synthetic, iteration)
    generator = made.problem.generator("noise", iteration)
    normal = torch.randn(synthetic.images.shape, generator=generator, dtype=torch.float64)
    noise = twins.smoothing_noise(synthetic.images, normal, options.gamma, options.noise)
    tau = options.inner_steps - here.kept if options.restart is None else options.restart
    return twins.satm(here, synthetic, noise, options.rho, tau)


def sharp(
    made: Any, synthetic: Synthetic, iteration: int, ascent: Callable[[Tensor], Tensor]
) -> tuple[Gradients, Tensor]:
    return twins.sam(drawn(made, synthetic, iteration), synthetic, made.options.reuse, ascent)


def sam(made: Any, synthetic: Synthetic, iteration: int, state: dict[str, Tensor]) -> Gradients:
    return sharp(made, synthetic, iteration, lambda gradient: twins.steepest(gradient, made.options.rho))[0]


def asam(made: Any, synthetic: Synthetic, iteration: int, state: dict[str, Tensor]) -> Gradients:
    rho, eta = made.options.rho, made.options.eta
    return sharp(made, synthetic, iteration, lambda gradient: twins.adaptive(gradient, synthetic.images, rho, eta))[0]


def gsam(made: Any, synthetic: Synthetic, iteration: int, state: dict[str, Tensor]) -> Gradients:
    options = made.options
    found, here = sharp(made, synthetic, iteration, lambda gradient: twins.steepest(gradient, options.rho))
    return replace(found, images=twins.gsam(found.images, here, options.alpha))


def vasso(made: Any, synthetic: Synthetic, iteration: int, state: dict[str, Tensor]) -> Gradients:
    def ascent(gradient: Tensor) -> Tensor:
        state["direction"] = twins.vasso(gradient, state.get("direction"), made.options.theta)
        return twins.steepest(state["direction"], made.options.rho)

    return sharp(made, synthetic, iteration, ascent)[0]


def unrolled(made: Any, synthetic: Synthetic, iteration: int, state: dict[str, Tensor]) -> Gradients:
    options, problem = made.options, made.problem
    generator, steps = problem.generator("iteration", iteration), options.inner_steps
    real, labels = made.real_images(iteration, generator)
    here = inner(problem, options, len(synthetic.images), generator)

    def draw(most: int) -> int:
        return int(torch.randint(most + 1, (1,), generator=problem.generator("window", iteration)))

    start, length = twins.window(made.name, steps, getattr(options, "window", None) or steps, draw)
    weights = problem.fresh_weights("student", iteration)
    return twins.unrolled(here, synthetic, weights, start, length, real.double(), labels)


def classwise(made: Any, synthetic: Synthetic, iteration: int, state: dict[str, Tensor]) -> Gradients:
    module = made.problem.build(0)
    load_flat(module, made.problem.fresh_weights("network", iteration))
    compare = twins.dm if made.name == "dm" else twins.dc
    loss, images = compare(module, synthetic.images, list(classes(made, synthetic, iteration)))
    return Gradients(loss, images, None, torch.zeros_like(synthetic.step_size))


TWINS: dict[str, Twin] = {
    **dict.fromkeys(("mtt", "mtt-robust", "mtt-ema", "ftd", "datm", "contra"), plain),
    "tesla": tesla,
    **dict.fromkeys(("satm", "satm-fi", "satm-da"), satm),
    "mtt-sam": sam,
    "mtt-asam": asam,
    "mtt-gsam": gsam,
    "mtt-vasso": vasso,
    **dict.fromkeys(("bptt", "t-bptt", "r-bptt", "ratbptt"), unrolled),
    **dict.fromkeys(("dc", "dsa", "dm"), classwise),
}

LEARNED: dict[str, Any] = {"labels": "learned"}
THREE: dict[str, Any] = {"concurrent": 2, "distance": 2, "beta": 0.4}
NEAR: dict[str, Any] = {"rho": 0.2, "keep_divisor": 2}
SHORT: dict[str, Any] = {"clip": None, "real_batch": 5, "step_size": 0.02}

OPTIONS: dict[str, dict[str, Any]] = {
    "datm": EXPANDING,
    "satm-da": EXPANDING,
    "contra": {"concurrent": 3, "distance": 1},
    "mtt-robust": {"start_noise": 0.05},
    "bptt": SHORT,
    "t-bptt": {**SHORT, "window": 3},
    "r-bptt": SHORT,
    "ratbptt": {**SHORT, "window": 3},
}
"""What some methods need to fit the small problem, or to differ from another one."""


def check(problem: Problem, name: str, **options: Any) -> None:
    """Compare some iterations of a method with its twin, the set moving in between."""
    made = make(problem, name, **{**OPTIONS.get(name, {}), **options})
    start, memory, state = double(made), NO_STATE, {}
    noise = torch.randn(start.images.shape, generator=torch_generator(3), dtype=torch.float64)
    synthetic = replace(start, images=start.images + 0.1 * noise)  # away from the real images
    for iteration in (0, 3):
        found, expected = made.gradient(synthetic, iteration, memory), TWINS[name](made, synthetic, iteration, state)
        norms = found.images.flatten(1).norm(dim=1)
        assert float(norms.min() if METHODS[name].family is CLASS_MATCHING else norms.max()) > 0
        assert (found.labels is not None) == (made.options.labels == "learned")
        for part in ("loss", "images", "labels", "step_size", "sharpness"):
            one, other = getattr(found, part), getattr(expected, part)
            if part == "step_size" and getattr(made.options, "step_size_gradient", "fixed") == "fixed":
                assert float(one) == 0
            elif part != "labels" or one is not None:
                assert (one is None) == (other is None), part
                assert one is None or unlike(one, other) < TRAINING, (part, iteration)
        synthetic = replace(synthetic, images=synthetic.images - 0.5 * found.images)
        memory = found.state if name == "mtt-vasso" else NO_STATE


def test_every_method_has_a_twin() -> None:
    computed = {name for name, recipe in METHODS.items() if recipe.parts["outer"] != "none"}
    assert computed == set(TWINS)
    assert set(METHODS) - computed == {"random", "herding", "k-center", "files"}


@pytest.mark.parametrize("engine", ["mixed", "reverse"])
@pytest.mark.parametrize("name", [name for name in TWINS if METHODS[name].family is MATCHING])
def test_a_method_computes_what_its_twin_does(problem: Problem, name: str, engine: str) -> None:
    check(problem, name, **({} if name == "tesla" else {"engine": engine}))


@pytest.mark.parametrize("real_batch", [3, 256])  # a class has four images
@pytest.mark.parametrize("name", ["dc", "dsa", "dm"])
def test_classes_are_compared_as_their_twin_does(problem: Problem, name: str, real_batch: int) -> None:
    check(problem, name, real_batch=real_batch)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *[("mtt", {"keep_divisor": divisor}) for divisor in (1, 2, 4, 6)],
        *[("mtt", {"step_size_gradient": kind, "keep_divisor": 2}) for kind in ("fixed", "first-order")],
        *[("mtt", {"labels": "teacher", **more}) for more in ({}, {**THREE, "beta": 0.0})],
        ("mtt", {**LEARNED, **EXPANDING}),
        ("mtt", {"min_start_epoch": 1, **THREE, "expert_epochs": 1}),
        ("mtt-robust", THREE),
        *[("contra", {"distance": distance, "beta": beta}) for distance in (1, None) for beta in (0.0, 0.3)],
        *[("contra", {"batch_size": size, "augment": augment}) for size, augment in ((None, True), (4, False))],
        *[("tesla", {"labels": labels}) for labels in ("hard", "learned")],
        ("tesla", {**THREE, **LEARNED}),
        ("tesla", THREE),
    ],
    ids=str,
)
def test_options_of_matching_compute_what_the_twin_does(problem: Problem, name: str, options: dict[str, Any]) -> None:
    check(problem, name, **options)


@pytest.mark.parametrize("engine", ["mixed", "reverse"])
@pytest.mark.parametrize(
    "options",
    [
        {"rho": 0.5, "gamma": 0.02},
        {"noise": "variance", "gamma": 0.01},
        {"keep_divisor": 2, "restart": 1},
        {"keep_divisor": 2, "restart": 5},
        {"keep_divisor": 6},
        {"keep_divisor": 1, "rho": 0.2},
        {**LEARNED, **THREE, "rho": 0.2},
    ],
    ids=str,
)
def test_satm_is_its_algorithm_written_out(problem: Problem, engine: str, options: dict[str, Any]) -> None:
    check(problem, "satm", engine=engine, **options)


@pytest.mark.parametrize(("reuse", "concurrent"), [(True, THREE), (False, {})], ids=["three", "one"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("mtt-sam", {}), ("mtt-asam", {"eta": 0.3}), ("mtt-gsam", {"alpha": 0.7}), ("mtt-vasso", {"theta": 0.3})],
    ids=str,
)
def test_sharpness_aware_steps_are_written_out(
    problem: Problem, name: str, options: dict[str, Any], reuse: bool, concurrent: dict[str, Any]
) -> None:
    check(problem, name, **options, **concurrent, **NEAR, **LEARNED, reuse=reuse)


@pytest.mark.parametrize("name", ["bptt", "t-bptt", "r-bptt", "ratbptt"])
@pytest.mark.parametrize(
    ("engine", "options"),
    [
        ("mixed", {**LEARNED, "confidence": 0.6}),
        ("reverse", {**LEARNED, "confidence": 0.6}),
        ("mixed", {"step_size_gradient": "exact", "batch_size": None, "augment": False}),
    ],
    ids=["labels-mixed", "labels-reverse", "step_size"],
)
def test_unrolled_training_is_autograd_through_the_window(
    problem: Problem, name: str, engine: str, options: dict[str, Any]
) -> None:
    check(replace(problem, experts=None), name, engine=engine, **options)


@pytest.mark.parametrize(("pick", "twin"), [(herding, twins.herding), (k_center, twins.k_center)])
def test_images_are_chosen_as_by_brute_force(pick: Any, twin: Callable[[Tensor, int], list[int]]) -> None:
    generator = torch_generator(0)
    for _ in range(10):
        features = torch.randn(9, 3, generator=generator, dtype=torch.float64)
        for count in (1, 4, 9):
            assert pick(features, count, generator).tolist() == twin(features, count)
    alike = torch.ones(4, 3, dtype=torch.float64)
    assert sorted(pick(alike, 4, generator).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize(("name", "twin"), [("herding", twins.herding), ("k-center", twins.k_center)])
def test_selections_see_what_the_first_expert_sees(
    problem: Problem, name: str, twin: Callable[[Tensor, int], list[int]]
) -> None:
    found, data = make(problem, name, step_size=0.3).start(), problem.data
    assert problem.experts is not None
    module = problem.build(0).float()
    load_flat(module, problem.experts.snapshot(0, problem.experts.epochs))
    expected = []
    for label in range(3):
        images = problem.preprocessor.apply(data.train.images[data.train.labels == label])
        with torch.no_grad():
            expected.append(images[twin(module.features(images).flatten(1), 2)])
    assert torch.equal(found.images, torch.cat(expected)) and found.images.dtype == torch.float32
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2] and float(found.step_size) == pytest.approx(0.3)
