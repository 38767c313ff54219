"""The graph of what a network computes, and what it changes in place.

A graph is refused where it would not be all that the network does, so that the network keeps its own code.
"""

import inspect
import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

THROUGH = (nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.AvgPool2d, nn.MaxPool2d)
"""Layers that consist of one call of a function, which is what the pass looks for."""

IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow")
"""Operators that change their first operand, in the module `operator`."""


PLACES: dict[Any, int] = {functional.relu: 1, functional.leaky_relu: 2}
"""Place of the argument `inplace`."""


VIEWS = ("view", "view_as")
"""Methods that change a shape and fail in some memory formats."""

MEMORY = ("as_strided", "stride", "is_contiguous", "storage_offset", "untyped_storage", "data_ptr")
"""Names of methods and functions that depend on a memory format."""

ALIASES = (*VIEWS, "reshape", "reshape_as", "getitem", "permute", "transpose", "flatten", "squeeze", "unsqueeze")
"""Names of some methods and functions whose result may share memory with their first argument."""


def trace(module: nn.Module, root: bool) -> fx.Graph:
    """Return the graph of a network (`root`), whose input is its only argument, or of a part, in any memory format.

    Raises:
        Exception: of any kind, because tracing runs arbitrary code with stand-ins for values.
    """
    before = _attributes(module)
    graph = _Tracer().trace(module, concrete_args=_defaults(module) if root else None)
    after = _attributes(module)
    if len(before) != len(after) or any(
        one is not other for pair in zip(before, after, strict=True) for one, other in zip(*pair, strict=True)
    ):
        raise ValueError("an attribute is set, or a constant tensor is made")
    _reshape(graph, module)
    return graph


INSIDE = ("_parameters", "_buffers", "_modules")
"""Attributes of a module that hold others by name."""


def shell(module: nn.Module) -> nn.Module:
    """Return a module of the same classes, attributes, parameters and buffers; setting an attribute sets its own."""
    made: dict[nn.Module, nn.Module] = {}

    def copy(part: nn.Module) -> nn.Module:
        if part not in made:
            made[part] = one = object.__new__(type(part))
            vars(one).update(vars(part))
            for name in INSIDE:
                vars(one)[name] = dict(vars(part)[name])
            one._modules = {name: None if child is None else copy(child) for name, child in part._modules.items()}
        return made[part]

    return copy(module)


def _attributes(module: nn.Module) -> list[tuple[Any, ...]]:
    """Return all attributes of all parts of a module, to be compared by identity."""
    found: list[tuple[Any, ...]] = []
    for part in module.modules():
        for name, value in vars(part).items():
            if name in INSIDE:
                found += [(part, sys.intern(f"{name}.{inner}"), each) for inner, each in value.items()]
            else:
                found.append((part, sys.intern(name), value))
    return found


def fingerprint(module: nn.Module) -> list[Any]:
    """Return what the graph of a module may depend on, beside its code; equal for equal graphs."""
    found: list[Any] = []
    for part in module.modules():
        found.append((id(part), type(part), hooked(part)))
        for name, value in vars(part).items():
            if name == "_buffers":
                own = not type(part).__module__.startswith("torch.nn.")  # those of batch norms change in each step
                found += [
                    (each, id(buffer), buffer._version if own and buffer is not None else 0)
                    for each, buffer in value.items()
                ]
            elif name in INSIDE:
                found += [(each, id(inner)) for each, inner in value.items()]
            elif not name.endswith("_hooks"):
                found.append((name, value if _simple(value) else id(value)))
    return found


def _simple(value: Any) -> bool:
    """Return whether a value can be compared."""
    if isinstance(value, tuple | list):
        return all(map(_simple, value))
    return value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device | torch.Size)


class _Proxy(fx.Proxy):
    """A stand-in for a value, which an operator such as += changes in place, as it changes a tensor."""


def _change(name: str) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def change(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    return change


for _name in IN_PLACE:
    setattr(_Proxy, f"__{_name}__", _change(_name))


class _Tracer(fx.Tracer):
    """A tracer that looks into the layers that the pass replaces.

    It gives up on what a graph would forget: contexts such as `torch.no_grad()`, and random numbers, which would become
    constants.
    """

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Return the graph of a module.

        Raises:
            ValueError: the graph would not be all that the module does.
        """
        self._contexts, numbers = _contexts(), torch.get_rng_state()
        buffers = [buffer._version for buffer in root.buffers()]
        graph = super().trace(root, concrete_args)
        if buffers != [buffer._version for buffer in root.buffers()]:
            raise ValueError("a buffer is changed, which would not happen again")
        if not torch.equal(numbers, torch.get_rng_state()):
            torch.set_rng_state(numbers)
            raise ValueError("random numbers are drawn, which would become constants")
        return graph

    def create_node(self, *arguments: Any, **options: Any) -> fx.Node:
        """Return a new node, outside of contexts."""
        if _contexts() != self._contexts:
            raise ValueError("a context changes what operations do, and would be forgotten")
        return super().create_node(*arguments, **options)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return the stand-in for a node's value."""
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if hooked(m):
            return True
        return type(m) not in THROUGH and super().is_leaf_module(m, module_qualified_name)


def _contexts() -> tuple[bool, ...]:
    """Return the settings of torch that change what operations do or record."""
    cuda = torch.backends.cuda
    attention = (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled())
    casts = (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"))
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *casts, *attention)


def hooked(module: nn.Module) -> bool:
    """Return whether calls of a layer run hooks, which would be forgotten."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _defaults(module: nn.Module) -> dict[str, Any]:
    """Return the arguments of `forward` that have a default."""
    parameters = inspect.signature(module.forward).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def _reshape(graph: fx.Graph, module: nn.Module) -> None:
    """Let shapes be changed in any memory format.

    Raises:
        ValueError: the value, or its other shape, is changed in place afterwards, where the other shape would be a
            copy; or something else depends on the memory format.
    """
    viewed: set[fx.Node] = set()
    for node in graph.nodes:
        if _called(node) in MEMORY:
            raise ValueError("the memory format is looked at")
        if changes(node, module) and _owner(node, module) in viewed:
            raise ValueError("a value is changed in place that also has another shape")
        if node.op == "call_method" and node.target in VIEWS:
            if any(isinstance(each, torch.dtype) for each in node.args):
                raise ValueError("bits are looked at as another type of number")
            viewed.add(_owner(node, module))
            node.target = {"view": "reshape", "view_as": "reshape_as"}[str(node.target)]


def _owner(node: fx.Node, module: nn.Module) -> fx.Node:
    """Return the node whose memory a node's value may share."""
    while node.args and isinstance(node.args[0], fx.Node) and (_called(node) in ALIASES or changes(node, module)):
        node = node.args[0]
    return node


def changes(node: fx.Node, module: nn.Module) -> bool:
    """Return whether a node changes its first argument in place."""
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    name, place = _called(node), PLACES.get(node.target)
    by_option = bool(node.kwargs.get("inplace")) or (place is not None and any(node.args[place:]))
    return by_option or name in IN_PLACE or (name.endswith("_") and not name.endswith("__"))


def _called(node: fx.Node) -> str:
    """Return the name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
