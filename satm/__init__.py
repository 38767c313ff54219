"""Dataset distillation by matching training trajectories.

The public names are looked up when they are first used, so that `import satm` stays quick and needs no torch:

- `hypergradient`: the gradient of what training ends at with respect to the data; `Hypergradient`, its result.
- `load_distilled`: a synthetic set as a `torch.utils.data.Dataset`; `DistilledDataset`, its type.
- `Memory`: images of the classes learned so far, for continual learning.
- `METHODS`, `NETWORKS`, `DATASETS`: everything by name.
- `UsageError`, `RunError`: what is raised.
"""

import importlib
from typing import TYPE_CHECKING

from satm.errors import RunError, UsageError
from satm.version import __version__

if TYPE_CHECKING:
    from satm.data import DATASETS
    from satm.evaluation.replay import Memory
    from satm.methods import METHODS
    from satm.networks import NETWORKS
    from satm.results import DistilledDataset, load_distilled
    from satm.unroll import Hypergradient, hypergradient

__all__ = [
    "DATASETS",
    "METHODS",
    "NETWORKS",
    "DistilledDataset",
    "Hypergradient",
    "Memory",
    "RunError",
    "UsageError",
    "__version__",
    "hypergradient",
    "load_distilled",
]

_HOMES = {
    "DATASETS": "satm.data",
    "METHODS": "satm.methods",
    "NETWORKS": "satm.networks",
    "DistilledDataset": "satm.results",
    "Hypergradient": "satm.unroll",
    "Memory": "satm.evaluation.replay",
    "hypergradient": "satm.unroll",
    "load_distilled": "satm.results",
}


def __getattr__(name: str) -> object:
    """Import the module that a public name lives in, at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'satm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
