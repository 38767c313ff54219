"""The network module, and the layers of the architectures.

Shapes: B images of C x H x W; P parameters, F features; W the width of a token.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from satm.params import unflatten


class Network(nn.Module):
    """A classifier of square images: a feature extractor, then one linear layer on all features.

    `features` maps `[B, C, H, W]` images to maps or vectors; flattened, they are the input of `classifier`.
    """

    def __init__(self, features: nn.Module, classifier: nn.Linear) -> None:
        super().__init__()
        self.features, self.classifier = features, classifier

    def embed(self, images: Tensor) -> Tensor:
        """Return `[B, F]` features of `[B, C, H, W]` images, the input of the last linear layer."""
        features: Tensor = self.features(images)
        return features.flatten(1)

    def forward(self, images: Tensor, embed: bool = False) -> Tensor:
        """Return `[B, classes]` logits of `[B, C, H, W]` images, or with `embed` their `[B, F]` features."""
        features = self.embed(images)
        logits: Tensor = features if embed else self.classifier(features)
        return logits


def embed_flat(network: nn.Module, weights: Tensor, images: Tensor) -> Tensor:
    """Return `[B, F]` features of `[B, C, H, W]` images with `[P]` weights in place of the network's own."""
    features: Tensor = torch.func.functional_call(network, unflatten(network, weights), (images, True))
    return features


def norm_layers(name: str, channels: int, size: int) -> list[nn.Module]:
    """Return the norm of `[B, channels, size, size]` maps as a list of at most one layer.

    `instance` is a group norm with one channel per group, `group` one with four groups; only `layer` depends on the
    size.
    """
    if name == "batch":
        return [nn.BatchNorm2d(channels)]
    if name == "layer":
        return [nn.LayerNorm([channels, size, size])]
    if name == "instance":  # GroupNorm has a fast forward-mode rule, InstanceNorm2d has none
        return [nn.GroupNorm(channels, channels)]
    if name == "group":
        return [nn.GroupNorm(4, channels)]
    return []


class Convolution(NamedTuple):
    """One convolution of a network without branches, and whether 2 x 2 pooling follows it."""

    filters: int
    kernel: int = 3
    pooled: bool = False
    stride: int = 1


ACTIVATIONS = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "leakyrelu": nn.LeakyReLU}
POOLINGS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


def convolutional(
    plan: Sequence[Convolution],
    channels: int,
    classes: int,
    size: int,
    norm: str,
    activation: str = "relu",
    pooling: str = "max",
    corner: bool = False,
) -> Network:
    """Build convolutions with norm, activation and pooling, then one linear layer.

    The linear layer's input is the whole last map, or with `corner` its upper left pixel. For the other arguments see
    `satm.networks.base.Builder`.
    """
    layers: list[nn.Module] = []
    for filters, kernel, pooled, stride in plan:
        layers += [nn.Conv2d(channels, filters, kernel, stride, padding=kernel // 2)]
        channels, size = filters, -(-size // stride)
        layers += [*norm_layers(norm, channels, size), ACTIVATIONS[activation]()]
        if pooled:
            layers += [POOLINGS[pooling](2)]
            size //= 2
    if corner:
        layers += [nn.AvgPool2d(1, stride=size)]
        size = 1
    return Network(nn.Sequential(*layers), nn.Linear(channels * size * size, classes))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with norm, beside a shortcut, which is a 1 x 1 convolution if the shape changes."""

    def __init__(self, channels: int, width: int, stride: int, norm: str, size: int) -> None:
        """Build the layers; `size` is that of the maps after the block."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
            *norm_layers(norm, width, size),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            *norm_layers(norm, width, size),
        )
        changes = stride != 1 or channels != width
        convolution = [nn.Conv2d(channels, width, 1, stride, bias=False), *norm_layers(norm, width, size)]
        self.shortcut = nn.Sequential(*(convolution if changes else []))

    def forward(self, maps: Tensor) -> Tensor:
        """Return `[B, width, size, size]` maps."""
        return functional.relu(self.body(maps) + self.shortcut(maps))


class PatchEncoder(nn.Module):
    """The encoder of a vision transformer: patches and a class token with learned positions, blocks, a last norm.

    The blocks stay in training mode. They have no dropout, so this changes no value; in evaluation mode PyTorch would
    use inference kernels, which round differently and have neither forward-mode derivatives nor a rule for
    `torch.vmap`.
    """

    def __init__(self, channels: int, size: int, patch: int, width: int, heads: int, depth: int) -> None:
        """Build the layers; `size` and `patch` are heights and widths of an image and of a patch in pixels."""
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
        """Return `[B, W]` class tokens after the last block."""
        patches = self.patches(images).flatten(2).transpose(1, 2)  # [B, patches, W]
        tokens = torch.cat([self.token.expand(len(patches), -1, -1), patches], 1) + self.positions
        with sdpa_kernel(SDPBackend.MATH):  # fused kernels have only first derivatives, and no vmap rule on a CPU
            tokens = self.blocks(tokens)
        classes: Tensor = self.norm(tokens[:, 0])
        return classes
