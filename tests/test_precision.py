"""Products in TF32 and bfloat16: how operands are rounded, and that those of every derivative are."""

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from drawing import torch_generator
from tolerances import SINGLE
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from satm.benchmarks.cases import Matching
from satm.benchmarks.measure import apart
from satm.benchmarks.ways import matching_way
from satm.errors import UsageError
from satm.methods import resolve
from satm.networks import build
from satm.ops import block as blocks
from satm.ops import exact_products, products_of
from satm.ops.block import Block
from satm.ops.compiled import Compiled
from satm.ops.convolution import USUAL, conv2d
from satm.ops.precision import ROUNDINGS, Precision, rounds
from satm.unroll import hypergradient

CPU = torch.device("cpu")

SHORT: list[Precision] = ["tf32", "bfloat16"]

BITS = {"tf32": 10, "bfloat16": 7}
"""Bits after the point."""

CASE = Matching(width=16, depth=2, size=16, classes=4, steps=5)


def slow(tensor: Tensor, precision: str) -> Tensor:
    """Return float32 numbers rounded to some bits after the point; halves go away from zero in TF32, else to even."""
    fraction, exponent = torch.frexp(tensor.double())
    scale = 2.0 ** (BITS[precision] + 1)
    whole = (fraction * scale).round()
    if precision == "tf32":
        whole = (fraction.abs() * scale + 0.5).floor() * fraction.sign()
    return torch.ldexp(whole / scale, exponent).float()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch_generator(seed))


def low(precision: Precision) -> Callable[[Tensor], Tensor]:
    rounding = ROUNDINGS[precision]
    assert rounding is not None
    return rounding


@pytest.mark.parametrize("precision", SHORT)
def test_operands_are_rounded_to_the_nearest(precision: Precision) -> None:
    numbers = torch.cat([draw(2000), draw(2000) * 1e-20, draw(2000) * 1e20, torch.zeros(3)]).reshape(-1, 1)
    assert torch.equal(low(precision)(numbers).float(), slow(numbers, precision))
    assert torch.equal(low(precision)(low(precision)(numbers).float()), low(precision)(numbers))


@pytest.mark.parametrize("precision", SHORT)
def test_infinite_and_undefined_numbers_stay_so(precision: Precision) -> None:
    patterns = torch.tensor([0x7FFFFFFF, 0x7F800001, -1, 0x7FC00000], dtype=torch.int32)  # all of them are NaN
    numbers = torch.cat([torch.tensor([float("inf"), -float("inf"), -0.0]), patterns.view(torch.float32)])
    found = low(precision)(numbers).float()
    assert torch.equal(found[:3], numbers[:3]) and found[2].signbit()
    assert found[3:].isnan().all()


def product(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return functional.conv2d(x, w, b, padding=1)


@pytest.mark.parametrize("how", ["own", "plain"])
@pytest.mark.parametrize("precision", SHORT)
def test_the_products_of_all_derivatives_have_rounded_operands(precision: Precision, how: str) -> None:
    """Against the sums that `satm.ops.convolution` states, with rounded operands: value, first and second ones."""
    x, w, b, dy = draw(3, 4, 6, 6), draw(128, 4, 3, 3, seed=1), draw(128, seed=6), draw(3, 128, 6, 6, seed=2)
    a, c, k = draw(3, 4, 6, 6, seed=3), draw(128, 4, 3, 3, seed=4), draw(128, seed=5)
    convolve = partial(conv2d, geometry=USUAL) if how == "own" else product
    x, w, b, dy = (each.requires_grad_() for each in (x, w, b, dy))
    with products_of(precision, CPU):
        y = convolve(x, w, b)
        first = torch.autograd.grad(y, [x, w, b], dy, create_graph=True)
        found = [y, *first, *torch.autograd.grad(first, [x, w, dy], [a, c, k])]

    r, none = partial(slow, precision=precision), torch.zeros(128)
    image, weight = torch.nn.grad.conv2d_input, torch.nn.grad.conv2d_weight
    expected = [
        product(r(x), r(w), b),
        image(x.shape, r(w), r(dy), padding=1),
        weight(r(x), w.shape, r(dy), padding=1),
        dy.sum((0, 2, 3)),
        image(x.shape, r(c), r(dy), padding=1),
        weight(r(a), w.shape, r(dy), padding=1),
        product(r(a), r(w), none) + product(r(x), r(c), k),
    ]
    # Unrounded operands would be noticed in TF32: they are 2^-11 apart. In bfloat16 the results are short, too.
    bound = SINGLE if precision == "tf32" else 2.0 ** -BITS["bfloat16"]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).detach().norm() / other.detach().norm()) < bound
    torch.testing.assert_close(found[3], expected[3], rtol=SINGLE, atol=SINGLE)  # a sum, which is not rounded


@pytest.fixture(params=["own", "plain"])
def operations(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations of our own, or PyTorch's."""
    monkeypatch.setenv("SATM_OPERATIONS", request.param)


@pytest.mark.usefixtures("operations")
@pytest.mark.parametrize("precision", SHORT)
def test_engines_agree_and_the_effect_is_that_of_the_rounding(precision: Precision) -> None:
    exact = matching_way(CASE, torch.float64, CPU, "mtt-loop")()
    ways = [matching_way(CASE, torch.float32, CPU, way, precision)() for way in ("mixed:0", "mixed:2", "reverse")]
    for other in ways[1:]:
        torch.testing.assert_close(other[1], ways[0][1], rtol=SINGLE, atol=SINGLE)
    # Each operand loses up to 2^-(bits + 1), and a rounding that flips a ReLU adds some of the same size.
    step = 2.0 ** -(BITS[precision] + 1)
    assert step < apart(ways[0], exact) < 50 * step
    assert apart(matching_way(CASE, torch.float32, CPU, "mixed")(), exact) < step / 10


@pytest.mark.parametrize("precision", SHORT)
def test_float64_is_not_rounded(precision: Precision) -> None:
    exact = matching_way(CASE, torch.float64, CPU, "mixed")()
    assert torch.equal(matching_way(CASE, torch.float64, CPU, "mixed", precision)()[1], exact[1])


class Dense(nn.Module):
    """Products of other kinds: matrices by function, method, operator and layer, attention, a convolution of a line."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(4, 4, 3)
        self.head = nn.Linear(16, 5)
        self.weight = nn.Parameter(draw(16, 16, seed=5) / 4)
        self.attention = nn.MultiheadAttention(16, 1, bias=False, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.line(x.flatten(2)).flatten(1)[:, :16]
        x = torch.matmul(x, self.weight) + x.matmul(self.weight) + torch.addmm(x, x, self.weight).relu_()
        x = self.attention(x[None], x[None], x[None])[0][0]
        with torch.no_grad():
            x = x + x @ self.weight
        return self.head(torch.einsum("bi,ij->bj", x, self.weight))


@pytest.mark.parametrize("precision", SHORT)
def test_every_kind_of_product_of_a_users_network_is_rounded(precision: Precision) -> None:
    module, images = Dense(), draw(3, 4, 4, 4)
    r = partial(slow, precision=precision)
    with torch.no_grad():
        assert module.line.bias is not None
        x = functional.conv1d(r(images.flatten(2)), r(module.line.weight)) + module.line.bias[:, None]
        x = x.flatten(1)[:, :16]
        y = r(x) @ r(module.weight)
        x = 2 * y + (x + y).relu()
        q, k, v = (r(x) @ r(part).T for part in module.attention.in_proj_weight.chunk(3))
        x = r((r(q / 4) @ r(k).T).softmax(-1)) @ r(v)
        x = r(x) @ r(module.attention.out_proj.weight).T
        x = x + r(x) @ r(module.weight)
        x = r(r(x) @ r(module.weight)) @ r(module.head.weight).T + module.head.bias
    with products_of(precision, CPU):
        found = module(images)
    assert found.dtype == torch.float32
    bound = SINGLE if precision == "tf32" else 4 * 2.0 ** -BITS["bfloat16"]
    assert float((found - x).detach().norm() / x.norm()) < bound


class Awkward(nn.Module):
    """What gets in the way of rounding: operations in place, other types, a checkpoint, networks in a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(inplace=True), nn.Flatten())
        self.second, self.third = nn.Linear(8 * 4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.first, x.contiguous(memory_format=torch.channels_last), use_reentrant=False)
        x = self.second(x)
        x += 1
        x = x + (x.bfloat16() @ x.bfloat16().T).softmax(1).float() @ x
        weights = torch.stack([self.third.weight, self.third.weight])
        x = torch.vmap(lambda weight: x @ weight.T)(weights).sum(0)
        return (x.double() @ torch.eye(3, dtype=torch.float64)).float()


@pytest.mark.usefixtures("operations")
@pytest.mark.parametrize("precision", SHORT)
def test_networks_of_any_kind_can_be_rounded(precision: Precision) -> None:
    module, images, labels = Awkward(), draw(3, 1, 4, 4), torch.arange(3)
    exact, short = (
        hypergradient(
            module, images, labels, 0.1, lambda weights: weights.square().sum(), steps=2, precision=each
        ).images
        for each in ("float32", precision)
    )
    # Not how far: a ReLU that flips is a large part of so small a network.
    assert short.isfinite().all() and not torch.equal(exact, short)


def test_augmentation_is_not_rounded() -> None:
    module, images = build({"network": "convnet", "width": 4, "depth": 1}, 1, 3, 4, 0), draw(3, 1, 4, 4)
    labels, seen, turn = torch.arange(3), list[Tensor](), draw(4, 4, seed=7)

    def augment(batch: Tensor, step: int) -> Tensor:
        seen.append(batch @ turn)
        return seen[-1]

    hypergradient(
        module, images, labels, 0.1, lambda weights: weights.sum(), steps=1, precision="bfloat16", augment=augment
    )
    assert all(torch.equal(each, images @ turn) for each in seen)
    with products_of("bfloat16", CPU), exact_products():
        assert torch.equal(images @ turn, seen[0])


def test_outside_nothing_is_rounded() -> None:
    x, w = draw(2, 4, 6, 6), draw(8, 4, 3, 3, seed=1)
    before = functional.conv2d(x, w)
    with pytest.raises(RuntimeError, match="on purpose"), products_of("bfloat16", CPU):
        raise RuntimeError("on purpose")
    assert torch.equal(functional.conv2d(x, w), before)
    with products_of("float32", CPU):
        assert torch.equal(functional.conv2d(x, w), before)


@pytest.mark.parametrize("network", ["convnet", "vit-tiny"])
def test_built_in_networks_train_in_bfloat16(network: str) -> None:
    module = build({"network": network, **({"width": 8} if network == "convnet" else {})}, 3, 4, 16, 0)
    images, labels = draw(4, 3, 16, 16), torch.arange(4)
    exact, short = (
        hypergradient(
            module, images, labels, 0.001, lambda weights: weights.square().sum(), steps=1, precision=each
        ).images
        for each in ("float32", "bfloat16")
    )
    assert short.dtype == torch.float32
    assert not torch.equal(exact, short)
    assert float(functional.cosine_similarity(exact.flatten(), short.flatten(), dim=0)) > 0.9


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++ on a CPU")
@pytest.mark.parametrize("precision", SHORT)
def test_compiled_closed_forms_serve_inside(precision: Precision) -> None:
    made, x = Compiled(blocks.forward, blocks.first, blocks.second), draw(3, 8, 8, 4)
    arguments = Block("instance", activation="relu", pooling="average"), x, draw(4), draw(4)
    with products_of(precision, CPU), torch.no_grad():
        found = made.forward(*arguments)
    for one, other in zip(found, blocks.forward(*arguments), strict=True):
        torch.testing.assert_close(one, other, rtol=SINGLE, atol=SINGLE)
    assert not made._failed


def test_an_unknown_precision_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UsageError, match="unknown precision 'half'; known: bfloat16, float32, tf32"):
        matching_way(CASE, torch.float32, CPU, "mixed", "half")()  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["mtt", "satm", "bptt", "ratbptt"])
def test_methods_have_the_option(method: str) -> None:
    _, options = resolve({"method": method, "precision": "tf32"})
    assert options.precision == "tf32"  # type: ignore[attr-defined]


def test_settings_for_gpus_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch keeps them also where there is no GPU."""
    device, backends = torch.device("cuda"), cast(Any, torch.backends)
    places = (backends.cudnn.conv, backends.cuda.matmul)
    before, seen = [place.fp32_precision for place in places], {}
    for precision, capability in (("float32", (9, 0)), ("tf32", (9, 0)), ("tf32", (7, 5)), ("bfloat16", (9, 0))):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        with pytest.raises(RuntimeError, match="on purpose"), products_of(cast(Precision, precision), device):
            seen[precision, capability] = [place.fp32_precision for place in places], rounds()
            raise RuntimeError("on purpose")
        assert [place.fp32_precision for place in places] == before
    assert seen == {
        ("float32", (9, 0)): (["ieee", "ieee"], False),
        ("tf32", (9, 0)): (["tf32", "tf32"], False),
        ("tf32", (7, 5)): (["ieee", "ieee"], True),
        ("bfloat16", (9, 0)): (["ieee", "ieee"], True),
    }
