"""The distillation loop: its steps, its way back when one goes wrong, what it keeps, going on from any kept state."""

import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from drawing import torch_generator
from matching import double, make, single
from tolerances import DISTINCT, LOOPS, ROUNDING, SUMS, TRAINING
from torch import Tensor

from satm.config.methods import IterativeOptions
from satm.distill import SAFE_EVERY, Look, Outcome, Run, begin, distill, kept_iterations
from satm.errors import RunError
from satm.methods.checks import Facts
from satm.methods.parts.method import Method
from satm.methods.parts.problem import Problem, Synthetic
from satm.methods.recipe import SELECTED, Recipe
from satm.outer import NO_STATE, MethodState, OuterGradient
from satm.params import call_flat
from satm.results.columns import METRICS
from satm.run.stopping import Stop, on_signals
from satm.stages.checkpoint import RunState

Script = Callable[[Synthetic, int], OuterGradient]


NO_PROBLEM: Any = SimpleNamespace(facts=Facts(ipc=1), experts=None)
"""What a method needs of a problem that it never looks at."""


class Scripted(Method[Any]):
    """A method that follows a function."""

    def __init__(self, script: Script, begun: Synthetic | None = None, **options: Any) -> None:
        self.script = script
        self.begun = begun or Synthetic(torch.ones(2, 1, 2, 2), torch.tensor([0, 1]), torch.tensor(0.1))
        defaults: dict[str, Any] = {"iterations": 5, "lr_images": 0.1, "lr_step_size": 0.1, "momentum": 0.0}
        recipe = Recipe("scripted", SELECTED, IterativeOptions, None, None, {})
        super().__init__(recipe, IterativeOptions(**{**defaults, **options}), NO_PROBLEM)

    def start(self) -> Synthetic:
        return self.begun

    def gradient(self, synthetic: Synthetic, iteration: int, state: MethodState = NO_STATE) -> OuterGradient:
        return self.script(synthetic, iteration)


def soft(dtype: torch.dtype = torch.float64) -> Synthetic:
    """Return a set with logits for labels."""
    generator = torch_generator(2)
    images, labels = (torch.randn(size, generator=generator, dtype=dtype) for size in ((2, 1, 2, 2), (2, 3)))
    return Synthetic(images, labels, torch.tensor(0.1, dtype=dtype))


def answer(
    images: Tensor | float = 0.0, step_size: float = 0.0, loss: float = 1.0, labels: Tensor | None = None
) -> OuterGradient:
    held = images if isinstance(images, Tensor) else torch.full((2, 1, 2, 2), images)
    return OuterGradient(torch.tensor(loss), held, labels, torch.tensor(step_size))


def followed(synthetic: Synthetic, iteration: int) -> OuterGradient:
    """Return gradients that depend on everything that is learned, and on the iteration.

    They stay small: steps that overshoot multiply what rounding has lost, from iteration to iteration.
    """
    size = synthetic.step_size
    of_labels = synthetic.labels.sin() + iteration if synthetic.labels.is_floating_point() else None
    gradient = synthetic.images.cos() * (iteration % 3 + 1) + size
    return OuterGradient(torch.tensor(1.0), gradient, of_labels, 0.1 * size + synthetic.images.mean() / 50)


def make_all(method: Method[Any], look: Look | None = None, run: Run | None = None) -> tuple[Outcome, Run]:
    run = begin(method) if run is None else run
    return distill(method, run, look, lambda row: None, lambda run: None), run


def run_all(method: Method[Any], look: Look | None = None, run: Run | None = None) -> tuple[Synthetic, Run]:
    made, run = make_all(method, look, run)
    return made.synthetic, run


def values(run: Run) -> list[dict[str, Any]]:
    """Return the rows without what is measured of the machine."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "peak_memory_bytes")} for row in run.rows]


def test_the_steps_are_sgd_with_momentum() -> None:
    def script(synthetic: Synthetic, iteration: int) -> OuterGradient:
        return answer(synthetic.images * (iteration + 1), float(synthetic.step_size) - 0.5)

    method = Scripted(script, momentum=0.5, lr_images=0.05, lr_step_size=0.2)
    found, run = run_all(method)
    start = method.start()
    images, step_size = start.images.clone(), start.step_size.clone()
    optimiser = torch.optim.SGD([{"params": [images]}, {"params": [step_size], "lr": 0.2}], 0.05, momentum=0.5)
    for iteration in range(5):
        images.grad, step_size.grad = images * (iteration + 1), step_size - 0.5
        optimiser.step()
    torch.testing.assert_close(found.images, images)
    torch.testing.assert_close(found.step_size, step_size)
    assert torch.equal(method.start().images, start.images) and torch.equal(found.labels, start.labels)
    assert run.now.iteration == 5


@pytest.mark.parametrize("outer", ["sgd", "adam"])
def test_images_labels_and_step_size_are_moved_as_torch_moves_them(outer: Any) -> None:
    rates = {"lr_images": 0.05, "lr_labels": 0.3, "lr_step_size": 0.002}
    options: dict[str, Any] = {"outer": outer, "labels": "learned", "momentum": 0.5, "momentum_labels": 0.8, **rates}
    method = Scripted(followed, soft(), iterations=7, **options)
    found, run = run_all(method)
    start = method.start()
    images, labels, step_size = (held.clone() for held in (start.images, start.labels, start.step_size))
    groups = [
        {"params": [held], "lr": rate, "momentum": momentum}
        for held, rate, momentum in zip((images, labels, step_size), rates.values(), (0.5, 0.8, 0.5), strict=True)
    ]
    if outer == "adam":
        groups = [{name: value for name, value in group.items() if name != "momentum"} for group in groups]
    optimiser = torch.optim.SGD(groups) if outer == "sgd" else torch.optim.Adam(groups)
    for iteration in range(7):
        slope = followed(Synthetic(images, labels, step_size), iteration)
        images.grad, labels.grad, step_size.grad = slope.images, slope.labels, slope.step_size
        optimiser.step()
    for one, other in ((found.images, images), (found.labels, labels), (found.step_size, step_size)):
        torch.testing.assert_close(one, other, rtol=SUMS, atol=0)
    assert run.rates == {"images": 0.05, "labels": 0.3, "step_size": 0.002}
    assert run.rows[0]["lr_labels"] == 0.3
    for changed in ({"momentum_labels": 0.5}, {"lr_labels": 0.2}) if outer == "sgd" else ({"lr_labels": 0.2},):
        assert not torch.equal(
            run_all(Scripted(followed, soft(), iterations=7, **{**options, **changed}))[0].labels, labels
        )


def test_fixed_labels_do_not_change() -> None:
    found, run = run_all(Scripted(followed, lr_step_size=0.001))
    assert torch.equal(found.labels, torch.tensor([0, 1])) and "lr_labels" not in run.rows[0]


def test_each_iteration_writes_one_row() -> None:
    told: list[Mapping[str, Any]] = []
    method = Scripted(lambda synthetic, iteration: answer(2.0, 0.01, loss=3.0 - iteration), iterations=3)
    run = begin(method)
    distill(method, run, None, told.append, lambda run: None)
    assert told == run.rows and len(told) == 3
    assert [row["iteration"] for row in told] == [1, 2, 3]
    assert [row["loss"] for row in told] == [3, 2, 1]
    assert told[0]["step_size"] == pytest.approx(0.1) and told[1]["step_size"] == pytest.approx(0.099)
    assert all(row["event"] == "" and row["attempt"] == 0 and row["sharpness"] is None for row in told)
    assert told[0]["hypergradient_norm"] == pytest.approx(math.sqrt(8 * 4))
    assert told[0]["step_size_gradient"] == pytest.approx(0.01)
    assert all(row["seconds"] >= 0 and row["peak_memory_bytes"] > 0 for row in told)
    METRICS.schema(told)


def test_a_step_size_that_turns_negative_lowers_its_rate() -> None:
    method = Scripted(lambda synthetic, iteration: answer(1.0, 1.0), lr_step_size=0.15, iterations=4)
    found, run = run_all(method)
    assert 0 < float(found.step_size) < 0.1
    assert run.rates["images"] == 0.1  # the other rate is no offender
    # 0.15 and 0.075 fail, 0.0375 fails in the third iteration, 0.01875 does not in four.
    assert run.attempt == 3 and run.rates["step_size"] == pytest.approx(0.01875)
    events = [row["event"] for row in run.rows if row["event"]]
    assert events[0] == (
        "in iteration 1 the step size would become -0.05; went back to iteration 0 and lowered lr_step_size to 0.075"
    )
    assert [row["iteration"] for row in run.rows] == [1, 1, 2, 1, 2, 3, 1, 2, 3, 4]
    assert [row["attempt"] for row in run.rows] == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (answer(1.0, loss=101.0), "the loss of 101 is above explode=100"),
        (answer(1.0, loss=math.inf), "the loss is inf and its hypergradient's norm 2.82843"),
        (answer(1.0, loss=math.nan), "the loss is nan"),
        (answer(math.nan), "the loss is 1 and its hypergradient's norm nan"),
        (answer(math.inf), "its hypergradient's norm inf"),
    ],
)
def test_bad_loss_rolls_back_to_a_proven_state(bad: OuterGradient, text: str) -> None:
    def script(synthetic: Synthetic, iteration: int) -> OuterGradient:
        return bad if iteration == 25 and run.rates["images"] == 0.1 else answer(torch.randn(2, 1, 2, 2))

    method = Scripted(script, iterations=30)
    run = begin(method)
    found, _ = run_all(method, run=run)
    event = next(row["event"] for row in run.rows if row["event"])
    assert event.startswith("in iteration 26 ") and text in event
    assert event.endswith("went back to iteration 10 and lowered lr_images to 0.05")
    assert [row["iteration"] for row in run.rows] == [*range(1, 27), *range(11, 31)]
    assert run.attempt == 1 and run.rates["images"] == 0.05 and run.rates["step_size"] == 0.1
    assert torch.isfinite(found.images).all()


def test_rollback_lowers_the_rate_of_what_moved_furthest() -> None:
    def script(synthetic: Synthetic, iteration: int) -> OuterGradient:
        bad = iteration == 5 and run.attempt == 0
        return answer(0.001, -0.5, loss=1e6 if bad else 1.0)

    method = Scripted(script, iterations=6)
    run = begin(method)
    run_all(method, run=run)
    assert run.rates["step_size"] == 0.05 and run.rates["images"] == 0.1


def test_a_step_size_gradient_that_is_not_finite_lowers_its_rate() -> None:
    method = Scripted(lambda synthetic, iteration: answer(1.0, math.nan), max_rollbacks=1)
    with pytest.raises(RunError, match=r"step size would become nan; gave up after max_rollbacks 1"):
        run_all(method)


def test_loop_gives_up_after_the_allowed_rollbacks() -> None:
    def script(synthetic: Synthetic, iteration: int) -> OuterGradient:
        return answer(1.0, loss=1000.0 if iteration == 3 else 1.0)

    method = Scripted(script, max_rollbacks=2, iterations=9)
    text = r"in iteration 4 the loss of 1000 .*gave up after max_rollbacks 2, with lr_images 0\.025"
    run = begin(method)
    with pytest.raises(RunError, match=text) as caught:
        run_all(method, run=run)
    assert "\n" not in str(caught.value)
    assert run.attempt == 2


def test_unusable_first_loss_fails_at_once() -> None:
    method = Scripted(lambda synthetic, iteration: answer(loss=math.nan))
    with pytest.raises(RunError, match=r"in iteration 1 the loss is nan .*before anything was learned; start with"):
        run_all(method)


def test_best_tested_set_is_kept() -> None:
    accuracies = {2: 0.3, 4: 0.8, 6: 0.8, 8: 0.5, 9: 0.6}
    seen: list[int] = []

    def look(synthetic: Synthetic, iteration: int) -> float:
        seen.append(iteration)
        return accuracies[iteration]

    method = Scripted(lambda *_: answer(1.0), iterations=9, selection="validation", evaluate_every=2)
    found, run = run_all(method, look)
    assert seen == [2, 4, 6, 8, 9]
    assert run.best is not None and (run.best.outcome.iteration, run.best.accuracy) == (4, 0.8)
    torch.testing.assert_close(found.images, torch.full((2, 1, 2, 2), 1 - 0.1 * 4))
    looked = [(row["iteration"], row["validation_accuracy"]) for row in run.rows if "validation_accuracy" in row]
    assert looked == list(accuracies.items())
    last, _ = run_all(Scripted(lambda *_: answer(1.0), iterations=9))
    torch.testing.assert_close(last.images, torch.full((2, 1, 2, 2), 0.1))


def test_watching_writes_accuracies_and_chooses_nothing() -> None:
    method = Scripted(lambda *_: answer(1.0), iterations=5, watch="test", evaluate_every=2)
    found, run = run_all(method, lambda synthetic, iteration: 1.0 / iteration)
    assert [row.get("test_accuracy") for row in run.rows] == [None, 0.5, None, 0.25, 0.2]
    assert run.best is None
    torch.testing.assert_close(found.images, torch.full((2, 1, 2, 2), 0.5))


@pytest.mark.parametrize(
    ("snapshots", "expected"), [(0, []), (1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (99, list(range(10)))]
)
def test_the_history_is_evenly_spread_from_the_start_to_the_end(snapshots: int, expected: list[int]) -> None:
    method = Scripted(lambda *_: answer(1.0), iterations=9, snapshots=snapshots)
    assert kept_iterations(method.options) == expected
    _, run = run_all(method)
    assert list(run.history) == expected
    for iteration, state in run.history.items():
        torch.testing.assert_close(state.images, torch.full((2, 1, 2, 2), 1 - 0.1 * iteration))


def wild(synthetic: Synthetic, iteration: int) -> OuterGradient:
    """A pure function that explodes while the rates are high."""
    generator = torch_generator(iteration)
    noise = torch.randn(2, 1, 2, 2, generator=generator)
    size = float(synthetic.images.norm())
    return OuterGradient(torch.tensor(size), -synthetic.images + noise, None, noise.sum() / 50, torch.tensor(0.5))


@pytest.mark.parametrize("outer", ["sgd", "adam"])
def test_resuming_from_any_checkpoint_gives_the_same_bytes(tmp_path: Path, outer: str) -> None:
    def look(synthetic: Synthetic, iteration: int) -> float:
        return float(synthetic.images.sum().cos())

    rates = {"lr_step_size": 0.05} if outer == "sgd" else {"lr_step_size": 0.005, "lr_images": 1.0}
    options = {"momentum": 0.5, "explode": 20 if outer == "sgd" else 14, **rates}
    options |= {"selection": "test", "evaluate_every": 7, "snapshots": 13}
    method = Scripted(wild, iterations=60, outer=outer, ema=0.8, **options)
    kept: list[RunState] = []

    def on_safe(run: Run) -> None:
        kept.append(RunState(tmp_path / str(len(kept)), {"name": "it"}, "here"))
        assert kept[-1].save(run)

    run = begin(method)
    found = distill(method, run, look, lambda row: None, on_safe)
    assert run.attempt >= 2 and len(kept) > 5  # it went back, so that is resumed too
    assert any(loaded(state).attempt for state in kept)
    for state in kept:
        again = loaded(state)
        assert again.now.iteration % SAFE_EVERY == 0
        other = distill(method, again, look, lambda row: None, lambda run: None)
        assert not unequal(other, found)
        assert values(again) == values(run)
        assert again.best is not None and run.best is not None
        assert again.best.outcome.iteration == run.best.outcome.iteration == found.iteration
        assert list(again.history) == list(run.history) == list(range(0, 61, 5))
        for iteration, held in run.history.items():
            there = again.history[iteration]
            assert all(same(part, vars(there)[name]) for name, part in vars(held).items())


def loaded(state: RunState) -> Run:
    found = state.load(torch.device("cpu"))
    assert found is not None
    return found


@pytest.mark.parametrize("within", ["gradient", "look"])
def test_a_stop_keeps_the_last_whole_iteration(tmp_path: Path, within: str) -> None:
    """Wherever it comes, and whether or not the loop has gone back before."""
    options = {"momentum": 0.5, "explode": 20, "lr_step_size": 0.05, "selection": "test", "evaluate_every": 3}
    honest = Scripted(wild, iterations=30, **options)
    whole = begin(honest)

    def look(synthetic: Synthetic, iteration: int) -> float:
        return float(synthetic.images.sum().cos())

    made = distill(honest, whole, look, lambda row: None, lambda run: None)
    assert whole.attempt

    for at in range(1, 40, 3):
        calls = iter(range(1000))

        def stopping_look(synthetic: Synthetic, iteration: int, at: int = at, calls: Iterator[int] = calls) -> float:
            if within == "look" and next(calls) == at // 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return look(synthetic, iteration)

        def stopping_wild(
            synthetic: Synthetic, iteration: int, at: int = at, calls: Iterator[int] = calls
        ) -> OuterGradient:
            if within == "gradient" and next(calls) == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return wild(synthetic, iteration)

        state = RunState(tmp_path / f"{within}-{at}", {"name": "it"}, "here")
        method = Scripted(stopping_wild, **honest.options.model_dump())
        stopped = begin(method)
        with on_signals(), pytest.raises(Stop, match="SIGTERM") as caught:
            distill(method, stopped, stopping_look, lambda row: None, lambda run: None, state.save)
        assert caught.value.request.saved == bool(stopped.rows) and not caught.value.request.at_limit
        again = loaded(state)
        assert len(again.rows) == len(stopped.rows) and again.now.iteration < 30
        assert not unequal(distill(honest, again, look, lambda row: None, lambda run: None), made)
        assert values(again) == values(whole)


def unequal(one: Outcome, other: Outcome) -> list[str]:
    """Return what two sets differ in, bit for bit."""
    found = [] if one.iteration == other.iteration else ["iteration"]
    for kind in ("synthetic", "raw"):
        here, there = getattr(one, kind), getattr(other, kind)
        if here is None or there is None:
            found += [] if here is there else [kind]
            continue
        found += [f"{kind}.{part}" for part in vars(here) if not same(getattr(here, part), getattr(there, part))]
    if set(one.numbers) != set(other.numbers):
        return [*found, "numbers"]
    return found + [name for name in one.numbers if not same(one.numbers[name], other.numbers[name])]


def same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


REAL: dict[str, dict[str, Any]] = {
    "satm": {},
    "mtt-vasso": {"labels": "learned", "ema": 0.9, "selection": "validation", "evaluate_every": 4},
    "tesla": {"outer": "adam", "lr_images": 0.05, "ema": 0.5},
}


@pytest.mark.parametrize("name", list(REAL))
def test_resumed_method_gives_the_same_bytes(problem: Problem, tmp_path: Path, name: str) -> None:
    options = {"iterations": 25, "inner_steps": 3, "expert_epochs": 1, "lr_images": 0.5, "lr_labels": 0.5, **REAL[name]}
    method = make(single(problem), name, **options, step_size=0.1)
    state = RunState(tmp_path, {}, "")
    run = begin(method)

    def look(synthetic: Synthetic, iteration: int) -> float:
        return -abs(iteration - 8) + float(synthetic.images.sum().cos())  # best before the kept state

    def on_safe(held: Run) -> None:
        if held.now.iteration == 10:
            state.save(held)

    chosen = look if "selection" in REAL[name] else None
    found = distill(method, run, chosen, lambda row: None, on_safe)
    again = loaded(state)
    assert set(again.now.method_state) == ({"direction"} if name == "mtt-vasso" else set())
    other = distill(
        make(single(problem), name, **options, step_size=0.1), again, chosen, lambda row: None, lambda _: None
    )
    assert not unequal(other, found)
    assert values(again) == values(run) and len(run.rows) == 25
    assert (found.raw is None) == (name == "satm") and found.iteration == (8 if chosen else 25)
    start = method.start()
    assert not torch.equal(found.synthetic.images, start.images)
    assert torch.equal(found.synthetic.labels, start.labels) == (name == "satm")


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    state, runs = RunState(tmp_path, {}, ""), []
    method = Scripted(wild, iterations=40, lr_step_size=1e-4, lr_images=0.01)

    def on_safe(run: Run) -> None:
        runs.append(run.now.iteration)
        state.save(run)

    distill(method, begin(method), None, lambda row: None, on_safe)
    assert runs == [10, 20, 30] and loaded(RunState(tmp_path, {}, "")).now.iteration == 30
    last, before = tmp_path / "checkpoint-0.safetensors", tmp_path / "checkpoint-1.safetensors"
    content = last.read_bytes()
    middle = len(content) - 20
    for damaged in (content[:-7], b"", content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]):
        last.write_bytes(damaged)
        assert loaded(RunState(tmp_path, {}, "")).now.iteration == 20
    again = RunState(tmp_path, {}, "")
    again.save(loaded(again))  # in place of the damaged one, not of the good one
    assert before.exists() and loaded(again).now.iteration == 20
    for path in (last, before):
        path.write_bytes(b"nothing")
    assert again.load(torch.device("cpu")) is None


def test_iterations_with_a_large_loss_are_skipped() -> None:
    """As if they were not there, but counted."""

    def script(synthetic: Synthetic, iteration: int) -> OuterGradient:
        large = {2: 1.5, 5: 1.01, 6: 200.0}.get(iteration)
        found = followed(synthetic, 0)
        return replace(found, loss=torch.tensor(1.0 if large is None else large))

    options: dict[str, Any] = {"labels": "learned", "momentum": 0.5, "lr_step_size": 0.001, "ema": 0.7}
    found, run = make_all(Scripted(script, soft(), iterations=9, skip_above=1.0, **options))
    fewer, _ = make_all(Scripted(lambda *_: followed(_[0], 0), soft(), iterations=6, **options))
    assert not set(unequal(found, fewer)) - {"iteration"} and found.iteration == run.now.iteration == 9
    assert [row["iteration"] for row in run.rows] == list(range(1, 10))
    events = {row["iteration"]: row["event"] for row in run.rows if row["event"]}
    assert events == {
        3: "skipped: the loss of 1.5 is above skip_above=1",
        6: "skipped: the loss of 1.01 is above skip_above=1",
        7: "skipped: the loss of 200 is above skip_above=1",
    }
    assert run.attempt == 0
    every, _ = make_all(Scripted(script, soft(), iterations=9, explode=1e6, **options))
    assert unequal(every, found)


@pytest.mark.parametrize(("iterations", "first", "stopped"), [(5, 9, 5), (150, 999, 100), (150, 99, 0), (5, 4, 0)])
def test_a_run_that_skips_everything_stops(iterations: int, first: int, stopped: int) -> None:
    def script(synthetic: Synthetic, iteration: int) -> OuterGradient:
        return answer(1.0, loss=1.2 + 0.01 * iteration if iteration < first else 0.5)

    method = Scripted(script, iterations=iterations, skip_above=1.1)
    if not stopped:
        assert make_all(method)[0].iteration == iterations
        return
    wanted = f"all of the first {stopped} iterations were skipped.*smallest loss of 1.2 is above skip_above=1.1; raise"
    with pytest.raises(RunError, match=wanted):
        run_all(method)


def test_non_finite_losses_are_not_skipped() -> None:
    def script(synthetic: Synthetic, iteration: int) -> OuterGradient:
        return answer(1.0, loss=math.inf if iteration == 3 else 1.0)

    with pytest.raises(RunError, match="in iteration 4 the loss is inf"):
        run_all(Scripted(script, skip_above=1.0, max_rollbacks=1))


@pytest.mark.parametrize("labels", [soft(torch.float32).labels, torch.zeros(2, 3)], ids=["some", "zero"])
def test_rollback_lowers_the_rate_of_labels_that_moved_furthest(labels: Tensor) -> None:
    def script(synthetic: Synthetic, iteration: int) -> OuterGradient:
        bad = iteration == 5 and run.attempt == 0
        return answer(0.01, 0.001, 1e6 if bad else 1.0, torch.ones(2, 3))

    begun = replace(soft(torch.float32), labels=labels)
    method = Scripted(script, begun, iterations=6, labels="learned", lr_labels=0.4, momentum_labels=0.0)
    run = begin(method)
    found, _ = run_all(method, run=run)
    assert run.rates == {"images": 0.1, "labels": 0.2, "step_size": 0.1}
    assert [row["lr_labels"] for row in run.rows] == [0.4] * 6 + [0.2] * 6
    assert "went back to iteration 0 and lowered lr_labels to 0.2" in run.rows[5]["event"]
    torch.testing.assert_close(found.labels, labels - 6 * 0.2)


def test_zero_tensors_that_did_not_move_keep_their_rate() -> None:
    def script(synthetic: Synthetic, iteration: int) -> OuterGradient:
        return answer(0.0, -0.01, 1e6 if iteration == 5 and run.attempt == 0 else 1.0)

    method = Scripted(script, replace(soft(torch.float32), images=torch.zeros(2, 1, 2, 2)), iterations=6)
    run = begin(method)
    run_all(method, run=run)
    assert run.rates == {"images": 0.1, "step_size": 0.05}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_labels_stay_finite(bad: float) -> None:
    def script(synthetic: Synthetic, iteration: int) -> OuterGradient:
        broken = iteration == 4 and run.attempt == 0
        return answer(0.01, 0.0, 1.0, torch.full((2, 3), bad if broken else 1.0))

    method = Scripted(script, soft(torch.float32), iterations=6, labels="learned", ema=0.5)
    run = begin(method)
    made, _ = make_all(method, run=run)
    assert run.attempt == 1 and run.rates["labels"] == 0.5
    assert f"in iteration 5 the loss is 1 and its hypergradient's norm {bad:g}; went" in run.rows[4]["event"]
    assert made.raw is not None
    assert torch.isfinite(made.synthetic.labels).all() and torch.isfinite(made.raw.labels).all()


def test_an_average_with_decay_0_is_the_raw_set(problem: Problem) -> None:
    for name in ("mtt-ema", "ftd", "datm"):
        options: dict[str, Any] = {"iterations": 4, "inner_steps": 3, "lr_images": 0.5, "lr_labels": 0.5}
        options["skip_above"] = None  # DATM's limit may skip all iterations
        kept, none, some = (make(problem, name, **options, ema=decay) for decay in (0.0, None, 0.5))
        for method in (kept, none, some):
            method.start = lambda made=kept: double(made.recipe(made.options, problem))
        one, other, averaged = (make_all(method)[0] for method in (kept, none, some))
        assert one.raw is not None and other.raw is None and averaged.raw is not None
        for part in ("images", "labels", "step_size"):
            value = getattr(other.synthetic, part)
            assert torch.equal(getattr(one.synthetic, part), value), (name, part)
            assert torch.equal(getattr(one.raw, part), value) and torch.equal(getattr(averaged.raw, part), value)
            learned = part == "images" or (part == "labels" and name == "datm")
            assert torch.equal(getattr(averaged.synthetic, part), value) != learned, (name, part)


def test_average_is_exponential_and_rolled_back_with_the_set() -> None:
    path: dict[int, Synthetic] = {}

    def script(synthetic: Synthetic, iteration: int) -> OuterGradient:
        path[iteration] = synthetic  # after going back the later visit counts
        bad = iteration == 25 and run.attempt == 0
        return replace(followed(synthetic, iteration % 3), loss=torch.tensor(1e6 if bad else 1.0))

    options: dict[str, Any] = {"labels": "learned", "iterations": 28, "lr_labels": 0.2, "lr_step_size": 0.001}
    method = Scripted(script, soft(), **options, ema=0.9)
    run = begin(method)
    made, _ = make_all(method, run=run)
    assert run.attempt == 1 and made.raw is not None
    sets = [path[iteration] for iteration in range(28)] + [made.raw]
    images, labels = sets[0].images, sets[0].labels
    for following in sets[1:]:
        images = 0.9 * images + 0.1 * following.images
        labels = 0.9 * labels + 0.1 * following.labels
    torch.testing.assert_close(made.synthetic.images, images, rtol=SUMS, atol=ROUNDING)
    torch.testing.assert_close(made.synthetic.labels, labels, rtol=SUMS, atol=ROUNDING)
    assert torch.equal(made.synthetic.step_size, made.raw.step_size)
    assert float((images - made.raw.images).norm()) > DISTINCT


def test_averaged_set_is_tested_and_the_raw_one_kept_with_it() -> None:
    seen: dict[int, Tensor] = {}

    def look(synthetic: Synthetic, iteration: int) -> float:
        seen[iteration] = synthetic.images
        return {2: 0.1, 4: 0.9, 6: 0.2}[iteration]

    options: dict[str, Any] = {"ema": 0.5, "selection": "test", "evaluate_every": 2}
    made, _ = make_all(Scripted(lambda *_: answer(1.0), iterations=6, **options), look)
    assert made.iteration == 4 and torch.equal(made.synthetic.images, seen[4]) and made.raw is not None
    torch.testing.assert_close(made.raw.images, torch.full((2, 1, 2, 2), 1 - 0.1 * 4))
    weights = [0.5**4, 0.5**4, 0.5**3, 0.5**2, 0.5]
    expected = sum(weight * (1 - 0.1 * step) for step, weight in enumerate(weights))
    torch.testing.assert_close(made.synthetic.images, torch.full((2, 1, 2, 2), expected))


@pytest.mark.parametrize("outer", ["sgd", "adam"])
def test_a_share_scales_each_images_step(outer: str) -> None:
    shares = torch.tensor([0.0, 0.25], dtype=torch.float64)

    def run(share: Tensor | None) -> Synthetic:
        method = Scripted(
            lambda synthetic, iteration: replace(followed(synthetic, iteration), share=share),
            soft(),
            iterations=1,
            labels="learned",
            outer=outer,
            lr_step_size=0.001,
        )
        return run_all(method)[0]

    start, whole, part = soft(), run(None), run(shares)
    assert torch.equal(run(torch.ones(2, dtype=torch.float64)).images, whole.images)
    for name in ("images", "labels"):
        before, all_of_it, some = (getattr(held, name) for held in (start, whole, part))
        assert torch.equal(some[0], before[0]) and not torch.equal(all_of_it[0], before[0])
        torch.testing.assert_close(some[1] - before[1], 0.25 * (all_of_it[1] - before[1]), rtol=SUMS, atol=ROUNDING)
    assert torch.equal(part.step_size, whole.step_size) and not torch.equal(part.step_size, start.step_size)


def test_image_with_share_0_never_changes() -> None:
    shares = torch.tensor([1.0, 0.0])
    method = Scripted(
        lambda synthetic, iteration: replace(answer(torch.randn(2, 1, 2, 2)), share=shares), iterations=30, momentum=0.9
    )
    found, _ = run_all(method)
    assert torch.equal(found.images[1], method.start().images[1])
    assert not torch.equal(found.images[0], method.start().images[0])


def test_restart_resets_the_outer_optimiser() -> None:
    def images(restarts: tuple[int, ...], count: int = 3) -> Tensor:
        method = Scripted(
            lambda _, iteration: replace(answer(1.0), restart=iteration in restarts), iterations=count, momentum=0.5
        )
        return run_all(method)[0].images

    torch.testing.assert_close(images(()), torch.full((2, 1, 2, 2), 1 - 0.1 * (1 + 1.5 + 1.75)))
    torch.testing.assert_close(images((2,)), torch.full((2, 1, 2, 2), 1 - 0.1 * (1 + 1.5 + 1)))
    torch.testing.assert_close(images((1,)), torch.full((2, 1, 2, 2), 1 - 0.1 * (1 + 1 + 1.5)))


class Halved:
    """Images that are twice some numbers plus their own mean image."""

    def split(self, images: Tensor) -> Mapping[str, Tensor]:
        return {"half": images / 2, "shift": torch.zeros_like(images[:1])}

    def join(self, numbers: Mapping[str, Tensor]) -> Tensor:
        return 2 * numbers["half"] + numbers["shift"]

    def pull(self, numbers: Mapping[str, Tensor], gradient: Tensor) -> Mapping[str, Tensor]:
        return {"half": 2 * gradient, "shift": gradient.sum(0, keepdim=True)}


class Computed(Scripted):
    """A method whose images are computed from other numbers."""

    parameterisation = Halved()

    def rates(self) -> dict[str, float]:
        return {"half": 0.05, "shift": 0.02, "step_size": 0.001}


def test_loop_learns_the_numbers_that_images_are_computed_from(tmp_path: Path) -> None:
    method = Computed(followed, soft(), iterations=25, momentum=0.5, ema=0.6)
    kept = RunState(tmp_path, {}, "")
    run = begin(method)
    made = distill(method, run, None, lambda row: None, kept.save)
    half, shift, step_size = soft().images / 2, torch.zeros(1, 1, 2, 2, dtype=torch.float64), soft().step_size
    images, average = soft().images, soft().images
    optimiser = torch.optim.SGD(
        [{"params": [half], "lr": 0.05}, {"params": [shift], "lr": 0.02}, {"params": [step_size], "lr": 0.001}],
        momentum=0.5,
    )
    for iteration in range(25):
        found = followed(Synthetic(images, soft().labels, step_size), iteration)
        half.grad, shift.grad, step_size.grad = 2 * found.images, found.images.sum(0, keepdim=True), found.step_size
        optimiser.step()
        images = 2 * half + shift
        average = 0.6 * average + 0.4 * images
    assert made.raw is not None
    torch.testing.assert_close(made.raw.images, images, rtol=TRAINING, atol=LOOPS)
    torch.testing.assert_close(made.synthetic.images, average, rtol=TRAINING, atol=LOOPS)
    assert set(made.numbers) == {"half", "shift"} and set(run.rates) == {"half", "shift", "step_size"}
    torch.testing.assert_close(made.numbers["shift"], shift, rtol=TRAINING, atol=LOOPS)
    assert torch.equal(method.parameterisation.join(made.numbers), made.raw.images)
    again = loaded(kept)
    assert again.now.iteration == 20
    assert not unequal(make_all(method, run=again)[0], made)


def test_loop_passes_the_methods_state_on(problem: Problem) -> None:
    options: dict[str, Any] = {"iterations": 3, "inner_steps": 3, "lr_images": 0.5, "momentum": 0.0, "rho": 0.2}
    method = make(problem, "mtt-vasso", **options, theta=0.3)
    start = double(method)
    method.start = lambda: start
    found, run = run_all(method)
    synthetic, memory = start, NO_STATE
    for iteration in range(3):
        slope = method.gradient(synthetic, iteration, memory)
        memory = slope.state
        step_size = synthetic.step_size - 1e-5 * slope.step_size
        synthetic = Synthetic(synthetic.images - 0.5 * slope.images, synthetic.labels, step_size)
    assert torch.equal(found.images, synthetic.images)
    assert torch.equal(run.now.method_state["direction"], memory["direction"])
    forgetful = make(problem, "mtt-vasso", **options, theta=0.3)
    forgetful.start = lambda: start
    forgetful.gradient = lambda synthetic, iteration, state: method.gradient(synthetic, iteration, NO_STATE)
    assert not torch.equal(run_all(forgetful)[0].images, found.images)


def test_teacher_labels_of_the_last_iteration_are_returned(problem: Problem) -> None:
    options: dict[str, Any] = {"iterations": 4, "inner_steps": 3, "lr_images": 0.5, "labels": "teacher", "ema": 0.5}
    method = make(single(problem), "mtt", **options)
    made, run = make_all(method)
    [(_, segment)] = method.segments(problem.generator("iteration", 3), 3)
    weights = method.experts.snapshot(segment.expert, segment.end)
    assert made.raw is not None and not torch.equal(made.raw.images, made.synthetic.images)
    for found in (made.synthetic, made.raw):
        assert torch.equal(found.labels, call_flat(problem.module, weights, found.images))
        assert found.labels.shape == (6, 3) and found.labels.dtype == torch.float32
    assert run.now.numbers["labels"].tolist() == [0, 0, 1, 1, 2, 2]  # what is learned has none
