"""The stage `nas`: accuracies of the candidates of an architecture search, on a synthetic set or on real images."""

import logging
from functools import partial

import torch

from satm.config import CANDIDATES, Cell, Resolver, SearchOptions
from satm.config.base import numbers
from satm.errors import UsageError
from satm.evaluation.candidates import fitting
from satm.evaluation.networks import Axes, Group, Task
from satm.evaluation.search import Candidate, sample
from satm.networks.training import TrainingImages
from satm.results.columns import NAS
from satm.stages.inputs import Inputs
from satm.stages.job import Job, Row

LOG = logging.getLogger("satm")


def make_search(
    resolver: Resolver, cell: Cell, search: str, options: SearchOptions, part: str | None, device: torch.device
) -> None:
    """Train the candidates of a search, one part or all, and write a row for each network.

    They are trained on a synthetic set (the average if there is one), or if ipc is 0 on all real images.
    """
    if part is not None and part not in (known := options.parts()):
        raise UsageError(f"unknown part {part!r} of search {search}; known: {', '.join(known)}")
    inputs = Inputs(resolver, cell.dataset, device)
    if cell.ipc:
        distilled, sha256 = inputs.distilled(cell)
        images = TrainingImages(distilled.images.to(device), distilled.labels.to(device))
        recipe, step_size, about = (
            options.proxy,
            float(distilled.step_size),
            {"distilled": sha256, **inputs.distillations(cell)},
        )
    else:  # real images have no learned step size; the recipe's is a number (`SearchOptions`)
        images, recipe, step_size, about = inputs.images("train"), options.real, 0.0, {}
    data, real = inputs.data, inputs.images(recipe.split)
    fit = fitting(data.size, options.width_factor)
    if left_out := CANDIDATES - len(fit):
        LOG.info("%d of %d candidates do not fit images of %d pixels", left_out, CANDIDATES, data.size)
    chosen = sample(fit, options.sample, options.sample_seed)

    def task(candidate: Candidate) -> Task:
        return Task(images, step_size, candidate.network, data.classes, recipe, inputs.augmentation)

    for name in options.parts() if part is None else [part]:
        places = numbers(name)
        own = chosen[places.start : places.stop]
        identity = inputs.identify(
            "nas",
            **about,
            options=recipe.model_dump(mode="json"),
            candidates=[candidate.index for candidate in own],
            **{name: getattr(options, name) for name in ("width_factor", "sample_seed")},
        )

        def axes(which: int, repeat: int, own: list[Candidate] = own) -> Axes:
            return (*cell, f"nas-{own[which].index}", repeat, recipe.network_seed)

        def columns(group: Group, own: list[Candidate] = own) -> Row:
            candidate = own[group.which]
            common = {**cell.axes, "search": search, "candidate": candidate.index, **candidate.choices}
            return {**common, "split": recipe.split, "epochs": recipe.epochs}

        names = {**cell.axes, "search": search, "part": name}
        rule = "nas" if cell.ipc else "nas_real"
        with Job(resolver, rule, names, identity, NAS, device, doubts=inputs.doubts) as job:
            if job.done:
                continue
            tasks = [(partial(task, candidate), f" of candidate {candidate}") for candidate in own]
            rows = job.test_networks(tasks, axes, recipe.repeats, real, columns)
            job.write_rows(rows)
            LOG.info("%d candidates on %s images, %d networks -> %s", len(own), cell.method, len(rows), job.path)
