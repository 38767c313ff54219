"""Dataset distillation by matching training trajectories.

Public names are imported on first use, so that `import satm` is quick and does not import torch:

- `hypergradient`: the gradient of an outer loss, at the end of training, with respect to the training data;
  `Hypergradient`, its result.
- `load_distilled`: a synthetic set as a `torch.utils.data.Dataset`; `DistilledDataset`, its type.
- `Memory`: a replay buffer of images of the classes learned so far, for continual learning.
- `METHODS`, `NETWORKS`, `DATASETS`: all methods, networks and sources of datasets by name.
- `UsageError`, `RunError`: the errors that the package raises.
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
    from satm.results.distilled import DistilledDataset, load_distilled
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

_MODULES = {
    "DATASETS": "satm.data",
    "METHODS": "satm.methods",
    "NETWORKS": "satm.networks",
    "DistilledDataset": "satm.results.distilled",
    "Hypergradient": "satm.unroll",
    "Memory": "satm.evaluation.replay",
    "hypergradient": "satm.unroll",
    "load_distilled": "satm.results.distilled",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module 'satm' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """List all public names, imported or not."""
    return sorted({*globals(), *__all__})
