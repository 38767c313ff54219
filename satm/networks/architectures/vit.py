"""Vision transformers for small images.

Patches by one convolution, a class token, learned positions, pre-norm blocks of attention and an MLP of four times the
width with GELU, and one linear layer on the class token. No dropout. Embeddings are initialised with a standard
deviation of 0.02, layers by PyTorch's default. With the default options and 10 classes of 32 x 32 x 3 images `vit-tiny`
has 5,362,762 parameters, `vit-small` 21,342,346 parameters and `vit-base` 85,152,010 parameters.

Source: Dosovitskiy et al. 2021 (blocks, base); Touvron et al. 2021, DeiT (tiny, small). ConTra (Table 8) tests on these
    networks and gives neither patch size, resolution nor recipe. Our choice: images at their original size, 8 x 8
    patches, and the recipe of the other networks.
Differs: no dropout in training. Linear layers are not initialised with a standard deviation of 0.02, as DeiT's are:
    with it, small networks trained by SGD learned digits more slowly.
"""

from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from satm.config import Options
from satm.networks.base import NETWORKS, Architecture, scaled

if TYPE_CHECKING:
    from satm.networks.layers import Network

SIZES = {"vit-tiny": (192, 3), "vit-small": (384, 6), "vit-base": (768, 12)}
"""Published width of a token and number of attention heads."""


class VitOptions(Options):
    """Shape of a vision transformer."""

    patch: int | None = Field(None, ge=1)
    """Height and width of a patch in pixels; None: the divisor of the image's size nearest to an eighth of it, which
    gives a grid of 8 x 8 patches where 8 divides the size (patches of 4 pixels at 32, 8 at 64, 16 at 128)."""
    depth: int = Field(12, ge=1)
    """Number of blocks."""
    width_factor: float = Field(1.0, gt=0)
    """Factor on the published width of a token; the number of heads is unchanged and must divide the product."""

    def side(self, size: int) -> int:
        """Return height and width of a patch of images of this height and width in pixels."""
        return min(divisors_of(size), key=lambda side: abs(side - size / 8)) if self.patch is None else self.patch


def divisors_of(size: int) -> list[int]:
    """Return all divisors, ascending."""
    return [patch for patch in range(1, size + 1) if size % patch == 0]


def check(tokens: int, heads: int, size: int, options: VitOptions) -> None:
    """Refuse a patch that does not divide the image's size, and heads that do not divide the width."""
    patch, divisors = options.side(size), divisors_of(size)
    if patch not in divisors:
        choices = ", ".join(map(str, divisors))
        raise ValueError(f"patch {patch} does not divide images of {size} x {size} pixels; use one of {choices}")
    width = scaled(tokens, options.width_factor)
    if width % heads:
        raise ValueError(
            f"width_factor {options.width_factor:g} gives a width of {width}, which {heads} heads do not divide; use a "
            f"multiple of 1/{tokens // heads}"
        )


def vit(tokens: int, heads: int, channels: int, classes: int, size: int, options: VitOptions) -> "Network":
    """Build a vision transformer.

    `tokens` is the published width of a token; for the other arguments see `satm.networks.base.Builder`.
    """
    from torch import nn

    from satm.networks.layers import Network, PatchEncoder

    width = scaled(tokens, options.width_factor)
    features = PatchEncoder(channels, size, options.side(size), width, heads, options.depth)
    return Network(features, nn.Linear(width, classes))


for name, (tokens, heads) in SIZES.items():
    NETWORKS.register(name, Architecture(VitOptions, partial(vit, tokens, heads), partial(check, tokens, heads)))
