"""The ResNet18 of the dataset-distillation papers.

A 3 x 3 convolution, eight residual blocks of two convolutions, the mean over the last map, then one linear layer.
Stages of 64, 128, 256 and 512 filters; the last three begin with stride 2. No pooling after the first convolution.
Convolutions have no bias. Layers have PyTorch's default initialisation. With the default options and 10 classes of
32 x 32 x 3 images it has 11,173,962 parameters.

Source: He et al. 2016, in the form for CIFAR of the public code of MTT (`networks.py`), used by MTT, FTD (Table 3),
    SATM (Table 5), ConTra (Table 2). The norm behind their tables is not given; the code's ResNet18 has instance norm,
    its ResNet18BN batch norm. Its stride at 64 pixels: public code of DATM.
Differs: the mean is over the whole last map, which is the published 4 x 4 window at 32 and at 64 pixels.
"""

from typing import TYPE_CHECKING

from satm.networks.base import StemOptions, check_size, network, scaled

if TYPE_CHECKING:
    from satm.networks.layers import Network

PLAN = ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))
"""Filters and stride of each block."""


def check(size: int, options: StemOptions) -> None:
    """Refuse images whose last maps have one pixel with norm `instance`, which would erase it."""
    stride = options.stride(size)
    if options.norm == "instance":
        check_size(size, 8 * stride + 1, f"stem_stride {stride} with norm 'instance'")


@network("resnet18", StemOptions, check)
def resnet18(channels: int, classes: int, size: int, options: StemOptions) -> "Network":
    """Build a ResNet18."""
    from torch import nn

    from satm.networks.layers import Network, ResidualBlock, norm_layers

    stride = options.stride(size)
    width = scaled(64, options.width_factor)
    size = -(-size // stride)
    stem = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
    layers = [stem, *norm_layers(options.norm, width, size), nn.ReLU()]
    for filters, step in PLAN:
        channels, width, size = width, scaled(filters, options.width_factor), -(-size // step)
        layers += [ResidualBlock(channels, width, step, options.norm, size)]
    layers += [nn.AvgPool2d(size)]
    return Network(nn.Sequential(*layers), nn.Linear(width, classes))
