"""Methods: SATM reduced to MTT, the draws of an iteration, the contract of every method."""

import importlib
import pkgutil
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from drawing import torch_generator
from matching import BASE, double, make, single, unlike
from tolerances import DISTINCT
from torch import Tensor

from satm import methods
from satm.config.methods import IterativeOptions, MatchingOptions
from satm.distill import begin, distill
from satm.errors import UsageError
from satm.methods import METHODS, resolve
from satm.methods.mtt import matching_loss
from satm.methods.parts.problem import Problem
from satm.outer import OuterGradient
from satm.results.columns import METRICS
from satm.stages.checkpoint import RunState
from satm.unroll.batches import mini_batches


@pytest.mark.parametrize("engine", ["mixed", "reverse"])
@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_satm_without_its_parts_is_mtt(problem: Problem, engine: str, augment: bool, batch_size: int | None) -> None:
    shared: dict[str, Any] = {"engine": engine, "augment": augment, "batch_size": batch_size}
    mtt = make(problem, "mtt", **shared)
    reduced = {**shared, "rho": 0, "gamma": 0, "keep_divisor": 1, "step_size_gradient": "exact"}
    other = make(problem, "satm", **reduced)
    synthetic = double(mtt)
    for iteration in (0, 5):
        one, two = mtt.gradient(synthetic, iteration), other.gradient(synthetic, iteration)
        for part in ("loss", "images", "step_size"):
            assert torch.equal(getattr(one, part), getattr(two, part)), part
        assert one.sharpness is None and two.sharpness == 0
    for changed, part in ({"rho": 0.1}, "images"), ({"gamma": 0.1}, "step_size"), ({"keep_divisor": 2}, "images"):
        unequal = make(problem, "satm", **{**reduced, **changed}).gradient(synthetic, 5)
        assert unlike(getattr(unequal, part), getattr(one, part)) > DISTINCT, changed


def test_restart_and_noise_change_the_gradient(problem: Problem) -> None:
    base = make(problem, "satm", keep_divisor=2, rho=0.3)
    synthetic = double(base)
    images = base.gradient(synthetic, 0).images
    assert torch.equal(make(problem, "satm", keep_divisor=2, rho=0.3, restart=3).gradient(synthetic, 0).images, images)
    for changed in ({"restart": 1}, {"restart": 5}, {"gamma": 0.1}, {"noise": "variance"}):
        other = make(problem, "satm", **{"keep_divisor": 2, "rho": 0.3, **changed}).gradient(synthetic, 0)
        assert unlike(other.images, images) > DISTINCT, changed


def test_sharpness_is_the_rise_of_the_loss_along_the_gradient(problem: Problem) -> None:
    made = make(problem, "satm", rho=0.01, gamma=0, keep_divisor=1)
    found = made.gradient(double(made), 0)
    descent = make(problem, "mtt").gradient(double(made), 0)
    assert float(found.sharpness) == pytest.approx(
        0.01 * float(descent.images.norm()), rel=0.1
    )  # and rho**2 times curvature


@pytest.mark.parametrize(("count", "size", "steps"), [(10, 4, 9), (12, 4, 7), (6, 5, 4)])
def test_batches_are_drawn_without_repetition(count: int, size: int, steps: int) -> None:
    batches = mini_batches(count, size, steps, torch_generator(0), torch.device("cpu"))
    assert batches is not None and len(batches) == steps
    rounds = count // size
    for first in range(0, steps, rounds):
        drawn = torch.cat(batches[first : first + rounds])
        assert all(len(batch) == size for batch in batches) and len(drawn.unique()) == len(drawn)
        assert int(drawn.min()) >= 0 and int(drawn.max()) < count
    assert len({tuple(batch.tolist()) for batch in batches}) > 1


def test_without_a_smaller_batch_size_all_images_are_taken() -> None:
    for size in (None, 6, 7):
        assert mini_batches(6, size, 3, torch.Generator(), torch.device("cpu")) is None


def test_matching_loss_is_0_at_the_target_and_1_at_the_start() -> None:
    start, target = torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0])
    assert matching_loss(target, start, target) == 0
    assert matching_loss(start, start, target) == 1
    assert float(matching_loss(torch.tensor([3.0, 3.0]), start, target)) == pytest.approx(1 / 25)


@pytest.mark.parametrize("kind", ["exact", "first-order", "fixed"])
def test_step_size_gradient_is_exact_first_order_or_zero(problem: Problem, kind: str) -> None:
    synthetic = double(make(problem, "mtt"))
    found = make(problem, "mtt", step_size_gradient=kind).gradient(synthetic, 0)
    exact = make(problem, "mtt").gradient(synthetic, 0)
    assert torch.equal(found.images, exact.images)
    assert torch.equal(found.step_size, exact.step_size) == (kind == "exact")
    assert (float(found.step_size) == 0) == (kind == "fixed")


@pytest.mark.parametrize(
    ("options", "text"),
    [({"keep_divisor": 7}, r"int\(6 / 7\) keeps no step"), ({"restart": 6}, "restart 6 leaves no step of 6")],
)
def test_satm_refuses_options_that_leave_no_step(problem: Problem, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        make(problem, "satm", **options)


TRUNCATED: dict[str, Any] = {"step_size_gradient": "first-order", "keep_divisor": 3}
SAM: dict[str, Any] = {**TRUNCATED, "rho": 0.1, "reuse": True}
SATM: dict[str, Any] = {**TRUNCATED, "rho": 0.1, "gamma": 0.001, "noise": "std", "restart": None}
DEFAULTS: dict[str, dict[str, Any]] = {
    "mtt": {},
    "mtt-robust": {"start_noise": 0.001},
    "mtt-ema": {**TRUNCATED, "ema": 0.999},
    "mtt-sam": SAM,
    "mtt-gsam": {**SAM, "alpha": 0.4},
    "mtt-asam": {**SAM, "eta": 0.01},
    "mtt-vasso": {**SAM, "theta": 0.4},
    "ftd": {"experts": "flat", "ema": 0.999},
    "tesla": {"engine": "tesla", "labels": "teacher", "step_size_gradient": "first-order"},
    "datm": {"experts": "flat", "init": "correct", "labels": "learned", "skip_above": 1.0},
    "contra": {"init": "correct", "labels": "learned", "concurrent": 4},
    "satm": SATM,
    "satm-fi": {**SATM, "experts": "flat"},
    "satm-da": {**SATM, "experts": "flat", "init": "correct", "labels": "learned", "skip_above": 1.0},
}
"""What each method changes of, or adds to, the options of plain MTT."""


@pytest.mark.parametrize("name", list(DEFAULTS))
def test_defaults_of_each_method_are_what_its_paper_changes(name: str) -> None:
    plain, held = MatchingOptions().model_dump(), METHODS[name].options().model_dump()
    assert {key: value for key, value in held.items() if key not in plain or value != plain[key]} == DEFAULTS[name]


def test_mtt_has_no_extras_by_default() -> None:
    expected: dict[str, Any] = {
        "experts": "sgd",
        "init": "real",
        "labels": "hard",
        "segments": "uniform",
        "concurrent": 0,
        "start_noise": 0.0,
        "keep_divisor": 1,
        "step_size_gradient": "exact",
        "engine": "mixed",
        "tesla_scale": "paper",
        "outer": "sgd",
        "momentum": 0.5,
        "ema": None,
        "skip_above": None,
    }
    held = METHODS["mtt"].options().model_dump()
    assert {key: held[key] for key in expected} == expected


def small(name: str) -> dict[str, Any]:
    """Return options that make any method quick: those of these that it has."""
    wanted = {**BASE, "iterations": 2, "lr_images": 0.01, "expert_epochs": 1, "distance": 1, "skip_above": None}
    wanted["images"] = "$FOREIGN_IMAGES"
    return {"method": name, **{key: held for key, held in wanted.items() if key in METHODS[name].options.model_fields}}


def built(problem: Problem, name: str) -> Any:
    """Return a method in float32, without experts if it needs none."""
    kind, options = resolve(small(name))
    problem = single(problem)
    return kind(options, problem if kind.needs_experts else replace(problem, experts=None))


def finite(*tensors: Tensor | None) -> bool:
    return all(tensor is None or bool(torch.isfinite(tensor).all()) for tensor in tensors)


def compositions(told: str) -> dict[str, dict[str, str]]:
    """Return the parts that a docstring names for each method, read from its lines "Composition of" and "as"."""
    text = re.sub(r"\s+", " ", re.sub(r" \([^()]*(\([^()]*\)[^()]*)*\)", "", told))
    found: dict[str, dict[str, str]] = {}
    for name, parts in re.findall(r"Composition of `([a-z0-9-]+)`: ([^.]+)\.", text):
        found[name] = dict(re.findall(r"(step size|[a-z]+) ([^;]+?)(?:;|$) ?", parts))
    for name, like, parts in re.findall(r"`([a-z0-9-]+)`: as `([a-z0-9-]+)`(?:, ([^.]+))?\.", text):
        base = found[like] if like in found else METHODS[like].parts
        found[name] = {**base, **dict(re.findall(r"(step size|[a-z]+) ([^;]+?)(?:;|$) ?", parts))}
    return {name: {part: value.strip() for part, value in parts.items()} for name, parts in found.items()}


def test_every_docstring_names_the_parts_of_its_recipes() -> None:
    found: dict[str, dict[str, str]] = {}
    for module in pkgutil.iter_modules(methods.__path__, "satm.methods."):
        told = importlib.import_module(module.name).__doc__ or ""
        here = compositions(told)
        assert not here or "Source:" in told, module.name
        found |= here
    assert found.keys() == set(METHODS)
    for name, parts in found.items():
        assert parts == METHODS[name].parts, name


@pytest.mark.parametrize("name", list(METHODS))
def test_every_option_is_documented_and_has_a_default(name: str) -> None:
    recipe = METHODS[name]
    assert recipe.name == name and re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name)
    for option, field in recipe.options.model_fields.items():
        assert field.description and field.description.strip().endswith("."), option
        assert not field.is_required(), option


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_starts_with_a_set(problem: Problem, name: str) -> None:
    made = built(problem, name)
    options, synthetic = made.options, made.start()
    assert synthetic.images.shape == (6, 1, 8, 8) and synthetic.images.dtype == torch.float32
    assert synthetic.step_size.shape == () and float(synthetic.step_size) == pytest.approx(0.2)
    assert finite(*vars(synthetic).values())
    if getattr(options, "labels", "hard") == "learned":
        assert synthetic.labels.shape == (6, 3) and synthetic.labels.dtype == torch.float32
    else:
        assert synthetic.labels.tolist() == [0, 0, 1, 1, 2, 2] and synthetic.labels.dtype == torch.int64
    if getattr(options, "init", "real") != "gaussian":
        real = problem.preprocessor.apply(problem.data.train.images)
        classes = problem.data.train.labels
        for index, image in enumerate(synthetic.images):
            assert any(torch.equal(image, real[other]) for other in (classes == index // 2).nonzero()[:, 0])
    again = made.start()
    assert all(
        torch.equal(one, other) for one, other in zip(vars(synthetic).values(), vars(again).values(), strict=True)
    )


def parts(found: OuterGradient) -> dict[str, Tensor]:
    """Return all tensors of a gradient by name."""
    held = {name: value for name, value in vars(found).items() if isinstance(value, Tensor)}
    return {**held, **{f"memory.{name}": value for name, value in found.state.items()}}


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_keeps_the_contract(problem: Problem, name: str) -> None:
    """The gradient is a pure function of the set, the iteration and the memory, also of an iteration before."""
    made = built(problem, name)
    if not made.iterative:
        assert made.recipe.parts["outer"] == "none"
        return
    synthetic = made.start()
    state = torch.random.get_rng_state()
    first = made.gradient(synthetic, 0)
    given = {**{f"set.{part}": held for part, held in vars(synthetic).items()}, **parts(first)}
    before = {part: held.clone() for part, held in given.items()}
    one, two = (made.gradient(synthetic, 1, first.state) for _ in range(2))
    other = built(problem, name).gradient(synthetic, 1, first.state)  # nothing is hidden in the method
    assert all(torch.equal(held, before[part]) for part, held in given.items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.images, made.gradient(synthetic, 0).images)
    for found in (first, one):
        assert found.images.shape == synthetic.images.shape and found.images.dtype == torch.float32
        assert found.loss.shape == () and found.step_size.shape == ()
        learned = made.options.labels == "learned"
        assert (found.labels is not None) == learned
        assert found.labels is None or found.labels.shape == synthetic.labels.shape
        assert found.share is None or found.share.shape == (6,)
        assert all(isinstance(key, str) and isinstance(held, Tensor) for key, held in found.state.items())
        assert not any(held.requires_grad for held in parts(found).values())
        assert finite(*parts(found).values()) and float(found.images.norm()) > 0
    for same in (two, other):
        assert list(parts(one)) == list(parts(same))
        assert all(torch.equal(held, parts(same)[part]) for part, held in parts(one).items())
    assert not torch.equal(first.images, one.images)


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_runs_in_the_loop_and_comes_back_from_a_checkpoint(
    problem: Problem, name: str, tmp_path: Path
) -> None:
    made = built(problem, name)
    if not made.iterative:
        return
    run = begin(made)
    assert set(run.rates) <= set(run.now.numbers) and all(rate > 0 for rate in run.rates.values())
    checked: list[int] = []

    def check() -> None:
        """A stored run is the run; its numbers, moments and memory come back bit for bit."""
        one, two = tmp_path / f"one-{len(checked)}", tmp_path / f"two-{len(checked)}"
        RunState(one, {"name": name}, "here").save(run)
        again = RunState(one, {"name": name}, "here").load(torch.device("cpu"))
        assert again is not None
        RunState(two, {"name": name}, "here").save(again)
        assert next(one.iterdir()).read_bytes() == next(two.iterdir()).read_bytes()
        for here, there in ((run.now, again.now), (run.safe, again.safe)):
            assert set(here.numbers) == set(there.numbers) and set(here.method_state) == set(there.method_state)
            assert all(torch.equal(held, there.numbers[key]) for key, held in here.numbers.items())
            assert all(torch.equal(held, there.method_state[key]) for key, held in here.method_state.items())
            for number, moments in here.moments.items():
                assert set(moments) == set(there.moments[number])
                assert all(torch.equal(held, there.moments[number][key]) for key, held in moments.items())
            assert (here.average is None) == (there.average is None) == (made.options.ema is None)
        checked.append(run.now.iteration)

    check()
    found = distill(made, run, None, lambda row: None, lambda run: None)
    check()
    assert checked == [0, 2] and found.iteration == 2
    assert METRICS.schema(run.rows) and [row["event"] for row in run.rows] == ["", ""]
    start = made.start()
    assert found.synthetic.images.shape == start.images.shape and not torch.equal(found.synthetic.images, start.images)
    assert finite(*vars(found.synthetic).values())
    assert (found.raw is None) == (made.options.ema is None)


def test_every_iterative_method_has_the_options_of_the_loop() -> None:
    for kind in METHODS.values():
        assert issubclass(kind.options, IterativeOptions) == (kind.parts["outer"] != "none")


def test_unknown_methods_and_options_name_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        resolve({"method": "mt"})
    assert str(caught.value) == f"unknown method 'mt'; known: {', '.join(sorted(METHODS))}. Did you mean 'mtt'?"
    with pytest.raises(UsageError, match=r"unknown option 'rhoo'.*Did you mean 'rho'?"):
        resolve({"method": "satm", "rhoo": 1})
    with pytest.raises(UsageError, match="step_size: input should be greater than 0, got 0"):
        resolve({"method": "mtt", "step_size": 0})
