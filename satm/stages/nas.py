"""The stage `nas`: accuracies of the candidates of an architecture search, on a synthetic set or on real images."""

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from satm.config import CANDIDATES, REVISIONS, CandidateOptions, Cell, Resolver, SearchOptions
from satm.errors import UsageError
from satm.evaluation.networks import Axes, Task, evaluate, stacked
from satm.evaluation.search import Candidate, candidates, sample
from satm.networks import NETWORKS, resolve
from satm.networks.training import TrainingImages
from satm.results.circumstances import run_metadata
from satm.results.columns import NAS
from satm.results.rows import write_rows
from satm.run.lock import Lock, exclusive
from satm.run.progress import Progress
from satm.run.record import account
from satm.seeds import derive_seed
from satm.stages.checkpoint import NetworkState, RowsState
from satm.stages.common import Prepared, made_already, open_distilled, prepare, real_images, resumed_rows
from satm.storage.files import hash_file, patiently

LOG = logging.getLogger("satm")


@dataclass(frozen=True)
class Source:
    """What the candidates are trained on.

    Args:
        cell: whose rows these are; of all real images ipc is 0 and the method `real`.
        images: with labels.
        step_size: that belongs to them, where the recipe's is `learned`.
        options: the recipe.
        identity: JSON values that say which images these are.
    """

    cell: Cell
    images: TrainingImages
    step_size: float
    options: CandidateOptions
    identity: Mapping[str, Any]


def make_search(
    resolver: Resolver,
    cell: Cell,
    search: str,
    options: SearchOptions,
    part: str | None,
    device: torch.device,
) -> None:
    """Train the candidates of a search on a synthetic set, one part or all, and write a row of each network.

    Of a set that is a moving average, the average is used.
    """
    _check_part(search, options, part)
    prepared = prepare(resolver, cell.dataset)
    made, path = open_distilled(resolver, prepared, cell)
    images = TrainingImages(made.images.to(device), made.labels.to(device))
    source = Source(cell, images, float(made.step_size), options.proxy, {"distilled": hash_file(path)})
    _run(resolver, prepared, source, search, options, part, device)


def make_real_search(
    resolver: Resolver, dataset: str, search: str, options: SearchOptions, part: str | None, device: torch.device
) -> None:
    """Train the candidates of a search on all real training images, one part or all; a row of each network."""
    _check_part(search, options, part)
    prepared = prepare(resolver, dataset)
    images = real_images(prepared, "train", device)
    # Real images have no step size of their own; the recipe's is a number (`SearchOptions`).
    source = Source(Cell(dataset, 0, "real"), images, 0.0, options.real, {})
    _run(resolver, prepared, source, search, options, part, device)


@functools.cache
def fitting(channels: int, classes: int, size: int, width_factor: float = 1.0) -> tuple[Candidate, ...]:
    """Return the candidates that fit images of `size` x `size` pixels, by the rule of the network itself."""
    found = []
    for candidate in candidates(width_factor):
        name, options = resolve(candidate.network)
        try:
            with torch.device("meta"):  # shapes only: no weights are drawn
                NETWORKS[name].build(channels, classes, size, options)
        except ValueError:
            continue
        found.append(candidate)
    return tuple(found)


def _check_part(search: str, options: SearchOptions, part: str | None) -> None:
    if part is not None and part not in (known := options.parts()):
        raise UsageError(f"unknown part {part!r} of search {search}; known: {', '.join(known)}")


def _run(
    resolver: Resolver,
    prepared: Prepared,
    source: Source,
    search: str,
    options: SearchOptions,
    part: str | None,
    device: torch.device,
) -> None:
    """Train and test the candidates of the parts, those that have no row yet."""
    data, layout = prepared.data, resolver.layout
    cell = source.cell
    tested = real_images(prepared, source.options.split, device)
    fit = fitting(data.channels, data.classes, data.size, options.width_factor)
    if left_out := CANDIDATES - len(fit):
        LOG.info("%d of %d candidates do not fit images of %d pixels", left_out, CANDIDATES, data.size)
    chosen = sample(fit, options.sample, options.sample_seed)
    place = (cell.dataset, "real") if cell.ipc == 0 else cell.place
    for name in options.parts() if part is None else [part]:
        first, last = (int(number) for number in name.split("-"))
        mine = chosen[first : last + 1]
        target = Path(layout.nas(cell, search, name) if cell.ipc else layout.nas_real(cell.dataset, search, name))
        state = Path(layout.state("nas", *place, search, f"part-{name}"))
        identity = {
            **source.identity,
            "revision": REVISIONS["nas"],
            "options": source.options.model_dump(mode="json"),
            "candidates": [candidate.index for candidate in mine],
            "width_factor": options.width_factor,
            **prepared.identity,
        }
        kept = Path(layout.account("nas", *place, search, f"part-{name}"))
        with account(kept), exclusive(state, f"part {name} of search {search}") as lock:
            if made_already(lock, NAS, identity, target):
                continue
            rows = _trained(prepared, source, search, mine, tested, lock, identity, device)
            lock.check()
            patiently(partial(write_rows, target, rows, NAS, run_metadata(identity, device)))
            LOG.info("%d candidates on %s images, %d networks -> %s", len(mine), cell.method, len(rows), target)
            lock.finished(target)


def _trained(
    prepared: Prepared,
    source: Source,
    search: str,
    mine: Sequence[Candidate],
    tested: TrainingImages,
    lock: Lock,
    identity: Mapping[str, Any],
    device: torch.device,
) -> list[dict[str, Any]]:
    """Return a row of each network, those of an earlier run included."""
    options, held = source.options, RowsState(lock.folder, identity)
    rows = resumed_rows(held, NAS)
    total = len(mine) * options.repeats
    with Progress("nas", total, len(rows)) as progress:
        while len(rows) < total:
            which, repeat = divmod(len(rows), options.repeats)
            candidate = mine[which]
            task = Task(
                source.images,
                source.step_size,
                candidate.network,
                prepared.data.classes,
                options,
                prepared.augmentation,
            )
            repeats = range(repeat, options.repeats if stacked(task, device) else repeat + 1)
            axes = [(*source.cell, f"nas-{candidate.index}", number, options.network_seed) for number in repeats]

            def keep(some: Sequence[Axes]) -> NetworkState:
                return NetworkState(lock.folder, [[derive_seed(*one) for one in some], identity])

            for number, score in zip(repeats, evaluate(task, tested, axes, keep), strict=True):
                rows.append(
                    {
                        **source.cell.axes,
                        "search": search,
                        "candidate": candidate.index,
                        **candidate.choices,
                        "repeat": number,
                        "split": options.split,
                        "accuracy": score.accuracy,
                        "loss": score.loss,
                        "epochs": options.epochs,
                        "seconds": score.seconds,
                        "peak_memory_bytes": score.peak_memory_bytes,
                    }
                )
                progress.step(f"{candidate}, network {number}: {options.split} accuracy {score.accuracy:.4f}")
            lock.check()
            held.save(rows)
    return rows
