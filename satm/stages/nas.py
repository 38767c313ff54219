"""The stage `nas`: accuracies of the candidates of an architecture search, on a synthetic set or on real images."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from satm.config import CANDIDATES, CandidateOptions, Cell, Resolver, SearchOptions, place_of
from satm.errors import UsageError
from satm.evaluation.candidates import fitting
from satm.evaluation.networks import Axes, Task, evaluate_tasks
from satm.evaluation.search import Candidate, sample
from satm.networks.training import TrainingImages
from satm.results.columns import NAS
from satm.stages.inputs import Inputs
from satm.stages.job import Job
from satm.storage.identity import Identity, hash_file

LOG = logging.getLogger("satm")


@dataclass(frozen=True)
class Source:
    """What the candidates are trained on, and how."""

    cell: Cell
    """Whose rows these are; of all real images ipc is 0 and the method `real`."""
    images: TrainingImages
    step_size: float
    """That belongs to the images, where that of the options is `learned`."""
    options: CandidateOptions
    identity: Identity
    """JSON values that say which images these are."""


def make_search(
    resolver: Resolver, cell: Cell, search: str, options: SearchOptions, part: str | None, device: torch.device
) -> None:
    """Train the candidates of a search on a synthetic set, one part or all, and write a row of each network.

    Of a set that is a moving average, the average is used.
    """
    _check_part(search, options, part)
    inputs = Inputs(resolver, cell.dataset, device)
    made, path = inputs.distilled(cell)
    images = TrainingImages(made.images.to(device), made.labels.to(device))
    source = Source(cell, images, float(made.step_size), options.proxy, {"distilled": hash_file(path)})
    _run(inputs, source, search, options, part)


def make_real_search(
    resolver: Resolver, dataset: str, search: str, options: SearchOptions, part: str | None, device: torch.device
) -> None:
    """Train the candidates of a search on all real training images, one part or all; a row of each network."""
    _check_part(search, options, part)
    inputs = Inputs(resolver, dataset, device)
    # Real images have no step size of their own; the recipe's is a number (`SearchOptions`).
    source = Source(Cell(dataset, 0, "real"), inputs.images("train"), 0.0, options.real, {})
    _run(inputs, source, search, options, part)


def _check_part(search: str, options: SearchOptions, part: str | None) -> None:
    if part is not None and part not in (known := options.parts()):
        raise UsageError(f"unknown part {part!r} of search {search}; known: {', '.join(known)}")


def _run(inputs: Inputs, source: Source, search: str, options: SearchOptions, part: str | None) -> None:
    """Train and test the candidates of the parts, those that have no row yet."""
    data, layout, cell, recipe = inputs.data, inputs.resolver.layout, source.cell, source.options
    real = inputs.images(recipe.split)
    fit = fitting(data.channels, data.classes, data.size, options.width_factor)
    if left_out := CANDIDATES - len(fit):
        LOG.info("%d of %d candidates do not fit images of %d pixels", left_out, CANDIDATES, data.size)
    chosen = sample(fit, options.sample, options.sample_seed)
    for name in options.parts() if part is None else [part]:
        first, last = (int(number) for number in name.split("-"))
        mine = chosen[first : last + 1]
        target = Path(layout.nas(cell, search, name) if cell.ipc else layout.nas_real(cell.dataset, search, name))
        place = place_of("nas" if cell.ipc else "nas_real", **cell.axes, search=search, part=name)
        identity = inputs.identify(
            "nas",
            **source.identity,
            options=recipe.model_dump(mode="json"),
            candidates=[candidate.index for candidate in mine],
            width_factor=options.width_factor,
        )
        what, device = f"part {name} of search {search}", inputs.device
        with Job(layout, place, what, identity, target, columns=NAS, device=device) as job:
            if job.made:
                continue
            rows = _trained(inputs, source, search, mine, real, job)
            job.write_rows(rows)
            LOG.info("%d candidates on %s images, %d networks -> %s", len(mine), cell.method, len(rows), target)


def _trained(
    inputs: Inputs, source: Source, search: str, mine: list[Candidate], real: TrainingImages, job: Job
) -> list[dict[str, Any]]:
    """Return a row of each network, those of an earlier run included."""
    options, rows = source.options, job.rows()

    def task(candidate: Candidate) -> Task:
        classes, augmentation = inputs.data.classes, inputs.augmentation
        return Task(source.images, source.step_size, candidate.network, classes, options, augmentation)

    def axes(which: int, repeat: int) -> Axes:
        return (*source.cell, f"nas-{mine[which].index}", repeat, options.network_seed)

    tasks = [partial(task, candidate) for candidate in mine]
    with job.progress(len(mine) * options.repeats, len(rows)) as progress:
        for group in evaluate_tasks(tasks, axes, options.repeats, real, len(rows), job.networks):
            candidate = mine[group.which]
            common = {**source.cell.axes, "search": search, "candidate": candidate.index, **candidate.choices}
            common |= {"split": options.split, "epochs": options.epochs}
            rows += [{**common, "repeat": repeat, **vars(score)} for repeat, score in group.scores.items()]
            job.keep(rows)
            for repeat, score in group.scores.items():
                progress.step(f"{candidate}, network {repeat}: {options.split} accuracy {score.accuracy:.4f}")
    return rows
