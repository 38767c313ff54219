"""The memory of a hypergradient, before it is computed: its peak, the steps that can be stored, and what would fit.

The results are the same bytes for any number of stored steps.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from satm.errors import RunError, UsageError, pick, ran_out
from satm.ops import has_plain_norm
from satm.run.machine import peak_inside
from satm.run.memory import free_memory, in_words, memory_budget
from satm.unroll.engines import ENGINES, Derivatives, Unroll
from satm.unroll.recording import recorded_step

LOG = logging.getLogger("satm")

UNLIKE = 1e-3
"""Relative difference of the gradients of a step and of its repetition that is no rounding; GPUs add in any order."""

FEW = 6
"""Steps of a rehearsal. With 3, predicted peaks are up to a fifth too low: the allocator's waste grows at first."""

SOME = (4, 8)
"""Images of two steps, from which the memory of one with many images is estimated."""

PER_GRAPH = 3.0
"""Peak memory of a step and its derivatives, as a multiple of what its graph keeps; 2.7 to 2.9 at 100 images a step."""


@dataclass(frozen=True)
class Plan:
    """Memory of a hypergradient.

    Args:
        peak: predicted peak in bytes, on a GPU of torch, on a CPU of the process.
        free: bytes that could be taken when the plan was made.
    """

    peak: int
    free: int


_most: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Most stored steps of networks for which memory ran out."""

_graphs: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], int]] = WeakKeyDictionary()
"""Bytes of the graph of a step by network and `Unroll.kind`."""

_few_images: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], tuple[int, float]]] = WeakKeyDictionary()
"""Bytes of the graph of a step of `SOME[0]` images, and of each further image, by network and `Unroll.kind[1:]`."""

_alike: WeakKeyDictionary[nn.Module, set[tuple[Any, ...]]] = WeakKeyDictionary()
"""Networks, and sizes of step (`Unroll.kind`), whose gradients have the same bytes with and without a graph."""

_plans: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], Plan]] = WeakKeyDictionary()
"""First plan by network, engine and `Unroll.kind`."""


def probe(unroll: Unroll) -> int:
    """Return the bytes that the graph of a step keeps; the first call for a network and a size of step checks the step.

    Raises:
        ValueError: the step fails, does not depend on the images, or gives something else when it is repeated.
        RunError: the memory that is free is too small.
    """
    graphs = _graphs.setdefault(unroll.loop.module, {})
    if unroll.kind not in graphs:
        if problem := shortage(unroll):
            raise RunError(problem)
        graphs[unroll.kind] = _check_step(unroll)
    return graphs[unroll.kind]


def _check_step(unroll: Unroll) -> int:
    """Return the bytes of the first step's graph; the errors are those of `probe`."""
    loop, numbers = unroll.loop, torch.get_rng_state()
    weights, pixels = (each.detach().requires_grad_() for each in (unroll.point.weights, unroll.images))
    try:
        with torch.enable_grad():
            size = graph_bytes(unroll, unroll.first)
            slope, again, brief = (
                loop.gradient(weights, pixels, unroll.labels, unroll.first, graph) for graph in (True, True, False)
            )
            changed = float((again - slope).detach().norm()) > UNLIKE * float(slope.detach().norm())
            _alike.setdefault(loop.module, set())
            if torch.equal(brief, slope):
                _alike[loop.module].add(unroll.kind)
            (share,) = torch.autograd.grad(slope.sum(), pixels, allow_unused=True)
    except (UsageError, RunError):
        raise
    except Exception as error:  # a user's network may raise anything
        if ran_out(error):
            raise
        step = f"an inner step with {unroll.batch} images of {list(unroll.images.shape[1:])}"
        what = f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}"
        raise ValueError(f"{step} fails ({what}); check the network, images, labels and loss") from error
    finally:
        torch.set_rng_state(numbers)
    if changed:
        raise ValueError(
            "an inner step gives another gradient when it is repeated, because it draws random numbers or changes a "
            "buffer; take that out of the network, the augmentation and the loss"
        )
    if share is None:
        raise ValueError(
            "the gradient of an inner step does not depend on the images; look for detach(), no_grad() or "
            "NumPy in the network, the augmentation and the loss"
        )
    return size


def needs_graph(unroll: Unroll) -> bool:
    """Return whether gradients of a network have other bytes without a graph, so that they are computed with one."""
    return has_plain_norm(unroll.loop.module) or unroll.kind not in _alike.get(unroll.loop.module, ())


def run_engine(unroll: Unroll) -> Derivatives:
    """Run the engine, with half as many stored steps as long as memory runs out; what fits is remembered."""
    module, engine = unroll.loop.module, pick(unroll.engine, ENGINES, "engine")
    stored = min(unroll.stored, _most.get(module, unroll.stored))
    while True:
        try:
            return engine(replace(unroll, stored=stored))
        except (MemoryError, RuntimeError) as error:
            if stored == 0 or not ran_out(error):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        LOG.warning("memory ran out with the graphs of %d inner steps; going on with %d", stored, stored // 2)
        _most[module] = stored = stored // 2


def one_step(unroll: Unroll, module: nn.Module) -> None:
    """Compute the gradient of the first step, and pull a cotangent of it back, with another network."""
    weights, pixels = (each.detach().requires_grad_() for each in (unroll.point.weights, unroll.images))
    with torch.enable_grad():
        slope = unroll.with_network(module).loop.gradient(weights, pixels, unroll.labels, unroll.first)
        torch.autograd.grad(slope, [weights, pixels], slope.detach(), allow_unused=True)


def stored_steps(unroll: Unroll) -> int:
    """Return the number of last steps whose graphs are kept: as many as fit into the memory together, in `mixed` only.

    On a GPU none is kept if it is faster to replay recordings twice. The first call for a network, an engine and a size
    of step rehearses a few steps and logs the predicted peak.

    Raises:
        ValueError, RunError: as `probe`.
    """
    graph = max(1, probe(unroll))
    stored = min(unroll.steps, memory_budget(unroll.images.device) // graph) if unroll.engine == "mixed" else 0
    if stored:
        recorded = recorded_step(unroll.loop, unroll.point.weights, unroll.images, unroll.labels, unroll.first)
        stored = 0 if recorded is not None and recorded.times_as_fast >= 1 else stored
    plans, key = _plans.setdefault(unroll.loop.module, {}), (unroll.engine, unroll.kind)
    if key not in plans:
        plans[key] = plan = make_plan(unroll, stored, graph)
        kept = f"; the graphs of {stored} of {unroll.steps} inner steps are kept" if unroll.engine == "mixed" else ""
        about = f"memory: about {in_words(plan.peak)} at the peak of a hypergradient"
        about += f", {in_words(plan.free)} were free" if plan.free else ""
        LOG.info("%s%s", about, kept)
    return stored


def plans() -> list[Plan]:
    """Return the plans that this process has made for networks that are still there."""
    return [plan for made in _plans.values() for plan in made.values()]


def make_plan(unroll: Unroll, stored: int, graph: int) -> Plan:
    """Return the plan for a number of stored steps; it rehearses the last steps, which changes no result.

    Args:
        unroll: the differentiated steps.
        stored: last steps whose graphs `mixed` keeps.
        graph: bytes of the graph of a step.
    """
    device, few = unroll.images.device, min(FEW, unroll.steps)
    free, kept = free_memory(device), min(few, stored)
    with peak_inside(device) as peak:
        run_engine(replace(unroll, first=unroll.loop.steps - few, stored=kept))
        now = peak()
    more = unroll.steps - few
    with_graphs = {"mixed": stored - kept, "reverse": more}.get(unroll.engine, 0)
    with_weights = more - with_graphs if unroll.engine == "mixed" else 0
    return Plan(now + with_graphs * graph + with_weights * unroll.point_bytes, free)


def graph_bytes(unroll: Unroll, step: int, images: int | None = None) -> int:
    """Return the bytes that the graph of one step keeps, with its weights and its direction.

    Args:
        unroll: the differentiated steps.
        step: index of the step.
        images: number of images to use instead of the step's batch, without augmentation; None: the batch.
    """
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def same(tensor: Tensor) -> Tensor:
        return tensor

    loop, point = unroll.loop, unroll.point
    given: Sequence[Tensor] = (point.weights, unroll.images, unroll.labels, *loop.module.buffers())
    pixels, labels = unroll.images[:images].detach().requires_grad_(), unroll.labels[:images]
    if images is not None:
        loop = replace(loop, batches=None, augment=None)
    weights = point.weights.detach().requires_grad_()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, same):
        slope = loop.gradient(weights, pixels, labels, step)
        loop.rule.direction(weights, point.state, slope)
    size = sum(kept.values()) - sum(kept.pop(each.untyped_storage().data_ptr(), 0) for each in given)
    return size + 2 * point.weights.untyped_storage().nbytes()


def shortage(unroll: Unroll) -> str | None:
    """Return that even a single step takes more memory than is free, and what would fit; None: it does not.

    It is estimated from steps of a few images, because the system ends a process that takes too much.
    """
    free, batch, steps = free_memory(unroll.images.device), unroll.batch, unroll.steps
    if not free or batch <= SOME[1]:
        return None
    sizes, kind = _few_images.setdefault(unroll.loop.module, {}), unroll.kind[1:]
    if kind not in sizes:
        try:
            few, more = (graph_bytes(unroll, unroll.first, images) for images in SOME)
        except Exception:  # such as a loss for batches of one length
            return None
        sizes[kind] = few, (more - few) / (SOME[1] - SOME[0])
    few, each = sizes[kind]
    graph = few + (batch - SOME[0]) * each
    path = unroll.point_bytes * steps
    needed = PER_GRAPH * graph + {"mixed": path, "reverse": (steps - 1) * graph}.get(unroll.engine, 0)
    if needed <= free:
        return None
    path = path if unroll.engine == "mixed" else 0
    fewer = int((free - path - PER_GRAPH * few) / (PER_GRAPH * each)) + SOME[0] if each else 0
    by_mixed = unroll.point_bytes * steps + PER_GRAPH * graph
    if unroll.engine == "reverse" and by_mixed <= free:
        advice = f"engine mixed takes about {in_words(by_mixed)}"
    elif unroll.engine != "reverse" and fewer >= 1:
        advice = f"at most about {fewer} images in a step (batch_size) would fit"
    else:
        advice = "use fewer inner steps, a smaller network or a machine with more memory"
    return (
        f"a hypergradient of {steps} inner steps with {batch} images each takes about {in_words(needed)} of memory "
        f"with engine {unroll.engine}, and {in_words(free)} are free; {advice}"
    )
