"""A pass over a network that replaces its convolutions and blocks by operations of their own, leaving it unchanged.

The network's `forward` is traced. Every 2-D convolution becomes one of `satm.ops.convolution`; every norm with the
activation and the 2 x 2 pooling that follow it becomes a `satm.ops.block.Block`; everything else stays as it is. A
module that cannot be traced, because what it does depends on values, keeps its own `forward`, and the pass goes on with
the modules inside it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from satm.ops.block import Block
from satm.ops.convolution import Geometry, conv2d
from satm.ops.layer import layer
from satm.ops.trace import THROUGH, changes, fingerprint, hooked, shell, trace

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Modules of PyTorch's that may hold layers of any kind."""

NORMS = (nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._NormBase, nn.RMSNorm)
NORM_FUNCTIONS = (
    functional.group_norm,
    functional.layer_norm,
    functional.batch_norm,
    functional.instance_norm,
    functional.rms_norm,
)
"""Norms of PyTorch's, as layers and as functions."""


ADDED = "_operation_"
"""Beginning of the names of modules that the pass adds."""


MADE = "_made_by_satm"
"""Attribute of networks, and parts of networks, that the pass made: whether a norm is left to PyTorch."""

_known: WeakKeyDictionary[nn.Module, tuple[list[Any], nn.Module | None]] = WeakKeyDictionary()
"""Networks with what their code may depend on, and what the pass made of them; None: nothing."""


def fused(module: nn.Module) -> nn.Module:
    """Return a network that computes the same, with the same parameters by the same names, or the network itself.

    The parameters are shared. The result is to be called with the network's input alone. A network whose parts, modes
    or attributes have changed since the last call is traced again.
    """
    if is_fused(module):
        return module
    state = fingerprint(module)
    if module not in _known or _known[module][0] != state:
        made = _fuse(module)
        _known[module] = state, None if made is module else made
    found = _known[module][1]
    return module if found is None else found


def is_fused(module: nn.Module) -> bool:
    """Return whether the pass made a network."""
    return MADE in vars(module)


def has_plain_norm(module: nn.Module) -> bool:
    """Return whether a network has a norm of PyTorch's, or a part that could not be traced.

    The backward pass of such a norm follows another formula, with other rounding, if it is to be differentiated again.
    """
    return bool(vars(module).get(MADE, True))


def _fuse(module: nn.Module, root: bool = True) -> nn.Module:
    """Return a copy of the module with operations of its own, or the module itself if that changes nothing.

    Their results are in channels_last memory. Code that was not traced (`root` false) gets them as PyTorch's operations
    make them, because it may look at memory, as `Tensor.view` does.
    """
    ours = type(module) in THROUGH or isinstance(module, CONTAINERS) or not _from_torch(module)
    if hooked(module) or not ours:
        return module
    try:
        return _traced(module, root)
    except Exception:  # tracing runs arbitrary code with stand-ins for values
        made = shell(module)
        for name, child in module._modules.items():
            made._modules[name] = None if child is None else _fuse(child, root=False)
        vars(made)[MADE] = True
        return made


def _traced(module: nn.Module, root: bool) -> nn.Module:
    """Return a copy of the module that runs its graph."""
    graph, made = trace(shell(module), root), shell(module)
    _serve(graph, made)
    if not root:
        _restore(graph)
    vars(made)["forward"] = MethodType(type(fx.GraphModule(made, graph)).forward, made)
    vars(made)[MADE] = _plain_norm(made, graph)
    return made


def _from_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _plain_norm(module: nn.Module, graph: fx.Graph) -> bool:
    for node in graph.nodes:
        if node.op == "call_function" and node.target in NORM_FUNCTIONS:
            return True
        if node.op == "call_module":
            inner = module.get_submodule(node.target)
            if any(isinstance(each, NORMS) for each in inner.modules()):
                return True
    return False


class Convolution(nn.Module):
    """A convolution without parameters of its own: `(x, w, b) -> y`."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry

    def forward(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """Return the convolution."""
        return conv2d(x, w, b, self.geometry)


class ConvolutionBlock(nn.Module):
    """A convolution and the block behind it without parameters of their own: `(x, v, k, w, b) -> y`."""

    def __init__(self, geometry: Geometry, block: Block) -> None:
        super().__init__()
        self.geometry, self.block = geometry, block

    def forward(
        self, x: Tensor, v: Tensor, k: Tensor | None, w: Tensor | None = None, b: Tensor | None = None
    ) -> Tensor:
        """Return the block's result on the convolution."""
        if not (self.geometry.fits(x, v, k) and self.block.fits(x, len(v), w, b)):
            return self.block(self.geometry.plain(x, v, k), w, b)
        return layer(x, v, k, *self.block.affine(x, len(v), w, b), self.geometry, self.block)


class BlockLayer(nn.Module):
    """A block without parameters of its own: `(x, w, b) -> y`."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, w: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        """Return the block's result."""
        return self.block(x, w, b)


@dataclass(frozen=True)
class Part:
    """What one node of a graph does, in the words of a `Block`."""

    stage: int
    """0: norm, 1: activation, 2: pooling."""
    fields: dict[str, Any]
    """Fields of the block."""
    weights: tuple[Any, ...] = ()
    """Nodes or names of the norm's scale and shift."""


def _serve(graph: fx.Graph, module: nn.Module) -> None:
    """Replace convolutions and blocks in the graph by modules that are added to `module`."""
    done: set[fx.Node] = set()
    for node in list(graph.nodes):
        if node in done:
            continue
        if node.op == "call_function" and node.target is functional.conv2d and node.args:
            geometry, inputs = _read_convolution(*node.args, **node.kwargs)
            following = next(iter(node.users)) if len(node.users) == 1 else None
            chain = {} if following is None or following.args[:1] != (node,) else _chain(following, module)
            if geometry is not None and following is not None and chain and chain[following].stage == 0:
                done.update(chain)
                _put_chain(graph, module, chain, inputs, partial(ConvolutionBlock, geometry))
                graph.erase_node(node)
            elif geometry is not None:
                _put(graph, module, node, Convolution(geometry), inputs)
            continue
        chain = _chain(node, module)
        done.update(chain)
        if (len(chain) > 1 or (chain and chain[node].stage == 0)) and not _overwrites_what_others_see(node, module):
            _put_chain(graph, module, chain, (node.args[0],), BlockLayer)


def _restore(graph: fx.Graph) -> None:
    """Return the results in the memory format of PyTorch's operations if there are operations of our own.

    Raises:
        ValueError: they are more than one tensor.
    """
    if any(node.op == "call_module" and str(node.target).startswith(ADDED) for node in graph.nodes):
        (output,) = (node for node in graph.nodes if node.op == "output")
        if not isinstance(output.args[0], fx.Node):
            raise ValueError("a part returns more than one tensor")
        with graph.inserting_before(output):
            output.args = (graph.call_method("contiguous", (output.args[0],)),)


def _overwrites_what_others_see(node: fx.Node, module: nn.Module) -> bool:
    """Return whether an activation works in place on something that is not only its own: a block would not."""
    if node.op != "call_function" or not changes(node, module):
        return False
    source: Any = node.args[0]
    own = source.target is functional.conv2d or str(source.target).startswith(ADDED)
    return not own or len(source.users) > 1


def _put_chain(
    graph: fx.Graph,
    module: nn.Module,
    chain: dict[fx.Node, Part],
    inputs: tuple[Any, ...],
    make: Callable[[Block], nn.Module],
) -> None:
    """Replace the nodes of a block by a call of a new module with these inputs and the norm's scale and shift."""
    fields = {name: value for part in chain.values() for name, value in part.fields.items()}
    nodes = list(chain)
    with graph.inserting_before(nodes[-1]):
        weights = [graph.get_attr(each) if isinstance(each, str) else each for each in chain[nodes[0]].weights]
    _put(graph, module, nodes[-1], make(Block(**fields)), (*inputs, *weights))
    for node in nodes[-2::-1]:
        graph.erase_node(node)


def _put(graph: fx.Graph, module: nn.Module, node: fx.Node, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Replace a node by a call of a new module."""
    name = f"{ADDED}{node.name}"
    module._modules[name] = layer
    with graph.inserting_before(node):
        node.replace_all_uses_with(graph.call_module(name, inputs))
    graph.erase_node(node)


def _chain(node: fx.Node, module: nn.Module) -> dict[fx.Node, Part]:
    """Return the parts of the block that begins at a node; empty if none does."""
    chain: dict[fx.Node, Part] = {}
    part, stage = _read(node, module) if node.args else None, -1
    while part is not None and part.stage > stage:
        chain[node], stage = part, part.stage
        if len(node.users) != 1:
            break
        following = next(iter(node.users))
        part = _read(following, module) if following.args and following.args[0] is node else None
        node = following
    if chain and _changed_within(chain, module):  # the block would be computed where its last part was
        first = next(iter(chain))
        return {first: chain[first]}
    return chain


def _changed_within(chain: dict[fx.Node, Part], module: nn.Module) -> bool:
    """Return whether something else is changed in place between the first and the last part of a block."""
    nodes = list(chain)
    node, last = nodes[0], nodes[-1]
    while node is not last:
        node = node.next
        if node not in chain and changes(node, module):
            return True
    return False


def _read(node: fx.Node, module: nn.Module) -> Part | None:
    """Return what a node does if a block can do it."""
    if node.op == "call_module":
        return _read_layer(str(node.target), module.get_submodule(str(node.target)))
    if node.op == "call_method" and node.target in ("relu", "sigmoid"):
        return Part(1, {"activation": node.target})
    reader = READERS.get(node.target) if node.op == "call_function" else None
    return None if reader is None else reader(*node.args, **node.kwargs)


def _read_layer(name: str, layer: nn.Module) -> Part | None:
    """Return the part of a norm whose layer looks at the input's shape, so that its function cannot be traced."""
    if not isinstance(layer, nn.BatchNorm2d | nn.InstanceNorm2d) or layer.track_running_stats or hooked(layer):
        return None
    kind = {nn.BatchNorm2d: "batch", nn.InstanceNorm2d: "instance"}.get(type(layer))
    weights = (f"{name}.weight", f"{name}.bias") if layer.affine else ()
    return None if kind is None else Part(0, {"norm": kind, "eps": layer.eps}, weights)


def _read_convolution(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> tuple[Geometry | None, tuple[Any, ...]]:
    steps, border, spread = (_pair(each) for each in (stride, padding, dilation))
    if steps is None or border is None or spread is None:
        return None, ()
    return Geometry(steps, border, spread, groups), (input, weight, bias)


def _read_group_norm(input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Part:
    return Part(
        0, {"norm": "group", "groups": num_groups, "eps": eps}, () if weight is bias is None else (weight, bias)
    )


def _read_layer_norm(
    input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Part | None:
    if len(normalized_shape) != 3:
        return None
    return Part(0, {"norm": "layer", "eps": eps}, () if weight is bias is None else (weight, bias))


def _read_relu(input: Any, inplace: bool = False) -> Part:
    return Part(1, {"activation": "relu"})


def _read_leaky(input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Part:
    return Part(1, {"activation": "leaky", "slope": negative_slope})


def _read_sigmoid(input: Any) -> Part:
    return Part(1, {"activation": "sigmoid"})


def _read_average(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> Part | None:
    plain = _pair(padding) == (0, 0) and not ceil_mode and divisor_override is None
    return Part(2, {"pooling": "average"}) if plain and _halves(kernel_size, stride) else None


def _read_max(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Part | None:
    plain = _pair(padding) == (0, 0) and _pair(dilation) == (1, 1) and not ceil_mode and not return_indices
    return Part(2, {"pooling": "max"}) if plain and _halves(kernel_size, stride) else None


def _halves(kernel_size: Any, stride: Any) -> bool:
    return _pair(kernel_size) == (2, 2) and (stride is None or _pair(stride) == (2, 2))


def _pair(value: Any) -> tuple[int, int] | None:
    """Return a size of height and width; None if it is not a number, as in padding 'same'."""
    if isinstance(value, int):
        return value, value
    pair = tuple(value) if isinstance(value, (tuple, list)) else ()
    pair = pair * 2 if len(pair) == 1 else pair
    return pair if len(pair) == 2 and all(isinstance(each, int) for each in pair) else None


READERS: dict[Any, Callable[..., Part | None]] = {
    functional.group_norm: _read_group_norm,
    functional.layer_norm: _read_layer_norm,
    functional.relu: _read_relu,
    torch.relu: _read_relu,
    functional.leaky_relu: _read_leaky,
    torch.sigmoid: _read_sigmoid,
    functional.sigmoid: _read_sigmoid,
    functional.avg_pool2d: _read_average,
    functional.max_pool2d: _read_max,
}
"""Functions that a block can do, with the arguments of each."""
