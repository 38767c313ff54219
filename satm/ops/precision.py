"""Precision of convolutions and matrix products in a hypergradient: those of networks and of all derivatives.

The operands are rounded; weights and all other operations stay float32. In float64 nothing is rounded.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _get_current_dispatch_mode_stack

from satm.errors import pick

Precision = Literal["float32", "tf32", "bfloat16"]
"""`float32`: no rounding. `tf32`: operands have a mantissa of 10 bits instead of 23, as on the tensor cores of a GPU;
elsewhere TF32 is emulated by rounding in software, which is slower than float32. `bfloat16`: operands and results of
products are bfloat16, with a mantissa of 7 bits."""

FIRST_TF32 = (8, 0)
"""First compute capability of GPUs that multiply in TF32."""

DROPPED = 13
"""Bits of float32's mantissa that TF32 lacks."""

Rounding = Callable[[Tensor], Tensor]
"""Rounds an operand, also to another type."""

aten = torch.ops.aten


def to_tf32(tensor: Tensor) -> Tensor:
    """Return float32 numbers rounded to TF32, to the nearest and from halves away from zero."""
    half, dropped = 1 << (DROPPED - 1), (1 << DROPPED) - 1
    rounded = ((tensor.view(torch.int32) + half) & ~dropped).view(torch.float32)
    return torch.where(tensor.isfinite(), rounded, tensor)


def to_bfloat16(tensor: Tensor) -> Tensor:
    """Return numbers as bfloat16."""
    return tensor.to(torch.bfloat16)


ROUNDINGS: dict[str, Rounding | None] = {"float32": None, "tf32": to_tf32, "bfloat16": to_bfloat16}
"""How operands are rounded, by precision."""


def _convolution(low: Rounding, x: Tensor, w: Tensor, b: Tensor | None, *how: Any) -> Tensor:
    y: Tensor = aten.convolution(low(x), low(w), None, *how).float()
    return y if b is None else y + b.view(-1, *[1] * (y.ndim - 2))


def _convolution_backward(
    low: Rounding, dy: Tensor, x: Tensor, w: Tensor, sizes: Sequence[int] | None, *how: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    *numbers, (image, weight, bias) = how
    found: Any = (None, None)
    if image or weight:
        found = aten.convolution_backward(low(dy), low(x), low(w), None, *numbers, [image, weight, False])
    sums = dy.sum([0, *range(2, dy.ndim)]) if bias else None
    return found[0].float() if image else None, found[1].float() if weight else None, sums


def _product(function: Any) -> Callable[..., Tensor]:
    def product(low: Rounding, a: Tensor, b: Tensor) -> Tensor:
        result: Tensor = function(low(a), low(b)).float()
        return result

    return product


def _sum_with(function: Any) -> Callable[..., Tensor]:
    def product(low: Rounding, c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        result: Tensor = beta * c + alpha * function(low(a), low(b)).float()
        return result

    return product


PRODUCTS: dict[Any, Callable[..., Any]] = {
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    **{getattr(aten, name).default: _product(getattr(aten, name)) for name in ("mm", "bmm", "mv")},
    aten.addmm.default: _sum_with(aten.mm),
    aten.baddbmm.default: _sum_with(aten.bmm),
    aten.addmv.default: _sum_with(aten.mv),
}
"""What PyTorch's layers, functions and operators come down to, in all derivatives too. A recurrent layer or fused
attention may be a single operation, which is not rounded."""


class _Products(TorchDispatchMode):
    """Rounds the operands of products in float32."""

    def __init__(self, low: Rounding) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._low = low

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        product = PRODUCTS.get(function)
        tensors = [each for each in args if isinstance(each, Tensor)]
        if product and all(each.dtype == torch.float32 and each.layout == torch.strided for each in tensors):
            return product(self._low, *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def rounds(dtype: torch.dtype = torch.float32) -> bool:
    """Return whether operands of a type are rounded here, so that products must be operations of PyTorch's."""
    return dtype == torch.float32 and any(isinstance(mode, _Products) for mode in _get_current_dispatch_mode_stack())


@contextlib.contextmanager
def products_of(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute products in a precision inside: TF32 by a GPU that has it, and only if that is asked for.

    Raises:
        UsageError: an unknown precision.
    """
    low = pick(precision, ROUNDINGS, "precision")
    gpu = device.type == "cuda"
    by_gpu = gpu and precision == "tf32" and torch.cuda.get_device_capability(device) >= FIRST_TF32
    with (
        _on_gpus("tf32" if by_gpu else "ieee") if gpu else contextlib.nullcontext(),
        contextlib.nullcontext() if by_gpu or low is None else _Products(low),
    ):
        yield


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Compute products in float32 inside, also within `products_of`."""
    with (
        _on_gpus("ieee") if torch.cuda.is_initialized() else contextlib.nullcontext(),
        _disable_current_modes() if rounds() else contextlib.nullcontext(),
    ):
        yield


@contextlib.contextmanager
def _on_gpus(value: str) -> Iterator[None]:
    """Set the precision of float32 products on GPUs inside, as PyTorch names it."""
    backends: Any = torch.backends
    places = (backends.cudnn.conv, backends.cuda.matmul)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = value
        yield
    finally:
        for place, earlier in zip(places, before, strict=True):
            place.fp32_precision = earlier
