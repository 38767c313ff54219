"""Registration of networks, and the options and size arithmetic that several of them share; no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field

from satm.config import Options
from satm.registry import Registry

if TYPE_CHECKING:
    from satm.networks.layers import Network

S = TypeVar("S", bound=Options)

Builder = Callable[[int, int, int, S], "Network"]
"""`(channels, classes, size, options) -> network`, with `size` the height and width of an image in pixels.

Draws initial weights from the global torch generator.
"""


def fits_always(size: int, options: Options) -> None:
    """Refuse nothing."""


@dataclass(frozen=True)
class Architecture:
    """A registered network: the class of its options, its `Builder`, and its check, for which torch is not needed.

    `check(size, options)` raises a ValueError, naming the smallest size, if an image is too small, or if options do not
    fit each other.
    """

    options: type[Options]
    builder: Callable[..., "Network"]
    check: Callable[[int, Any], None] = fits_always

    def build(self, channels: int, classes: int, size: int, options: Options) -> "Network":
        """Check and build the network (arguments: `Builder`)."""
        self.check(size, options)
        return self.builder(channels, classes, size, options)


NETWORKS: Registry[Architecture] = Registry("satm.networks.architectures")
"""All networks by name."""


def network(
    name: str, options: type[S], check: Callable[[int, S], None] = fits_always
) -> Callable[[Builder[S]], Builder[S]]:
    """Return a decorator that registers a builder, its options and their check under a name."""

    def register(build: Builder[S]) -> Builder[S]:
        NETWORKS.register(name, Architecture(options, build, check))
        return build

    return register


class PaperOptions(Options):
    """Shape of a network that the papers use for evaluation only."""

    norm: Literal["none", "batch", "instance"] = "instance"
    """Norm after each convolution; `instance` is a group norm with one channel per group, with scale and shift."""
    width_factor: float = Field(1.0, gt=0)
    """Factor on the published number of filters of every convolution."""


class StemOptions(PaperOptions):
    """Shape of a network whose first convolution may have a stride."""

    stem_stride: int | None = Field(None, ge=1)
    """Stride of the first convolution; None: 2 from 64 pixels on, as in DATM's code, else 1."""

    def stride(self, size: int) -> int:
        """Return the stride for images of this height and width in pixels."""
        return self.stem_stride or (2 if size >= 64 else 1)


def scaled(filters: int, factor: float) -> int:
    """Return a published number of filters times a factor, rounded, at least 1."""
    return max(1, round(filters * factor))


def check_size(size: int, least: int, why: str) -> None:
    """Raise ValueError if images are smaller than `least` pixels; `why` names, for the message, what needs the size."""
    if size < least:
        raise ValueError(f"images of {size} x {size} pixels are too small: {why} needs at least {least} x {least}")
