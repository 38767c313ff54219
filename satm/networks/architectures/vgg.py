"""The VGG11 of the dataset-distillation papers.

Eight 3 x 3 convolutions with norm and ReLU, five max poolings of 2 x 2, then one linear layer. Filters 64, 128, 256,
256, 512, 512, 512, 512. No dropout. Layers are initialised as PyTorch does. With the defaults and 10 classes of
32 x 32 x 3 images it has 9,231,114 parameters.

Source: Simonyan and Zisserman 2015, configuration A, as in the public code of MTT (`networks.py`), used by MTT, FTD
    (Table 3), SATM (Table 5), ConTra (Table 2). The norm behind their tables is not given; the code's VGG11 has
    instance norm, its VGG11BN batch norm.
Differs: grey images are not padded from 28 to 32 pixels.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from satm.config import Options
from satm.networks.base import Norm, check_size, network, scaled

if TYPE_CHECKING:
    from satm.networks.layers import Network

PLAN = ((64,), (128,), (256, 256), (512, 512), (512, 512))
"""Filters of the convolutions; pooling follows each group."""


class Vgg11Options(Options):
    """Shape of a VGG11."""

    norm: Norm = "instance"
    """After each convolution; `instance` is a group norm with one channel per group, with scale and shift."""
    width_factor: float = Field(1.0, gt=0)
    """Multiplies the published number of filters of every convolution."""
    readout: Literal["all", "corner"] = "all"
    """Input of the linear layer where the last map has several pixels (2 x 2 at 64 pixels): all of them, or only the
    upper left one, as in DATM's code at 64 pixels."""


@network("vgg11", Vgg11Options)
def vgg11(channels: int, classes: int, size: int, options: Vgg11Options) -> "Network":
    """Build a VGG11; images need at least 32 pixels, which five poolings halve to 1 (the last norms see 2 x 2)."""
    from torch import nn

    from satm.networks.layers import Network, norm_layers

    check_size(size, 2 ** len(PLAN), f"pooling {len(PLAN)} times")
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
    return Network(nn.Sequential(*layers), nn.Linear(channels * size * size, classes))
