"""The closed forms of `block.py` compiled by torch for a GPU, where they pass over memory fewer times."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from satm.errors import ran_out
from satm.ops.precision import exact_products

LOG = logging.getLogger("satm")

SHAPES = 256
"""Shapes that a function may be compiled for; torch would give up after eight."""

Function = Callable[..., tuple[Tensor, ...]]
"""A closed form: `(block, tensors) -> tensors`."""


class Compiled:
    """The functions `forward`, `first` and `second`, each compiled when it first meets a block and a shape.

    If that fails they run as they are, which one line of the log says.
    """

    def __init__(self, *functions: Function) -> None:
        self.forward, self.first, self.second = map(self._compile, functions)
        self._failed = False

    def _compile(self, function: Function) -> Function:
        compiled: list[Function] = []

        @functools.wraps(function)
        def run(*arguments: Any) -> tuple[Tensor, ...]:
            if not self._failed:
                try:
                    if not compiled:
                        compiled.append(_compile(function))
                    with exact_products():  # it has none, and a mode would be traced
                        return compiled[0](*arguments)
                except Exception as error:  # the compiler, its compiler and its cache may fail in any way
                    if ran_out(error):
                        raise
                    self._failed = True
                    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    LOG.info("the operations are not compiled for this GPU, so they take longer: %s", reason)
            return function(*arguments)

        return run


def _compile(function: Function) -> Function:
    import torch._dynamo.config as settings

    for name in ("recompile_limit", "cache_size_limit"):  # the second is the name in earlier versions
        if hasattr(settings, name):
            setattr(settings, name, max(SHAPES, getattr(settings, name)))
    return torch.compile(function, dynamic=False, fullgraph=True)


def can_compile(device: torch.device) -> bool:
    """Return whether functions are compiled for a device; on a CPU there are kernels instead."""
    return device.type == "cuda"
