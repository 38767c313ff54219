"""The AlexNet of the dataset-distillation papers."""

from typing import ClassVar

from pydantic import Field
from torch import nn

from satm.config import Options
from satm.networks.base import Network, register
from satm.networks.layers import Norm, check_size, norm_layers, scaled, stem_stride

PLAN: tuple[tuple[int, int, bool], ...] = (
    (128, 5, True),
    (192, 5, True),
    (256, 3, False),
    (192, 3, False),
    (192, 3, True),
)
"""Filters and kernel of each convolution, and whether a pooling follows it."""


class AlexNetOptions(Options):
    """Shape of an AlexNet."""

    norm: Norm = "none"
    """After each convolution; `instance` is a group norm with one channel a group, with scale and shift."""
    width_factor: float = Field(1.0, gt=0)
    """Multiplies the published number of filters of every convolution."""
    stem_stride: int | None = Field(None, ge=1)
    """Stride of the first convolution; None: 2 from 64 pixels on, as DATM's code has it, else 1."""


@register("alexnet")
class AlexNet(Network):
    """Five convolutions with ReLU, max pooling after the first, second and last, then one linear layer.

    Filters 128, 192, 256, 192, 192; kernels 5, 5, 3, 3, 3; windows of 2 x 2. No norm unless asked for, no dropout.
    Initialised as PyTorch initialises its layers. With the defaults and 10 classes of 32 x 32 x 3 images it has
    1,872,202 parameters.

    Source: public code of MTT (`networks.py`), used by MTT, FTD (Table 3), SATM (Table 5), ConTra (Table 2); its stride
        at 64 pixels: public code of DATM.
    Differs: grey images are not padded from 28 to 32 pixels.
    """

    options: ClassVar[type[Options]] = AlexNetOptions

    def __init__(self, channels: int, classes: int, size: int, options: AlexNetOptions) -> None:
        """Build the layers (arguments: `Network`).

        Raises:
            ValueError: the image is smaller than 8 pixels, times the stride of the stem.
        """
        super().__init__(channels, classes, size, options)
        stride = stem_stride(size, options.stem_stride)
        check_size(size, 7 * stride + 1, f"with stem_stride {stride} it")
        layers: list[nn.Module] = []
        for filters, kernel, pooled in PLAN:
            width = scaled(filters, options.width_factor)
            layers += [nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2)]
            channels, size, stride = width, -(-size // stride), 1
            layers += [*norm_layers(options.norm, width, size), nn.ReLU()]
            if pooled:
                layers += [nn.MaxPool2d(2)]
                size //= 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * size * size, classes)
