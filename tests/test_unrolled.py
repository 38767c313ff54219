"""Unrolled training: windows, inner rules, the outer loss, clipping, boosting."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from drawing import torch_generator
from matching import double, single, unlike
from tolerances import DISTINCT, FINITE_DIFFERENCES, LOOPS, ROUNDING, SUMS
from torch import Tensor
from torch.nn import functional

from satm.config.methods import UnrolledOptions
from satm.data import Augmentation
from satm.distill import State, begin, distill
from satm.errors import UsageError
from satm.methods import resolve
from satm.methods.parts import placement as windows
from satm.methods.parts.boosting import stage
from satm.methods.parts.problem import Problem
from satm.methods.parts.unrolled import UnrolledTraining, limit, real_loss
from satm.networks import build
from satm.outer import NO_STATE, OuterGradient
from satm.params import call_flat, flatten
from satm.stages.checkpoint import RunState
from satm.unroll import Adam, Momentum, Rule, Scheduled, Sgd, hypergradient

BASE: dict[str, Any] = {"inner_steps": 6, "step_size": 0.02, "real_batch": 5, "batch_size": 4, "iterations": 8}
NAMES = ["bptt", "t-bptt", "r-bptt", "ratbptt"]
SGD: dict[str, Any] = {"inner": "sgd", "step_size": 0.3}


def make(problem: Problem, name: str = "ratbptt", **options: Any) -> Any:
    """Return a method with `BASE` and further options, without experts."""
    kind, checked = resolve({"method": name, **BASE, **options})
    return kind(checked, replace(problem, experts=None))


def same(one: OuterGradient, other: OuterGradient) -> bool:
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in ("loss", "images", "step_size"))


@pytest.mark.parametrize(("name", "options"), [("bptt", {}), ("r-bptt", SGD)], ids=str)
def test_full_window_gradient_equals_finite_differences(problem: Problem, name: str, options: dict[str, Any]) -> None:
    made = make(problem, name, clip=None, step_size_gradient="exact", **options)
    synthetic = double(made)
    found = made.gradient(synthetic, 3)
    way = torch.randn(synthetic.images.shape, generator=torch_generator(1), dtype=torch.float64)
    h = 1e-6

    def slope(step: Callable[[float], Any]) -> float:
        return float(made.gradient(step(h), 3).loss - made.gradient(step(-h), 3).loss) / (2 * h)

    along = slope(lambda by: replace(synthetic, images=synthetic.images + by * way))
    assert along == pytest.approx(float((found.images * way).sum()), rel=FINITE_DIFFERENCES)
    longer = slope(lambda by: replace(synthetic, step_size=synthetic.step_size + by))
    assert longer == pytest.approx(float(found.step_size), rel=FINITE_DIFFERENCES)


@pytest.mark.parametrize("options", [{}, SGD, {"augment": False}, {"batch_size": None}], ids=str)
def test_a_window_of_all_steps_is_bptt(problem: Problem, options: dict[str, Any]) -> None:
    made = make(problem, "bptt", **options)
    synthetic = double(made)
    for iteration in (0, 4):
        expected = made.gradient(synthetic, iteration)
        for name in ("t-bptt", "ratbptt"):
            for window in (None, 6):
                assert same(make(problem, name, window=window, **options).gradient(synthetic, iteration), expected)
        shorter = make(problem, "t-bptt", window=5, **options).gradient(synthetic, iteration)
        assert torch.equal(shorter.loss, expected.loss) and unlike(shorter.images, expected.images) > DISTINCT


@pytest.mark.parametrize("rule", [Adam(eps=1e-2), Sgd(0.1), Momentum(0.8)], ids=str)
def test_scheduled_step_size_equals_torchs_multi_step(rule: Rule) -> None:
    module = build({"network": "convnet", "depth": 1, "width": 2, "activation": "sigmoid"}, 1, 3, 4, 0).double()
    generator = torch_generator(0)
    images, labels = torch.randn(5, 1, 4, 4, generator=generator, dtype=torch.float64), torch.arange(5) % 3
    start = flatten(module)
    answers = [
        hypergradient(
            module,
            images,
            labels,
            0.3,
            lambda weights: weights.square().sum(),
            steps=7,
            start=start,
            rule=Scheduled(rule, (2, 5), 0.2),
            engine=engine,
        )
        for engine in ("mixed", "reverse")
    ]
    for part in ("loss", "images", "step_size", "start"):
        assert unlike(getattr(answers[0], part), getattr(answers[1], part)) < LOOPS, part
    optimiser: torch.optim.Optimizer = torch.optim.Adam(module.parameters(), 0.3, eps=1e-2)
    if isinstance(rule, Sgd):
        optimiser = torch.optim.SGD(module.parameters(), 0.3, weight_decay=0.1)
    if isinstance(rule, Momentum):
        optimiser = torch.optim.SGD(module.parameters(), 0.3, momentum=0.8)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [2, 5], 0.2)
    for _ in range(7):
        optimiser.zero_grad()
        functional.cross_entropy(module(images), labels).backward()
        optimiser.step()
        schedule.step()
    assert unlike(answers[0].end, flatten(module)) < SUMS


def test_options_choose_the_inner_optimiser(problem: Problem) -> None:
    def rule(**options: Any) -> Rule:
        return make(problem, **options).rule

    assert rule() == Adam() and rule(inner="sgd") == Sgd()
    assert rule(inner="sgd", inner_weight_decay=5e-4) == Sgd(5e-4)
    assert rule(inner="sgd", inner_momentum=0.9, inner_weight_decay=5e-4) == Momentum(0.9, weight_decay=5e-4)
    assert rule(milestones=(2, 4)) == Scheduled(Adam(), (2, 4), 0.2)


def test_the_outer_loss_in_chunks_is_the_mean(problem: Problem) -> None:
    images, labels = problem.real.batch(slice(None))
    weights = problem.fresh_weights("any").requires_grad_()
    found = []
    for chunk in (500, 12, 5):
        loss = real_loss(problem.module, images.double(), labels, chunk)(weights)
        found.append((loss, torch.autograd.grad(loss, weights)[0]))
    whole = functional.cross_entropy(call_flat(problem.module, weights, images.double()), labels)
    assert torch.equal(found[0][0], found[1][0])
    for loss, gradient in found:
        assert unlike(loss, whole) < ROUNDING and unlike(gradient, torch.autograd.grad(whole, weights)[0]) < SUMS
        whole = functional.cross_entropy(call_flat(problem.module, weights, images.double()), labels)


def test_a_chunked_loss_keeps_the_activations_of_one_chunk(problem: Problem) -> None:
    images, labels = problem.real.batch(slice(None))
    weights = problem.fresh_weights("any").requires_grad_()

    def kept(chunk: int) -> int:
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            real_loss(problem.module, images.double(), labels, chunk)(weights)
        return sum(seen.values())

    assert kept(3) < kept(12) / 3


def test_a_pass_sees_each_real_image_once(problem: Problem) -> None:
    made = make(problem, augment_real=False, real_batch=4)
    assert made.per_pass == 3
    real, _ = problem.real.batch(slice(None))

    def seen(iteration: int) -> list[int]:
        images, labels = made.real_images(iteration, torch.Generator())
        found = [int((real == image).flatten(1).all(1).nonzero()) for image in images]
        assert [index // 4 for index in found] == labels.tolist()
        return found

    first, second = ([index for turn in range(3) for index in seen(3 * number + turn)] for number in range(2))
    assert sorted(first) == sorted(second) == list(range(12)) and first != second
    whole = make(problem, augment_real=False, real_batch=5000)
    assert whole.per_pass == 1 and len(whole.real_images(3, torch.Generator())[0]) == 12
    assert make(problem, real_batch=5).per_pass == 2  # two images are left out of each pass


def test_augmentation_of_real_and_synthetic_images_can_be_turned_off(problem: Problem) -> None:
    images = [make(problem, augment_real=flag).real_images(0, torch.Generator())[0] for flag in (True, False)]
    assert unlike(images[0], images[1]) > DISTINCT
    plain = replace(problem, augmentation=Augmentation("", "image"))
    synthetic = double(make(problem))
    neither = make(problem, augment=False, augment_real=False).gradient(synthetic, 0)
    assert same(neither, make(plain).gradient(synthetic, 0))
    assert not same(neither, make(problem, augment_real=False).gradient(synthetic, 0))
    assert not same(neither, make(problem, augment=False).gradient(synthetic, 0))


def test_clipping_is_a_cap_at_a_multiple_of_the_average_norm(problem: Problem) -> None:
    options = UnrolledOptions(clip=1.5, clip_decay=0.8)
    norms, memory, average = [2.0, 2.0, 10.0, 0.1, 40.0], NO_STATE, 2.0
    way = functional.normalize(torch.randn(6, 1, 8, 8, dtype=torch.float64).flatten(), dim=0).view(6, 1, 8, 8)
    clipped = []
    for norm in norms:
        zero = torch.zeros((), dtype=torch.float64)
        found = limit(OuterGradient(zero, norm * way, None, zero), memory, options)
        average = 0.8 * average + 0.2 * norm
        clipped.append(norm > 1.5 * average)
        torch.testing.assert_close(found.images, min(norm, 1.5 * average) * way)
        assert found.norm is not None and float(found.norm) == pytest.approx(norm)
        memory = found.state
        assert float(memory["norm"]) == pytest.approx(average)
    assert clipped == [False, False, True, False, True]
    made = make(problem, clip=1e-3)
    raw, found = (one.gradient(double(made), 0) for one in (make(problem, clip=None), made))
    assert raw.norm is None and unlike(found.images, 1e-3 * raw.images) < SUMS
    row = distill_rows(made)[0]
    assert row["hypergradient_norm"] == pytest.approx(float(raw.images.norm()), rel=1e-3)  # of a run in float32


def distill_rows(made: UnrolledTraining) -> list[dict[str, Any]]:
    run = begin(made)
    distill(made, run, None, lambda row: None, lambda run: None)
    return run.rows


def test_a_normalised_hypergradient_has_norm_1(problem: Problem) -> None:
    raw = make(problem, clip=None)
    synthetic = double(raw)
    found, expected = (one.gradient(synthetic, 1).images for one in (make(problem, clip=None, normalise=True), raw))
    assert unlike(found, expected / expected.norm()) < SUMS and float(found.norm()) == pytest.approx(1)


def test_uniform_and_early_windows_are_drawn_as_documented() -> None:
    generator = torch_generator(0)
    count = 5000  # 0.03 is four standard errors of a share, and more
    even = Counter(windows.uniform(generator, 4) for _ in range(count))
    assert set(even) == set(range(5)) and all(abs(found / count - 0.2) < 0.03 for found in even.values())
    for power in (2.0, 3.0):
        drawn = Counter(windows.early(generator, 4, power) for _ in range(count))
        shares = [(((place + 1) / 5) ** (1 / power) - (place / 5) ** (1 / power)) for place in range(5)]
        assert all(abs(drawn[place] / count - share) < 0.03 for place, share in enumerate(shares))
    assert {windows.early(generator, 0, 2.0) for _ in range(9)} == {0} == {windows.uniform(generator, 0)}


def test_each_method_places_its_window_as_published(problem: Problem) -> None:
    def drawn(name: str, **options: Any) -> set[tuple[int, int]]:
        made = make(problem, name, **options)
        found = [made.window(iteration, NO_STATE) for iteration in range(80)]
        return {(window.start, window.length) for window in found}

    assert drawn("bptt") == {(0, 6)} and drawn("t-bptt", window=2) == {(4, 2)}
    assert drawn("r-bptt") == {(0, length) for length in range(1, 7)}
    assert drawn("ratbptt", window=2) == drawn("ratbptt", window=2, placement="early") == {(i, 2) for i in range(5)}
    grown = make(problem, "bptt", grow_from=2, iterations=9)
    assert [grown.window(i, NO_STATE).length for i in range(9)] == [2, 2, 3, 4, 4, 4, 5, 6, 6]


def test_a_window_is_drawn_for_each_iteration_or_for_each_pass(problem: Problem) -> None:
    each, once = (make(problem, window=1, real_batch=4, redraw=kind) for kind in ("iteration", "pass"))
    assert once.per_pass == 3
    drawn = [once.window(iteration, NO_STATE).start for iteration in range(120)]
    assert all(len(set(drawn[first : first + 3])) == 1 for first in range(0, 120, 3)) and len(set(drawn)) == 6
    assert sum(each.window(i, NO_STATE) != each.window(i + 1, NO_STATE) for i in range(60)) > 30


def test_moving_windows_go_from_end_to_end_when_the_loss_stagnates() -> None:
    def places(placement: Any, losses: list[float]) -> list[int]:
        memory, found = NO_STATE, []
        for loss in losses:
            found.append(windows.moving(memory, placement, 10, 4))
            memory = windows.follow(memory, torch.tensor(loss, dtype=torch.float64), 3)
        return found

    flat = [1.0] * 16
    assert places("backward", flat) == [0] * 4 + [4] * 4 + [8] * 4 + [10] * 4
    assert places("forward", flat) == [10] * 4 + [6] * 4 + [2] * 4 + [0] * 4
    assert places("forward", [1 - 0.01 * i for i in range(16)]) == [10] * 16
    # The average falls until its fifth value, then stays above: three iterations later the window moves.
    assert places("forward", [5.0, 4.0, 3.0, 2.0, 1.0, 9.0, 9.0, 9.0, 9.0]) == [10] * 8 + [6]
    # One good loss starts the count anew, and after a move a higher loss than before may be the lowest.
    assert places("backward", [2.0, 2.0, 2.0, 1.0, 2.0, 2.0, 2.0]) == [0] * 7
    assert places("backward", [*flat[:4], 9.0, 8.0, 7.0, 6.0, 5.0]) == [0] * 4 + [4] * 5


@pytest.mark.parametrize("placement", ["forward", "backward"])
def test_resuming_with_a_moving_window_gives_the_same_bytes(
    problem: Problem, tmp_path: Path, placement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("satm.methods.parts.placement.AVERAGE", 0.5)  # of few iterations, so that the window moves soon
    problem = single(problem)
    options: dict[str, Any] = {"placement": placement, "patience": 1, "window": 1, "iterations": 41, "inner_steps": 9}
    made = make(problem, **options)
    run = begin(made)
    state = RunState(tmp_path, {}, "")

    def on_safe(held: Any) -> None:
        if held.now.iteration == 10:
            state.save(held)

    found = distill(made, run, None, lambda row: None, on_safe)
    again = state.load(torch.device("cpu")) or pytest.fail("nothing was kept")
    assert int(again.now.method_state["moves"]) > 0 and "norm" in again.now.method_state
    killed = made.window(0, again.now.method_state)
    other = distill(make(problem, **options), again, None, lambda row: None, lambda run: None)
    assert torch.equal(other.synthetic.images, found.synthetic.images)
    assert [row["loss"] for row in again.rows] == [row["loss"] for row in run.rows]
    assert made.window(0, run.now.method_state) != killed


@pytest.mark.parametrize("init", ["gaussian", "real"])
def test_images_start_at_the_norm_of_the_options(problem: Problem, init: str) -> None:
    images = make(problem, init=init).start().images
    torch.testing.assert_close(images.flatten(1).norm(dim=1), torch.ones(6))
    plain = make(problem, init=init, init_norm=None).start().images
    torch.testing.assert_close(images, plain / plain.flatten(1).norm(dim=1)[:, None, None, None])
    assert float(plain.flatten(1).norm(dim=1).min()) > 2


@pytest.mark.parametrize("engine", ["mixed", "reverse"])
@pytest.mark.parametrize("name", NAMES)
def test_adam_on_a_convnet_in_float32_is_finite(problem: Problem, name: str, engine: str) -> None:
    network = {"network": "convnet", "depth": 2, "width": 4}  # a bias before each norm, whose gradient is zero
    made = make(replace(problem, build=lambda seed: build(network, 1, 3, 8, seed)), name, engine=engine)
    for iteration in range(3):
        found = made.gradient(made.start(), iteration)
        assert torch.isfinite(found.images).all() and torch.isfinite(found.loss) and float(found.images.norm()) > 0


def test_training_lowers_the_loss_on_real_images(problem: Problem) -> None:
    made = make(single(problem), window=3, iterations=40, real_batch=12, lr_images=0.05, step_size=0.05)
    begun, run = made.start(), begin(made)
    distill(made, run, None, lambda row: None, lambda run: None)
    learned = replace(begun, images=run.now.numbers["images"])
    # On the same networks, windows and real images, which differ more between iterations than the sets do.
    before, after = (sum(float(made.gradient(one, step).loss) for step in range(40, 60)) for one in (begun, learned))
    assert after < before


def test_stages_are_equal_and_blocks_follow_the_images_of_each_class() -> None:
    found = [stage(iteration, 7, 12, 4, 2, 0.25) for iteration in range(7)]
    first, second = [0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]
    assert [each.begins for each in found] == [False] * 4 + [True] + [False] * 2
    for iteration, each in enumerate(found):
        late = iteration >= 4
        assert each.trained.tolist() == (list(range(12)) if late else first)
        assert each.share[first].tolist() == [0.25 if late else 1] * 6
        assert each.share[second].tolist() == [1 if late else 0] * 6
    assert stage(6, 7, 12, 4, 1, 0).share.tolist() == [1] * 12


def states(made: UnrolledTraining) -> list[State]:
    """Return the state before each iteration of a run, and the last one."""
    run = begin(made)
    found = [run.now]
    distill(made, run, None, lambda row: found.append(run.now), lambda run: None)
    return found


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_strongly_boosted_block_is_a_run_of_its_own(problem: Problem, batch_size: int | None) -> None:
    problem = replace(single(problem), ipc=4)
    made = make(problem, blocks=2, iterations=6, batch_size=batch_size, init="real", labels="learned")
    start, *_, middle, _, _, end = (state.numbers for state in states(made))
    first = [0, 1, 4, 5, 8, 9]
    rest = [2, 3, 6, 7, 10, 11]
    for name in ("images", "labels"):
        assert torch.equal(middle[name][first], end[name][first])
        assert torch.equal(middle[name][rest], start[name][rest])
        assert not torch.equal(end[name][rest], start[name][rest])
        assert not torch.equal(end[name][first], start[name][first])
    alone = make(replace(problem, ipc=2), iterations=3, batch_size=batch_size, init="real", labels="learned")
    run = begin(alone)
    numbers = {**run.now.numbers, "images": start["images"][first]}
    run.now = replace(run.now, numbers=numbers)
    own = distill(alone, run, None, lambda row: None, lambda run: None).synthetic
    assert torch.equal(own.images, middle["images"][first])
    assert torch.equal(own.labels, middle["labels"][first])
    weak = states(make(problem, blocks=2, iterations=6, batch_size=batch_size, init="real", boost=0.5))[-1]
    assert not torch.equal(weak.numbers["images"][first], end["images"][first])


def test_a_prefix_is_trained_on_alone_and_a_new_block_has_a_fresh_optimiser(problem: Problem) -> None:
    problem = replace(single(problem), ipc=4)
    made = make(problem, blocks=2, iterations=4, batch_size=4)
    rest = [2, 3, 6, 7, 10, 11]
    for iteration in range(4):
        found = made.gradient(made.start(), iteration, {"norm": torch.tensor(0.0)})
        assert bool(found.images[rest].any()) == (iteration >= 2)
        assert found.restart == (iteration == 2)
        assert torch.allclose(found.state["norm"], found.norm) == (iteration == 2)  # the average norm begins anew too
    before, after = states(made)[2:4]
    moved = (after.numbers["images"] - before.numbers["images"])[rest]
    touched = moved[moved != 0].abs()
    torch.testing.assert_close(touched, torch.full_like(touched, 0.001), rtol=0.1, atol=0)  # Adam's first step
    assert float(after.moments["images"]["count"]) == 1


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("t-bptt", {"window": 7}, "a window of 7 steps does not fit in 6 inner_steps; lower window or raise inner_st"),
        ("ratbptt", {"window": 7}, "a window of 7 steps does not fit in 6 inner_steps"),
        ("bptt", {"window": 3}, "unknown option 'window'"),
        ("bptt", {"placement": "early"}, "unknown option 'placement'"),
        ("bptt", {"grow_from": 7}, "grow_from 7 is more than 6 inner_steps"),
        (
            "ratbptt",
            {"patience": 5},
            "patience 5 has no effect with placement 'uniform'; set placement to forward",
        ),
        ("ratbptt", {"early_power": 3}, "early_power 3.0 has no effect with placement 'uniform'; set placement to ear"),
        ("ratbptt", {"placement": "forward", "redraw": "pass"}, "redraw 'pass' has no effect with placement 'forward'"),
        ("ratbptt", {"milestones": (2, 6)}, "milestones 6 lies at or after the end of 6 inner_steps; lower it"),
        ("ratbptt", {"milestones": (0, 2)}, "milestones count inner_steps from 1, got 0"),
        ("ratbptt", {"factor": 0.5}, "factor 0.5 has no effect with no milestones"),
        ("ratbptt", {"inner_momentum": 0.9}, "inner_momentum 0.9 has no effect with inner 'adam'; set inner to sgd"),
        ("ratbptt", {"clip": 0}, "clip: .*got 0"),
        ("ratbptt", {"clip": None, "clip_decay": 0.5}, "clip_decay 0.5 has no effect with clip None"),
        ("ratbptt", {"normalise": True}, "normalise gives each hypergradient norm 1, .* clip 2; set clip to None"),
        ("ratbptt", {"boost": 0.5}, "boost 0.5 has no effect with blocks 1; raise blocks"),
        ("ratbptt", {"blocks": 3}, "blocks 3 does not divide ipc 2"),
        ("ratbptt", {"blocks": 2, "iterations": 1}, "1 iterations are fewer than blocks 2"),
        ("ratbptt", {"init": "correct"}, "init 'correct' needs experts, method 'ratbptt' uses none"),
        ("ratbptt", {"labels": "teacher"}, "labels 'teacher' needs experts"),
        ("ratbptt", {"real_batch": 0}, "real_batch: .*got 0"),
    ],
)
def test_contradictory_options_are_refused(problem: Problem, name: str, options: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        make(problem, name, **options)
    assert "\n" not in str(caught.value)
