"""The stages `table` and `figure`: what people look at."""

import logging
from pathlib import Path

from satm import tables
from satm.config import Resolver
from satm.errors import UsageError
from satm.figures import synthetic_grid
from satm.progress import Progress
from satm.results import load_distilled
from satm.stages.common import distilled_path

LOG = logging.getLogger("satm")


def make_table(resolver: Resolver, name: str) -> None:
    """Write a results table as csv, md and tex and show it."""
    frame, paired = tables.write_table(resolver, name)
    tables.show_table(Progress.console(), frame, paired)


def make_synthetic_figure(resolver: Resolver, dataset: str, ipc: int) -> None:
    """Draw the synthetic images of all methods that a table of the campaign compares, the first seed of each."""
    chosen = resolver.pictured(dataset, ipc)
    if not chosen:
        raise UsageError(f"no table of {resolver.path or 'the built-in campaign'} holds {dataset} at ipc {ipc}")
    sets = {method: load_distilled(distilled_path(resolver, dataset, ipc, method, seed)) for method, seed in chosen}
    path = Path(resolver.layout.synthetic(dataset, ipc))
    synthetic_grid(sets, path, f"{dataset}, {ipc} image{'s' if ipc > 1 else ''} per class, seed {chosen[0][1]}")
    LOG.info("picture of %s -> %s", ", ".join(sets), path)
