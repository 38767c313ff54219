"""The stage `evaluate`: accuracies of networks trained on synthetic sets, or on all real images."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from satm.config import REVISIONS, Cell, EvaluateOptions, Resolver
from satm.errors import UsageError
from satm.evaluation.networks import Axes, Task, evaluate, settled, stacked
from satm.methods.parts.labels import expert_labels
from satm.networks.training import TrainingImages
from satm.results.circumstances import run_metadata
from satm.results.columns import EVALUATION
from satm.results.distilled import DistilledDataset
from satm.results.rows import write_rows
from satm.run.lock import exclusive
from satm.run.progress import Progress
from satm.seeds import derive_seed
from satm.stages.checkpoint import NetworkState, RowsState
from satm.stages.common import (
    Prepared,
    made_already,
    make_problem,
    open_distilled,
    open_experts,
    prepare,
    real_images,
    resumed_rows,
)
from satm.storage.files import hash_file, patiently

LOG = logging.getLogger("satm")


@dataclass(frozen=True)
class Tested:
    """One set that networks are trained on.

    Args:
        images: with labels.
        options: how they are trained.
        columns: what its rows say of it: `labels`, `average`, `labelled`.
        text: the same in words, for progress; may be empty.
    """

    images: TrainingImages
    options: EvaluateOptions
    columns: Mapping[str, str]
    text: str = ""


def make_evaluation(
    resolver: Resolver,
    cell: Cell,
    network: str,
    options: EvaluateOptions,
    device: torch.device,
) -> None:
    """Train fresh networks on a synthetic set and write one row each; rows that are there already are kept.

    A set that is an average is followed by its raw one, on networks of the same seeds, so that the two are paired.
    """
    job = _Job(resolver, cell, network, options, device)
    made, path = job.distilled()
    tested = [
        Tested(
            TrainingImages(each.images.to(device), each.labels.to(device)),
            options,
            {"labels": _kind(each), "average": each.average, "labelled": "own"},
            "" if made.average == "raw" else f" on the {each.average} set",
        )
        for each in ([made] if made.raw_images is None else [made, made.unaveraged()])
    ]
    layout = resolver.layout
    target = layout.evaluation(cell, network)
    state = Path(layout.state("evaluate", *cell.place, network))
    job.run(state, tested, Path(target), {"distilled": hash_file(path)}, float(made.step_size), made.selection)


def make_variants(
    resolver: Resolver,
    cell: Cell,
    network: str,
    options: EvaluateOptions,
    teacher: str,
    device: torch.device,
) -> None:
    """Train fresh networks on a synthetic set with hard and with soft labels, each with and without augmentation.

    Hard labels are the class of each image, of learned soft labels the largest. Soft labels are the set's own, or where
    it has hard ones those of the experts `teacher`, the mean of the logits of those that classify the image correctly.
    The networks are those of the evaluation, so that all are paired.
    """
    job = _Job(resolver, cell, network, options, device)
    made, path = job.distilled()
    images, hard = made.images.to(device), made.classes.to(device)
    kinds = {"class": hard}
    if made.labels.is_floating_point():
        kinds["own"] = made.labels.to(device)
    else:
        store = open_experts(resolver, job.prepared, teacher)
        known = resolver.experts(teacher, cell.dataset).network
        problem = make_problem(resolver, job.prepared, known, cell, device, store)
        kinds["teacher"] = expert_labels(problem, store, images, hard)
    tested = [
        Tested(
            TrainingImages(images, labels),
            options.model_copy(update={"augment": augment}),
            {"labels": "hard" if kind == "class" else "soft", "average": made.average, "labelled": kind},
            f" with {kind} labels{'' if augment else ', not augmented'}",
        )
        for kind, labels in kinds.items()
        for augment in (True, False)
    ]
    target = resolver.layout.variants(cell, network)
    identity = {"distilled": hash_file(path), "teacher": teacher if "teacher" in kinds else None}
    state = Path(resolver.layout.state("variants", *cell.place, network))
    job.run(state, tested, Path(target), identity, float(made.step_size), made.selection)


def make_full(
    resolver: Resolver, dataset: str, recipe: str, network: str, options: EvaluateOptions, device: torch.device
) -> None:
    """Train fresh networks on all real training images; in the rows ipc is 0, which stands for all."""
    if isinstance(options.lr, str):
        raise UsageError(f"real images have no step size of their own, lr is {options.lr!r}; set lr to a number")
    job = _Job(resolver, Cell(dataset, 0, f"full-{recipe}"), network, options, device)
    real = TrainingImages.of(job.prepared.data.train, job.prepared.preprocessor, device)
    columns = {"labels": "hard", "average": "raw", "labelled": "own"}
    target = resolver.layout.full(dataset, recipe, network)
    state = Path(resolver.layout.state("full", dataset, recipe, network))
    job.run(state, [Tested(real, options, columns)], Path(target), {}, options.lr, "last")


class _Job:
    """What the three have in common: the real images, the network, the rows and how they are resumed."""

    def __init__(
        self,
        resolver: Resolver,
        cell: Cell,
        network: str,
        options: EvaluateOptions,
        device: torch.device,
    ) -> None:
        """Prepare the dataset.

        Raises:
            UsageError: it holds out no images of the kind that the options ask for.
        """
        self.resolver, self.cell, self.network, self.options, self.device = resolver, cell, network, options, device
        self.prepared: Prepared = prepare(resolver, cell.dataset)
        self.values = resolver.network(network, cell.dataset)
        self.real = self._images(options.split)

    def distilled(self) -> tuple[DistilledDataset, Path]:
        """Return the synthetic set and its file.

        Raises:
            UsageError: it is missing, or was made for images prepared in another way.
        """
        return open_distilled(self.resolver, self.prepared, self.cell)

    def run(
        self,
        state: Path,
        tested: Sequence[Tested],
        target: Path,
        identity: Mapping[str, Any],
        step_size: float,
        selection: str,
    ) -> None:
        """Train and test the networks that have no row yet, one set after another, and write the rows."""
        options, device = self.options, self.device
        identity = {
            **identity,
            "revision": REVISIONS["evaluate"],
            "options": options.model_dump(mode="json"),
            "network": self.values,
            **self.prepared.identity,
        }
        with exclusive(state, f"the evaluation of {self.cell.method}") as lock:
            if made_already(lock, EVALUATION, identity, target):
                return
            held = RowsState(state, identity)
            rows = resumed_rows(held, EVALUATION)
            total = options.repeats * len(tested)
            with Progress("evaluate", total, len(rows)) as progress:
                tasks: dict[int, Task] = {}
                while len(rows) < total:
                    which, repeat = divmod(len(rows), options.repeats)
                    each = tested[which]
                    if which not in tasks:
                        tasks[which] = self._task(each, step_size)
                    task = tasks[which]
                    at_once = stacked(task, device)
                    repeats = range(repeat, options.repeats if at_once else repeat + 1)
                    axes = [self._axes(number) for number in repeats]

                    def keep(some: Sequence[Axes]) -> NetworkState:
                        return NetworkState(state, [[derive_seed(*one) for one in some], len(rows), identity])

                    for number, score in zip(repeats, evaluate(task, self.real, axes, keep), strict=True):
                        rows.append(
                            {
                                **self.cell.axes,
                                "network": self.network,
                                "repeat": number,
                                **each.columns,
                                "split": options.split,
                                "selection": selection,
                                "augmented": "yes" if each.options.augment else "no",
                                "step_size": options.lr if isinstance(options.lr, str) else "fixed",
                                "rate": task.rate,
                                "accuracy": score.accuracy,
                                "loss": score.loss,
                                "epochs": options.epochs,
                                "seconds": score.seconds,
                                "peak_memory_bytes": score.peak_memory_bytes,
                            }
                        )
                        lock.check()
                        held.save(rows)
                        told = "diverged" if math.isnan(score.accuracy) else f"accuracy {score.accuracy:.4f}"
                        text = f"network {number}{each.text}: {options.split} {told}"
                        progress.step(text)
            lock.check()
            patiently(lambda: write_rows(target, rows, EVALUATION, run_metadata(identity, device)))
            for which, each in enumerate(tested):
                found = [row["accuracy"] for row in rows[which * options.repeats : (which + 1) * options.repeats]]
                trained = [accuracy for accuracy in found if not math.isnan(accuracy)]
                if lost := len(found) - len(trained):
                    LOG.warning(
                        "%d of %d networks%s diverged at step size %g; set lr to a smaller number, or to searched",
                        *(lost, len(found), each.text, rows[which * options.repeats]["rate"]),
                    )
                mean = sum(trained) / len(trained) if trained else math.nan
                LOG.info(
                    "mean %s accuracy of %d networks%s %.4f -> %s", options.split, len(trained), each.text, mean, target
                )
            lock.finished(target)

    def _task(self, each: Tested, step_size: float) -> Task:
        """Return what the networks of a set are trained on; a step size that is to be searched is found here."""
        data, options = self.prepared.data, each.options
        axes = (*self.cell, self.network, options.network_seed)
        task = settled(
            *(each.images, step_size, self.values, data.classes, options, self.prepared.augmentation, axes),
            lambda: real_images(self.prepared, options.lr_images, self.device, options.lr_count),
        )
        if options.lr == "searched":
            LOG.info("step size %g, the best of %s%s", task.rate, ", ".join(map(str, options.lr_grid)), each.text)
        return task

    def _axes(self, repeat: int) -> Axes:
        return (*self.cell, self.network, repeat, self.options.network_seed)

    def _images(self, name: str) -> TrainingImages:
        return real_images(self.prepared, name, self.device)


def _kind(made: DistilledDataset) -> str:
    return "soft" if made.labels.is_floating_point() else "hard"
