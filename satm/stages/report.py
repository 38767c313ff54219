"""The stages `table` and `figure`: what people look at."""

import logging
from pathlib import Path

from satm import continual_table, fair, nas_table, tables
from satm.config import ContinualOptions, FairOptions, Resolver, SearchOptions
from satm.errors import UsageError
from satm.figures import accuracy_curves, synthetic_grid
from satm.progress import Progress
from satm.results import load_distilled
from satm.stages.common import distilled_path

LOG = logging.getLogger("satm")


def make_table(resolver: Resolver, name: str) -> None:
    """Write a table and show it: a results table as csv, md and tex, any other kind as csv and md."""
    options = resolver.table(name)
    if isinstance(options, FairOptions):
        fair.write_fair(resolver, name, Progress.console())
    elif isinstance(options, SearchOptions):
        nas_table.write_search(resolver, name, Progress.console())
    elif isinstance(options, ContinualOptions):
        continual_table.write_continual(resolver, name, Progress.console())
    else:
        frame, paired = tables.write_table(resolver, name)
        tables.show_table(Progress.console(), frame, paired)


def make_continual_figure(resolver: Resolver, name: str) -> None:
    """Draw accuracy against the number of classes seen, a panel per dataset and images per class, as png and pdf."""
    panels = {
        f"{dataset}, {_images_per_class(ipc)}": curves
        for (dataset, ipc), curves in continual_table.curves(resolver, name).items()
    }
    paths = [Path(resolver.layout.figure(name, kind)) for kind in ("png", "pdf")]
    accuracy_curves(panels, paths)
    LOG.info("figure of %s -> %s", name, " and ".join(map(str, paths)))


def make_synthetic_figure(resolver: Resolver, dataset: str, ipc: int) -> None:
    """Draw the synthetic images of all methods that a table of the campaign compares, the first seed of each."""
    chosen = resolver.pictured(dataset, ipc)
    if not chosen:
        raise UsageError(f"no table of {resolver.path or 'the built-in campaign'} holds {dataset} at ipc {ipc}")
    sets = {method: load_distilled(distilled_path(resolver, dataset, ipc, method, seed)) for method, seed in chosen}
    path = Path(resolver.layout.synthetic(dataset, ipc))
    synthetic_grid(sets, path, f"{dataset}, {_images_per_class(ipc)}, seed {chosen[0][1]}")
    LOG.info("picture of %s -> %s", ", ".join(sets), path)


def _images_per_class(ipc: int) -> str:
    return f"{ipc} image{'s' if ipc > 1 else ''} per class"
