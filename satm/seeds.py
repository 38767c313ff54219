"""Random generators that derive from named axes, so that two runs share randomness only where they share names."""

import hashlib
import json

import torch


def derive_seed(*axes: str | int) -> int:
    """Return a seed in [0, 2**63) that depends on the axes and on their order only.

    Args:
        axes: names and numbers, such as ``"distill", "cifar10", 1, "mtt", 0``. ``1`` and ``"1"`` differ.
    """
    digest = hashlib.sha256(json.dumps(list(axes)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_generator(*axes: str | int) -> torch.Generator:
    """Return a CPU generator seeded from the axes (`derive_seed`).

    Draws are made on the CPU on every device, so one seed names one stream whether the run is on a CPU or a GPU.
    """
    return torch.Generator().manual_seed(derive_seed(*axes))
