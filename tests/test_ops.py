"""Operations with second derivatives of their own, against PyTorch's, and the pass that puts them into networks."""

import copy
import gc
import itertools
import logging
import os
import shutil
import stat
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from drawing import torch_generator
from tolerances import DISTINCT, LOOPS, SINGLE, SUMS
from torch import Tensor, nn
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from satm.networks import build
from satm.networks.base import NETWORKS
from satm.ops import build as compiling
from satm.ops import fused, has_plain_norm, native, winograd
from satm.ops.block import Block
from satm.ops.convolution import Geometry, conv2d
from satm.ops.fuse import BlockLayer, Convolution, ConvolutionBlock
from satm.params import call_flat, flatten
from satm.unroll import hypergradient

NORMS = ("none", "instance", "group", "layer", "batch")
ACTIVATIONS = ("none", "relu", "leaky", "sigmoid")
POOLINGS = ("none", "average", "max")

SHAPES = [(3, 8, 6, 6), (1, 20, 7, 7), (2, 4, 5, 6), (2, 16, 1, 1), (1, 36, 3, 2)]
"""Images, channels, height and width: more and fewer channels than a vector holds, odd sizes, one image."""


@pytest.fixture(params=["closed", "native"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Blocks by their closed forms in PyTorch, or by compiled kernels where there are some for a block."""
    if request.param == "closed":
        monkeypatch.setattr("satm.ops.block.native", lambda block, x: None)
    elif native.native(Block("instance"), torch.ones(1, 1, 1, 1)) is None:
        pytest.skip("no kernels can be compiled here")
    return str(request.param)


@pytest.fixture
def compiler() -> None:
    """Skip without a compiler."""
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler, c++")


def twin(block: Block, x: Tensor, w: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    """Return what a block computes, by PyTorch's functions."""
    if block.norm in ("instance", "group"):
        x = functional.group_norm(x, x.shape[1] if block.norm == "instance" else block.groups, w, b, block.eps)
    elif block.norm == "layer":
        x = functional.layer_norm(x, x.shape[1:], w, b, block.eps)
    elif block.norm == "batch":
        x = functional.batch_norm(x, None, None, w, b, True, eps=block.eps)
    if block.activation == "leaky":
        x = functional.leaky_relu(x, block.slope)
    elif block.activation != "none":
        x = {"relu": functional.relu, "sigmoid": torch.sigmoid}[block.activation](x)
    return (
        {"none": x, "average": functional.avg_pool2d(x, 2), "max": functional.max_pool2d(x, 2)}[block.pooling]
        if (min(x.shape[2:]) > 1)
        else x
    )


def values(block: Block, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return random images and, with a norm, its scale and shift, to differentiate by."""
    generator = torch_generator(sum(shape))
    scale = {"none": [], "layer": [shape[1:]] * 2}.get(block.norm, [(shape[1],)] * 2)
    drawn = [torch.randn(each, generator=generator, dtype=torch.float64) for each in (shape, *scale)]
    return [each.to(dtype).requires_grad_() for each in drawn]


def derivatives(function: Callable[..., Tensor], inputs: list[Tensor], seed: int = 7) -> list[Tensor]:
    """Return the result, its gradients, and the gradients of a random sum of both with respect to everything."""
    generator = torch_generator(seed)

    def like(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)

    y = function(*inputs)
    dy = like(y).requires_grad_()
    first = grad(y, inputs, dy, create_graph=True)
    total = sum((each * like(each)).sum() for each in (y, *first))
    second = grad(total, [*inputs, dy], materialize_grads=True)
    return [each.detach() for each in (y, *first, *second)]


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest relative difference; a gradient that is zero is compared with the largest one."""
    least = 1e-6 * max(float(each.norm()) for each in theirs)
    return max(
        float((a.double() - b.double()).norm() / b.double().norm().clamp_min(least))
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_a_block_equals_pytorch_in_both_derivatives(norm: Any, shape: tuple[int, ...], kernels: str) -> None:
    for activation, pooling in itertools.product(ACTIVATIONS, POOLINGS):
        if min(shape[2:]) < 2 and pooling != "none":
            continue
        block = Block(norm, 4, 1e-5, activation, 0.1, pooling)
        inputs = values(block, shape)
        if norm in ("instance", "batch", "group") and shape[2] * shape[3] == 1:
            continue  # PyTorch refuses to normalise one value
        difference = apart(derivatives(block, inputs), derivatives(lambda *each, b=block: twin(b, *each), inputs))
        assert difference < SUMS, (block, difference)


@pytest.mark.parametrize("norm", NORMS)
def test_a_block_in_float32_is_as_exact_as_pytorch(norm: Any, kernels: str) -> None:
    for activation, pooling in itertools.product(ACTIVATIONS, POOLINGS):
        block = Block(norm, 4, 1e-5, activation, 0.1, pooling)
        exact = derivatives(lambda *each, b=block: twin(b, *each), values(block, (4, 24, 12, 12)))
        single = values(block, (4, 24, 12, 12), torch.float32)
        ours = apart(derivatives(block, single), exact)
        theirs = apart(derivatives(lambda *each, b=block: twin(b, *each), single), exact)
        assert ours < 3 * theirs + 1e-6, (block, ours, theirs)


@pytest.mark.parametrize(
    "block", [Block("instance", 1, 1e-5, "leaky", 0.1, "average"), Block("batch", activation="sigmoid")]
)
def test_a_block_passes_torchs_checks(block: Block, kernels: str) -> None:
    inputs = values(block, (2, 3, 4, 4))
    assert gradcheck(block, inputs) and gradgradcheck(block, inputs)


GEOMETRIES = {
    "same": (Geometry((1, 1), (1, 1), (1, 1), 1), 3),
    "stride": (Geometry((2, 2), (1, 1), (1, 1), 1), 3),
    "uneven": (Geometry((2, 1), (0, 2), (1, 2), 1), 3),
    "groups": (Geometry((1, 1), (1, 1), (1, 1), 2), 3),
    "depthwise": (Geometry((1, 1), (1, 1), (1, 1), 4), 3),
    "pointwise": (Geometry((1, 1), (0, 0), (1, 1), 1), 1),
    "wide": (Geometry((1, 1), (2, 2), (1, 1), 1), 5),
    "pointwise, stride": (Geometry((2, 2), (0, 0), (1, 1), 1), 1),
    "pointwise, uneven stride": (Geometry((3, 1), (0, 0), (1, 1), 2), 1),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_convolution_equals_pytorch_in_both_derivatives(name: str, bias: bool) -> None:
    geometry, side = GEOMETRIES[name]
    generator = torch_generator()
    shapes = [(2, 4, 7, 6), (8, 4 // geometry.groups, side, side), *[(8,)] * bias]
    inputs = [torch.randn(each, generator=generator, dtype=torch.float64).requires_grad_() for each in shapes]

    def ours(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return conv2d(x, w, b, geometry)

    def theirs(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return functional.conv2d(x, w, b, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)

    assert apart(derivatives(ours, inputs), derivatives(theirs, inputs)) < SUMS
    assert gradcheck(ours, inputs) and gradgradcheck(ours, inputs)


class Calls(TorchDispatchMode):
    """Remembers the strides and masks of convolutions whose gradients PyTorch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[list[int], list[bool]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.seen.append((list(args[4]), list(args[10])))
        return func(*args, **(kwargs or {}))


def test_no_gradient_of_pointwise_weights_is_asked_for_with_a_stride() -> None:
    x, w = torch.randn(8, 4, 16, 16).requires_grad_(), torch.randn(8, 4, 1, 1).requires_grad_()
    with Calls() as calls:
        conv2d(x, w, None, Geometry((2, 2), (0, 0), (1, 1), 1)).square().sum().backward()
    assert sorted(calls.seen) == [([1, 1], [False, True, False]), ([2, 2], [True, False, False])]


WINOGRAD = [(1, 16, 16, 4, 4), (3, 32, 64, 7, 5), (2, 64, 32, 8, 9), (2, 96, 32, 16, 16)]
"""Images, channels before and after, height and width."""


def layer(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Return random images, weights and a bias, of usual sizes."""
    count, before, after, height, width = shape
    generator = torch_generator()
    shapes = [(count, before, height, width), (after, before, 3, 3), (after,)]
    drawn = [torch.randn(each, generator=generator, dtype=torch.float64) for each in shapes]
    drawn[1] /= 3 * before**0.5
    return [each.to(dtype).requires_grad_() for each in drawn]


def usual(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return conv2d(x, w, b, Geometry((1, 1), (1, 1), (1, 1), 1))


def plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return functional.conv2d(x, w, b, padding=1)


@pytest.mark.parametrize("shape", WINOGRAD, ids=str)
def test_winograds_algorithm_equals_pytorch_in_both_derivatives(shape: tuple[int, ...], compiler: None) -> None:
    inputs = layer(shape, torch.float64)
    assert winograd.winograd(inputs[0], inputs[1])
    assert apart(derivatives(usual, inputs), derivatives(plain, inputs)) < SUMS


@pytest.mark.parametrize("shape", [(4, 128, 128, 16, 16), (10, 64, 64, 8, 8), (64, 32, 32, 12, 12)], ids=str)
def test_winograds_algorithm_in_float32_is_as_exact_as_pytorch(shape: tuple[int, ...], compiler: None) -> None:
    exact = derivatives(plain, layer(shape, torch.float64))
    single = layer(shape, torch.float32)
    assert winograd.winograd(single[0], single[1])
    for ours, theirs, truth in zip(derivatives(usual, single), derivatives(plain, single), exact, strict=True):
        assert apart([ours], [truth]) < 3 * apart([theirs], [truth]) + 1e-7


def test_winograds_algorithm_passes_torchs_checks(compiler: None) -> None:
    inputs = [each[:, :16] if each.ndim == 4 else each for each in layer((1, 16, 16, 4, 4), torch.float64)]
    few = [each.detach().requires_grad_() for each in inputs]
    assert winograd.winograd(few[0], few[1])
    assert gradcheck(usual, few, fast_mode=True) and gradgradcheck(usual, few, fast_mode=True)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 16, 16, 4, 4), torch.float32), ((1, 32, 24, 4, 4), torch.float32), ((1, 32, 32, 3, 8), torch.float32)],
)
def test_other_convolutions_are_left_to_pytorch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, w, _ = layer(shape, dtype)
    assert not winograd.winograd(x, w)
    assert not winograd.winograd(x.bfloat16(), w.bfloat16())


def test_a_pass_for_weights_computes_no_gradient_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    backward = Geometry.backward

    def watched(self: Geometry, dy: Tensor, x: Tensor, w: Tensor, image: bool, weight: bool, bias: bool) -> Any:
        asked.append((x.shape[1], image, weight, bias))
        return backward(self, dy, x, w, image, weight, bias)

    monkeypatch.setattr(Geometry, "backward", watched)
    module = fused(build({"network": "convnet", "width": 4, "depth": 2}, 3, 2, 8, 0))
    images = torch.ones(1, 3, 8, 8, requires_grad=True)
    weights = flatten(module).requires_grad_()
    loss = call_flat(module, weights, images * 1).sum()
    (slope,) = grad(loss, weights, create_graph=True)
    assert {channels for channels, image, *_ in asked if image} == {4} and (3, False, True, True) in asked
    grad(slope.sum(), images)
    assert any(channels == 3 and image for channels, image, *_ in asked)


OPTIONS: dict[str, list[dict[str, Any]]] = {
    "convnet": [
        {"width": 8, "norm": norm, "activation": activation, "pooling": pooling}
        for norm in ("none", "batch", "layer", "instance", "group")
        for activation in ("sigmoid", "relu", "leakyrelu")
        for pooling in ("none", "max", "average")
    ],
    "vit-tiny": [{"width_factor": 0.25, "depth": 1}],
    "vit-small": [{"width_factor": 0.125, "depth": 1}],
    "vit-base": [{"width_factor": 0.0625, "depth": 1}],
}
CASES = [
    {"network": name, **options}
    for name in NETWORKS
    for options in OPTIONS.get(name, [{"width_factor": 0.05, "norm": norm} for norm in ("none", "instance", "batch")])
]


def unrolled(module: nn.Module, images: Tensor, labels: Tensor, steps: int = 2) -> list[Tensor]:
    """Return the gradients with respect to images and weights of the weights after plain SGD, by autograd alone."""
    start, pixels = flatten(module).requires_grad_(), images.clone().requires_grad_()
    weights = start
    for _ in range(steps):
        loss = functional.cross_entropy(call_flat(module, weights, pixels), labels)
        weights = weights - 0.1 * grad(loss, weights, create_graph=True)[0]
    return list(grad(weights.square().sum(), [pixels, start]))


@pytest.mark.parametrize("size", [28, 32])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(each) for each in case.values()))
def test_a_fused_network_trains_as_the_plain_one(case: dict[str, Any], size: int) -> None:
    if case["network"] == "convnet":
        size //= 4
    elif size == 28 and case["network"] != "convnet":
        pytest.skip("these networks are for 32 pixels")
    module = build(case, 3, 4, size, 0).double()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = part.running_var = part.num_batches_tracked = None
            part.track_running_stats = False
    generator = torch_generator()
    images = torch.randn(3, 3, size, size, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 3, 1])
    made = fused(module)
    assert [name for name, _ in made.named_parameters()] == [name for name, _ in module.named_parameters()]
    assert any(isinstance(part, Convolution | ConvolutionBlock | BlockLayer) for part in made.modules())
    assert not any(isinstance(part, Convolution | ConvolutionBlock | BlockLayer) for part in module.modules())
    torch.testing.assert_close(made(images), module(images), rtol=SUMS, atol=SUMS)
    assert apart(unrolled(made, images, labels), unrolled(module, images, labels)) < LOOPS
    assert has_plain_norm(made) == case["network"].startswith("vit")


class Functional(nn.Module):
    """A network that calls functions, has a branch, and normalises without a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding="same")
        self.norm, self.spare = nn.InstanceNorm2d(8), nn.Linear(3, 2)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        x = self.one(x)
        branch = functional.relu(self.norm(x))
        x = functional.avg_pool2d(torch.relu(self.norm(self.two(branch)) + branch), 2) * scale
        x = functional.max_pool2d(functional.group_norm(x, 8).sigmoid(), 2)
        return self.last(x.mean((2, 3)))


class Valued(Functional):
    """A network whose steps depend on values."""

    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        x = self.two(self.one(x))
        if float(x.detach().mean()) > 1e9:
            x = 2 * x
        return self.last(functional.relu(self.norm(x)).mean((2, 3)))


class Unlike(nn.Module):
    """A network for inputs without pixels, whose norms and activations are those of images."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 8), nn.GroupNorm(2, 8), nn.ReLU(inplace=True), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1)[:, :12])


class Contexts(Functional):
    """A network whose first layer learns nothing, and which rounds a part of its values."""

    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        with torch.no_grad():
            kept = functional.relu(self.norm(self.one(x)))
        return self.last(functional.relu(self.norm(self.two(kept + x.mean(1, keepdim=True)))).mean((2, 3)))


class Noise(Functional):
    """A network that draws numbers, the same ones for a seed."""

    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        torch.manual_seed(3)
        x = functional.relu(self.norm(self.one(x))) + torch.rand(8, 1, 1, dtype=x.dtype)
        return self.last(functional.relu(self.norm(self.two(x))).mean((2, 3)))


class InPlace(Functional):
    """A network that changes values in place, also where others look at them."""

    views = False

    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        x = self.one(x * 1)
        seen = x
        x += 1
        x.mul_(scale)
        functional.leaky_relu(x, 0.1, True)
        x = functional.avg_pool2d(x, 2) + seen[..., ::2, ::2][..., :4, :4]
        y = self.two(x)
        z = functional.max_pool2d(functional.relu(y, inplace=True), 2)
        z -= 0.5
        normed = self.norm(z)
        normed.add_(0.1)
        flat = normed.view(-1) if self.views else normed * 1
        flat *= 3
        normed = functional.avg_pool2d(functional.relu(normed, inplace=True), 2)
        rows = (normed.mean((2, 3)) + y.mean((2, 3)) + flat.mean()).unsqueeze(1).view(x.shape[0], -1)
        return self.last(functional.relu(self.last.weight.new_ones(()) + rows, inplace=True))


class Views(InPlace):
    """The same, also through a view."""

    views = True


class ValuedInPlace(InPlace):
    """The same, whose steps depend on values."""

    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        return super().forward(x if float(x.detach().mean()) < 1e9 else 2 * x, scale)


class Layers(nn.Module):
    """Layers that change in place what another one has made."""

    def __init__(self) -> None:
        super().__init__()
        one, two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        shaping = [one, nn.ELU(inplace=True), nn.InstanceNorm2d(8), nn.SiLU(inplace=True), two, nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*shaping, nn.AvgPool2d(2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.InstanceNorm2d(3), nn.ReLU(), nn.AvgPool2d(2)],
        [nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU()],
        [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)],
    ],
)
def test_one_image_without_a_batch_is_as_in_pytorch(layers: list[nn.Module]) -> None:
    module, image = nn.Sequential(*layers), torch.randn(3, 8, 8, generator=torch_generator())
    torch.testing.assert_close(fused(module)(image), module(image), rtol=SINGLE, atol=SINGLE)


def hooked() -> nn.Module:
    module = Functional()
    module.one.register_forward_hook(lambda layer, inputs, output: output * 3)
    return module


@pytest.mark.parametrize(
    "make", [Functional, Valued, Unlike, Contexts, Noise, InPlace, Views, ValuedInPlace, Layers, hooked]
)
def test_a_users_network_is_fused_without_changes(make: Callable[[], nn.Module]) -> None:
    module = make().double()
    images = torch.randn(3, 3, 9, 9, generator=torch_generator(), dtype=torch.float64)
    labels = torch.tensor([0, 3, 1])
    before = module(images).detach()
    made = fused(module)
    assert fused(module) is made and fused(made) is made
    torch.testing.assert_close(made(images), before, rtol=SUMS, atol=SUMS)
    assert torch.equal(module(images), before)
    # Some parameters are unused, so their gradient is none.
    ours, theirs = (unused(each, images, labels) for each in (made, module))
    assert apart(ours, theirs) < LOOPS


def unused(module: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    found = hypergradient(
        module, images, labels, 0.1, lambda weights: weights.square().sum(), steps=2, engine="reverse"
    )
    return [found.images, found.start if found.start is not None else found.end]


class Sees(nn.Module):
    """A network of two convolutions and a norm, whose subclasses do what tracing cannot see."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4)
        self.last, self.shift = nn.Linear(4, 4), nn.Parameter(torch.randn(4, generator=torch_generator()))
        self.register_buffer("scale", torch.full((), 2.0))

    def end(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.two(x)).mean((2, 3)))


class Types(Sees):
    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        return self.end(h * 2 if isinstance(h, Tensor) else h)


class Optional(Sees):
    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        return self.end(h * 2 if getattr(h, "extra", None) is not None else h)


class Guarded(Sees):
    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        try:
            factor = float(h.detach().abs().max())
        except Exception:
            factor = 1.0
        return self.end(h * factor)


class Late(Sees):
    """Changes the input of a block after its first part."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        active = torch.sigmoid(h)
        h = h.add_(1)
        return self.end(functional.max_pool2d(active, 2)) + self.last(h.mean((2, 3)))


class Shapes(Sees):
    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        z = y.flatten(1)
        z.mul_(0.5)
        y.contiguous().mul_(0.5)
        return self.end(y) + z.mean()


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x) if isinstance(x, Tensor) else x

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return -0.3 * slope


class Reverses(Sees):
    def forward(self, x: Tensor) -> Tensor:
        return self.end(_Reversed.apply(self.one(x)))


class Shifted(Sees):
    def forward(self, x: Tensor) -> Tensor:
        return self.end(functional.group_norm(self.one(x), 2, None, self.shift).relu())


class Constants(Sees):
    """Takes numbers from a weight and a buffer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.one(x) * float(self.shift.detach().sum()) * (1 / self.scale))


class Classes(Sees):
    """Looks at the class of its parts, which it also calls by another name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.calls = [self.one.forward]

    def forward(self, x: Tensor) -> Tensor:
        h = x if float(x.detach().mean()) < 1e9 else 2 * x
        for part in self.children():
            if type(part) is nn.Sequential:
                h = part(h)
        return self.end(h) + self.calls[0](x).mean()


class Keywords(Sees):
    def forward(self, x: Tensor, dims: Any = (2, 3), options: Any = {"k": 2.0}) -> Tensor:  # noqa: B006
        h = functional.relu(input=self.norm(input=self.one(input=x)))
        return self.end(torch.flatten(input=h, start_dim=3)) * options["k"] + h.mean(dims).mean()


class Registered(Sees):
    """Its class takes part in what its subclasses are."""

    known: ClassVar[list[str]] = []

    def __init_subclass__(cls, *, name: str) -> None:
        cls.known.append(name)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "factor"}

    def __init__(self) -> None:
        super().__init__()
        self.factor = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.one(x) * self.factor)


class Pairs(Sees):
    """A part returns two values, in code that looks at memory."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Pair(self.one)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.part(x)
        return self.end(one.view(len(one), -1).view_as(one)) * two


class Pair(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.layer(x)
        return h, h.mean()


class Inner(Sees):
    """Takes a gradient itself."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.requires_grad_()
            (slope,) = torch.autograd.grad(self.end(self.one(x)).square().sum(), x, create_graph=True)
        return self.end(self.one(x + slope))


class Caches(Sees):
    """Sets attributes."""

    kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = torch.ones_like(x[:1])
        self.features = self.one(x + self.kept)
        return self.end(self.features)


ODD = [Types, Optional, Guarded, Late, Shapes, Reverses, Shifted, Constants, Classes, Keywords]
ODD += [Registered, Pairs, Inner]


@pytest.mark.parametrize("make", ODD)
def test_what_tracing_cannot_see_is_left_to_pytorch(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make().double()
    images = torch.randn(3, 3, 9, 9, generator=torch_generator(), dtype=torch.float64)
    found = {}
    for way in ("own", "plain"):
        monkeypatch.setenv("SATM_OPERATIONS", way)
        found[way] = unused(module, images, torch.tensor([0, 3, 1]))
    assert apart(found["own"], found["plain"]) < LOOPS


def test_a_network_is_not_changed_by_looking_at_it() -> None:
    module, images = Caches(), torch.randn(2, 3, 9, 9, generator=torch_generator())
    before = {name: id(value) for name, value in vars(module).items()}
    assert fused(module) is not module
    assert {name: id(value) for name, value in vars(module).items()} == before and module.kept is None
    assert type(module(images)) is Tensor


@pytest.mark.parametrize("change", ["attribute", "buffer", "stride", "hook"])
def test_what_a_network_depends_on_is_looked_at_again(change: str) -> None:
    class Depends(Sees):
        factor = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.end(self.one(x) * self.factor / self.scale)

    module, images = Depends().double(), torch.randn(2, 3, 9, 9, generator=torch_generator(), dtype=torch.float64)
    before = unused(module, images, torch.tensor([0, 1]))
    if change == "attribute":
        module.factor = 3.0
    elif change == "buffer":
        module.scale.fill_(5.0)
    elif change == "stride":
        module.one.stride = (2, 2)
    else:
        module.one.register_forward_hook(lambda layer, inputs, output: output * 3)
    after = unused(module, images, torch.tensor([0, 1]))
    os.environ["SATM_OPERATIONS"] = "plain"
    try:
        expected = unused(module, images, torch.tensor([0, 1]))
    finally:
        os.environ["SATM_OPERATIONS"] = "own"
    assert apart(after, expected) < LOOPS < DISTINCT < apart(after, before)


def test_a_network_is_not_kept() -> None:
    module = nn.Linear(3, 3)
    assert fused(module) is module
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(3, 32, 3, padding=1)],
        [nn.Conv2d(3, 32, 3, padding=1).double(), nn.GroupNorm(4, 32)],
        [nn.Conv2d(4, 32, 3, padding=1).double()],
        [nn.Conv2d(3, 32, 3).double(), nn.GroupNorm(4, 32), nn.ReLU()],
    ],
)
def test_weights_that_do_not_fit_are_refused_as_by_pytorch(layers: list[nn.Module]) -> None:
    module, images = nn.Sequential(*layers), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    with pytest.raises((RuntimeError, ValueError)) as expected:
        module(images)
    with pytest.raises(type(expected.value)):
        fused(module)(images)


def test_a_network_that_changes_is_fused_again() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(2))
    images = torch.randn(1, 3, 8, 8, generator=torch_generator())
    before = fused(module)
    module[1] = nn.Sigmoid()
    assert fused(module) is not before
    torch.testing.assert_close(fused(module)(images), module(images))


def test_a_copy_of_a_fused_network_is_one_of_its_own() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(4, 4), nn.ReLU())
    images = torch.randn(1, 3, 8, 8, generator=torch_generator())
    twin_of = copy.deepcopy(module)
    before = fused(module)(images)
    with torch.no_grad():
        twin_of[0].weight.zero_()
    assert torch.equal(fused(module)(images), before)
    assert not torch.equal(fused(twin_of)(images), before)


def test_values_that_are_not_finite_are_not_lost(kernels: str) -> None:
    for pooling, bad in itertools.product(POOLINGS, (float("nan"), float("inf"), 1e30)):
        x = torch.ones(1, 3, 4, 4, dtype=torch.float32)
        x[0, 1, 2, 2] = bad
        y = Block("instance", activation="relu", pooling=pooling)(x)
        assert not y[0, 1].isfinite().any() and y[0, 0].isfinite().all(), (pooling, bad)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder without kernels, and a process that has loaded none."""
    monkeypatch.setenv("SATM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    forget()
    yield tmp_path / "cache"
    forget()


def forget() -> None:
    """Let the process forget what it has loaded, and what it has said."""
    for function in (compiling.library, compiling._without, native._native, winograd._kernels):
        function.cache_clear()


def build_one() -> native.Native | None:
    return native.native(Block("instance"), torch.ones(1, 2, 2, 1))


BUILD = """
import torch
from satm.ops import native
from satm.ops.block import Block
assert native.native(Block("instance"), torch.ones(1, 2, 2, 1)) is not None
"""


def test_kernels_are_built_once(empty_cache: Path, compiler: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "satm")
    assert build_one() is not None
    (library,) = (empty_cache / "kernels").iterdir()
    assert stat.S_IMODE((empty_cache / "kernels").stat().st_mode) == 0o700
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("compiled kernels built in ")
    forget()
    time = library.stat().st_mtime_ns
    assert build_one() is not None
    assert library.stat().st_mtime_ns == time and len(caplog.messages) == 1


def test_a_library_serves_without_a_compiler(
    empty_cache: Path, compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_one()
    forget()
    monkeypatch.setenv("PATH", "/nowhere")
    assert build_one() is not None


def test_a_library_that_was_cut_short_is_built_again(empty_cache: Path, compiler: None) -> None:
    subprocess.run([sys.executable, "-c", BUILD], check=True)
    (library,) = (empty_cache / "kernels").iterdir()
    library.write_bytes(library.read_bytes()[:1000])
    subprocess.run([sys.executable, "-c", BUILD], check=True)
    assert library.stat().st_size > 1000 and list((empty_cache / "kernels").iterdir()) == [library]


def test_another_source_has_another_library(
    empty_cache: Path, compiler: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build_one()
    other = tmp_path / "block.cpp"
    other.write_text((compiling.FOLDER / "block.cpp").read_text() + "\n// another\n")
    monkeypatch.setattr(compiling, "FOLDER", tmp_path)
    forget()
    assert build_one() is not None and len(list((empty_cache / "kernels").iterdir())) == 2


@pytest.mark.parametrize(
    ("compiler_command", "said"),
    [
        ("no-such-compiler", "there is no C++ compiler 'no-such-compiler' on the path; install one, or set CXX"),
        ("false", "false: exit code 1"),
    ],
)
def test_without_a_compiler_the_closed_forms_serve(
    empty_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    compiler_command: str,
    said: str,
) -> None:
    caplog.set_level(logging.INFO, "satm")
    monkeypatch.setenv("CXX", compiler_command)
    block = Block("instance", activation="relu", pooling="average")
    for _ in range(2):
        inputs = values(block, (1, 8, 4, 4))
        assert apart(derivatives(block, inputs), derivatives(lambda *each: twin(block, *each), inputs)) < SUMS
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("no compiled kernels, so PyTorch's operations serve, which takes longer: ")
    assert said in caplog.messages[0]


def test_a_cache_that_cannot_be_written_is_replaced(
    empty_cache: Path, compiler: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SATM_CACHE", str(tmp_path / "file"))
    assert build_one() is not None
    assert list((tmp_path / "tmp" / f"satm-kernels-{os.getuid()}").iterdir())


def test_a_folder_that_others_may_write_is_not_trusted(empty_cache: Path, compiler: None) -> None:
    (empty_cache / "kernels").mkdir(parents=True)
    (empty_cache / "kernels").chmod(0o777)
    assert build_one() is not None and not list((empty_cache / "kernels").iterdir())


def test_two_processes_build_at_once(empty_cache: Path, compiler: None) -> None:
    running = [subprocess.Popen([sys.executable, "-c", BUILD]) for _ in range(2)]
    assert [each.wait() for each in running] == [0, 0]
    assert len(list((empty_cache / "kernels").iterdir())) == 1
