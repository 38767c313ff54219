"""Products in TF32 and bfloat16: how operands are rounded, and that those of every derivative are."""

import shutil
from collections.abc import Callable
from functools import partial

import pytest
import torch
from drawing import torch_generator
from tolerances import SINGLE
from torch import Tensor, nn
from torch.nn import functional

from satm.benchmarks.cases import Matching
from satm.benchmarks.measure import apart
from satm.benchmarks.ways import matching_way
from satm.errors import UsageError
from satm.methods import resolve
from satm.networks import build
from satm.ops import block as blocks
from satm.ops import rounded
from satm.ops.block import Block
from satm.ops.compiled import Compiled
from satm.ops.convolution import USUAL, conv2d
from satm.ops.precision import ROUNDINGS, Precision
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
    return rounding.low


@pytest.mark.parametrize("precision", SHORT)
def test_operands_are_rounded_to_the_nearest(precision: Precision) -> None:
    numbers = torch.cat([draw(2000), draw(2000) * 1e-20, draw(2000) * 1e20, torch.zeros(3)]).reshape(-1, 1)
    assert torch.equal(low(precision)(numbers).float(), slow(numbers, precision))
    assert torch.equal(low(precision)(low(precision)(numbers).float()), low(precision)(numbers))


@pytest.mark.parametrize("precision", SHORT)
def test_infinite_and_undefined_numbers_stay_so(precision: Precision) -> None:
    numbers = torch.tensor([[float("inf"), -float("inf"), float("nan"), -0.0]])
    found = low(precision)(numbers).float()
    assert torch.equal(found[0, :2], numbers[0, :2])
    assert found[0, 2].isnan()
    assert torch.equal(found[0, 3].signbit(), numbers[0, 3].signbit())


def product(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return functional.conv2d(x, w, b, padding=1)


@pytest.mark.parametrize("how", ["own", "plain"])
@pytest.mark.parametrize("precision", SHORT)
def test_the_products_of_all_derivatives_have_rounded_operands(precision: Precision, how: str) -> None:
    """Against the sums of docs and `satm.ops.convolution`, written with rounded operands: values, first, second."""
    x, w, b, dy = draw(3, 4, 6, 6), draw(8, 4, 3, 3, seed=1), torch.zeros(8), draw(3, 8, 6, 6, seed=2)
    a, c = draw(3, 4, 6, 6, seed=3), draw(8, 4, 3, 3, seed=4)
    own = partial(conv2d, geometry=USUAL) if how == "own" else product
    x, w, dy = (each.requires_grad_() for each in (x, w, dy))
    with rounded(precision, CPU):
        y = own(x, w, b)
    dx, dw = torch.autograd.grad(y, [x, w], dy, create_graph=True)
    found = [y, dx, dw, *torch.autograd.grad([dx, dw], [x, w, dy], [a, c])]

    r = partial(slow, precision=precision)
    image, weight = torch.nn.grad.conv2d_input, torch.nn.grad.conv2d_weight
    shapes = x.shape, w.shape
    expected = [
        product(r(x), r(w), b),
        image(shapes[0], r(w), r(dy), padding=1),
        weight(r(x), shapes[1], r(dy), padding=1),
        image(shapes[0], r(c), r(dy), padding=1),
        weight(r(a), shapes[1], r(dy), padding=1),
        product(r(a), r(w), b) + product(r(x), r(c), b),
    ]
    # Unrounded operands would be noticed in TF32: they are 2^-11 apart. In bfloat16 the results are short, too.
    bound = SINGLE if precision == "tf32" else 2.0 ** -BITS["bfloat16"]
    for one, other in zip(found, expected, strict=True):
        assert float((one.float() - other).detach().norm() / other.detach().norm()) < bound


@pytest.mark.parametrize("operations", ["own", "plain"])
@pytest.mark.parametrize("precision", SHORT)
def test_engines_agree_and_the_effect_is_that_of_the_rounding(
    precision: Precision, operations: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SATM_OPERATIONS", operations)
    exact = matching_way(CASE, torch.float64, CPU, "mtt-loop")()
    ways = [matching_way(CASE, torch.float32, CPU, way, precision)() for way in ("mixed:0", "mixed:2", "reverse")]
    for other in ways[1:]:
        torch.testing.assert_close(other[1], ways[0][1], rtol=SINGLE, atol=SINGLE)
    # Each operand loses up to 2^-(bits + 1), and a rounding that flips a ReLU adds some of the same size.
    step = 2.0 ** -(BITS[precision] + 1)
    assert step < apart(ways[0], exact) < 50 * step
    assert apart(matching_way(CASE, torch.float32, CPU, "mixed")(), exact) < step / 10


def test_float64_is_not_rounded() -> None:
    exact, short = (matching_way(CASE, torch.float64, CPU, "mixed", each)() for each in ("float32", "bfloat16"))
    assert torch.equal(exact[1], short[1])


class Dense(nn.Module):
    """Products of other kinds: matrices by function, method, operator and layer, and a convolution over a line."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(4, 4, 3)
        self.head = nn.Linear(16, 5)
        self.weight = nn.Parameter(draw(16, 16, seed=5) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.line(x.flatten(2)).flatten(1)[:, :16]
        x = torch.matmul(x, self.weight) + x.matmul(self.weight) + x @ self.weight
        return self.head(torch.einsum("bi,ij->bj", x, self.weight))


@pytest.mark.parametrize("precision", SHORT)
def test_every_kind_of_product_of_a_users_network_is_rounded(precision: Precision) -> None:
    module, images = Dense(), draw(3, 4, 4, 4)
    r = partial(slow, precision=precision)
    with torch.no_grad():
        x = functional.conv1d(r(images.flatten(2)), r(module.line.weight)) + module.line.bias[:, None]
        x = x.flatten(1)[:, :16]
        x = 3 * (r(x) @ r(module.weight))
        x = r(r(x) @ r(module.weight)) @ r(module.head.weight).T + module.head.bias
    with rounded(precision, CPU):
        found = module(images)
    assert found.dtype == torch.float32
    bound = SINGLE if precision == "tf32" else 4 * 2.0 ** -BITS["bfloat16"]
    assert float((found - x).detach().norm() / x.norm()) < bound


def test_outside_nothing_is_rounded() -> None:
    x, w = draw(2, 4, 6, 6), draw(8, 4, 3, 3, seed=1)
    before = functional.conv2d(x, w)
    with pytest.raises(RuntimeError, match="on purpose"), rounded("bfloat16", CPU):
        raise RuntimeError("on purpose")
    assert torch.equal(functional.conv2d(x, w), before)
    with rounded("float32", CPU):
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
    with rounded(precision, CPU), torch.no_grad():
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
