"""What the last linear layer of a network sees of images, as a function of the network's weights.

Shapes: B images of C x H x W, P parameters, F features.
"""

from typing import cast

from torch import Tensor, nn

from satm.networks.layers import Network
from satm.params import call_flat


class _Embedding(nn.Module):
    """A network without its last layer; the parameters come in the network's order."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.embed(images)


def embed_flat(network: nn.Module, weights: Tensor, images: Tensor) -> Tensor:
    """Return `[B, F]` features of `[B, C, H, W]` images with `[P]` weights in place of the network's own."""
    return call_flat(_Embedding(cast(Network, network)), weights, images)
