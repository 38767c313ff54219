"""What the jobs of a campaign do, in pieces whose time can be measured on a machine. Nothing here imports torch.

A piece is a step of training a network, or an iteration of a distillation, with everything that its time depends on. A
job is so many of some pieces.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from satm.config import CLASSES, Cell, EvaluateOptions, ExpertsOptions, Resolver, canonical
from satm.config.class_order import split_classes
from satm.evaluation.search import candidates, sample
from satm.workflow.check import experts_of, method_options
from satm.workflow.jobs import Job
from satm.workflow.rules import cell_of

PIXELS = {"digits": 8, "cifar10": 32, "cifar100": 32, "tiny-imagenet": 64}
"""Height and width of the images of the sources that always have one size."""

IMAGES = {"digits": 1437, "cifar10": 50_000, "cifar100": 50_000, "tiny-imagenet": 100_000}
"""Training images of the sources that always have as many."""

TESTED = {"digits": 360, "cifar10": 10_000, "cifar100": 10_000, "tiny-imagenet": 10_000}
"""Test images of the same."""

TEST_STEP = 256
"""Test images that are counted together."""

PER_CLASS, TESTED_PER_CLASS = 1300, 50
"""Training images, at most, and test images of a class of ImageNet; assumed of datasets whose files alone know."""

UNKNOWN_CLASSES = 1000
"""Classes that are assumed of datasets whose files alone know."""

IDLE = {
    *("iterations", "snapshots", "watch", "selection", "evaluate_every", "evaluate_networks", "experts", "network"),
    *("start_epoch", "expand_iterations", "explode", "max_rollbacks", "lower", "skip_above", "step_size", "momentum"),
    *("lr_images", "lr_labels", "lr_step_size", "lr_weights", "momentum_labels", "ema", "beta", "monitor_every"),
    *("segments", "expand_from", "expert_epochs", "min_start_epoch", "max_start_epoch", "distance"),
}
"""Options of methods on which the time of an iteration does not depend."""


@dataclass(frozen=True)
class Shape:
    """What networks see of a dataset.

    Args:
        channels: of an image.
        size: height and width in pixels.
        classes: of the dataset.
        images: training images.
        tested: test images.
        known: whether the last three are facts; else they are assumed.
    """

    channels: int
    size: int
    classes: int
    images: int
    tested: int
    known: bool

    @property
    def pixels(self) -> int:
        """Numbers of an image."""
        return self.channels * self.size**2


@dataclass(frozen=True)
class Piece:
    """Something whose time and memory can be measured.

    Args:
        kind: `step`, of training; `iteration`, of a distillation.
        key: everything that they depend on, as one JSON text.
    """

    kind: Literal["step", "iteration"]
    key: str

    @property
    def values(self) -> dict[str, Any]:
        """What the key says."""
        content: dict[str, Any] = json.loads(self.key)
        return content


@dataclass(frozen=True)
class Share:
    """So much of a piece.

    Args:
        piece: what.
        times: how often.
        images: of a step; 0 for iterations.
    """

    piece: Piece
    times: float
    images: int = 0


def shape(resolver: Resolver, dataset: str) -> Shape:
    """Return what networks see of a dataset, from its options alone; its files need not exist."""
    options = resolver.dataset(dataset)
    classes = len(options.classes) if options.classes is not None else CLASSES.get(options.source)
    every = IMAGES.get(options.source)
    count, known = classes or UNKNOWN_CLASSES, classes is not None and every is not None
    images = round(every / CLASSES[options.source] * count) if every is not None else PER_CLASS * count
    images -= options.validation * count
    tested = round(TESTED[options.source] / CLASSES[options.source] * count) if every is not None else None
    size = options.size or PIXELS.get(options.source)
    channels = 1 if options.source == "digits" else 3
    tested = TESTED_PER_CLASS * count if tested is None else tested
    return Shape(channels, size or PIXELS["tiny-imagenet"], count, images, tested, known and size is not None)


def shares(resolver: Resolver, job: Job, at_once: bool) -> list[Share] | None:
    """Return what a job consists of.

    A test image counts as a third of a training image, for it goes through the network once, forwards. Reading and
    writing and what comes before the first step are not among it.

    Args:
        resolver: of the job's campaign.
        job: which.
        at_once: whether networks are trained at once where their options leave it to the device, as on a GPU.

    Returns:
        nothing for jobs that compute little, such as tables; None where nobody says what a job takes.
    """
    names = job.wildcards
    if job.rule == "experts_part":
        return _experts(resolver, names.dataset, names.experts, _count(names.part))
    if job.rule == "distill":
        return _distillation(resolver, cell_of(names), at_once)
    if job.rule in ("evaluate", "variants"):
        options = resolver.evaluation(cell_of(names), names.network)
        values = resolver.network(names.network, names.dataset)
        sets = 4 if job.rule == "variants" else 1
        images = int(names.ipc) * shape(resolver, names.dataset).classes
        return _evaluation(resolver, names.dataset, values, options, images, at_once, sets)
    if job.rule == "full":
        options = resolver.full(names.recipe, names.dataset, names.network)
        values = resolver.network(names.network, names.dataset)
        return _evaluation(resolver, names.dataset, values, options, shape(resolver, names.dataset).images, at_once)
    if job.rule == "continual":
        return _continual(resolver, names, at_once)
    if job.rule in ("nas", "nas_real"):
        return _search(resolver, names, job.rule == "nas_real", at_once)
    return None if job.rule in ("analysis", "expert_sharpness", "difficulty") else []


def pieces(resolver: Resolver, found: list[Job], at_once: bool) -> list[Piece]:
    """Return every piece of some jobs once, those that take little to measure first."""
    all_shares = (shares(resolver, job, at_once) or () for job in found)
    every = {share.piece for some in all_shares for share in some}
    return sorted(every, key=lambda piece: (_effort(piece), piece.key))


def _effort(piece: Piece) -> float:
    """Return a number that grows with what measuring a piece takes."""
    values = piece.values
    pixels = values["channels"] * values["size"] ** 2
    if piece.kind == "step":
        return float(pixels * 256 * values["together"])
    method = values["method"]
    every = values["ipc"] * values["classes"]
    watched = 1 + method.get("concurrent", 0) + method.get("monitor", 0)
    return float(pixels * (method.get("batch_size") or every) * method.get("window", 20) * watched)


def _count(part: str) -> int:
    first, last = part.split("-")
    return int(last) - int(first) + 1


def _step(
    resolver: Resolver, dataset: str, network: Mapping[str, Any], together: int, augment: bool, sharpness_aware: bool
) -> Piece:
    options, seen = resolver.dataset(dataset), shape(resolver, dataset)
    key = {
        "network": dict(network),
        "channels": seen.channels,
        "size": seen.size,
        "classes": seen.classes,
        "augment": options.augment if augment else "",
        "together": together,
        "sharpness_aware": sharpness_aware,
    }
    return Piece("step", canonical(key))


def _epoch(images: int, batch: int) -> Iterator[tuple[int, int]]:
    """Yield how many steps of how many images an epoch has."""
    if images >= batch:
        yield images // batch, batch
    if images % batch:
        yield 1, images % batch


def _experts(resolver: Resolver, dataset: str, experts: str, count: int) -> list[Share]:
    options: ExpertsOptions = resolver.experts(experts, dataset)
    network = resolver.network(options.network, dataset)
    piece = _step(resolver, dataset, network, 1, options.augment, options.optimiser == "flat")
    images = shape(resolver, dataset).images
    # A curriculum grows from its first share to all images, and stays there.
    epochs = float(options.epochs)
    if options.order != "full":
        growing = options.epochs // 2 if options.full_epoch is None else options.full_epoch
        epochs -= growing * (1 - options.start_fraction) / 2
    trained = [
        Share(piece, steps * epochs * count, each) for steps, each in _epoch(images, min(options.batch_size, images))
    ]
    return [*trained, _test(piece, shape(resolver, dataset).tested, count)]


def _test(piece: Piece, images: int, times: float) -> Share:
    """Return the testing of networks on so many images, so often."""
    return Share(piece, times * images / TEST_STEP / 3, TEST_STEP)


def _evaluation(
    resolver: Resolver,
    dataset: str,
    network: Mapping[str, Any],
    options: EvaluateOptions,
    images: int,
    at_once: bool,
    sets: int = 1,
) -> list[Share]:
    alone = options.together == "no" or bool(options.flat_rho) or (options.together == "auto" and not at_once)
    together = 1 if alone else options.repeats
    piece = _step(resolver, dataset, network, together, options.augment, bool(options.flat_rho))
    runs = sets * (options.repeats if alone else 1) + 0.0
    if options.lr == "searched":
        runs += sets * len(options.lr_grid) / together
    epochs = options.epochs * runs
    trained = [Share(piece, steps * epochs, each) for steps, each in _epoch(images, min(options.batch_size, images))]
    return [*trained, _test(piece, shape(resolver, dataset).tested, runs)]


def _distillation(resolver: Resolver, cell: Cell, at_once: bool) -> list[Share]:
    dataset, ipc = cell.dataset, cell.ipc
    values = resolver.method(cell)
    options: Any = method_options(values)
    if not hasattr(options, "iterations"):
        return []
    experts = experts_of(values)
    chosen = resolver.experts(experts, dataset).network if experts else getattr(options, "network", "convnet")
    network = resolver.network(chosen, dataset)
    seen = shape(resolver, dataset)
    key = {
        "method": {name: value for name, value in values.items() if name not in IDLE},
        "ipc": ipc,
        "network": dict(network),
        "channels": seen.channels,
        "size": seen.size,
        "classes": seen.classes,
        "augment": resolver.dataset(dataset).augment,
    }
    if getattr(options, "monitor", 0):
        key["monitor_every"] = options.monitor_every
    found = [Share(Piece("iteration", canonical(key)), float(options.iterations))]
    if options.watch or options.selection != "last":
        once = resolver.evaluation(cell, chosen).model_copy(update={"repeats": options.evaluate_networks})
        looks = math.ceil(options.iterations / options.evaluate_every)
        found += [
            replace(share, times=share.times * looks)
            for share in _evaluation(resolver, dataset, network, once, ipc * seen.classes, at_once)
        ]
    return found


def _continual(resolver: Resolver, names: Any, at_once: bool) -> list[Share]:
    dataset, ipc = names.dataset, int(names.ipc)
    options = resolver.learning(names.protocol, cell_of(names))
    network = resolver.network(options.network, dataset)
    count = shape(resolver, dataset).classes
    found: list[Share] = []
    for order in range(options.orders):
        seen = 0
        for step in split_classes(count, order, options.steps):
            seen += len(step)
            found += _evaluation(resolver, dataset, network, options, ipc * seen, at_once)
    return found


def _search(resolver: Resolver, names: Any, real: bool, at_once: bool) -> list[Share]:
    options = resolver.search(names.search)
    recipe = options.real if real else options.proxy
    seen = shape(resolver, names.dataset)
    first, last = map(int, names.part.split("-"))
    # The network's own rule; asking it takes torch.
    fitting = [each for each in candidates(options.width_factor) if each.pooling == "none" or seen.size >> each.depth]
    chosen = sample(fitting, options.sample, options.sample_seed)[first : last + 1]
    found: list[Share] = []
    for candidate in chosen:
        # A candidate takes about the time of the one of its width, depth and pooling with the usual norm.
        like = {**candidate.network, "norm": "instance", "activation": "relu"}
        images = seen.images if real else int(names.ipc) * seen.classes
        found += _evaluation(resolver, names.dataset, like, recipe, images, at_once)
    return found
