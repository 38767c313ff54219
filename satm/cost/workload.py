"""Work of a campaign's jobs, in pieces whose time can be measured on a machine. Nothing here imports torch.

A piece is a step of training a network, or an iteration of a distillation, with everything that its time depends on.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open

from satm.config import CLASSES, Cell, EvaluateOptions, ExpertsOptions, Resolver, canonical
from satm.config.base import numbers
from satm.config.class_order import split_classes
from satm.config.datasets import SOURCE_CONTENTS
from satm.evaluation.candidates import fitting
from satm.evaluation.search import sample
from satm.workflow.asked import Wildcards, cell_of, of_images, schedule, wildcards
from satm.workflow.graph import Job
from satm.workflow.options import experts_of, method_options
from satm.workflow.provenance import differing_options, stated_identity

Network = Mapping[str, Any]
"""`{"network": registered name, option: value…}`."""

Training = EvaluateOptions | ExpertsOptions
"""Options for training a network."""

SIZES = {
    source: (each.size or 0, sum(each.train or ()), sum(each.test or ())) for source, each in SOURCE_CONTENTS.items()
}
"""Height and width in pixels, training images and test images of the sources of a fixed size."""

ASSUMED, ASSUMED_CLASSES = (64, 1_300_000, 50_000), 1000
"""Assumed size and number of classes of other sources, known only from their files; images per class as in ImageNet."""

TEST_STEP = 256
"""Images of one step of testing."""

IDLE = {
    *("iterations", "snapshots", "watch", "selection", "evaluate_every", "evaluate_networks", "experts", "network"),
    *("start_epoch", "expand_iterations", "explode", "max_rollbacks", "lower", "skip_above", "step_size", "momentum"),
    *("lr_images", "lr_labels", "lr_step_size", "lr_weights", "momentum_labels", "ema", "beta", "monitor_every"),
    *("segments", "expand_from", "expert_epochs", "min_start_epoch", "max_start_epoch", "distance"),
}
"""Options of methods on which the time of an iteration does not depend."""


@dataclass(frozen=True)
class Shape:
    """Size of a dataset and of its images; assumed if it is known only from the files.

    `size` is height and width in pixels, `images` and `test_images` are numbers of training and test images.
    """

    channels: int
    size: int
    classes: int
    images: int
    test_images: int
    augment: str

    @property
    def pixels(self) -> int:
        """Numbers of an image."""
        return self.channels * self.size**2

    def key(self, network: Network, augment: bool = True) -> dict[str, Any]:
        """Return everything that a network's time on one of these images depends on."""
        values = {"network": dict(network), "augment": self.augment if augment else ""}
        return values | {name: getattr(self, name) for name in ("channels", "size", "classes")}


@dataclass(frozen=True)
class Piece:
    """A training step or an iteration of a distillation; `key` has everything its time depends on, as JSON text."""

    kind: Literal["step", "iteration"]
    key: str

    @property
    def values(self) -> dict[str, Any]:
        """Content of the key."""
        content: dict[str, Any] = json.loads(self.key)
        return content


@dataclass(frozen=True)
class Share:
    """Repetitions of a piece; `images` of a step, 0 for iterations."""

    piece: Piece
    times: float
    images: int = 0


def shape(resolver: Resolver, dataset: str) -> Shape:
    """Return the shape of a dataset from its prepared images, or else from its options; its files need not exist."""
    options, whole_name = resolver.dataset(dataset), resolver.whole(dataset)
    if (prepared := prepared_images(resolver, whole_name)) is not None:
        # A step of a dataset has some of its classes.
        part = (resolver.classes(dataset) if resolver.step(dataset) else prepared.classes) / prepared.classes
        counts = {name: round(part * getattr(prepared, name)) for name in ("classes", "images", "test_images")}
        return replace(prepared, **counts, augment=options.augment)
    size, images, tests = SIZES.get(options.source, ASSUMED)
    whole = CLASSES.get(options.source, ASSUMED_CLASSES)
    classes = whole if options.classes is None else len(options.classes)
    images, tests = (round(count / whole * classes) for count in (images, tests))
    channels = 1 if options.source == "digits" else 3
    images -= options.validation * classes
    return Shape(channels, options.size or size, classes, images, tests, options.augment)


def prepared_images(resolver: Resolver, dataset: str) -> Shape | None:
    """Return the shape of a dataset's prepared images.

    None: there are none with its options of today, or its source always has the same ones.
    """
    options, path = resolver.dataset(dataset), Path(resolver.layout.images(dataset))
    if options.source in SIZES or not path.is_file():
        return None
    stated, *shapes = _stored(path, path.stat().st_mtime_ns)
    if not shapes or differing_options(of_images(resolver, wildcards({"dataset": dataset})), stated):
        return None
    (images, channels, size, _), (tests, *_) = shapes
    return Shape(channels, size, len(stated["class_names"]), images, tests, options.augment)


@cache
def _stored(path: Path, changed: int) -> tuple[Any, ...]:
    """Return what a file of images states, and the shapes of its training and test images; `changed`: its time."""
    if (stated := stated_identity(path)) is None:
        return ({},)
    with safe_open(path, framework="numpy") as file:
        return stated, *(file.get_slice(f"{part}.images").get_shape() for part in ("train", "test"))


def assumptions(resolver: Resolver, jobs: Iterable[Job]) -> list[str]:
    """Describe what is assumed about datasets whose size is known only from their files."""
    texts = []
    for name in [job.wildcards.dataset for job in jobs if job.rule == "images"]:
        options, seen = resolver.dataset(name), shape(resolver, name)
        if options.source not in SIZES and prepared_images(resolver, name) is None:
            missing = [option for option in ("size", "classes") if getattr(options, option) is None]
            wrong = " and ".join(missing)
            advice = f"; set {wrong} in its entry to correct this, or prepare its images" if missing else ""
            each = ASSUMED[1] // ASSUMED_CLASSES
            texts.append(
                f"Assumed for {name}, whose files are not read: {seen.classes} classes of {each} training images, "
                f"{seen.size} x {seen.size} pixels{advice}."
            )
    return texts


def shares(resolver: Resolver, job: Job, at_once: bool) -> list[Share] | None:
    """Return the work of a job, without reading, writing and the time before the first step.

    A test image counts as a third of a training image, because it only needs a forward pass. With `at_once`, networks
    are trained at once if their options leave it to the device, as on a GPU. Jobs that compute little, such as tables,
    have no work; None: unknown.
    """
    names = job.wildcards
    if job.rule == "experts_part":
        return _experts(resolver, names)
    if job.rule == "distill":
        return _distillation(resolver, cell_of(names), at_once)
    if job.rule in ("evaluate", "variants", "full"):
        seen, network = shape(resolver, names.dataset), resolver.network(names.network, names.dataset)
        images = seen.images if job.rule == "full" else int(names.ipc) * seen.classes
        return _evaluation(
            seen, network, schedule(resolver, names), images, at_once, 4 if job.rule == "variants" else 1
        )
    if job.rule == "continual":
        return _continual(resolver, names, at_once)
    if job.rule in ("nas", "nas_real"):
        return _search(resolver, names, job.rule == "nas_real", at_once)
    return None if job.rule in ("analysis", "expert_sharpness", "difficulty") else []


def pieces(resolver: Resolver, jobs: list[Job], at_once: bool) -> list[Piece]:
    """Return every piece of some jobs once, the cheapest to measure first."""
    every = {share.piece for job in jobs for share in shares(resolver, job, at_once) or ()}
    return sorted(every, key=lambda piece: (_effort(piece), piece.key))


def _effort(piece: Piece) -> float:
    """Return a number that grows with the time of measuring a piece."""
    values = piece.values
    pixels = values["channels"] * values["size"] ** 2
    if piece.kind == "step":
        return float(pixels * 256 * values["together"])
    method = values["method"]
    every = values["ipc"] * values["classes"]
    watched = 1 + method.get("concurrent", 0) + method.get("monitor", 0)
    return float(pixels * (method.get("batch_size") or every) * method.get("window", 20) * watched)


def _training(
    seen: Shape, network: Network, options: Training, images: int, epochs: float, tests: float, together: int = 1
) -> list[Share]:
    """Return the steps of some epochs on these images, and of testing on the dataset's."""
    flat = options.optimiser == "flat" or bool(getattr(options, "flat_rho", 0))
    key = seen.key(network, options.augment) | {"together": together, "sharpness_aware": flat}
    piece, batch = Piece("step", canonical(key)), min(options.batch_size, images)
    sizes = [(images // batch, batch), (1, images % batch)]
    steps = [Share(piece, count * epochs, size) for count, size in sizes if size]
    return [*steps, Share(piece, tests * seen.test_images / TEST_STEP / 3, TEST_STEP)]


def _experts(resolver: Resolver, names: Wildcards) -> list[Share]:
    options, seen = resolver.experts(names.experts, names.dataset), shape(resolver, names.dataset)
    network, count = resolver.network(options.network, names.dataset), len(numbers(names.part))
    # A curriculum grows from its first share to all images, and stays there.
    epochs = float(options.epochs)
    if options.order != "full":
        growing = options.epochs // 2 if options.full_epoch is None else options.full_epoch
        epochs -= growing * (1 - options.start_fraction) / 2
    return _training(seen, network, options, seen.images, epochs * count, count)


def _evaluation(
    seen: Shape, network: Network, options: EvaluateOptions, images: int, at_once: bool, sets: int = 1
) -> list[Share]:
    alone = options.together == "no" or bool(options.flat_rho) or (options.together == "auto" and not at_once)
    together = 1 if alone else options.repeats
    runs = float(sets * (options.repeats if alone else 1))
    if options.lr == "searched":
        runs += sets * len(options.lr_grid) / together
    elif options.chooses:
        runs += sets * sum(options.train_steps) / max(options.train_steps) / together
    return _training(seen, network, options, images, options.passes(images) * runs, runs, together)


def _distillation(resolver: Resolver, cell: Cell, at_once: bool) -> list[Share]:
    values = resolver.method(cell)
    options: Any = method_options(values)
    if not hasattr(options, "iterations"):
        return []
    experts, seen = experts_of(values), shape(resolver, cell.dataset)
    name = resolver.experts(experts, cell.dataset).network if experts else getattr(options, "network", "convnet")
    network = resolver.network(name, cell.dataset)
    method = {option: value for option, value in values.items() if option not in IDLE}
    key = seen.key(network) | {"method": method, "ipc": cell.ipc}
    if getattr(options, "monitor", 0):
        key["monitor_every"] = options.monitor_every
    work = [Share(Piece("iteration", canonical(key)), float(options.iterations))]
    if options.watch or options.selection != "last":
        once = resolver.evaluation(cell, name).model_copy(update={"repeats": options.evaluate_networks})
        looks = math.ceil(options.iterations / options.evaluate_every)
        tests = _evaluation(seen, network, once, cell.ipc * seen.classes, at_once)
        work += [replace(share, times=share.times * looks) for share in tests]
    return work


def _continual(resolver: Resolver, names: Wildcards, at_once: bool) -> list[Share]:
    options, seen = resolver.learning(names.protocol, cell_of(names)), shape(resolver, names.dataset)
    network = resolver.network(options.network, names.dataset)
    work: list[Share] = []
    for order in range(options.orders):
        learned = 0
        for step in split_classes(seen.classes, order, options.steps):
            learned += len(step)
            work += _evaluation(seen, network, options, int(names.ipc) * learned, at_once)
    return work


def _search(resolver: Resolver, names: Wildcards, real: bool, at_once: bool) -> list[Share]:
    options, seen = resolver.search(names.search), shape(resolver, names.dataset)
    recipe, images = (options.real, seen.images) if real else (options.proxy, int(names.ipc) * seen.classes)
    part = numbers(names.part)
    # A candidate takes about as long as the one of the same width, depth and pooling with the usual norm.
    usual = {"norm": "instance", "activation": "relu"}
    chosen = sample(fitting(seen.size, options.width_factor), options.sample, options.sample_seed)[
        part.start : part.stop
    ]
    networks = [{**candidate.network, **usual} for candidate in chosen]
    return [share for network in networks for share in _evaluation(seen, network, recipe, images, at_once)]
