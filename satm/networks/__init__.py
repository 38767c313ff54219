"""The networks by name, their options, and how one is built."""

from collections.abc import Mapping
from typing import Any

import torch

from satm.config import Options, parse
from satm.errors import UsageError, pick
from satm.networks.alexnet import AlexNet, AlexNetOptions
from satm.networks.base import NETWORKS, Network
from satm.networks.convnet import ConvNet, ConvNetOptions
from satm.networks.resnet import ResNet18, ResNet18Options
from satm.networks.vgg import Vgg11, Vgg11Options
from satm.networks.vit import VitBase, VitOptions, VitSmall, VitTiny

__all__ = [
    "NETWORKS",
    "AlexNet",
    "AlexNetOptions",
    "ConvNet",
    "ConvNetOptions",
    "Network",
    "ResNet18",
    "ResNet18Options",
    "Vgg11",
    "Vgg11Options",
    "VitBase",
    "VitOptions",
    "VitSmall",
    "VitTiny",
    "build",
    "resolve",
]


def resolve(values: Mapping[str, Any]) -> tuple[str, Options]:
    """Return the registered name and the checked options of `{"network": name, option: value…}`.

    Raises:
        UsageError: an unknown network or option, or an unusable value.
    """
    held = dict(values)
    name = str(held.pop("network"))
    return name, parse(pick(name, NETWORKS, "network").options, held, f"network {name}")


def build(values: Mapping[str, Any], channels: int, classes: int, size: int, seed: int) -> Network:
    """Return a freshly initialised network.

    Args:
        values: `{"network": registered name, option: value…}`.
        channels: of an image.
        classes: outputs.
        size: height and width of an image in pixels.
        seed: two networks of one seed have the same weights; the global generator is left as it was.

    Raises:
        UsageError: an unknown network or option, or an image too small for the network.
    """
    name, options = resolve(values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return NETWORKS[name](channels, classes, size, options)
        except ValueError as error:
            raise UsageError(f"network {name}: {error}") from error
