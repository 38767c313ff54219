"""Networks: parameter counts of the papers, PyTorch's initialisation, the whole search space, refused shapes."""

from itertools import product
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.nn import functional

from satm.errors import UsageError
from satm.networks import NETWORKS, ConvNetOptions, build, resolve
from satm.params import flatten
from satm.unroll import hypergradient

CHOICES = [get_args(ConvNetOptions.model_fields[name].annotation) for name in ("norm", "activation", "pooling")]


@pytest.mark.parametrize(
    ("size", "classes", "count"), [(32, 10, 320_010), (64, 200, 857_160), (128, 10, 615_690), (32, 100, 504_420)]
)
def test_the_papers_parameter_counts(size: int, classes: int, count: int) -> None:
    module = build({"network": "convnet"}, 3, classes, size, seed=0)
    assert len(flatten(module)) == count
    assert sum(isinstance(part, nn.Conv2d) for part in module.modules()) == {32: 3, 64: 4, 128: 5}[size]


def test_the_search_space_is_all_there() -> None:
    assert [len(choices) for choices in CHOICES] == [5, 3, 3]


@pytest.mark.parametrize(("norm", "activation", "pooling"), product(*CHOICES))
def test_every_choice_of_the_search_space_trains(norm: str, activation: str, pooling: str) -> None:
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
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
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_every_network_keeps_the_contract(name: str, channels: int, size: int) -> None:
    values = {"network": name}
    module = build(values, channels, 7, size, seed=3)
    images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    module.eval()
    logits = module(images)
    assert logits.shape == (2, 7) and torch.isfinite(logits).all()
    assert torch.equal(module(images), logits)
    assert torch.equal(flatten(build(values, channels, 7, size, seed=3)), flatten(module))
    assert not torch.equal(flatten(build(values, channels, 7, size, seed=4)), flatten(module))
    module.train()
    found = hypergradient(module, images, torch.tensor([0, 6]), 0.01, lambda w: w.square().sum(), steps=1)
    assert torch.isfinite(found.images).all()


def test_instance_and_group_norm_are_what_they_say() -> None:
    images = 3 * torch.randn(2, 8, 4, 4) + 1
    for norm, groups in (("instance", 8), ("group", 4)):
        module = build({"network": "convnet", "width": 8, "depth": 1, "norm": norm}, 8, 2, 4, seed=0)
        layer = module.get_submodule("features.1")
        parts = images.view(2, groups, -1)
        expected = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(layer(images), expected.view_as(images))
        assert sum(parameter.numel() for parameter in layer.parameters()) == 16


def test_activations_and_pooling_are_what_they_say() -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
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
        ({"network": "convnt"}, "unknown network 'convnt'; known: convnet. Did you mean 'convnet'?"),
        ({"network": "convnet", "widht": 3}, "unknown option 'widht'.*Did you mean 'width'?"),
        ({"network": "convnet", "norm": "batchnorm"}, "norm: .*got 'batchnorm'"),
        ({"network": "convnet", "width": 0}, "width: .*got 0"),
        ({"network": "convnet", "depth": 5}, "depth 5 halves 16 pixels to nothing; use at most depth 4"),
        ({"network": "convnet", "norm": "group", "width": 6}, "width that 4 divides, got 6"),
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
