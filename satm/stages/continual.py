"""The stage `continual`: accuracies of networks that learn classes step by step from synthetic sets."""

import itertools
import logging
from dataclasses import asdict
from functools import partial

import torch

from satm.config import Cell, LearnOptions, Resolver
from satm.config.class_order import Step, split_classes
from satm.errors import UsageError
from satm.evaluation.continual import StepImages, StepResult, among, learn, one_set_a_step, rows, seen_accuracy, slices
from satm.evaluation.networks import Axes, Task, settled
from satm.evaluation.sets import kind_of
from satm.networks.training import TrainingImages
from satm.results.columns import CONTINUAL
from satm.results.distilled import DistilledDataset
from satm.stages.inputs import Inputs
from satm.stages.job import Job

LOG = logging.getLogger("satm")

Parts = tuple[tuple[int, ...], ...]
"""The classes of each step of one order."""


def make_continual(resolver: Resolver, cell: Cell, protocol: str, options: LearnOptions, device: torch.device) -> None:
    """Learn the classes of a dataset step by step, in several orders; write one row per network and class seen.

    Networks tested before the run was killed are not trained again. If sets are averages, networks learn from these.
    """
    inputs = _Sets(resolver, cell, options, device)
    names, settings = {**cell.axes, "protocol": protocol}, options.model_dump(mode="json")
    made = inputs.distillations(*(cell._replace(dataset=name) for name in inputs.sets))
    network = inputs.network_identity(options.network)
    identity = inputs.identify("continual", sets=inputs.hashes, **made, options=settings, network=network)
    with Job(resolver, "continual", names, identity, CONTINUAL, device, doubts=inputs.doubts) as job:
        if job.done:
            return
        results = _learn(inputs, job)
        one = next(iter(inputs.sets.values()))
        columns = {
            **cell.axes,
            "network": options.network,
            "protocol": protocol,
            "sets": options.sets,
            "labels": kind_of(one.labels),
            "split": options.split,
            "selection": one.selection,
            "average": one.average,
            "step_size": options.lr if isinstance(options.lr, str) else "fixed",
        }
        job.write_rows(rows(results, inputs.parts, inputs.counts, columns))
        last = [inputs.accuracy(each) for each in results if each.step == options.steps]
        LOG.info(
            "mean %s accuracy on all classes after %d steps, %d networks, %.4f -> %s",
            *(options.split, options.steps, len(last), sum(last) / len(last), job.path),
        )


class _Sets(Inputs):
    """The dataset, and the synthetic sets that networks learn from.

    Raises:
        UsageError: (on construction) more steps than classes, a class without images to test on, or a synthetic set
            that is missing, of other classes or of another space.
    """

    def __init__(self, resolver: Resolver, cell: Cell, options: LearnOptions, device: torch.device) -> None:
        super().__init__(resolver, cell.dataset, device)
        self.cell, self.options, data = cell, options, self.data
        self.parts: list[Parts] = [split_classes(data.classes, order, options.steps) for order in range(options.orders)]
        self.real = self.images(options.split)
        chosen = self.images(options.lr_images, options.lr_count) if options.chooses else self.real
        self.search_images = chosen
        self.counts: list[int] = self.real.labels.bincount(minlength=data.classes).tolist()
        if not min(self.counts):
            empty = self.counts.index(0)
            raise UsageError(
                f"class {empty} ({data.class_names[empty]}) of {cell.dataset} has no {options.split} images to be "
                "tested on; leave it out of the dataset's option classes"
            )
        self.values = self.network(options.network)
        self.sets: dict[str, DistilledDataset] = {}
        self.hashes: dict[str, str] = {}
        steps = itertools.chain.from_iterable(self.parts)
        for name in options.sources(cell.dataset):
            labels = range(data.classes) if options.sets == "sliced" else next(steps)
            self.sets[name], self.hashes[name] = self.distilled(cell._replace(dataset=name))
            names, expected = self.sets[name].class_names, tuple(data.class_names[label] for label in labels)
            if names != expected:
                path = resolver.file(resolver.layout.distilled(cell._replace(dataset=name)))
                raise UsageError(
                    f"{path} has the classes {', '.join(names)}, expected {', '.join(expected)}; distil again"
                )

    def accuracy(self, result: StepResult) -> float:
        """Return the accuracy of a network on all classes that it has seen."""
        return seen_accuracy(result, self.parts[result.order], self.counts)

    def steps(self, order: int) -> list[StepImages]:
        """Return the synthetic images that come with each step of an order."""
        parts, steps = self.parts[order], self.options.steps
        if self.options.sets == "sliced":
            return slices(self.sets[self.cell.dataset], parts)
        names = [Step(self.cell.dataset, order, step, steps).name for step in range(1, steps + 1)]
        return one_set_a_step([self.sets[name] for name in names], parts, self.data.classes)

    def task(self, order: int, synthetic: TrainingImages, step_size: float, step: int, seen: tuple[int, ...]) -> Task:
        """Return the training of the networks of one step, after the search for its step size if there is one."""
        options = self.options
        task = Task(synthetic, step_size, self.values, len(seen), options, self.augmentation)
        axes = (*self.cell, options.network, "continual", options.network_seed, order, step)
        task = settled(task, lambda: among(self.search_images, seen), axes)
        if options.lr == "searched":
            LOG.info("order %d step %d: step size %g, the best of %s", order, step, task.rate, options.lr_grid)
        return task


def _learn(inputs: _Sets, job: Job) -> list[StepResult]:
    """Return the results of all networks; networks already tested by an earlier process are not trained again."""
    options = inputs.options
    results = [StepResult(**{**row, "right": tuple(row["right"])}) for row in job.rows()]
    each = options.steps * options.repeats
    axes: Axes = (*inputs.cell, options.network, "continual", options.network_seed)
    with job.progress(options.orders * each, len(results)) as progress:
        for order in range(len(results) // each, options.orders):
            task, done = partial(inputs.task, order), len(results) - order * each
            steps, parts = inputs.steps(order), inputs.parts[order]
            for result in learn(steps, parts, inputs.real, task, order, axes, options.repeats, done, job.networks):
                results.append(result)
                job.keep([asdict(one) for one in results])
                seen = f"{options.split} accuracy {inputs.accuracy(result):.4f} on {len(result.right)} classes"
                progress.step(f"order {order} step {result.step} network {result.repeat}: {seen}")
    return results
