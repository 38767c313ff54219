"""An inner step and its pullback recorded as CUDA graphs, and replayed for every step.

The GPU computes a small step faster than the CPU can ask for its hundreds of operations one by one. A recording asks
once. It has fixed shapes and tensors of its own, into which the arguments of a step are copied; selecting and
augmenting the step's images stays outside. A recording is used if its first results are those of the operations one by
one; else a line of the log says why it is not.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from satm.errors import ran_out
from satm.unroll.loop import InnerLoop

LOG = logging.getLogger("satm")

WARM_UP = 3
"""Calls before a recording, in which libraries choose algorithms and allocate what they keep."""

MOST = 4
"""Recordings that are kept for a network."""

RUNS = 5
"""Runs of a measurement."""

CLOSE = 1e-2
"""Largest relative difference of a recording's first results; ReLUs flip with rounding."""


class Recording:
    """A function of tensors, recorded with copies of some example arguments.

    Calling it returns the recording's own tensors, which the next call overwrites.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], examples: Sequence[Tensor]) -> None:
        self._arguments = [example.detach().clone() for example in examples]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                function(*self._arguments)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._results = list(function(*self._arguments))

    def __call__(self, *arguments: Tensor) -> list[Tensor]:
        """Return the results for arguments of the recorded shapes."""
        for own, given in zip(self._arguments, arguments, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._results


class RecordedStep:
    """The gradient of an inner step, and its pullback, as recordings.

    Args:
        loop: the inner loop; it is not kept, so that a recording does not keep its network.
        weights: `[P]`, an example.
        images: `[b, C, H, W]` images of a step, an example.
        labels: labels of these images, an example.
    """

    times_as_fast = 1.0
    """Speed, measured, of a step computed twice with recordings, against one computed once whose graph is kept."""

    def __init__(self, loop: InnerLoop, weights: Tensor, images: Tensor, labels: Tensor) -> None:
        self._slope = Recording(lambda *given: [slope_of(loop, *given)], (weights, images, labels))
        self._pull = Recording(partial(pull_of, loop), (weights, images, labels, weights))

    def slope(self, weights: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return what `slope_of` does."""
        return self._slope(weights, images, labels)[0].clone()

    def pull(self, weights: Tensor, images: Tensor, labels: Tensor, cotangent: Tensor) -> list[Tensor]:
        """Return what `pull_of` does."""
        return [each.clone() for each in self._pull(weights, images, labels, cotangent)]


def slope_of(loop: InnerLoop, weights: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of the inner loss, `[P]`, without a graph."""
    with torch.enable_grad():
        return loop.slope(weights.detach().requires_grad_(), images, labels, graph=False)


def pull_of(loop: InnerLoop, weights: Tensor, images: Tensor, labels: Tensor, cotangent: Tensor) -> list[Tensor]:
    """Return the cotangents of weights, images and, if they are soft, labels from that of the gradient, `[P]`."""
    with torch.enable_grad():
        inputs = [each.detach().requires_grad_(each.is_floating_point()) for each in (weights, images, labels)]
        slope = loop.slope(inputs[0], inputs[1], inputs[2])
        leaves = [each for each in inputs if each.requires_grad]
        return list(torch.autograd.grad(slope, leaves, cotangent, materialize_grads=True))


_recorded: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], RecordedStep | None]] = WeakKeyDictionary()
"""Recordings of networks by loss, shapes and types; None: it is not used."""


def recorded_step(loop: InnerLoop, weights: Tensor, images: Tensor, labels: Tensor, first: int) -> RecordedStep | None:
    """Return the recording for the steps of a loop, made before or now; None if there is none.

    Args:
        loop: the inner loop.
        weights: `[P]` weights before the first step.
        images: `[n, C, H, W]` all images.
        labels: their labels.
        first: index of the first step.
    """
    if not _can_record(images.device):
        return None
    with torch.no_grad():
        examples = (weights, *loop.batch(images, labels, first))
    known = _recorded.setdefault(loop.module, {})
    key = (loop.loss, loop.precision, *((each.shape, each.dtype, each.device) for each in examples))
    if key not in known:
        while len(known) >= MOST:  # such as those of a loss that is made anew for each call
            del known[next(iter(known))]
        known[key] = _record(loop, *examples)
    return known[key]


def _can_record(device: torch.device) -> bool:
    return device.type == "cuda"


def _record(loop: InnerLoop, weights: Tensor, images: Tensor, labels: Tensor) -> RecordedStep | None:
    """Return a recording whose results are right, or None with a line in the log."""
    try:
        given = weights, images, labels
        step, slope = RecordedStep(loop, *given), slope_of(loop, *given)
        expected, found = pull_of(loop, *given, slope), step.pull(*given, slope)
        apart = max(map(_apart, [step.slope(*given), *found], [slope, *expected]))
        stored = _seconds(images.device, lambda: pull_of(loop, *given, slope))
        replayed = _seconds(images.device, lambda: (step.slope(*given), step.pull(*given, slope)))
    except Exception as error:  # drivers and a user's network may raise anything
        if ran_out(error):
            torch.cuda.empty_cache()
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    else:
        if apart <= CLOSE:
            step.times_as_fast = stored / replayed
            text = "inner steps are recorded as CUDA graphs, %.2f times as fast as steps whose graphs are kept"
            LOG.info(text, step.times_as_fast)
            return step
        reason = f"its results differ by {apart:.1e}"
    LOG.info("inner steps are not recorded as CUDA graphs, so they take longer (%s)", reason)
    return None


def _apart(one: Tensor, other: Tensor) -> float:
    """Return the relative difference of two tensors."""
    return float((one - other).norm() / other.norm().clamp(min=1e-30))


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Return the seconds of one of some runs."""
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(RUNS):
        work()
    torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / RUNS
