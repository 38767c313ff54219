"""Vision transformers for small images.

Shapes: B images; L patches along one side of an image; W the width of a token.
"""

from typing import ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from satm.config import Options
from satm.networks.base import Network, register
from satm.networks.layers import scaled


class VitOptions(Options):
    """Shape of a vision transformer."""

    patch: int | None = Field(None, ge=1)
    """Height and width of a patch in pixels; None: the divisor of the image's size nearest to an eighth of it, so 8 x 8
    patches where 8 divides the size (4 pixels at 32, 8 at 64, 16 at 128)."""
    depth: int = Field(12, ge=1)
    """Blocks."""
    width_factor: float = Field(1.0, gt=0)
    """Multiplies the published width of a token; the number of heads stays, and must divide the product."""


class Encoder(nn.Module):
    """Patches and a class token with learned positions, blocks of attention and MLP, and a last norm.

    Its blocks stay in training mode. They have no dropout, so that changes no value; in test mode PyTorch would use
    inference kernels, which round differently and have neither forward-mode derivatives nor a rule for `torch.vmap`.
    """

    def __init__(self, channels: int, size: int, patch: int, width: int, heads: int, depth: int) -> None:
        """Build the layers; `size` is that of the images."""
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + (size // patch) ** 2, width))
        for embedding in (self.token, self.positions):
            nn.init.normal_(embedding, std=0.02)
        blocks = [
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True)
            for _ in range(depth)
        ]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of everything but the blocks."""
        super().train(mode)
        self.blocks.train()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return `[B, W]`, the class token after the last block."""
        patches = self.patches(images).flatten(2).transpose(1, 2)  # [B, L * L, W]
        tokens = torch.cat([self.token.expand(len(patches), -1, -1), patches], 1) + self.positions
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have one derivative only, and no rule for vmap on a CPU
            tokens = self.blocks(tokens)
        classes: Tensor = self.norm(tokens[:, 0])
        return classes


class Vit(Network):
    """What the three sizes share.

    Patches by one convolution, a class token, learned positions, blocks with the norms first, attention, an MLP of four
    times the width with GELU, and one linear layer on the class token. No dropout. Embeddings are initialised with a
    standard deviation of 0.02, layers as PyTorch initialises its layers.

    Source: Dosovitskiy et al. 2021 (blocks, base); Touvron et al. 2021, DeiT (tiny, small). ConTra (Table 8) tests on
        such networks and gives neither patch size, resolution nor recipe. Chosen here: images at their own size, 8 x 8
        patches, and the recipe of the other networks.
    Differs: no dropout in training. Linear layers are not initialised with a standard deviation of 0.02, as DeiT's are:
        with that and SGD small networks learnt digits more slowly.
    """

    options: ClassVar[type[Options]] = VitOptions
    width: ClassVar[int]
    """Published width of a token."""
    heads: ClassVar[int]
    """Of each attention."""

    def __init__(self, channels: int, classes: int, size: int, options: VitOptions) -> None:
        """Build the layers (arguments: `Network`).

        Raises:
            ValueError: the patch does not divide the size, or the heads do not divide the width.
        """
        super().__init__(channels, classes, size, options)
        divisors = [patch for patch in range(1, size + 1) if size % patch == 0]
        patch = min(divisors, key=lambda held: abs(held - size / 8)) if options.patch is None else options.patch
        if patch not in divisors:
            raise ValueError(
                f"patch {patch} does not divide images of {size} x {size} pixels; use one of "
                + ", ".join(map(str, divisors))
            )
        width = scaled(self.width, options.width_factor)
        if width % self.heads:
            raise ValueError(
                f"width_factor {options.width_factor:g} makes a width of {width}, which {self.heads} heads do not "
                f"divide; use a multiple of 1/{self.width // self.heads}"
            )
        self.features = Encoder(channels, size, patch, width, self.heads, options.depth)
        self.classifier = nn.Linear(width, classes)


@register("vit-tiny")
class VitTiny(Vit):
    """A vision transformer (`Vit`) of width 192 with 3 heads.

    With the defaults and 10 classes of 32 x 32 x 3 images it has 5,362,762 parameters.
    """

    width: ClassVar[int] = 192
    heads: ClassVar[int] = 3


@register("vit-small")
class VitSmall(Vit):
    """A vision transformer (`Vit`) of width 384 with 6 heads.

    With the defaults and 10 classes of 32 x 32 x 3 images it has 21,342,346 parameters.
    """

    width: ClassVar[int] = 384
    heads: ClassVar[int] = 6


@register("vit-base")
class VitBase(Vit):
    """A vision transformer (`Vit`) of width 768 with 12 heads.

    With the defaults and 10 classes of 32 x 32 x 3 images it has 85,152,010 parameters.
    """

    width: ClassVar[int] = 768
    heads: ClassVar[int] = 12
