"""The stage `continual`: accuracies of networks that learn classes step by step from synthetic sets."""

import itertools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from satm.config import REVISIONS, Cell, LearnOptions, Resolver
from satm.config.class_order import Step, split_classes
from satm.errors import UsageError
from satm.evaluation.continual import Brought, Tested, among, learn, rows, whole_labels
from satm.evaluation.networks import Axes, Task, settled
from satm.networks.training import TrainingImages
from satm.results.circumstances import run_metadata
from satm.results.columns import CONTINUAL
from satm.results.distilled import DistilledDataset
from satm.results.rows import write_rows
from satm.run.lock import Lock, exclusive
from satm.run.progress import Progress
from satm.seeds import derive_seed
from satm.stages.checkpoint import NetworkState, RowsState
from satm.stages.common import Prepared, made_already, open_distilled, prepare, real_images
from satm.storage.files import hash_file, patiently

LOG = logging.getLogger("satm")

Parts = tuple[tuple[int, ...], ...]
"""The classes of each step of one order."""


def make_continual(
    resolver: Resolver,
    cell: Cell,
    protocol: str,
    options: LearnOptions,
    device: torch.device,
) -> None:
    """Learn the classes of a dataset step by step, in several orders; write one row per network and class seen.

    Networks that were tested before a kill are kept. Where sets are averages, the averages are learned from.
    """
    job = _Job(resolver, cell, options, device)
    state = Path(resolver.layout.state("continual", *cell.place, protocol))
    target = Path(resolver.layout.continual(cell, protocol))
    with exclusive(state, f"the continual learning of {cell.method}") as lock:
        if made_already(lock, CONTINUAL, job.identity, target):
            return
        tested = job.run(lock)
        one = next(iter(job.sets.values()))
        columns = {
            **cell.axes,
            "network": options.network,
            "protocol": protocol,
            "sets": options.sets,
            "labels": "soft" if one.labels.is_floating_point() else "hard",
            "split": options.split,
            "selection": one.selection,
            "average": one.average,
            "step_size": options.lr if isinstance(options.lr, str) else "fixed",
        }
        found = rows(tested, job.parts, job.images, columns)
        lock.check()
        patiently(lambda: write_rows(target, found, CONTINUAL, run_metadata(job.identity, device)))
        last = [job.accuracy(each) for each in tested if each.step == options.steps]
        mean = sum(last) / len(last)
        LOG.info(
            "mean %s accuracy on all classes after %d steps, %d networks, %.4f -> %s",
            *(options.split, options.steps, len(last), mean, target),
        )
        lock.finished(target)


class _Job:
    """What one run needs, checked, and the loop over the class orders."""

    def __init__(
        self,
        resolver: Resolver,
        cell: Cell,
        options: LearnOptions,
        device: torch.device,
    ) -> None:
        """Open everything.

        Raises:
            UsageError: more steps than classes, a class without images to test on, or a synthetic set that is missing,
                of other classes or of another space.
        """
        self.cell, self.options = cell, options
        self.prepared: Prepared = prepare(resolver, cell.dataset)
        data = self.prepared.data
        self.parts: list[Parts] = [split_classes(data.classes, order, options.steps) for order in range(options.orders)]
        self.real = real_images(self.prepared, options.split, device)
        self.chosen_on = self.real
        if options.lr == "searched":
            self.chosen_on = real_images(self.prepared, options.lr_images, device, options.lr_count)
        self.images: list[int] = self.real.labels.bincount(minlength=data.classes).tolist()
        if not min(self.images):
            empty = self.images.index(0)
            raise UsageError(
                f"class {empty} ({data.class_names[empty]}) of {cell.dataset} has no {options.split} images to be "
                "tested on; leave it out of the dataset's option classes"
            )
        self.values = resolver.network(options.network, cell.dataset)
        self.sets: dict[str, DistilledDataset] = {}
        hashes: dict[str, str] = {}
        labels: Iterable[Sequence[int]]
        labels = [range(data.classes)] if options.sets == "sliced" else itertools.chain.from_iterable(self.parts)
        for name, own in zip(options.sources(cell.dataset), labels, strict=True):
            self.sets[name], path = self._opened(resolver, name, own)
            hashes[name] = hash_file(path)
        self.identity: dict[str, Any] = {
            "revision": REVISIONS["continual"],
            "sets": hashes,
            "options": options.model_dump(mode="json"),
            "network": self.values,
            **self.prepared.identity,
        }

    def run(self, lock: Lock) -> list[Tested]:
        """Return all networks tested; those that the state in the lock's folder holds are not trained again."""
        held, options = RowsState(lock.folder, self.identity), self.options
        tested = [Tested(**{**row, "right": tuple(row["right"])}) for row in held.load()]
        each = options.steps * options.repeats
        axes: Axes = (*self.cell, options.network, "continual", options.network_seed)

        def keep(names: Sequence[Axes]) -> NetworkState:
            return NetworkState(lock.folder, [[derive_seed(*one) for one in names], self.identity])

        with Progress("continual", options.orders * each, len(tested)) as progress:
            for order in range(len(tested) // each, options.orders):
                task, done = partial(self._task, order), len(tested) - order * each
                brought = self._brought(order)
                for found in learn(
                    brought, self.parts[order], self.real, task, order, axes, options.repeats, done, keep
                ):
                    tested.append(found)
                    lock.check()
                    held.save([asdict(one) for one in tested])
                    seen = f"{options.split} accuracy {self.accuracy(found):.4f} on {len(found.right)} classes"
                    progress.step(f"order {order} step {found.step} network {found.repeat}: {seen}")
        return tested

    def accuracy(self, found: Tested) -> float:
        """Return the accuracy of a network on all classes that it has seen."""
        seen = [label for part in self.parts[found.order][: found.step] for label in part]
        return sum(found.right) / sum(self.images[label] for label in seen)

    def _opened(self, resolver: Resolver, name: str, labels: Sequence[int]) -> tuple[DistilledDataset, Path]:
        """Return the synthetic set of a dataset, the whole or a part with these labels, and its file."""
        data = self.prepared.data
        made, path = open_distilled(resolver, self.prepared, self.cell._replace(dataset=name))
        if made.class_names != (expected := tuple(data.class_names[label] for label in labels)):
            raise UsageError(
                f"{path} is of the classes {', '.join(made.class_names)}, expected {', '.join(expected)}; distil again"
            )
        return made, path

    def _brought(self, order: int) -> list[Brought]:
        """Return what each step of an order brings."""
        found = []
        for step, part in enumerate(self.parts[order], 1):
            if self.options.sets == "sliced":
                made = self.sets[self.cell.dataset]
                found.append(Brought(made, part, float(made.step_size)))
            else:
                made = self.sets[Step(self.cell.dataset, order, step, self.options.steps).name]
                labels = whole_labels(made.labels, part, self.prepared.data.classes)
                found.append(Brought((made.images, labels), None, float(made.step_size)))
        return found

    def _task(self, order: int, synthetic: TrainingImages, step_size: float, step: int, seen: tuple[int, ...]) -> Task:
        """Return how the networks of one step are trained; a step size that is to be searched is found here."""
        options = self.options
        axes = (*self.cell, options.network, "continual", options.network_seed, order, step)
        task = settled(
            *(synthetic, step_size, self.values, len(seen), options, self.prepared.augmentation, axes),
            lambda: among(self.chosen_on, seen),
        )
        if options.lr == "searched":
            LOG.info("order %d step %d: step size %g, the best of %s", order, step, task.rate, options.lr_grid)
        return task
