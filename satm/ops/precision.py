"""The precision of products, those of convolutions and matrices, inside a network and all of its derivatives.

Weights, images, sums and everything between two products stay float32. In float64 nothing is rounded.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from satm.errors import pick

Precision = Literal["float32", "tf32", "bfloat16"]
"""`float32`: as it is. `tf32`: operands have 10 bits after the point instead of 23, as the tensor cores of a GPU round
them; elsewhere they are rounded by further operations, which takes longer. `bfloat16`: operands and results have 7."""

FIRST_TF32 = (8, 0)
"""First compute capability of GPUs that multiply in TF32."""

DROPPED = 13
"""Bits of float32 that TF32 lacks."""

PRODUCTS = (
    functional.conv1d,
    functional.conv2d,
    functional.conv3d,
    functional.linear,
    torch.matmul,
    Tensor.matmul,
    Tensor.__matmul__,
    torch.mm,
    Tensor.mm,
    torch.bmm,
    Tensor.bmm,
    torch.einsum,
)
"""Products of PyTorch's; attention has one inside, which stays float32."""


@dataclass(frozen=True)
class Rounding:
    """How the operands of a product are rounded, and its result is given back as float32.

    Each is the derivative of the other, so that the operands of the products of all derivatives are rounded too.
    """

    low: Callable[[Tensor], Tensor]
    keep: Callable[[Tensor], Tensor]

    def of(self, product: Callable[..., Any], *operands: Any, **others: Any) -> Any:
        """Return a product of operands, of which those in float32 are rounded."""
        rounded, named = pytree.tree_map_only(Tensor, self._operand, (operands, others))
        return pytree.tree_map_only(Tensor, self.keep, product(*rounded, **named))

    def _operand(self, tensor: Tensor) -> Tensor:
        return self.low(tensor) if tensor.dtype == torch.float32 else tensor


class _Low(torch.autograd.Function):
    """Rounds to TF32; one-dimensional tensors are biases, which are added to sums in float32."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        if tensor.ndim == 1:
            return tensor.view_as(tensor)
        half, dropped = 1 << (DROPPED - 1), (1 << DROPPED) - 1
        return ((tensor.contiguous().view(torch.int32) + half) & ~dropped).view(torch.float32)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        kept: Tensor = _Keep.apply(cotangent)
        return kept


class _Keep(torch.autograd.Function):
    """The identity; its derivative rounds."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        rounded: Tensor = _Low.apply(cotangent)
        return rounded


def _short(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16)


def _long(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32) if tensor.dtype == torch.bfloat16 else tensor


ROUNDINGS = {"float32": None, "tf32": Rounding(_Low.apply, _Keep.apply), "bfloat16": Rounding(_short, _long)}

_inside: list[Rounding] = []
"""The roundings of the networks that are being called, the innermost last."""


class _Products(TorchFunctionMode):
    """Rounds the operands of PyTorch's products."""

    def __init__(self, rounding: Rounding) -> None:
        super().__init__()
        self._rounding = rounding

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # Without gradients it is called by an operation of our own, whose operands are rounded.
        if function in PRODUCTS and torch.is_grad_enabled():
            return self._rounding.of(function, *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def rounded(precision: Precision, device: torch.device) -> Iterator[None]:
    """Round the products of a network that is called inside, in the way that the device does not round by itself."""
    rounding = None if _by_device(precision, device) else ROUNDINGS[precision]
    if rounding is None:
        yield
        return
    _inside.append(rounding)
    try:
        with _Products(rounding):
            yield
    finally:
        _inside.pop()


def rounding_here() -> Rounding | None:
    """Return how the products of the network that is being called are to be rounded; None: not at all."""
    return _inside[-1] if _inside else None


@contextlib.contextmanager
def products_of(precision: Precision, device: torch.device) -> Iterator[None]:
    """Let a GPU multiply in TF32 inside, in networks and their derivatives, if that is asked for and only then.

    Raises:
        UsageError: an unknown precision.
    """
    pick(precision, ROUNDINGS, "precision")
    places: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul) if device.type == "cuda" else ()
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = _by_device(precision, device)
        yield
    finally:
        for place, allowed in zip(places, before, strict=True):
            place.allow_tf32 = allowed


def _by_device(precision: Precision, device: torch.device) -> bool:
    return precision == "tf32" and device.type == "cuda" and torch.cuda.get_device_capability(device) >= FIRST_TF32
