"""The VGG11 of the dataset-distillation papers."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from satm.config import Options
from satm.networks.base import Network, register
from satm.networks.layers import Norm, check_size, norm_layers, scaled

PLAN = ((64,), (128,), (256, 256), (512, 512), (512, 512))
"""Filters of the convolutions; a pooling follows each group."""


class Vgg11Options(Options):
    """Shape of a VGG11."""

    norm: Norm = "instance"
    """After each convolution; `instance` is a group norm with one channel a group, with scale and shift."""
    width_factor: float = Field(1.0, gt=0)
    """Multiplies the published number of filters of every convolution."""
    readout: Literal["all", "corner"] = "all"
    """What the linear layer sees of a last map of several pixels (2 x 2 at 64 pixels): all of it, or only its upper
    left pixel, as in DATM's code at 64 pixels."""


@register("vgg11")
class Vgg11(Network):
    """Eight 3 x 3 convolutions with norm and ReLU, five max poolings of 2 x 2, then one linear layer.

    Filters 64, 128, 256, 256, 512, 512, 512, 512. No dropout. Initialised as PyTorch initialises its layers. With the
    defaults and 10 classes of 32 x 32 x 3 images it has 9,231,114 parameters.

    Source: Simonyan and Zisserman 2015, configuration A, as in the public code of MTT (`networks.py`), used by MTT, FTD
        (Table 3), SATM (Table 5), ConTra (Table 2). Which norm their tables have is not given; the code's VGG11 has
        instance norm, its VGG11BN batch norm.
    Differs: grey images are not padded from 28 to 32 pixels.
    """

    options: ClassVar[type[Options]] = Vgg11Options

    def __init__(self, channels: int, classes: int, size: int, options: Vgg11Options) -> None:
        """Build the layers (arguments: `Network`).

        Raises:
            ValueError: the image is smaller than 32 pixels, which five poolings halve to 1; the last norms see 2 x 2.
        """
        super().__init__(channels, classes, size, options)
        check_size(size, 2 ** len(PLAN), f"with {len(PLAN)} poolings it")
        layers: list[nn.Module] = []
        for group in PLAN:
            for filters in group:
                width = scaled(filters, options.width_factor)
                layers += [nn.Conv2d(channels, width, 3, padding=1)]
                layers += [*norm_layers(options.norm, width, size), nn.ReLU()]
                channels = width
            layers += [nn.MaxPool2d(2)]
            size //= 2
        if options.readout == "corner":
            layers += [nn.AvgPool2d(1, stride=size)]
            size = 1
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * size * size, classes)
