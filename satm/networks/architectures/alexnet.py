"""The AlexNet of the dataset-distillation papers.

Five convolutions with ReLU, pooling of 2 x 2 after the first, second and last, then one linear layer. Filters 128,
192, 256, 192, 192; kernels 5, 5, 3, 3, 3. By default max pooling and no norm; no dropout. Layers have PyTorch's default
initialisation. With the default options and 10 classes of 32 x 32 x 3 images it has 1,872,202 parameters.

Source: public code of MTT (`networks.py`), used by MTT, FTD (Table 3), SATM (Table 5), ConTra (Table 2); its stride at
    64 pixels: public code of DATM. With norm `instance` and pooling `average`: public code of RaT-BPTT.
Differs: grey images are not padded from 28 to 32 pixels.
"""

from typing import TYPE_CHECKING, Literal

from satm.networks.base import StemOptions, check_size, network, scaled

if TYPE_CHECKING:
    from satm.networks.layers import Network

PLAN = ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True))
"""Filters and kernel size of each convolution, and whether pooling follows it."""


class AlexNetOptions(StemOptions):
    """Shape of an AlexNet."""

    norm: Literal["none", "batch", "instance"] = "none"
    """Norm after each convolution; `instance` is a group norm with one channel per group, with scale and shift."""
    pooling: Literal["max", "average"] = "max"
    """Pooling after the first, second and last convolution."""


def check(size: int, options: AlexNetOptions) -> None:
    """Refuse images that are not larger than 7 pixels times the stride of the first convolution."""
    stride = options.stride(size)
    check_size(size, 7 * stride + 1, f"stem_stride {stride}")


@network("alexnet", AlexNetOptions, check)
def alexnet(channels: int, classes: int, size: int, options: AlexNetOptions) -> "Network":
    """Build an AlexNet."""
    from satm.networks.layers import Convolution, convolutional

    plan = [Convolution(scaled(filters, options.width_factor), kernel, pooled) for filters, kernel, pooled in PLAN]
    plan[0] = plan[0]._replace(stride=options.stride(size))
    return convolutional(plan, channels, classes, size, options.norm, pooling=options.pooling)
