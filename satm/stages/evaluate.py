"""The stage `evaluate`: accuracies of networks trained on synthetic sets, or on all real images."""

import logging
import math
from collections.abc import Sequence
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
from satm.stages.inputs import Inputs
from satm.stages.job import Job, Row
from satm.tables.render import in_numbers

LOG = logging.getLogger("satm")


def make_evaluation(
    resolver: Resolver, cell: Cell, network: str, options: EvaluateOptions, teacher: str | None, device: torch.device
) -> None:
    """Train fresh networks on a synthetic set, or if ipc is 0 on all real images, and write a row for each.

    If the set is an average, the raw set is evaluated too, with networks of the same seeds, so that both are paired.

    With a teacher, the set is evaluated with hard and with soft labels, each with and without augmentation, with
    networks of the same seeds. Soft labels are the set's own, or if those are hard the labels of the experts `teacher`:
    the mean logits of the experts that classify the image correctly.

    For real images the cell's method is `full-RECIPE`.
    """
    if not cell.ipc and isinstance(options.lr, str):
        raise UsageError(f"real images have no learned step size, got lr {options.lr!r}; set lr to a number")
    inputs, about = Inputs(resolver, cell.dataset, device), dict[str, Any]()
    names = {**cell.axes, "network": network, "recipe": cell.method.removeprefix("full-")}
    step_size, selection = 0.0, "last"
    if not cell.ipc:
        own = {"labels": "hard", "average": "raw", "labelled": "own"}
        rule, forms = "full", [Form(inputs.images("train"), options, own)]
    else:
        distilled, about["distilled"] = inputs.distilled(cell)
        about |= inputs.distillations(cell)
        step_size, selection = float(distilled.step_size), distilled.selection
        if teacher is None:
            rule, forms = "evaluate", averages(distilled, options, device)
        else:
            about["teacher"] = labels = None
            if not distilled.labels.is_floating_point():
                about["teacher"], store = teacher, inputs.experts(teacher)
                about |= {"experts": store.identity, "experts_count": len(store)}
                problem = inputs.problem(cell, resolver.experts(teacher, cell.dataset).network, store)
                labels = expert_labels(problem, store, distilled.images.to(device), distilled.classes.to(device))
            rule, forms = "variants", label_variants(distilled, labels, options, device)
    real, values = inputs.images(options.split), inputs.network(network)
    about |= {"options": options.model_dump(mode="json"), "network": inputs.network_identity(network)}
    identity = inputs.identify("evaluate", **about)

    def axes(_: int, repeat: int) -> Axes:
        return (*cell, network, repeat, options.network_seed)

    def task(form: Form) -> Task:
        task = Task(form.images, step_size, values, inputs.data.classes, form.options, inputs.augmentation)
        held_out = partial(inputs.images, options.lr_images, options.lr_count)
        task = settled(task, held_out, (*cell, network, options.network_seed))
        if options.lr == "searched":
            LOG.info("step size %g, the best of %s%s", task.rate, ", ".join(map(str, options.lr_grid)), form.text)
        elif options.chooses:
            counts = ", ".join(map(str, options.train_steps))
            LOG.info("%d steps of training, the best of %s%s", task.options.train_steps[0], counts, form.text)
        return task

    def columns(group: Group) -> Row:
        form = forms[group.which]
        return {
            **cell.axes,
            "network": network,
            **form.columns,
            "split": options.split,
            "selection": selection,
            "augmented": "yes" if form.options.augment else "no",
            "step_size": options.lr if isinstance(options.lr, str) else "fixed",
            "rate": group.task.rate,
            "epochs": len(group.task.passes),
            "train_steps": float(sum(group.task.passes)),
        }

    with Job(resolver, rule, names, identity, EVALUATION, device, doubts=inputs.doubts) as job:
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
            "%d of %s%s diverged at step size %g; set lr to a smaller number, or to searched",
            *(lost, in_numbers([len(rows)], "network"), form.text, rows[0]["rate"]),
        )
    mean, split = sum(trained) / len(trained) if trained else math.nan, form.options.split
    networks = in_numbers([len(trained)], "network")
    LOG.info("mean %s accuracy of %s%s %.4f -> %s", split, networks, form.text, mean, target)
