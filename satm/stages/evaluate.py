"""The stage `evaluate`: accuracies of networks trained on synthetic sets, or on all real images."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from satm.config import Cell, EvaluateOptions, Resolver, place_of
from satm.errors import UsageError
from satm.evaluation.networks import Axes, Task, evaluate_tasks, settled
from satm.evaluation.sets import Form, averages, label_variants
from satm.methods.parts.labels import expert_labels
from satm.results.columns import EVALUATION
from satm.stages.inputs import Inputs
from satm.stages.job import Job, Row
from satm.storage.identity import Identity, hash_file

LOG = logging.getLogger("satm")


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a synthetic set, or all real images."""

    cell: Cell
    """Whose rows these are; of all real images ipc is 0."""
    network: str
    options: EvaluateOptions
    forms: Sequence[Form]
    """In which networks are trained on it, one after another."""
    identity: Identity
    """JSON values that say which images these are."""
    step_size: float
    """That belongs to the set."""
    selection: str
    """Which iteration of the distillation the set is."""


def make_evaluation(
    resolver: Resolver, cell: Cell, network: str, options: EvaluateOptions, device: torch.device
) -> None:
    """Train fresh networks on a synthetic set and write one row each; rows that are there already are kept.

    A set that is an average is followed by its raw one, on networks of the same seeds, so that the two are paired.
    """
    inputs = Inputs(resolver, cell.dataset, device)
    made, path = inputs.distilled(cell)
    identity, forms = {"distilled": hash_file(path)}, averages(made, options, device)
    subject = Subject(cell, network, options, forms, identity, float(made.step_size), made.selection)
    _run(inputs, subject, place_of("evaluate", **cell.axes, network=network), resolver.layout.evaluation(cell, network))


def make_variants(
    resolver: Resolver, cell: Cell, network: str, options: EvaluateOptions, teacher: str, device: torch.device
) -> None:
    """Train fresh networks on a synthetic set with hard and with soft labels, each with and without augmentation.

    Soft labels are the set's own, or where it has hard ones those of the experts `teacher`, the mean of the logits of
    those that classify the image correctly. The networks are those of the evaluation, so that all are paired.
    """
    inputs = Inputs(resolver, cell.dataset, device)
    made, path = inputs.distilled(cell)
    identity, taught = {"distilled": hash_file(path), "teacher": None}, None
    if not made.labels.is_floating_point():
        identity["teacher"], store = teacher, inputs.experts(teacher)
        problem = inputs.problem(cell, resolver.experts(teacher, cell.dataset).network, store)
        taught = expert_labels(problem, store, made.images.to(device), made.classes.to(device))
    forms = label_variants(made, taught, options, device)
    subject = Subject(cell, network, options, forms, identity, float(made.step_size), made.selection)
    _run(inputs, subject, place_of("variants", **cell.axes, network=network), resolver.layout.variants(cell, network))


def make_full(
    resolver: Resolver, dataset: str, recipe: str, network: str, options: EvaluateOptions, device: torch.device
) -> None:
    """Train fresh networks on all real training images; in the rows ipc is 0, which stands for all."""
    if isinstance(options.lr, str):
        raise UsageError(f"real images have no step size of their own, lr is {options.lr!r}; set lr to a number")
    inputs, columns = Inputs(resolver, dataset, device), {"labels": "hard", "average": "raw", "labelled": "own"}
    forms, cell = [Form(inputs.images("train"), options, columns)], Cell(dataset, 0, f"full-{recipe}")
    subject = Subject(cell, network, options, forms, {}, options.lr, "last")
    place = place_of("full", dataset=dataset, recipe=recipe, network=network)
    _run(inputs, subject, place, resolver.layout.full(dataset, recipe, network))


def _run(inputs: Inputs, subject: Subject, place: tuple[str, ...], target: str) -> None:
    """Train and test the networks that have no row yet, in one form after another, and write the rows."""
    cell, options, forms = subject.cell, subject.options, subject.forms
    real, settings = inputs.images(options.split), options.model_dump(mode="json")
    network = inputs.network(subject.network)
    identity = inputs.identify("evaluate", **subject.identity, options=settings, network=network)

    def axes(_: int, repeat: int) -> Axes:
        return (*cell, subject.network, repeat, options.network_seed)

    what = f"the evaluation of {cell.method}"
    layout, results = inputs.resolver.layout, (Path(target),)
    with Job(layout, place, what, identity, *results, columns=EVALUATION, device=inputs.device) as job:
        if job.made:
            return
        rows = job.rows()
        tasks = [partial(_task, inputs, subject, form, network) for form in forms]
        with job.progress(options.repeats * len(forms), len(rows)) as progress:
            for group in evaluate_tasks(tasks, axes, options.repeats, real, len(rows), job.networks):
                form = forms[group.which]
                common = {
                    **cell.axes,
                    "network": subject.network,
                    **form.columns,
                    "split": options.split,
                    "selection": subject.selection,
                    "augmented": "yes" if form.options.augment else "no",
                    "step_size": options.lr if isinstance(options.lr, str) else "fixed",
                    "rate": group.task.rate,
                    "epochs": options.epochs,
                }
                rows += [{**common, "repeat": repeat, **vars(score)} for repeat, score in group.scores.items()]
                job.keep(rows)
                for repeat, score in group.scores.items():
                    told = "diverged" if math.isnan(score.accuracy) else f"accuracy {score.accuracy:.4f}"
                    progress.step(f"network {repeat}{form.text}: {options.split} {told}")
        job.write_rows(rows)
        for which, form in enumerate(forms):
            _summarise(rows[which * options.repeats : (which + 1) * options.repeats], form, target)


def _task(inputs: Inputs, subject: Subject, form: Form, network: Mapping[str, Any]) -> Task:
    """Return what the networks of a form are trained on; a step size that is to be searched is found here."""
    options, classes = form.options, inputs.data.classes
    task = Task(form.images, subject.step_size, network, classes, options, inputs.augmentation)
    axes = (*subject.cell, subject.network, options.network_seed)
    task = settled(task, lambda: inputs.images(options.lr_images, options.lr_count), axes)
    if options.lr == "searched":
        LOG.info("step size %g, the best of %s%s", task.rate, ", ".join(map(str, options.lr_grid)), form.text)
    return task


def _summarise(rows: Sequence[Row], form: Form, target: str) -> None:
    """Log the mean accuracy of the networks of one form, and warn of those that diverged."""
    trained = [row["accuracy"] for row in rows if not math.isnan(row["accuracy"])]
    if lost := len(rows) - len(trained):
        LOG.warning(
            "%d of %d networks%s diverged at step size %g; set lr to a smaller number, or to searched",
            *(lost, len(rows), form.text, rows[0]["rate"]),
        )
    mean, split = sum(trained) / len(trained) if trained else math.nan, form.options.split
    LOG.info("mean %s accuracy of %d networks%s %.4f -> %s", split, len(trained), form.text, mean, target)
