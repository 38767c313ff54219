"""A network's parameters as one flat vector, the network as a function of that vector, and its buffers.

Shapes: P parameters in total.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def flatten(module: nn.Module) -> Tensor:
    """Return a copy of the parameters, `[P]`, in the order of `module.named_parameters()`."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()]).clone()


def unflatten(module: nn.Module, vector: Tensor) -> dict[str, Tensor]:
    """Return the parameters by name as views of `vector`; gradients flow to `vector`.

    Raises:
        ValueError: the vector's length is not the number of parameters.
    """
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]
    if vector.shape != (sum(sizes),):
        raise ValueError(
            f"expected a vector of this network's {sum(sizes)} parameters, got shape {tuple(vector.shape)}; "
            "check the network and its options"
        )
    parts = torch.split(vector, sizes)
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def load_flat(module: nn.Module, vector: Tensor) -> None:
    """Copy a vector, `[P]`, into the module's parameters, in place.

    Raises:
        ValueError: the vector's length is not the number of parameters.
    """
    values = unflatten(module, vector)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(values[name])


def buffer_names(module: nn.Module) -> list[str]:
    """Return the names of the buffers that belong to the module's state, such as running statistics."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return [name for name in module.state_dict() if name not in parameters]


def stored_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return copies on the CPU of the buffers of `buffer_names` by name."""
    state = module.state_dict()
    return {name: state[name].detach().to("cpu", copy=True) for name in buffer_names(module)}


def call_flat(module: nn.Module, vector: Tensor, inputs: Tensor, buffers: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return `module(inputs)` with `vector`, `[P]`, instead of the module's own parameters, and other buffers if given.

    A layer that the module has under several names gets its parameters under one: `functional_call` leaves the given
    ones in it otherwise.
    """
    values = unflatten(module, vector)
    shared = {id(parameter): values[name] for name, parameter in module.named_parameters()}
    given = {
        f"{place}.{name}" if place else name: shared[id(parameter)]
        for place, layer in module.named_modules()
        for name, parameter in layer._parameters.items()
        if parameter is not None
    }
    output: Tensor = torch.func.functional_call(module, {**given, **(buffers or {})}, (inputs,), tie_weights=False)
    return output
