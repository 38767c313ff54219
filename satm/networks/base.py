"""The registry that a network enters with one line."""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from torch import nn

from satm.config import Options


class Network(nn.Module):
    """A classifier of square images; the constructor takes `(channels, classes, size, options)`."""

    options: ClassVar[type[Options]]

    def __init__(self, channels: int, classes: int, size: int, options: Any) -> None:
        super().__init__()


N = TypeVar("N", bound=type[Network])

NETWORKS: dict[str, type[Network]] = {}
"""Every network by its name."""


def register(name: str) -> Callable[[N], N]:
    """Enter a network class under a name."""

    def enter(network: N) -> N:
        NETWORKS[name] = network
        return network

    return enter
