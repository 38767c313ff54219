"""Does a network with operations of our own compute what the network itself does?

Tracing cannot see everything that code may do: a decision by the type of a value, a function that returns its input and
changes gradients, memory that two values share. So outputs and both derivatives are compared once, in float64 on the
CPU, on a few images and at other weights than the network's own, so that a number that was taken from a weight shows.
"""

import torch
from torch import Tensor, nn

from satm.params import call_flat, flatten

FEW = 4
"""Images that are compared."""

CLOSE = 1e-8
"""Largest relative difference in float64; sums in another order differ by 1e-12 at most."""


def disagreement(made: nn.Module, module: nn.Module, images: Tensor) -> str | None:
    """Return why what the pass made is not used for a network; None: both compute the same; empty: the network fails.

    Args:
        made: what the pass made of it.
        module: the network.
        images: `[n, ...]` its input; its values do not matter.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(images[:FEW].shape, generator=generator, dtype=torch.float64)
    try:
        weights = flatten(module).double().cpu()
        weights = weights * (1 + 0.1 * torch.rand(weights.shape, generator=generator, dtype=torch.float64))
        weights += 0.01 * torch.randn(weights.shape, generator=generator, dtype=torch.float64)
        expected = _derivatives(module, weights, inputs)
    except Exception:  # a user's network may raise anything; whoever calls it will see that
        return ""
    try:
        found = _derivatives(made, weights, inputs)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    for one, other in zip(found, expected, strict=True):
        apart = float((one - other).norm() / other.norm().clamp(min=1e-30)) if one.shape == other.shape else 1.0
        if apart > CLOSE:
            return f"they would differ by {apart:.1e}"
    return None


def _derivatives(network: nn.Module, weights: Tensor, inputs: Tensor) -> list[Tensor]:
    """Return outputs, the gradient of a loss with respect to the weights, and a cotangent of it pulled back."""
    values, pixels = weights.clone().requires_grad_(), inputs.clone().requires_grad_()
    buffers = {
        name: buffer.detach().to("cpu", torch.float64 if buffer.is_floating_point() else buffer.dtype, copy=True)
        for name, buffer in network.named_buffers()
    }
    with torch.random.fork_rng([]), torch.enable_grad():
        torch.manual_seed(0)
        outputs = call_flat(network, values, pixels * 1, buffers)
        factors = torch.linspace(-1, 1, outputs.numel(), dtype=torch.float64).view(outputs.shape)
        loss = (outputs * factors).sum() + outputs.square().mean()
        (slope,) = torch.autograd.grad(loss, values, create_graph=True, materialize_grads=True)
        cotangent = torch.linspace(1, 2, len(slope), dtype=torch.float64)
        pulled = torch.autograd.grad(slope, [values, pixels], cotangent, materialize_grads=True)
    return [outputs.detach(), slope.detach(), *pulled]
