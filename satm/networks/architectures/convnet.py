"""The ConvNet of the dataset-distillation papers, with every choice of their architecture search as an option.

Blocks of 3 x 3 convolution, norm, activation and pooling, then one linear layer. Layers have PyTorch's default
initialisation. With the default options and 10 classes of 32 x 32 x 3 images it has 320,010 parameters.

Source: Gidaris and Komodakis 2018, as used by DC, DSA, MTT, FTD, TESLA, SATM (section 4.1) and ConTra (App. D).
"""

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from satm.config import Options
from satm.networks.base import network

if TYPE_CHECKING:
    from satm.networks.layers import Network


class ConvNetOptions(Options):
    """Shape of a ConvNet."""

    depth: int | None = Field(None, ge=1)
    """Number of blocks; None: the number that leaves a map of 4 x 4 pixels (3 at 32, 4 at 64, 5 at 128 pixels)."""
    width: int = Field(128, ge=1)
    """Filters of each convolution."""
    norm: Literal["none", "batch", "layer", "instance", "group"] = "instance"
    """`instance` is a group norm with one channel per group, `group` one with four groups, both with scale and
    shift."""
    activation: Literal["sigmoid", "relu", "leakyrelu"] = "relu"
    """Leaky ReLU has slope 0.01."""
    pooling: Literal["none", "max", "average"] = "average"
    """Windows of 2 x 2, stride 2."""

    def blocks(self, size: int) -> int:
        """Return the number of blocks for images of this height and width in pixels."""
        return max(1, round(math.log2(size)) - 2) if self.depth is None else self.depth


def check(size: int, options: ConvNetOptions) -> None:
    """Refuse pooling that halves the image to nothing, and a width that norm `group` cannot divide by 4."""
    depth = options.blocks(size)
    if options.pooling != "none" and size >> depth < 1:
        raise ValueError(f"depth {depth} halves {size} pixels to nothing; use at most depth {int(math.log2(size))}")
    if options.norm == "group" and options.width % 4:
        raise ValueError(f"norm 'group' needs a width divisible by 4, got {options.width}")


@network("convnet", ConvNetOptions, check)
def convnet(channels: int, classes: int, size: int, options: ConvNetOptions) -> "Network":
    """Build a ConvNet."""
    from satm.networks.layers import Convolution, convolutional

    pooled = options.pooling != "none"
    plan = [Convolution(options.width, pooled=pooled)] * options.blocks(size)
    return convolutional(plan, channels, classes, size, options.norm, options.activation, options.pooling)
