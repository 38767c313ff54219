"""The VGG11 of the dataset-distillation papers.

Eight 3 x 3 convolutions with norm and ReLU, five max poolings of 2 x 2, then one linear layer. Filters 64, 128, 256,
256, 512, 512, 512, 512. No dropout. Layers have PyTorch's default initialisation. With the default options and 10
classes of 32 x 32 x 3 images it has 9,231,114 parameters.

Source: Simonyan and Zisserman 2015, configuration A, as in the public code of MTT (`networks.py`), used by MTT, FTD
    (Table 3), SATM (Table 5), ConTra (Table 2). The norm behind their tables is not given; the code's VGG11 has
    instance norm, its VGG11BN batch norm.
Differs: grey images are not padded from 28 to 32 pixels.
"""

from typing import TYPE_CHECKING, Literal

from satm.networks.base import PaperOptions, check_size, network, scaled

if TYPE_CHECKING:
    from satm.networks.layers import Network

PLAN = ((64, True), (128, True), (256, False), (256, True), (512, False), (512, True), (512, False), (512, True))
"""Filters of each convolution, and whether pooling follows it."""


class Vgg11Options(PaperOptions):
    """Shape of a VGG11."""

    readout: Literal["all", "corner"] = "all"
    """Input of the linear layer if the last map has several pixels (2 x 2 at 64 pixels): all of them, or only the
    upper left one, as in DATM's code at 64 pixels."""


def check(size: int, options: Vgg11Options) -> None:
    """Refuse images below 32 pixels, which five poolings halve to 1 (the last norms see 2 x 2)."""
    poolings = sum(pooled for _, pooled in PLAN)
    check_size(size, 2**poolings, f"pooling {poolings} times")


@network("vgg11", Vgg11Options, check)
def vgg11(channels: int, classes: int, size: int, options: Vgg11Options) -> "Network":
    """Build a VGG11."""
    from satm.networks.layers import Convolution, convolutional

    plan = [Convolution(scaled(filters, options.width_factor), pooled=pooled) for filters, pooled in PLAN]
    return convolutional(plan, channels, classes, size, options.norm, corner=options.readout == "corner")
