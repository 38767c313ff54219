"""Networks by name: their options and construction.

Nothing here imports torch before a network is built: the workflow reads the options in every cluster job.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from satm.config import Options, parse
from satm.errors import UsageError, pick
from satm.networks.base import NETWORKS, Architecture, network

if TYPE_CHECKING:
    from satm.networks.layers import Network


def resolve(values: Mapping[str, object]) -> tuple[str, Options]:
    """Return the registered name and the checked options of `{"network": name, option: value…}`.

    Raises:
        UsageError: an unknown network or option, or an unusable value.
    """
    options = dict(values)
    name = str(options.pop("network"))
    return name, parse(pick(name, NETWORKS, "network").options, options, f"network {name}")


def build(values: Mapping[str, object], channels: int, classes: int, size: int, seed: int) -> "Network":
    """Build a freshly initialised network from `{"network": registered name, option: value…}`.

    `size` is the height and width of an image in pixels. The seed determines the initial weights; the global random
    generator is left unchanged.

    Raises:
        UsageError: an unknown network or option, or an image too small for the network.
    """
    import torch

    name, options = resolve(values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return NETWORKS[name].build(channels, classes, size, options)
        except ValueError as error:
            raise UsageError(f"network {name}: {error}") from error
