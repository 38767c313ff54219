"""The stage `evaluate`: accuracies of networks trained on synthetic sets, or on all real images."""

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from satm.config import Cell, EvaluateOptions, Resolver
from satm.errors import UsageError
from satm.evaluation.networks import Axes, Group, Task, settled
from satm.evaluation.sets import Form, averages, label_variants
from satm.methods.parts.labels import expert_labels
from satm.results.columns import EVALUATION
from satm.results.distilled import DistilledDataset
from satm.stages.inputs import Inputs
from satm.stages.job import Job, Row
from satm.storage.identity import Identity

LOG = logging.getLogger("satm")


def make_evaluation(
    resolver: Resolver, cell: Cell, network: str, options: EvaluateOptions, teacher: str | None, device: torch.device
) -> None:
    """Train fresh networks on a synthetic set and write one row each; rows that are there already are kept.

    A set that is an average is followed by its raw one, on networks of the same seeds, so that the two are paired.

    With a teacher the set has hard and soft labels in turn, each with and without augmentation, on networks of the same
    seeds. Soft labels are the set's own, or where it has hard ones those of the experts `teacher`: the mean of the
    logits of those that classify the image correctly.
    """
    inputs = Inputs(resolver, cell.dataset, device)
    distilled, sha256 = inputs.distilled(cell)
    about: dict[str, str | None] = {"distilled": sha256}
    if teacher is None:
        forms = averages(distilled, options, device)
    else:
        about["teacher"] = labels = None
        if not distilled.labels.is_floating_point():
            about["teacher"], store = teacher, inputs.experts(teacher)
            problem = inputs.problem(cell, resolver.experts(teacher, cell.dataset).network, store)
            labels = expert_labels(problem, store, distilled.images.to(device), distilled.classes.to(device))
        forms = label_variants(distilled, labels, options, device)
    names = {**cell.axes, "network": network}
    _evaluate(inputs, "variants" if teacher else "evaluate", names, options, forms, distilled, about)


def make_full(
    resolver: Resolver, dataset: str, recipe: str, network: str, options: EvaluateOptions, device: torch.device
) -> None:
    """Train fresh networks on all real training images; in the rows ipc is 0, which stands for all."""
    if isinstance(options.lr, str):
        raise UsageError(f"real images have no step size of their own, lr is {options.lr!r}; set lr to a number")
    inputs, columns = Inputs(resolver, dataset, device), {"labels": "hard", "average": "raw", "labelled": "own"}
    names = {**Cell(dataset, 0, f"full-{recipe}").axes, "network": network, "recipe": recipe}
    _evaluate(inputs, "full", names, options, [Form(inputs.images("train"), options, columns)])


def _evaluate(
    inputs: Inputs,
    rule: str,
    names: Mapping[str, Any],
    options: EvaluateOptions,
    forms: Sequence[Form],
    distilled: DistilledDataset | None = None,
    about: Identity = {},  # noqa: B006 - never changed
) -> None:
    """Train and test the networks that have no row yet, in one form after another, and write the rows.

    The names are the job's wildcards with those of a cell; `about` is the identity of a synthetic set.
    """
    cell, network = Cell(*(names[axis] for axis in Cell._fields)), inputs.network(names["network"])
    real, settings = inputs.images(options.split), options.model_dump(mode="json")
    identity = inputs.identify("evaluate", **about, options=settings, network=network)
    place = (*cell, names["network"])

    def axes(_: int, repeat: int) -> Axes:
        return (*place, repeat, options.network_seed)

    def task(form: Form) -> Task:
        step_size = float(distilled.step_size) if distilled else 0.0
        task = Task(form.images, step_size, network, inputs.data.classes, form.options, inputs.augmentation)
        images = partial(inputs.images, options.lr_images, options.lr_count)
        task = settled(task, images, (*place, options.network_seed))
        if options.lr == "searched":
            LOG.info("step size %g, the best of %s%s", task.rate, ", ".join(map(str, options.lr_grid)), form.text)
        return task

    def columns(group: Group) -> Row:
        form = forms[group.which]
        return {
            **cell.axes,
            "network": names["network"],
            **form.columns,
            "split": options.split,
            "selection": distilled.selection if distilled else "last",
            "augmented": "yes" if form.options.augment else "no",
            "step_size": options.lr if isinstance(options.lr, str) else "fixed",
            "rate": group.task.rate,
            "epochs": options.epochs,
        }

    with Job(inputs.resolver.layout, rule, names, identity, EVALUATION, inputs.device) as job:
        if job.done:
            return
        tasks = [(partial(task, form), form.text) for form in forms]
        rows = job.test_networks(tasks, axes, options.repeats, real, columns)
        job.write_rows(rows)
        for which, form in enumerate(forms):
            _summarise(rows[which * options.repeats : (which + 1) * options.repeats], form, job.path)


def _summarise(rows: Sequence[Row], form: Form, target: Path) -> None:
    """Log the mean accuracy of the networks of one form, and warn of those that diverged."""
    trained = [row["accuracy"] for row in rows if not math.isnan(row["accuracy"])]
    if lost := len(rows) - len(trained):
        LOG.warning(
            "%d of %d networks%s diverged at step size %g; set lr to a smaller number, or to searched",
            *(lost, len(rows), form.text, rows[0]["rate"]),
        )
    mean, split = sum(trained) / len(trained) if trained else math.nan, form.options.split
    LOG.info("mean %s accuracy of %d networks%s %.4f -> %s", split, len(trained), form.text, mean, target)
