"""The ConvNet of the dataset-distillation papers, with every choice of their architecture search as an option."""

import math
from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from satm.config import Options
from satm.networks.base import Network, register
from satm.networks.layers import norm_layers


class ConvNetOptions(Options):
    """Shape of a ConvNet."""

    depth: int | None = Field(None, ge=1)
    """Blocks; None: as many as leave a map of 4 x 4 pixels (3 at 32, 4 at 64, 5 at 128 pixels)."""
    width: int = Field(128, ge=1)
    """Filters of each convolution."""
    norm: Literal["none", "batch", "layer", "instance", "group"] = "instance"
    """`instance` is a group norm with one channel a group, `group` one with four groups, both with scale and shift."""
    activation: Literal["sigmoid", "relu", "leakyrelu"] = "relu"
    """Leaky ReLU has slope 0.01."""
    pooling: Literal["none", "max", "average"] = "average"
    """Windows of 2 x 2, stride 2."""


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "leakyrelu": lambda: nn.LeakyReLU(0.01),
}


@register("convnet")
class ConvNet(Network):
    """Blocks of 3 x 3 convolution, norm, activation and pooling, then one linear layer.

    Initialised as PyTorch initialises its layers. With the defaults and 10 classes of 32 x 32 x 3 images it has
    320,010 parameters.

    Source: Gidaris and Komodakis 2018, as used by DC, DSA, MTT, FTD, TESLA, SATM (section 4.1) and ConTra (App. D).
    """

    options: ClassVar[type[Options]] = ConvNetOptions

    def __init__(self, channels: int, classes: int, size: int, options: ConvNetOptions) -> None:
        """Build the layers (arguments: `Network`).

        Raises:
            ValueError: the image is too small for the depth, or the width cannot be split into four groups.
        """
        super().__init__(channels, classes, size, options)
        depth = max(1, round(math.log2(size)) - 2) if options.depth is None else options.depth
        pooled = options.pooling != "none"
        if pooled and size >> depth < 1:
            raise ValueError(f"depth {depth} halves {size} pixels to nothing; use at most depth {int(math.log2(size))}")
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Conv2d(channels, options.width, 3, padding=1)]
            layers += norm_layers(options.norm, options.width, size)
            layers += [_ACTIVATIONS[options.activation]()]
            if pooled:
                layers += [nn.MaxPool2d(2) if options.pooling == "max" else nn.AvgPool2d(2)]
                size //= 2
            channels = options.width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * size * size, classes)
