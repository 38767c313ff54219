"""How many inner steps the engine `mixed` stores: as many as fit into the memory.

The results are the same bytes for any number.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from satm.run.memory import memory_budget, ran_out
from satm.unroll.loop import InnerLoop, Point

LOG = logging.getLogger("satm")

T = TypeVar("T")

_most: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Most stored steps of networks for which memory ran out."""

_sizes: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], int]] = WeakKeyDictionary()
"""Bytes of the graph of a step, by network, and by shape and type of a step's images and labels."""


def stored_steps(loop: InnerLoop, point: Point, images: Tensor, labels: Tensor, first: int) -> int:
    """Return the number of last steps, from `first` on, whose graphs fit into the memory together."""
    shapes = [
        (len(images) if loop.batches is None else len(loop.batches[first]), *each.shape[1:])
        for each in (images, labels)
    ]
    key = (*shapes, images.dtype, images.device, labels.dtype)
    known = _sizes.setdefault(loop.module, {})
    if key not in known:
        known[key] = graph_bytes(loop, point, images, labels, first)
    return min(loop.steps - first, memory_budget(images.device) // max(1, known[key]))


def with_less(loop: InnerLoop, stored: int, run: Callable[[int], T]) -> T:
    """Return what `run` returns for a number of stored steps, which is halved as long as memory runs out.

    What fits is remembered for the network.
    """
    stored = min(stored, _most.get(loop.module, stored))
    while True:
        try:
            return run(stored)
        except (MemoryError, RuntimeError) as error:
            if stored == 0 or not ran_out(error):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        LOG.warning("memory ran out with the graphs of %d inner steps; going on with %d", stored, stored // 2)
        _most[loop.module] = stored = stored // 2


def graph_bytes(loop: InnerLoop, point: Point, images: Tensor, labels: Tensor, step: int) -> int:
    """Return the bytes that the graph of one step keeps, with its weights and its direction."""
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def same(tensor: Tensor) -> Tensor:
        return tensor

    given: Sequence[Tensor] = (point.weights, images, labels, *loop.module.buffers())
    weights, pixels = point.weights.detach().requires_grad_(), images.detach().requires_grad_()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, same):
        slope = loop.gradient(weights, pixels, labels, step)
        loop.rule.direction(weights, point.state, slope)
    size = sum(kept.values()) - sum(kept.pop(each.untyped_storage().data_ptr(), 0) for each in given)
    return size + 2 * point.weights.untyped_storage().nbytes()
