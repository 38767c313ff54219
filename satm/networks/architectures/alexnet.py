"""The AlexNet of the dataset-distillation papers.

Five convolutions with ReLU, max pooling of 2 x 2 after the first, second and last, then one linear layer. Filters 128,
192, 256, 192, 192; kernels 5, 5, 3, 3, 3. By default no norm; no dropout. Layers are initialised as PyTorch does. With
the defaults and 10 classes of 32 x 32 x 3 images it has 1,872,202 parameters.

Source: public code of MTT (`networks.py`), used by MTT, FTD (Table 3), SATM (Table 5), ConTra (Table 2); its stride at
    64 pixels: public code of DATM.
Differs: grey images are not padded from 28 to 32 pixels.
"""

from typing import TYPE_CHECKING

from pydantic import Field

from satm.config import Options
from satm.networks.base import Norm, check_size, network, scaled, stem_stride

if TYPE_CHECKING:
    from satm.networks.layers import Network

PLAN = ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True))
"""Filters and kernel size of each convolution, and whether pooling follows it."""


class AlexNetOptions(Options):
    """Shape of an AlexNet."""

    norm: Norm = "none"
    """After each convolution; `instance` is a group norm with one channel per group, with scale and shift."""
    width_factor: float = Field(1.0, gt=0)
    """Multiplies the published number of filters of every convolution."""
    stem_stride: int | None = Field(None, ge=1)
    """Stride of the first convolution; None: 2 from 64 pixels on, as in DATM's code, else 1."""


@network("alexnet", AlexNetOptions)
def alexnet(channels: int, classes: int, size: int, options: AlexNetOptions) -> "Network":
    """Build an AlexNet; images must be larger than 7 pixels times the stride of the first convolution."""
    from torch import nn

    from satm.networks.layers import Network, norm_layers

    stride = stem_stride(size, options.stem_stride)
    check_size(size, 7 * stride + 1, f"stem_stride {stride}")
    layers: list[nn.Module] = []
    for filters, kernel, pooled in PLAN:
        width = scaled(filters, options.width_factor)
        layers += [nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2)]
        channels, size, stride = width, -(-size // stride), 1
        layers += [*norm_layers(options.norm, width, size), nn.ReLU()]
        if pooled:
            layers += [nn.MaxPool2d(2)]
            size //= 2
    return Network(nn.Sequential(*layers), nn.Linear(channels * size * size, classes))
