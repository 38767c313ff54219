"""The distillation loop, one for all methods: outer steps, measurements, and the way back when a step goes wrong.

Shapes: n synthetic images of C x H x W.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from satm.config.methods import IterativeOptions
from satm.errors import RunError
from satm.methods.parts.method import Method
from satm.methods.parts.problem import Synthetic
from satm.outer import NOTHING, Memory, OuterGradient
from satm.run.machine import peak_memory, reset_peak
from satm.run.stopping import Stop, check_stop
from satm.unroll import Adam, Momentum, Rule

SAFE_EVERY = 10
"""Iterations between two states that the loop may go back to. It goes back to the last but one, which at least so many
further iterations have shown to be good."""

SKIPPED = "skipped"
"""What the event of a skipped iteration begins with."""

MOST_SKIPPED = 100
"""Iterations, the first ones, that may all be skipped before the loop says that nothing is learned."""


@dataclass(frozen=True)
class State:
    """A synthetic set on its way; nothing in it is changed in place.

    Args:
        iteration: outer steps done.
        numbers: what the set is made of by name: `images` or what they are computed from, `labels`, `step_size`.
        moments: state of the outer optimiser, by name of the number.
        memory: what the method carries from one iteration to the next.
        average: `images` and learned `labels` averaged over the iterations; None without `ema`.
    """

    iteration: int
    numbers: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]]
    memory: Memory
    average: Mapping[str, Tensor] | None


@dataclass(frozen=True)
class Made:
    """A synthetic set as it leaves the loop.

    Args:
        iteration: outer steps that led to it.
        synthetic: the set; with `ema` the averaged one.
        raw: with `ema` the set that was not averaged; else None.
        numbers: what the images of the raw set are computed from; empty where they are learned themselves.
    """

    iteration: int
    synthetic: Synthetic
    raw: Synthetic | None
    numbers: Mapping[str, Tensor]


@dataclass(frozen=True)
class Best:
    """The best set by accuracy on the split that the options select on."""

    accuracy: float
    made: Made


@dataclass
class Run:
    """Everything that the loop needs to go on, and what it has measured.

    Args:
        now: the current state.
        safe: the state to go back to.
        recent: the state that becomes `safe` after `SAFE_EVERY` further iterations.
        rates: current outer step size of each number.
        attempt: how often the loop went back.
        rows: one per iteration, for metrics.parquet.
        best: None where the last set is kept, or before the first look.
        history: the raw set after some iterations, by their number.
    """

    now: State
    safe: State
    recent: State
    rates: dict[str, float]
    attempt: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    best: Best | None = None
    history: dict[int, Synthetic] = field(default_factory=dict)


Look = Callable[[Synthetic, int], float]
"""`(set, iteration) -> accuracy` on the split that the options select on or watch."""


def kept_iterations(options: IterativeOptions) -> list[int]:
    """Return after how many iterations the set is kept in its history, ascending."""
    between = max(1, options.snapshots - 1)
    return sorted({index * options.iterations // between for index in range(options.snapshots)})


def begin(method: Method[IterativeOptions]) -> Run:
    """Return the run before its first iteration."""
    options = method.options
    synthetic = method.start()
    numbers = {**method.parameterisation.split(synthetic.images), "step_size": synthetic.step_size}
    numbers["labels"] = synthetic.labels
    rates = method.rates()
    moments = {name: _rule(options, name).start(numbers[name]) for name in rates}
    composed = replace(synthetic, images=method.parameterisation.join(numbers))
    average = None if options.ema is None else _averaged(composed)
    state = State(0, numbers, moments, NOTHING, average)
    return Run(state, state, state, rates)


def distill(
    method: Method[IterativeOptions],
    run: Run,
    look: Look | None,
    on_row: Callable[[Mapping[str, Any]], None],
    on_safe: Callable[[Run], None],
    on_stop: Callable[[Run], object] | None = None,
) -> Made:
    """Do the iterations that are left and return the synthetic set.

    Each iteration draws from a generator derived from its number, so going on from any state that `on_safe` was given
    ends at the same bytes. A loss that is not finite or explodes, and a step size that is not positive, send the loop
    back to the last safe state with the offending rate lowered.

    Args:
        method: what makes the gradient.
        run: from `begin`, or stored earlier; changed in place.
        look: accuracy of a set; None where nobody looks.
        on_row: called with each row of metrics.
        on_safe: called every `SAFE_EVERY` iterations with the run, which can be stored then.
        on_stop: called when the process is asked to stop, with the run before the iteration that this cuts off.

    Returns:
        the last set, or the best one by `look`.

    Raises:
        RunError: the loop went back `max_rollbacks` times, the first loss is unusable already, or the first
            `MOST_SKIPPED` iterations, or all, were skipped.
    """
    options = method.options
    device = run.now.numbers["step_size"].device
    kept = kept_iterations(options)
    try:
        while run.now.iteration < options.iterations:
            check_stop()  # so do gradient and look, between their steps: neither changes the run
            _advance(method, run, look, kept, device, on_row, on_safe)
    except Stop:
        if on_stop:
            on_stop(run)
        raise
    if options.iterations in kept:
        run.history[options.iterations] = compose(method, run.now)
    return finished(method, run.now) if run.best is None else run.best.made


def _advance(
    method: Method[IterativeOptions],
    run: Run,
    look: Look | None,
    kept: Sequence[int],
    device: torch.device,
    on_row: Callable[[Mapping[str, Any]], None],
    on_safe: Callable[[Run], None],
) -> None:
    """Do one iteration, or go back."""
    options = method.options
    if run.now.iteration in kept:
        run.history[run.now.iteration] = compose(method, run.now)
    if run.now.iteration % SAFE_EVERY == 0 and run.recent.iteration != run.now.iteration:
        run.safe, run.recent = run.recent, run.now
        on_safe(run)
    started = time.perf_counter()
    reset_peak(device)
    row, following, fault = _iterate(method, run)
    best = run.best
    if fault is None:
        if options.skip_above is not None and following.iteration == min(MOST_SKIPPED, options.iterations):
            _stop_if_nothing_learned(options, [*run.rows, row])
        due = following.iteration % options.evaluate_every == 0 or following.iteration == options.iterations
        if look is not None and due:
            made = finished(method, following)
            accuracy = look(made.synthetic, following.iteration)
            row[f"{options.watch or options.selection}_accuracy"] = accuracy
            if options.selection != "last" and (best is None or accuracy > best.accuracy):
                best = Best(accuracy, made)
        run.now, run.best = following, best
    else:
        row["event"] = _go_back(run, options, fault)
    row["seconds"] = time.perf_counter() - started
    row["peak_memory_bytes"] = peak_memory(device)
    run.rows.append(row)
    on_row(row)


def finished(method: Method[IterativeOptions], state: State) -> Made:
    """Return the set of a state as it is tested and stored."""
    raw = compose(method, state)
    learned = {name: held for name, held in state.numbers.items() if name not in ("images", "labels", "step_size")}
    made = method.finish(raw, state.iteration)
    if state.average is None:
        return Made(state.iteration, made, None, learned)
    return Made(state.iteration, method.finish(replace(raw, **state.average), state.iteration), made, learned)


def compose(method: Method[IterativeOptions], state: State) -> Synthetic:
    """Return the synthetic set that the numbers of a state make."""
    numbers = state.numbers
    return Synthetic(method.parameterisation.join(numbers), numbers["labels"], numbers["step_size"])


@dataclass(frozen=True)
class Fault:
    """Why an iteration cannot be kept.

    Args:
        text: what happened.
        number: whose rate is to be lowered, where it is known.
    """

    text: str
    number: str | None = None


def _iterate(method: Method[IterativeOptions], run: Run) -> tuple[dict[str, Any], State, Fault | None]:
    """Return the row of one iteration, the state after it, and what is wrong with it."""
    options = method.options
    state = run.now
    before = compose(method, state)
    found = method.gradient(before, state.iteration, state.memory)
    loss, norm = float(found.loss), float(found.images.norm() if found.norm is None else found.norm)
    row: dict[str, Any] = {
        "iteration": state.iteration + 1,
        "attempt": run.attempt,
        "event": "",
        "loss": loss,
        "step_size": float(before.step_size),
        "hypergradient_norm": norm,
        "sharpness": None if found.sharpness is None else float(found.sharpness),
        "step_size_gradient": float(found.step_size),
        **{f"lr_{name}": rate for name, rate in run.rates.items()},
        **method.observe(before, state.iteration),
    }
    whole = norm if found.labels is None else math.hypot(norm, float(found.labels.norm()))
    if not math.isfinite(loss) or not math.isfinite(whole):
        return row, state, Fault(f"the loss is {loss:g} and its hypergradient's norm {whole:g}")
    if options.skip_above is not None and loss > options.skip_above:
        row["event"] = f"{SKIPPED}: the loss of {loss:g} is above skip_above={options.skip_above:g}"
        return row, replace(state, iteration=state.iteration + 1, memory=found.memory), None
    if loss > options.explode:
        return row, state, Fault(f"the loss of {loss:g} is above explode={options.explode:g}")
    following = _step(method, run, found)
    step_size = float(following.numbers["step_size"])
    if not (math.isfinite(step_size) and step_size > 0):
        return row, state, Fault(f"the step size would become {step_size:g}", "step_size")
    if options.ema is not None and state.average is not None:
        now = _averaged(compose(method, following))
        decay = options.ema
        average = {name: decay * held + (1 - decay) * now[name] for name, held in state.average.items()}
        following = replace(following, average=average)
    return row, following, None


def _step(method: Method[IterativeOptions], run: Run, found: OuterGradient) -> State:
    """Return the state after the outer optimiser's step."""
    options = method.options
    state = run.now
    gradients = {**method.parameterisation.pull(state.numbers, found.images), "step_size": found.step_size}
    if found.labels is not None:
        gradients["labels"] = found.labels
    numbers, moments = dict(state.numbers), dict(state.moments)
    for name, rate in run.rates.items():
        rule = _rule(options, name)
        held = rule.start(numbers[name]) if found.restart else dict(moments[name])
        direction, moments[name] = rule.direction(numbers[name], held, gradients[name])
        if found.share is not None and name in ("images", "labels"):
            direction = direction * found.share.view(-1, *[1] * (direction.ndim - 1))
        numbers[name] = numbers[name] - rate * direction
    return State(state.iteration + 1, numbers, moments, found.memory, state.average)


def _rule(options: IterativeOptions, name: str) -> Rule:
    """Return the outer optimiser of a number."""
    if options.outer == "adam":
        return Adam()
    return Momentum(options.momentum_labels if name == "labels" else options.momentum)


def _averaged(synthetic: Synthetic) -> dict[str, Tensor]:
    """Return what an average is taken of: images, and labels if they are learned."""
    soft = synthetic.labels.is_floating_point()
    return {"images": synthetic.images, **({"labels": synthetic.labels} if soft else {})}


def _go_back(run: Run, options: IterativeOptions, fault: Fault) -> str:
    """Return to the safe state with the offending rate lowered; return the text for log and metrics.

    Without a known offender, it is the rate whose number has moved further, relative to itself, since the safe state.

    Raises:
        RunError: too often, or nothing has moved yet.
    """
    where = f"in iteration {run.now.iteration + 1} {fault.text}"
    if fault.number is None and run.now.iteration == 0:
        raise RunError(f"{where}, before anything was learned; start with a smaller step_size or fewer inner_steps")
    if run.attempt >= options.max_rollbacks:
        rates = " and ".join(f"lr_{name} {rate:g}" for name, rate in run.rates.items())
        raise RunError(
            f"{where}; gave up after going back {run.attempt} times (max_rollbacks), with {rates} at the end; start "
            "with lower rates"
        )
    name = fault.number or _furthest_moved(run)
    run.rates[name] *= options.lower
    run.attempt += 1
    run.now = run.recent = run.safe
    return f"{where}; went back to iteration {run.safe.iteration} and lowered lr_{name} to {run.rates[name]:g}"


def _stop_if_nothing_learned(options: IterativeOptions, rows: Sequence[Mapping[str, Any]]) -> None:
    """Stop a run that has skipped every iteration so far, whose set would be its start.

    Raises:
        RunError: with the smallest loss, which `skip_above` would have to exceed.
    """
    if all(row["event"].startswith(SKIPPED) for row in rows):
        least = min(row["loss"] for row in rows)
        raise RunError(
            f"all of the first {len(rows)} iterations were skipped and nothing was learned: the smallest loss of "
            f"{least:g} is above skip_above={options.skip_above:g}; raise skip_above, or lower step_size or inner_steps"
        )


def _furthest_moved(run: Run) -> str:
    def moved(name: str) -> float:
        now, safe = run.now.numbers[name], run.safe.numbers[name]
        return float((now - safe).norm() / safe.norm().clamp_min(1e-30))  # a number may start at zero

    return max(run.rates, key=moved)
