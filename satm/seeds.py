"""Seeds derived from named axes, so that two runs share random numbers only if they share names."""

import hashlib
import json

import torch


def derive_seed(*axes: str | int) -> int:
    """Return a seed in [0, 2**63) determined by the axes, such as ``"distill", "cifar10", 1, "mtt", 0``.

    Their order matters; ``1`` and ``"1"`` differ.
    """
    digest = hashlib.sha256(json.dumps(list(axes)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_generator(*axes: str | int) -> torch.Generator:
    """Return a CPU generator seeded from the axes (`derive_seed`).

    Random numbers are always drawn on the CPU, so a seed gives the same numbers on a CPU and on a GPU.
    """
    return torch.Generator().manual_seed(derive_seed(*axes))
