"""Networks: parameter counts, PyTorch's initialisation, the whole search space, refused shapes, learning."""

import copy
import inspect
import itertools
import math
import warnings
from itertools import product
from typing import Any, get_args

import pytest
import torch
from drawing import torch_generator
from tolerances import DISTINCT, LOOPS, SUMS, TRAINING
from torch import Tensor, nn
from torch.nn import functional

from satm.config import DatasetOptions, EvaluateOptions
from satm.data import Augmentation, Preprocessor, load_dataset
from satm.errors import UsageError
from satm.evaluation.networks import Task, train
from satm.networks import NETWORKS, build, resolve
from satm.networks.architectures.convnet import ConvNetOptions
from satm.networks.layers import Network
from satm.networks.training import TrainingImages, measure
from satm.params import flatten
from satm.unroll import hypergradient

CHOICES = [get_args(ConvNetOptions.model_fields[name].annotation) for name in ("norm", "activation", "pooling")]

TINY: dict[str, dict[str, Any]] = {
    "convnet": {"width": 3},
    "alexnet": {"width_factor": 1 / 64},
    "vgg11": {"width_factor": 1 / 64},
    "resnet18": {"width_factor": 1 / 64},
    "vit-tiny": {"width_factor": 1 / 64, "depth": 2},
    "vit-small": {"width_factor": 1 / 64, "depth": 2},
    "vit-base": {"width_factor": 1 / 64, "depth": 2},
}
"""Options that make large networks small: two to twelve filters per layer."""

LEAST = {"alexnet": 8, "vgg11": 32, "resnet18": 9}
"""Smallest images, in pixels, that networks with a lower bound take with their default options."""


def tiny(name: str, channels: int = 1, size: int = 32, seed: int = 3, **options: Any) -> Network:
    return build({"network": name, **TINY.get(name, {}), **options}, channels, 7, size, seed)


def noise(channels: int, size: int, count: int = 2) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch_generator(0))


@pytest.mark.parametrize(
    ("size", "classes", "count"), [(32, 10, 320_010), (64, 200, 857_160), (128, 10, 615_690), (32, 100, 504_420)]
)
def test_parameter_counts_are_the_papers(size: int, classes: int, count: int) -> None:
    module = build({"network": "convnet"}, 3, classes, size, seed=0)
    assert len(flatten(module)) == count
    assert sum(isinstance(part, nn.Conv2d) for part in module.modules()) == {32: 3, 64: 4, 128: 5}[size]


def test_search_space_is_complete() -> None:
    assert [len(choices) for choices in CHOICES] == [5, 3, 3]


@pytest.mark.parametrize(("norm", "activation", "pooling"), list(product(*CHOICES)))
def test_every_choice_of_the_search_space_trains(norm: str, activation: str, pooling: str) -> None:
    images = torch.randn(3, 3, 16, 16, generator=torch_generator(0))
    for depth in (1, 2, 3, 4):
        values = {"network": "convnet", "depth": depth, "norm": norm, "activation": activation, "pooling": pooling}
        module = build({**values, "width": 4}, 3, 5, 16, seed=1)
        logits = module(images)
        assert logits.shape == (3, 5) and torch.isfinite(logits).all()
        functional.cross_entropy(logits, torch.tensor([0, 4, 2])).backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        pooled = [part for part in module.modules() if isinstance(part, nn.MaxPool2d | nn.AvgPool2d)]
        assert len(pooled) == (0 if pooling == "none" else depth)


@pytest.mark.parametrize("width", [32, 64, 128, 256])
def test_every_width_of_the_search_space_builds(width: int) -> None:
    module = build({"network": "convnet", "width": width, "depth": 1, "norm": "group"}, 3, 10, 8, seed=0)
    assert module(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("size", [8, 9, 16, 28, 32, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_network_keeps_the_contract(name: str, channels: int, size: int) -> None:
    if size < LEAST.get(name, 1):
        with pytest.raises(UsageError, match=rf"images of {size} x {size} pixels .* at least {LEAST[name]} x"):
            tiny(name, channels, size)
        return
    module = tiny(name, channels, size)
    images = noise(channels, size)
    before = flatten(module)
    logits = module(images)
    assert logits.shape == (2, 7) and torch.isfinite(logits).all()
    assert torch.equal(module(images), logits) and torch.equal(flatten(module), before)
    assert torch.equal(module.eval()(images), logits), "training changes a state"
    torch.testing.assert_close(module(images[1:]), logits[1:])  # no image depends on the others of its batch
    embedded = module.embed(images)
    assert embedded.shape == (2, module.classifier.in_features)
    assert torch.equal(functional.linear(embedded, module.classifier.weight, module.classifier.bias), logits)
    # All ReLUs of so small a network may be dead by chance, but not those of five.
    several = itertools.chain([embedded], (tiny(name, channels, size, seed).embed(images) for seed in range(5, 9)))
    apart = (len(each.unique()) > 2 and not torch.equal(each[0], each[1]) for each in several)
    assert any(apart), "a norm over one pixel leaves constants only"
    assert list(dict.fromkeys(key.split(".")[0] for key, _ in module.named_parameters())) == ["features", "classifier"]
    assert not list(module.buffers())
    assert torch.equal(flatten(tiny(name, channels, size)), before)
    assert not torch.equal(flatten(tiny(name, channels, size, seed=4)), before)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_engines_agree_on_every_network(name: str) -> None:
    module = tiny(name, size=32 if name == "vgg11" else 16).double()
    images = noise(1, 32 if name == "vgg11" else 16, count=3).double()
    target = flatten(tiny(name, size=images.shape[-1], seed=4)).double()
    found = [
        hypergradient(
            module,
            images,
            torch.tensor([0, 6, 3]),
            0.05,
            lambda weights: (weights - target).square().sum(),
            steps=3,
            batches=[torch.tensor([0, 1]), torch.tensor([2, 0]), torch.tensor([1, 2])],
            engine=engine,
        )
        for engine in ("reverse", "mixed")
    ]
    for field in ("loss", "images", "step_size", "start", "end"):
        one, two = (getattr(each, field) for each in found)
        torch.testing.assert_close(one, two, rtol=LOOPS, atol=LOOPS * float(one.abs().max()), msg=field)
    assert all(image.abs().max() > 0 for image in found[0].images)


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("mode", [True, False])
def test_stacked_weights_are_as_good_as_one_network_after_another(name: str, mode: bool) -> None:
    size = 32 if name == "vgg11" else 16
    modules = [tiny(name, size=size, seed=seed).double().train(mode) for seed in (3, 4, 5)]
    images, labels = noise(1, size, count=6).double().view(3, 2, 1, size, size), torch.tensor([0, 6])
    weights, buffers = torch.func.stack_module_state(modules)
    skeleton = copy.deepcopy(modules[0]).to("meta")

    def logits(own: dict[str, Tensor], kept: dict[str, Tensor], batch: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(skeleton, (own, kept), (batch,))
        return found

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch warns where it has no rule and loops
        together = torch.vmap(logits)(weights, buffers, images)
        functional.cross_entropy(together.flatten(0, 1), labels.repeat(3), reduction="sum").backward()
    for index, module in enumerate(modules):
        alone = module(images[index])
        torch.testing.assert_close(together[index], alone, rtol=LOOPS, atol=LOOPS)
        functional.cross_entropy(alone, labels, reduction="sum").backward()
        for key, parameter in module.named_parameters():
            stacked, own = weights[key].grad, parameter.grad
            assert stacked is not None and own is not None
            torch.testing.assert_close(stacked[index], own, rtol=LOOPS, atol=LOOPS, msg=key)


@pytest.mark.parametrize(
    ("values", "size", "epochs"),
    [
        ({"network": "convnet", "width": 32}, 8, 5),
        ({"network": "alexnet", "width_factor": 1 / 8}, 16, 6),
        ({"network": "vgg11", "width_factor": 1 / 16}, 32, 4),
        ({"network": "resnet18", "width_factor": 1 / 16}, 16, 4),
        ({"network": "vit-tiny", "width_factor": 1 / 4, "depth": 2, "patch": 4}, 8, 10),
        ({"network": "vit-small", "width_factor": 1 / 8, "depth": 2, "patch": 4}, 8, 10),
        ({"network": "vit-base", "width_factor": 1 / 16, "depth": 2, "patch": 4}, 8, 10),
    ],
)
def test_every_network_learns_digits(values: dict[str, Any], size: int, epochs: int) -> None:
    data = load_dataset("digits", DatasetOptions(source="digits", size=size))
    space = Preprocessor(data.mean, data.std, None)
    real, test = (TrainingImages(space.apply(split.images), split.labels) for split in (data.train, data.test))
    options = EvaluateOptions(
        optimiser="adam", lr=0.004, schedule="cosine", epochs=epochs, batch_size=32, augment=False
    )
    module = train(Task(real, 1.0, values, data.classes, options, Augmentation("", "image")), ("digits",))
    assert measure(module, test)[0] > 0.95


def count_convolutions(plan: list[tuple[int, int, int]], bias: bool, norm: bool) -> int:
    """Numbers in convolutions (inputs, filters, kernel), their biases and their norms' scales and shifts."""
    return sum(i * o * k * k + o * bias + 2 * o * norm for i, o, k in plan)


ALEXNET = [(3, 128, 5), (128, 192, 5), (192, 256, 3), (256, 192, 3), (192, 192, 3)]
VGG11 = [(3, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 512), (512, 512)]
RESNET18 = [
    *[(3, 64, 3), *[(64, 64, 3)] * 4],
    *[(64, 128, 3), *[(128, 128, 3)] * 3, (64, 128, 1)],
    *[(128, 256, 3), *[(256, 256, 3)] * 3, (128, 256, 1)],
    *[(256, 512, 3), *[(512, 512, 3)] * 3, (256, 512, 1)],
]


def count_transformer(width: int, patch: int, patches: int, depth: int = 12) -> int:
    """Numbers in the patches' convolution, token and positions, and in each block's attention, MLP and two norms."""
    linear = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    block = sum(inputs * outputs + outputs for inputs, outputs in linear) + 2 * 2 * width
    embeddings = count_convolutions([(3, width, patch)], True, False) + width + (patches + 1) * width
    return embeddings + depth * block + 2 * width


@pytest.mark.parametrize(
    ("values", "size", "counts"),
    [
        ({"network": "alexnet"}, 32, (count_convolutions(ALEXNET, True, False), 192 * 4 * 4)),
        ({"network": "alexnet"}, 64, (count_convolutions(ALEXNET, True, False), 192 * 4 * 4)),
        ({"network": "alexnet"}, 28, (count_convolutions(ALEXNET, True, False), 192 * 3 * 3)),
        ({"network": "alexnet", "norm": "instance"}, 32, (count_convolutions(ALEXNET, True, True), 192 * 4 * 4)),
        ({"network": "vgg11"}, 32, (count_convolutions([(*pair, 3) for pair in VGG11], True, True), 512)),
        ({"network": "vgg11"}, 64, (count_convolutions([(*pair, 3) for pair in VGG11], True, True), 4 * 512)),
        ({"network": "resnet18"}, 32, (count_convolutions(RESNET18, False, True), 512)),
        ({"network": "resnet18"}, 128, (count_convolutions(RESNET18, False, True), 512)),
        ({"network": "resnet18", "norm": "none"}, 8, (count_convolutions(RESNET18, False, False), 512)),
        ({"network": "vit-tiny"}, 32, (count_transformer(192, 4, 64), 192)),
        ({"network": "vit-tiny"}, 8, (count_transformer(192, 1, 64), 192)),
        ({"network": "vit-tiny"}, 28, (count_transformer(192, 4, 49), 192)),
        ({"network": "vit-tiny"}, 40, (count_transformer(192, 5, 64), 192)),
        ({"network": "vit-tiny", "depth": 3}, 64, (count_transformer(192, 8, 64, depth=3), 192)),
        ({"network": "vit-small"}, 32, (count_transformer(384, 4, 64), 384)),
        ({"network": "vit-small", "patch": 8}, 32, (count_transformer(384, 8, 16), 384)),
        ({"network": "vit-base"}, 32, (count_transformer(768, 4, 64), 768)),
        ({"network": "vit-base", "width_factor": 1 / 2}, 128, (count_transformer(384, 16, 64), 384)),
    ],
)
def test_parameter_counts_of_the_definitions(values: dict[str, Any], size: int, counts: tuple[int, int]) -> None:
    features, embedded = counts
    with torch.device("meta"):
        module = build(values, 3, 10, size, seed=0)
    assert sum(parameter.numel() for parameter in module.parameters()) == features + 10 * embedded + 10
    assert module.classifier.in_features == embedded
    builder = NETWORKS[values["network"]].builder
    description = inspect.getdoc(inspect.getmodule(getattr(builder, "func", builder))) or ""
    if size == 32 and len(values) == 1:
        assert f"{features + 10 * embedded + 10:,} parameters" in description


def alexnet_by_hand(stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride, 2),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(16, 24, 5, 1, 2),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(24, 32, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(32, 24, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, 1, 1),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Flatten(),
        nn.Linear(24 * 4 * 4, 10),
    )


def vgg11_by_hand() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, filters, pooled in [
        *[(3, 2, True), (2, 4, True), (4, 8, False), (8, 8, True)],
        *[(8, 16, False), (16, 16, True), (16, 16, False), (16, 16, True)],
    ]:
        layers += [nn.Conv2d(inputs, filters, 3, 1, 1), nn.GroupNorm(filters, filters), nn.ReLU()]
        layers += [nn.MaxPool2d(2, 2)] if pooled else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 10))


def seeded(make: Any, *arguments: Any) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        module: nn.Sequential = make(*arguments)
    return module


@pytest.mark.parametrize(
    ("values", "size", "twin"),
    [
        ({"network": "alexnet", "width_factor": 1 / 8}, 32, (alexnet_by_hand, 1)),
        ({"network": "alexnet", "width_factor": 1 / 8}, 64, (alexnet_by_hand, 2)),
        ({"network": "alexnet", "width_factor": 1 / 8, "stem_stride": 3}, 96, (alexnet_by_hand, 3)),
        ({"network": "vgg11", "width_factor": 1 / 32}, 32, (vgg11_by_hand,)),
    ],
)
def test_networks_written_out_as_a_sequence(values: dict[str, Any], size: int, twin: tuple[Any, ...]) -> None:
    expected, module = seeded(*twin), build(values, 3, 10, size, seed=11)
    assert torch.equal(flatten(module), flatten(expected))
    images = noise(3, size)
    assert torch.equal(module(images), expected(images))


def normalised(maps: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Instance norm with one mean and deviation per image and channel."""
    mean, variance = maps.mean((2, 3), keepdim=True), maps.var((2, 3), correction=0, keepdim=True)
    return (maps - mean) / (variance + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]


def resnet18_by_hand(weights: list[Tensor], images: Tensor, stride: int) -> Tensor:
    """The forward pass from the weights in their order: stem, then each block's body before its shortcut."""
    left = iter(weights)

    def convolve(maps: Tensor, step: int = 1) -> Tensor:
        kernel = next(left)
        return normalised(functional.conv2d(maps, kernel, None, step, kernel.shape[-1] // 2), next(left), next(left))

    maps = convolve(images, stride).relu()
    for stage in range(4):
        for block in range(2):
            step = 2 if stage and not block else 1
            body = convolve(convolve(maps, step).relu())
            maps = (body + (convolve(maps, step) if step == 2 else maps)).relu()
    logits = maps.mean((2, 3)) @ next(left).T + next(left)
    assert next(left, None) is None
    return logits


@pytest.mark.parametrize(("size", "option", "stride"), [(32, None, 1), (64, None, 2), (64, 1, 1), (33, 2, 2)])
def test_resnet18_written_out(size: int, option: int | None, stride: int) -> None:
    module = build({"network": "resnet18", "width_factor": 1 / 16, "stem_stride": option}, 3, 10, size, seed=1).double()
    generator = torch_generator(1)
    for parameter in module.parameters():  # scales and shifts that are told apart
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    images = noise(3, size).double()
    expected = resnet18_by_hand([parameter.detach() for parameter in module.parameters()], images, stride)
    torch.testing.assert_close(module(images), expected, rtol=LOOPS, atol=LOOPS)


def norm(tokens: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer norm with one mean and deviation per token."""
    mean, variance = tokens.mean(-1, keepdim=True), tokens.var(-1, correction=0, keepdim=True)
    return (tokens - mean) / (variance + 1e-6).sqrt() * scale + shift


def vit_by_hand(weights: dict[str, Tensor], images: Tensor, patch: int, heads: int, depth: int) -> Tensor:
    """The forward pass patch by patch and head by head."""

    def pair(name: str) -> tuple[Tensor, Tensor]:
        return weights[f"{name}.weight"], weights[f"{name}.bias"]

    def linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return inputs @ weight.T + bias

    kernel, bias = pair("features.patches")
    rows, columns = (range(0, extent, patch) for extent in images.shape[2:])
    cut = [images[:, :, y : y + patch, x : x + patch].flatten(1) for y in rows for x in columns]
    first = weights["features.token"][0].expand(len(images), -1)
    tokens = torch.stack([first, *(linear(part, kernel.flatten(1), bias) for part in cut)], 1)
    tokens = tokens + weights["features.positions"]
    for block in (f"features.blocks.{index}" for index in range(depth)):
        attention = f"{block}.self_attn"
        packed = weights[f"{attention}.in_proj_weight"], weights[f"{attention}.in_proj_bias"]
        thirds = linear(norm(tokens, *pair(f"{block}.norm1")), *packed).chunk(3, -1)
        mixed = []
        for query, key, value in zip(*(third.chunk(heads, -1) for third in thirds), strict=True):
            weight = (query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])).exp()
            mixed += [weight / weight.sum(-1, keepdim=True) @ value]
        tokens = tokens + linear(torch.cat(mixed, -1), *pair(f"{attention}.out_proj"))
        hidden = linear(norm(tokens, *pair(f"{block}.norm2")), *pair(f"{block}.linear1"))
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        tokens = tokens + linear(hidden, *pair(f"{block}.linear2"))
    return linear(norm(tokens[:, 0], *pair("features.norm")), *pair("classifier"))


HEADS = {"vit-tiny": 3, "vit-small": 6, "vit-base": 12}


@pytest.mark.parametrize("name", list(HEADS))
@pytest.mark.parametrize(("channels", "size", "option", "patch"), [(3, 32, None, 4), (1, 12, 6, 6), (1, 28, None, 4)])
def test_vision_transformers_written_out(name: str, channels: int, size: int, option: int | None, patch: int) -> None:
    module = build({"network": name, "width_factor": 1 / 32, "depth": 3, "patch": option}, channels, 7, size, 1)
    module = module.double()
    generator = torch_generator(1)
    for parameter in module.parameters():  # biases, scales and shifts that are told apart
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    images = noise(channels, size).double()
    weights = {key: held.detach() for key, held in module.named_parameters()}
    expected = vit_by_hand(weights, images, patch, HEADS[name], depth=3)
    with torch.no_grad():
        for mode in (True, False):
            torch.testing.assert_close(module.train(mode)(images), expected, rtol=LOOPS, atol=LOOPS)


@pytest.mark.parametrize("name", list(HEADS))
def test_every_layer_of_a_vision_transformer_learns(name: str) -> None:
    module = build({"network": name, "width_factor": 1 / 16}, 1, 7, 8, seed=2).double()
    blocks = [part for part in module.modules() if isinstance(part, nn.TransformerEncoderLayer)]
    assert len(blocks) == 12
    assert not torch.equal(blocks[0].linear1.weight, blocks[1].linear1.weight)
    embeddings = [module.get_parameter(f"features.{each}").flatten() for each in ("token", "positions")]
    # Four standard errors of the hundred numbers of the token.
    assert all(each.std().item() == pytest.approx(0.02, rel=0.3) for each in embeddings)
    functional.cross_entropy(module(noise(1, 8, count=6).double()), torch.arange(6)).backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None
        parts = dict(zip("qkv", parameter.grad.chunk(3), strict=True)) if "in_proj" in key else {"": parameter.grad}
        for part, gradient in parts.items():
            if (part, key[-4:]) == ("k", "bias"):  # added to all scores of a query alike, which the softmax removes
                assert gradient.abs().max() < SUMS
            else:
                assert gradient.all() and gradient.abs().max() > DISTINCT, (key, part)


def test_the_corner_of_the_last_map() -> None:
    values = {"network": "vgg11", "width_factor": 1 / 32}
    whole, corner = (build({**values, "readout": readout}, 3, 10, 64, seed=1) for readout in ("all", "corner"))
    images = noise(3, 64)
    maps = whole.features(images)
    assert maps.shape == (2, 16, 2, 2) and whole.classifier.in_features == 64
    assert torch.equal(corner.embed(images), maps[:, :, 0, 0])
    small = build({**values, "readout": "corner"}, 3, 10, 32, seed=1)
    assert torch.equal(small(images[:, :, :32, :32]), build(values, 3, 10, 32, seed=1)(images[:, :, :32, :32]))


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "resnet18"])
def test_norms_and_widths_are_options(name: str) -> None:
    kinds = {"none": (), "batch": (nn.BatchNorm2d,), "instance": (nn.GroupNorm,)}
    convolutions = 20 if name == "resnet18" else 8 if name == "vgg11" else 5
    for norm, kind in kinds.items():
        module = tiny(name, norm=norm)
        norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d | nn.GroupNorm)]
        assert len(norms) == (convolutions if kind else 0) and all(isinstance(part, kind) for part in norms)
        assert all(part.num_groups == part.num_channels for part in norms if isinstance(part, nn.GroupNorm))
        assert torch.isfinite(module(noise(1, 32))).all()
        convolved = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
        assert len(convolved) == convolutions
        assert all((part.bias is None) == (name == "resnet18") for part in convolved)
    with torch.device("meta"):
        narrow, wide = (build({"network": name, "width_factor": factor}, 3, 10, 32, seed=0) for factor in (1, 1.5))
    one, other = ([p.out_channels for p in each.modules() if isinstance(p, nn.Conv2d)] for each in (narrow, wide))
    assert [1.5 * filters for filters in one] == other
    assert min(p.out_channels for p in tiny(name, width_factor=TRAINING).modules() if isinstance(p, nn.Conv2d)) == 1


def test_images_below_the_least_size_are_refused() -> None:
    for name, options, least in [
        ("alexnet", {}, 8),
        ("alexnet", {"stem_stride": 2, "norm": "instance"}, 15),
        ("vgg11", {"norm": "none"}, 32),
        ("resnet18", {"stem_stride": 2}, 17),
        ("resnet18", {"norm": "batch"}, 1),
        ("resnet18", {"stem_stride": 3, "norm": "none"}, 1),
    ]:
        assert math.prod(tiny(name, size=least, **options).embed(noise(1, least)).shape) > 0
        if least > 1:
            with pytest.raises(UsageError, match=rf"^network {name}: images of .* at least {least} x {least}$"):
                tiny(name, size=least - 1, **options)


def test_instance_and_group_norm_normalise_their_groups() -> None:
    images = 3 * torch.randn(2, 8, 4, 4) + 1
    for norm, groups in (("instance", 8), ("group", 4)):
        module = build({"network": "convnet", "width": 8, "depth": 1, "norm": norm}, 8, 2, 4, seed=0)
        layer = module.get_submodule("features.1")
        parts = images.view(2, groups, -1)
        expected = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(layer(images), expected.view_as(images))
        assert sum(parameter.numel() for parameter in layer.parameters()) == 16


def test_activations_and_pooling_are_what_they_say() -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch_generator(0))
    activations = {
        "sigmoid": torch.sigmoid,
        "relu": torch.relu,
        "leakyrelu": lambda x: torch.where(x > 0, x, 0.01 * x),
    }
    windows = images.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    pools = {"max": windows.amax(4), "average": windows.mean(4)}
    for activation, function in activations.items():
        for pooling, pooled in pools.items():
            values = {"norm": "none", "activation": activation, "pooling": pooling, "depth": 1, "width": 3}
            module = build({"network": "convnet", **values}, 3, 2, 8, seed=0)
            assert torch.equal(module.get_submodule("features.1")(images), function(images)), activation
            torch.testing.assert_close(module.get_submodule("features.2")(images), pooled)


def test_the_initialisation_is_pytorchs() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        layers = [nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(6, 6), nn.Conv2d(6, 6, 3, padding=1), nn.GroupNorm(6, 6)]
        layers.append(nn.Linear(6 * 4 * 4, 10))
    expected = torch.cat([flatten(layer) for layer in layers])
    module = build({"network": "convnet", "width": 6, "depth": 2}, 3, 10, 16, seed=11)
    assert torch.equal(flatten(module), expected)


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    build({"network": "convnet"}, 3, 10, 32, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"network": "convnt"}, "unknown network 'convnt'; known: .*, convnet, .*. Did you mean 'convnet'?"),
        ({"network": "convnet", "widht": 3}, "unknown option 'widht'.*Did you mean 'width'?"),
        ({"network": "convnet", "norm": "batchnorm"}, "norm: .*got 'batchnorm'"),
        ({"network": "convnet", "width": 0}, "width: .*got 0"),
        ({"network": "convnet", "depth": 5}, "depth 5 halves 16 pixels to nothing; use at most depth 4"),
        ({"network": "convnet", "norm": "group", "width": 6}, "width divisible by 4, got 6"),
        (
            {"network": "vit-tiny", "patch": 3},
            "patch 3 does not divide images of 16 x 16 pixels; use .* 1, 2, 4, 8, 16$",
        ),
        ({"network": "vit-tiny", "patch": 32}, "patch 32 does not divide images of 16 x 16 pixels"),
        ({"network": "vit-tiny", "patch": 0}, "patch: .*got 0"),
        ({"network": "vit-tiny", "depth": 0}, "depth: .*got 0"),
        ({"network": "vit-base", "width_factor": 0.3}, "a width of 230, which 12 heads do not divide; use .* 1/64$"),
    ],
)
def test_unusable_networks_are_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        build(values, 3, 10, 16, seed=0)
    assert "\n" not in str(caught.value)


def test_options_are_resolved_by_name() -> None:
    name, options = resolve({"network": "convnet", "width": 16})
    assert name == "convnet" and isinstance(options, ConvNetOptions)
    assert options.width == 16 and options.norm == "instance"
