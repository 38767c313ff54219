"""What a network is, and the registry that it enters with one line."""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from satm.config import Options


class Network(nn.Module):
    """A classifier of square images: features of each image, then one linear layer on all of them.

    The constructor of a network sets the two parts. It raises ValueError, with the least size, where an image is too
    small.

    Args:
        channels: of an image.
        classes: outputs.
        size: height and width of an image in pixels.
        options: the shape, of the class's `options`.
    """

    options: ClassVar[type[Options]]
    features: nn.Module
    """From `[B, C, H, W]` images to maps, which are flattened."""
    classifier: nn.Linear
    """From the flattened maps to the logits."""

    def __init__(self, channels: int, classes: int, size: int, options: Any) -> None:
        super().__init__()

    def embed(self, images: Tensor) -> Tensor:
        """Return `[B, F]`, what the last linear layer sees of `[B, C, H, W]` images."""
        features: Tensor = self.features(images)
        return features.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Return `[B, classes]` logits of `[B, C, H, W]` images."""
        logits: Tensor = self.classifier(self.embed(images))
        return logits


N = TypeVar("N", bound=type[Network])

NETWORKS: dict[str, type[Network]] = {}
"""Every network by its name."""


def register(name: str) -> Callable[[N], N]:
    """Enter a network class under a name."""

    def enter(network: N) -> N:
        NETWORKS[name] = network
        return network

    return enter
