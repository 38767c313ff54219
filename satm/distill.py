"""The distillation loop, one for all methods: outer steps, measurements, and the way back when a step goes wrong.

Shapes: n synthetic images of C x H x W.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from satm.errors import RunError
from satm.machine import peak_memory, reset_peak
from satm.methods import IterativeMethod, IterativeOptions, Synthetic

SAFE_EVERY = 10
"""Iterations between two states that the loop may go back to. It goes back to the last but one, which at least so many
further iterations have shown to be good."""


@dataclass(frozen=True)
class State:
    """A synthetic set on its way; nothing in it is changed in place.

    Args:
        iteration: outer steps done.
        synthetic: the set.
        images_velocity: `[n, C, H, W]` momentum buffer.
        step_size_velocity: `[]` momentum buffer.
    """

    iteration: int
    synthetic: Synthetic
    images_velocity: Tensor
    step_size_velocity: Tensor


@dataclass(frozen=True)
class Best:
    """The best set by accuracy on the split that the options select on."""

    accuracy: float
    iteration: int
    synthetic: Synthetic


@dataclass
class Run:
    """Everything that the loop needs to go on, and what it has measured.

    Args:
        now: the current state.
        safe: the state to go back to.
        recent: the state that becomes `safe` after `SAFE_EVERY` further iterations.
        lr_images: current outer step size of the images.
        lr_step_size: current outer step size of the inner step size.
        attempt: how often the loop went back.
        rows: one per iteration, for metrics.parquet.
        best: None where the last set is kept, or before the first look.
    """

    now: State
    safe: State
    recent: State
    lr_images: float
    lr_step_size: float
    attempt: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    best: Best | None = None


Look = Callable[[Synthetic, int], float]
"""`(set, iteration) -> accuracy` on the split that the options select on."""


def begin(method: IterativeMethod) -> Run:
    """Return the run before its first iteration."""
    options: IterativeOptions = method.settings
    synthetic = method.start()
    state = State(0, synthetic, torch.zeros_like(synthetic.images), torch.zeros_like(synthetic.step_size))
    return Run(state, state, state, options.lr_images, options.lr_step_size)


def distill(
    method: IterativeMethod,
    run: Run,
    look: Look | None,
    on_row: Callable[[Mapping[str, Any]], None],
    on_safe: Callable[[Run], None],
) -> Synthetic:
    """Do the iterations that are left and return the synthetic set.

    Each iteration draws from a generator derived from its number, so going on from any state that `on_safe` was given
    ends at the same bytes. A loss that is not finite or explodes, and a step size that is not positive, send the loop
    back to the last safe state with the offending rate lowered.

    Args:
        method: what makes the gradient.
        run: from `begin`, or stored earlier; changed in place.
        look: accuracy of a set; None where the last one is kept.
        on_row: called with each row of metrics.
        on_safe: called every `SAFE_EVERY` iterations with the run, which can be stored then.

    Returns:
        the last set, or the best one by `look`.

    Raises:
        RunError: the loop went back `max_rollbacks` times, or the first loss is unusable already.
    """
    options: IterativeOptions = method.settings
    device = run.now.synthetic.images.device
    while run.now.iteration < options.iterations:
        if run.now.iteration % SAFE_EVERY == 0 and run.recent.iteration != run.now.iteration:
            run.safe, run.recent = run.recent, run.now
            on_safe(run)
        started = time.perf_counter()
        reset_peak(device)
        row, following, fault = _iterate(method, run)
        if fault is None:
            run.now = following
            due = run.now.iteration % options.evaluate_every == 0 or run.now.iteration == options.iterations
            if look is not None and due:
                accuracy = look(run.now.synthetic, run.now.iteration)
                row[f"{options.selection}_accuracy"] = accuracy
                if run.best is None or accuracy > run.best.accuracy:
                    run.best = Best(accuracy, run.now.iteration, run.now.synthetic)
        else:
            row["event"] = _go_back(run, options, fault)
        row["seconds"] = time.perf_counter() - started
        row["peak_memory_bytes"] = peak_memory(device)
        run.rows.append(row)
        on_row(row)
    return run.now.synthetic if run.best is None else run.best.synthetic


@dataclass(frozen=True)
class Fault:
    """Why an iteration cannot be kept.

    Args:
        text: what happened.
        rate: the rate to lower, where it is known: `lr_images` or `lr_step_size`.
    """

    text: str
    rate: str | None = None


def _iterate(method: IterativeMethod, run: Run) -> tuple[dict[str, Any], State, Fault | None]:
    """Return the row of one iteration, the state after it, and what is wrong with it."""
    options: IterativeOptions = method.settings
    state = run.now
    found = method.gradient(state.synthetic, state.iteration)
    loss, norm = float(found.loss), float(found.images.norm())
    row: dict[str, Any] = {
        "iteration": state.iteration + 1,
        "attempt": run.attempt,
        "event": "",
        "loss": loss,
        "step_size": float(state.synthetic.step_size),
        "hypergradient_norm": norm,
        "sharpness": None if found.sharpness is None else float(found.sharpness),
        "step_size_gradient": float(found.step_size),
        "lr_images": run.lr_images,
        "lr_step_size": run.lr_step_size,
    }
    if not math.isfinite(loss) or not math.isfinite(norm):
        return row, state, Fault(f"the loss is {loss:g} and its hypergradient's norm {norm:g}")
    if loss > options.explode:
        return row, state, Fault(f"the loss of {loss:g} is above explode={options.explode:g}")
    images_velocity = options.momentum * state.images_velocity + found.images
    step_size_velocity = options.momentum * state.step_size_velocity + found.step_size
    synthetic = replace(
        state.synthetic,
        images=state.synthetic.images - run.lr_images * images_velocity,
        step_size=state.synthetic.step_size - run.lr_step_size * step_size_velocity,
    )
    step_size = float(synthetic.step_size)
    if not (math.isfinite(step_size) and step_size > 0):
        return row, state, Fault(f"the step size would become {step_size:g}", "lr_step_size")
    return row, State(state.iteration + 1, synthetic, images_velocity, step_size_velocity), None


def _go_back(run: Run, options: IterativeOptions, fault: Fault) -> str:
    """Return to the safe state with the offending rate lowered; return the text for log and metrics.

    Without a known offender, it is the rate whose quantity has moved further, relative to itself, since the safe state.

    Raises:
        RunError: too often, or nothing has moved yet.
    """
    where = f"in iteration {run.now.iteration + 1} {fault.text}"
    if fault.rate is None and run.now.iteration == 0:
        raise RunError(f"{where}, before anything was learned; start with a smaller step_size or fewer inner_steps")
    if run.attempt >= options.max_rollbacks:
        raise RunError(
            f"{where}; gave up after going back {run.attempt} times (max_rollbacks), with lr_images {run.lr_images:g} "
            f"and lr_step_size {run.lr_step_size:g} at the end; start with lower rates"
        )
    rate = fault.rate or _further_moved(run)
    setattr(run, rate, getattr(run, rate) * options.lower)
    run.attempt += 1
    run.now = run.recent = run.safe
    return f"{where}; went back to iteration {run.safe.iteration} and lowered {rate} to {getattr(run, rate):g}"


def _further_moved(run: Run) -> str:
    now, safe = run.now.synthetic, run.safe.synthetic
    images = float((now.images - safe.images).norm() / safe.images.norm())
    step_size = float((now.step_size - safe.step_size).abs() / safe.step_size)
    return "lr_step_size" if step_size > images else "lr_images"
