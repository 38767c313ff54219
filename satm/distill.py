"""The distillation loop of all methods: outer steps, measurements and rollbacks after failed steps.

Shapes: n synthetic images of C x H x W.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from satm.config.methods import IterativeOptions
from satm.errors import RunError
from satm.methods.parts.method import Method
from satm.methods.parts.problem import Synthetic
from satm.outer import NO_STATE, MethodState, OuterGradient
from satm.run.machine import peak_memory, reset_peak
from satm.run.stopping import Stop, check_stop
from satm.unroll import Adam, Momentum, Rule

SAFE_EVERY = 10
"""Iterations between two states for rollbacks. A rollback uses the last but one, after which at least as many further
iterations have succeeded."""

SKIPPED = "skipped"
"""First word of the event of a skipped iteration."""

MOST_SKIPPED = 100
"""The loop gives up if this number of iterations at the beginning were all skipped."""


@dataclass(frozen=True)
class State:
    """A synthetic set after an iteration; nothing in it is changed in place."""

    iteration: int  # completed outer steps
    numbers: Mapping[str, Tensor]  # by name: `images` or what they are computed from, `labels`, `step_size`
    moments: Mapping[str, Mapping[str, Tensor]]  # state of the outer optimiser, by name of the number
    method_state: MethodState  # carried by the method from one iteration to the next
    average: Mapping[str, Tensor] | None  # `images` and learned `labels` averaged over iterations; None without `ema`


@dataclass(frozen=True)
class Outcome:
    """The synthetic set that the loop returns."""

    iteration: int  # outer steps that led to it
    synthetic: Synthetic  # with `ema` the average
    raw: Synthetic | None  # with `ema` the set that is not averaged
    numbers: Mapping[str, Tensor]  # tensors that raw images are computed from; empty if images are learned themselves


@dataclass(frozen=True)
class Best:
    """The best set by accuracy on the split that the options select on."""

    accuracy: float
    outcome: Outcome


@dataclass
class Run:
    """State of the loop, from which it can resume, and its measurements."""

    now: State
    safe: State  # for the next rollback
    recent: State  # becomes `safe` after `SAFE_EVERY` further iterations
    rates: dict[str, float]  # current outer step size of each number
    attempt: int = 0  # rollbacks so far
    rows: list[dict[str, Any]] = field(default_factory=list)  # one per iteration, for metrics.parquet
    best: Best | None = None  # None if the last set is selected, or before the first look
    history: dict[int, Synthetic] = field(default_factory=dict)  # raw sets by iteration


Look = Callable[[Synthetic, int], float]
"""`(set, iteration) -> accuracy` on the split that the options select on or watch."""


def kept_iterations(options: IterativeOptions) -> list[int]:
    """Return the iterations after which the set is added to the history, ascending."""
    between = max(1, options.snapshots - 1)
    return sorted({index * options.iterations // between for index in range(options.snapshots)})


def begin(method: Method[IterativeOptions]) -> Run:
    """Return the run before its first iteration."""
    options, synthetic = method.options, method.start()
    numbers, rates = method.parameterisation.split(synthetic.images), method.rates()
    numbers = {**numbers, "step_size": synthetic.step_size, "labels": synthetic.labels}
    moments = {name: _rule(options, name).start(numbers[name]) for name in rates}
    composed = replace(synthetic, images=method.parameterisation.join(numbers))
    average = None if options.ema is None else _averaged(composed)
    state = State(0, numbers, moments, NO_STATE, average)
    return Run(state, state, state, rates)


def distill(
    method: Method[IterativeOptions],
    run: Run,
    look: Look | None,
    on_row: Callable[[Mapping[str, Any]], None],
    on_safe: Callable[[Run], None],
    on_stop: Callable[[Run], object] | None = None,
) -> Outcome:
    """Run the remaining iterations and return the last set, or the best one by `look`.

    The generator of an iteration is derived from its number, so a run resumed from any state given to `on_safe` gives
    the same bytes. A loss that is not finite or explodes, and a step size that is not positive, cause a rollback to the
    last safe state, with a lower outer learning rate of the tensor responsible.

    Args:
        method: computes the gradients.
        run: the state from `begin` or a checkpoint; it is changed in place.
        look: measures the accuracy of a set; None: no measurements.
        on_row: called with each row of metrics.
        on_safe: called every `SAFE_EVERY` iterations with the run, which can be stored then.
        on_stop: called on a stop request with the run before the interrupted iteration.

    Raises:
        RunError: after `max_rollbacks` rollbacks, if the first loss is unusable, or if the first `MOST_SKIPPED`
            iterations, or all, were skipped.
    """
    options = method.options
    kept = kept_iterations(options)
    try:
        while run.now.iteration < options.iterations:
            check_stop()  # gradient and look also check, between their steps; neither changes the run
            if run.now.iteration in kept:
                run.history[run.now.iteration] = compose(method, run.now)
            if run.now.iteration % SAFE_EVERY == 0 and run.recent.iteration != run.now.iteration:
                run.safe, run.recent = run.recent, run.now
                on_safe(run)
            on_row(_advance(method, run, look))
    except Stop:
        if on_stop:
            on_stop(run)
        raise
    if options.iterations in kept:
        run.history[options.iterations] = compose(method, run.now)
    return finished(method, run.now) if run.best is None else run.best.outcome


def _advance(method: Method[IterativeOptions], run: Run, look: Look | None) -> Mapping[str, Any]:
    """Perform one iteration, or a rollback, and return its row."""
    options, best, device = method.options, run.best, run.now.numbers["step_size"].device
    started = time.perf_counter()
    reset_peak(device)
    row, following, fault = _iterate(method, run)
    if fault is None:
        if following.iteration == min(MOST_SKIPPED, options.iterations):
            rows = [*run.rows, row]
            if all(each["event"].startswith(SKIPPED) for each in rows):
                raise RunError(
                    f"all of the first {len(rows)} iterations were skipped and nothing was learned: the smallest loss "
                    f"of {min(each['loss'] for each in rows):g} is above skip_above={options.skip_above:g}; raise "
                    "skip_above, or lower step_size or inner_steps"
                )
        due = following.iteration % options.evaluate_every == 0 or following.iteration == options.iterations
        if look is not None and due:
            outcome = finished(method, following)
            accuracy = look(outcome.synthetic, following.iteration)
            row[f"{options.watch or options.selection}_accuracy"] = accuracy
            if options.selection != "last" and (best is None or accuracy > best.accuracy):
                best = Best(accuracy, outcome)
        run.now, run.best = following, best
    else:
        row["event"] = _go_back(run, method, fault)
    row |= {"seconds": time.perf_counter() - started, "peak_memory_bytes": peak_memory(device)}
    run.rows.append(row)
    return row


def finished(method: Method[IterativeOptions], state: State) -> Outcome:
    """Return the set of a state in the form that is evaluated and stored."""
    composed, iteration = compose(method, state), state.iteration
    learned = {name: tensor for name, tensor in state.numbers.items() if name not in ("images", "labels", "step_size")}
    raw = method.finish(composed, iteration)
    if state.average is None:
        return Outcome(iteration, raw, None, learned)
    return Outcome(iteration, method.finish(replace(composed, **state.average), iteration), raw, learned)


def compose(method: Method[IterativeOptions], state: State) -> Synthetic:
    """Return the synthetic set of a state."""
    numbers = state.numbers
    return Synthetic(method.parameterisation.join(numbers), numbers["labels"], numbers["step_size"])


@dataclass(frozen=True)
class Fault:
    """Reason for a rollback."""

    text: str
    number: str | None = None  # the number responsible, if known


def _iterate(method: Method[IterativeOptions], run: Run) -> tuple[dict[str, Any], State, Fault | None]:
    """Return the row of one iteration, the state after it, and its fault, if any."""
    options, state = method.options, run.now
    before = compose(method, state)
    gradient = method.gradient(before, state.iteration, state.method_state)
    loss, norm = float(gradient.loss), float(gradient.images.norm() if gradient.norm is None else gradient.norm)
    row: dict[str, Any] = {
        "iteration": state.iteration + 1,
        "attempt": run.attempt,
        "event": "",
        "loss": loss,
        "step_size": float(before.step_size),
        "hypergradient_norm": norm,
        "sharpness": None if gradient.sharpness is None else float(gradient.sharpness),
        "step_size_gradient": float(gradient.step_size),
        **{f"lr_{name}": rate for name, rate in run.rates.items()},
        **method.observe(before, state.iteration),
    }
    whole = norm if gradient.labels is None else math.hypot(norm, float(gradient.labels.norm()))
    if not math.isfinite(loss) or not math.isfinite(whole):
        return row, state, Fault(f"the loss is {loss:g} and its hypergradient's norm {whole:g}")
    if options.skip_above is not None and loss > options.skip_above:
        row["event"] = f"{SKIPPED}: the loss of {loss:g} is above skip_above={options.skip_above:g}"
        return row, replace(state, iteration=state.iteration + 1, method_state=gradient.state), None
    if loss > options.explode:
        return row, state, Fault(f"the loss of {loss:g} is above explode={options.explode:g}")
    following = _step(method, run, gradient)
    step_size = float(following.numbers["step_size"])
    if not (math.isfinite(step_size) and step_size > 0):
        return row, state, Fault(f"the step size would become {step_size:g}", "step_size")
    if options.ema is not None and state.average is not None:
        now, decay = _averaged(compose(method, following)), options.ema
        average = {name: decay * old + (1 - decay) * now[name] for name, old in state.average.items()}
        following = replace(following, average=average)
    return row, following, None


def _step(method: Method[IterativeOptions], run: Run, outer: OuterGradient) -> State:
    """Return the state after the outer optimiser's step."""
    state = run.now
    gradients = {**method.parameterisation.pull(state.numbers, outer.images), "step_size": outer.step_size}
    if outer.labels is not None:
        gradients["labels"] = outer.labels
    numbers, moments = dict(state.numbers), dict(state.moments)
    for name, rate in run.rates.items():
        rule = _rule(method.options, name)
        moment = rule.start(numbers[name]) if outer.restart else dict(moments[name])
        direction, moments[name] = rule.direction(numbers[name], moment, gradients[name])
        if outer.share is not None and name in ("images", "labels"):
            direction = direction * outer.share.view(-1, *[1] * (direction.ndim - 1))
        numbers[name] = numbers[name] - rate * direction
    return State(state.iteration + 1, numbers, moments, outer.state, state.average)


def _rule(options: IterativeOptions, name: str) -> Rule:
    """Return the outer optimiser of a number."""
    if options.outer == "adam":
        return Adam()
    return Momentum(options.momentum_labels if name == "labels" else options.momentum)


def _averaged(synthetic: Synthetic) -> dict[str, Tensor]:
    """Return the tensors that are averaged: images, and labels if they are learned."""
    labels = {"labels": synthetic.labels} if synthetic.labels.is_floating_point() else {}
    return {"images": synthetic.images, **labels}


def _go_back(run: Run, method: Method[IterativeOptions], fault: Fault) -> str:
    """Roll back to the safe state with one rate lowered; return the text for log and metrics.

    If the fault names no tensor, the rate of the one that has changed most, relative to its norm, is lowered.

    Raises:
        RunError: too many rollbacks, or nothing has moved yet.
    """
    options = method.options
    where = f"in iteration {run.now.iteration + 1} {fault.text}"
    if fault.number is None and run.now.iteration == 0:
        advice = method.caution or "start with a smaller step_size or fewer inner_steps"
        raise RunError(f"{where}, before anything was learned; {advice}")
    if run.attempt >= options.max_rollbacks:
        rates = " and ".join(f"lr_{name} {rate:g}" for name, rate in run.rates.items())
        advice = method.caution or "start with lower rates"
        raise RunError(f"{where}; gave up after max_rollbacks {run.attempt}, with {rates} at the end; {advice}")

    def moved(name: str) -> float:
        now, safe = run.now.numbers[name], run.safe.numbers[name]
        return float((now - safe).norm() / safe.norm().clamp_min(1e-30))  # a number may start at zero

    name = fault.number or max(run.rates, key=moved)
    run.rates[name] *= options.lower
    run.attempt += 1
    run.now = run.recent = run.safe
    return f"{where}; went back to iteration {run.safe.iteration} and lowered lr_{name} to {run.rates[name]:g}"
