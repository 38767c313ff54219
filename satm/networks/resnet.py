"""The ResNet18 of the dataset-distillation papers."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from satm.config import Options
from satm.networks.base import Network, register
from satm.networks.layers import Norm, check_size, norm_layers, scaled, stem_stride

PLAN = ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))
"""Filters and stride of each block."""


class ResNet18Options(Options):
    """Shape of a ResNet18."""

    norm: Norm = "instance"
    """After each convolution; `instance` is a group norm with one channel a group, with scale and shift."""
    width_factor: float = Field(1.0, gt=0)
    """Multiplies the published number of filters of every convolution."""
    stem_stride: int | None = Field(None, ge=1)
    """Stride of the first convolution; None: 2 from 64 pixels on, as DATM's code has it, else 1."""


class Block(nn.Module):
    """Two 3 x 3 convolutions with norm beside a shortcut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int, norm: Norm, size: int) -> None:
        """Build the layers; `size` is that of the maps after the block."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
            *norm_layers(norm, width, size),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            *norm_layers(norm, width, size),
        )
        changes = stride != 1 or channels != width
        convolution = [nn.Conv2d(channels, width, 1, stride, bias=False), *norm_layers(norm, width, size)]
        self.shortcut = nn.Sequential(*(convolution if changes else []))

    def forward(self, maps: Tensor) -> Tensor:
        """Return `[B, width, size, size]` maps."""
        return functional.relu(self.body(maps) + self.shortcut(maps))


@register("resnet18")
class ResNet18(Network):
    """A 3 x 3 convolution, eight residual blocks of two, the mean over the last map, then one linear layer.

    Stages of 64, 128, 256 and 512 filters; the last three begin with stride 2. No pooling after the stem. Convolutions
    have no bias. Initialised as PyTorch initialises its layers. With the defaults and 10 classes of 32 x 32 x 3 images
    it has 11,173,962 parameters.

    Source: He et al. 2016, in the form for CIFAR of the public code of MTT (`networks.py`), used by MTT, FTD (Table 3),
        SATM (Table 5), ConTra (Table 2). Which norm their tables have is not given; the code's ResNet18 has instance
        norm, its ResNet18BN batch norm. Its stride at 64 pixels: public code of DATM.
    Differs: the mean is over the whole last map, which is the published 4 x 4 window at 32 pixels, and at 64.
    """

    options: ClassVar[type[Options]] = ResNet18Options

    def __init__(self, channels: int, classes: int, size: int, options: ResNet18Options) -> None:
        """Build the layers (arguments: `Network`).

        Raises:
            ValueError: the last maps would have one pixel, which instance norm turns into a constant.
        """
        super().__init__(channels, classes, size, options)
        stride = stem_stride(size, options.stem_stride)
        if options.norm == "instance":
            check_size(size, 8 * stride + 1, f"with stem_stride {stride} and norm 'instance' it")
        width = scaled(64, options.width_factor)
        size = -(-size // stride)
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)]
        layers += [*norm_layers(options.norm, width, size), nn.ReLU()]
        for filters, step in PLAN:
            channels, width, size = width, scaled(filters, options.width_factor), -(-size // step)
            layers += [Block(channels, width, step, options.norm, size)]
        layers += [nn.AvgPool2d(size)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, classes)
