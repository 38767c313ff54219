"""Parts that several networks share."""

from typing import Literal

from torch import nn

Norm = Literal["none", "batch", "instance"]
"""Norms of the networks that are only evaluated on in the papers."""

STRIDED_FROM = 64
"""Pixels from which a stem halves the image unless an option says otherwise."""


def norm_layers(name: str, channels: int, size: int) -> list[nn.Module]:
    """Return the norm of `[B, channels, size, size]` maps as a list of one layer, or of none.

    Args:
        name: `batch`; `layer`; `instance`, a group norm with one channel a group; `group`, with four groups; or `none`.
        channels: of the maps.
        size: height and width of the maps; only `layer` depends on it.

    Raises:
        ValueError: the channels cannot be split into four groups.
    """
    if name == "batch":
        return [nn.BatchNorm2d(channels)]
    if name == "layer":
        return [nn.LayerNorm([channels, size, size])]
    if name == "instance":  # GroupNorm has a fast forward-mode rule, InstanceNorm2d has none
        return [nn.GroupNorm(channels, channels)]
    if name == "group":
        if channels % 4:
            raise ValueError(f"norm 'group' needs a width that 4 divides, got {channels}")
        return [nn.GroupNorm(4, channels)]
    return []


def scaled(filters: int, factor: float) -> int:
    """Return a published number of filters times a factor, rounded, at least 1."""
    return max(1, round(filters * factor))


def stem_stride(size: int, stride: int | None) -> int:
    """Return the stride of the first convolution; None: 2 from 64 pixels on, else 1."""
    if stride is not None:
        return stride
    return 2 if size >= STRIDED_FROM else 1


def check_size(size: int, least: int, why: str) -> None:
    """Refuse images that are too small.

    Raises:
        ValueError: the size is below the least one; `why` says what it comes from.
    """
    if size < least:
        raise ValueError(f"images of {size} x {size} pixels are too small, {why} needs at least {least} x {least}")
