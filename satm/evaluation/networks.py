"""How good a synthetic set is: fresh networks trained on it and tested on real images.

Shapes: n synthetic images of C x H x W, K classes, R networks trained at once.
"""

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from satm.config import EvaluateOptions
from satm.data import Augmentation
from satm.errors import RunError, UsageError
from satm.networks import build
from satm.networks.training import SharpnessAware, TrainingImages, measure, soft_cross_entropy, train_epoch
from satm.run.machine import peak_memory, reset_peak
from satm.run.stopping import check_stop, uninterruptible
from satm.seeds import derive_seed, make_generator

T = TypeVar("T")

Axes = tuple[str | int, ...]
"""Names of one network for its seeds."""


@dataclass(frozen=True)
class Score:
    """One network trained on a synthetic set."""

    accuracy: float
    """Fraction of the real images; NaN where training diverged."""
    loss: float
    """Mean cross-entropy on them; may be infinite or NaN where training diverged."""
    seconds: float
    """Of training and testing; of networks trained at once each has an equal share."""
    peak_memory_bytes: int
    """Of this training on a GPU, of the process on a CPU."""


@dataclass(frozen=True)
class Task:
    """What networks are trained on, and how.

    Args:
        synthetic: images `[n, C, H, W]` float32 in the space of training, and their labels.
        step_size: that belongs to the set, used where `options.lr` is `learned`.
        network: `{"network": registered name, option: value…}`.
        classes: K.
        options: the recipe.
        augmentation: of the synthetic images, where the options augment.

    Raises:
        UsageError: the step size is not positive, or `together` excludes another option.

    Source: protocol of MTT's public code; with `flat_rho`, "MTT + Flat Minimum" of FTD section 4.3, which is SAM; with
        `adam`, RaT-BPTT's.
    Differs: MTT's code trains epochs 0 to 1000 inclusive, one more than `epochs` here.
    """

    synthetic: TrainingImages
    step_size: float
    network: Mapping[str, Any]
    classes: int
    options: EvaluateOptions
    augmentation: Augmentation

    def __post_init__(self) -> None:
        if self.options.lr != "searched" and not self.rate > 0:
            raise UsageError(
                f"training needs a positive step size, the synthetic set has {self.rate:g}; set lr to a number"
            )
        if self.options.together == "yes" and self.options.flat_rho:
            raise UsageError(
                f"together 'yes' does not go with flat_rho {self.options.flat_rho:g}, whose step depends on the norm "
                "of one network's gradient; leave one of them out"
            )

    @property
    def rate(self) -> float:
        """Step size of the first epoch.

        Raises:
            UsageError: it was not searched yet.
        """
        if self.options.lr == "searched":
            raise UsageError("lr 'searched' must be found first (satm.evaluation.networks.settled); set lr to a number")
        return self.options.lr if isinstance(self.options.lr, float) else self.step_size

    @property
    def used_augmentation(self) -> Augmentation:
        """The augmentation, or one that does nothing."""
        return self.augmentation if self.options.augment else Augmentation("", self.augmentation.share)

    def fresh(self, axes: Axes) -> nn.Module:
        """Return a freshly initialised network on the device.

        Raises:
            UsageError: the network does not fit the images.
        """
        _, channels, size, _ = self.synthetic.images.shape
        module = build(self.network, channels, self.classes, size, derive_seed("network", *axes))
        return module.to(self.synthetic.labels.device)

    def optimiser(
        self, parameters: Iterable[Tensor], epoch: int, held: torch.optim.Optimizer | None
    ) -> torch.optim.Optimizer:
        """Return the optimiser of an epoch: the one of the epoch before, or where its state starts anew a fresh one."""
        options, rate = self.options, self.rate
        if options.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * epoch / options.epochs))
        elif options.decay_epoch is not None and epoch >= options.decay_epoch:
            rate /= 10
        if held is None or (options.schedule == "step" and epoch == options.decay_epoch):
            return _optimiser(parameters, options, rate)
        for group in held.param_groups:
            group["lr"] = rate
        return held


class Kept(Protocol):
    """Where the state of a long training is kept between epochs."""

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """Return the epochs that are done and the tensors that were kept then; None where nothing is of this one."""

    def save(self, epoch: int, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        """Keep the tensors after so many epochs.

        Those that follow others within a moment may be left out, unless the process is asked to stop.
        """


Keep = Callable[[Sequence[Axes]], Kept]
"""Gives the place where the state of some networks is kept while they are trained."""


def evaluate(task: Task, real: TrainingImages, axes: Sequence[Axes], kept: Keep | None = None) -> list[Score]:
    """Train fresh networks on a synthetic set and test them, in the order of `axes`.

    Args:
        task: set, network and recipe; its `options.together` says whether they are trained at once.
        real: images to test on, with integer labels.
        axes: names of each network.
        kept: where the states of networks are kept during training.
    """
    return [
        Score(accuracy, loss, seconds, peak)
        for (accuracy, loss), seconds, peak in train_and_test(task, axes, kept, lambda module: measure(module, real))
    ]


def train_and_test(
    task: Task, axes: Sequence[Axes], kept: Keep | None, test: Callable[[nn.Module], T]
) -> Iterator[tuple[T, float, int]]:
    """Yield what a test says of each freshly trained network, with seconds, the test's included, and peak memory.

    Arguments as in `evaluate`; `test` is called with each network.
    """
    device = task.synthetic.labels.device
    at_once = stacked(task, device) and len(axes) > 1
    for group in [axes] if at_once else [[one] for one in axes]:
        started = time.perf_counter()
        reset_peak(device)
        place = kept(group) if kept else None
        modules = train_together(task, group, place) if at_once else [train(task, group[0], place)]
        found = [test(module) for module in modules]
        seconds = (time.perf_counter() - started) / len(group)
        for one in found:
            yield one, seconds, peak_memory(device)


@dataclass(frozen=True)
class Group:
    """Networks of one task that were trained, at once or one alone, and tested."""

    which: int
    """Index of the task."""
    task: Task
    scores: Mapping[int, Score]
    """By the number of the network among those of the task."""


def evaluate_tasks(
    tasks: Sequence[Callable[[], Task]],
    axes: Callable[[int, int], Axes],
    repeats: int,
    real: TrainingImages,
    done: int = 0,
    kept: Keep | None = None,
) -> Iterator[Group]:
    """Train and test some networks of each of several tasks.

    Args:
        tasks: called when the first network of the task is due, because a step size may have to be searched.
        axes: gives the names of a network from the index of its task and its number.
        repeats: networks of each task.
        real: images to test on, with integer labels.
        done: networks, the first ones, that were tested before and are left out.
        kept: where the states of networks are kept while they are trained.
    """
    for which in range(done // repeats, len(tasks)):
        task, left = tasks[which](), range(max(0, done - which * repeats), repeats)
        together = stacked(task, task.synthetic.labels.device)
        for numbers in [left] if together else [range(number, number + 1) for number in left]:
            names = [axes(which, number) for number in numbers]
            yield Group(which, task, dict(zip(numbers, evaluate(task, real, names, kept), strict=True)))


def stacked(task: Task, device: torch.device) -> bool:
    """Say whether the networks of a task are trained at once on a device."""
    options = task.options
    if options.together == "auto":
        return device.type == "cuda" and not options.flat_rho
    return options.together == "yes"


def train(task: Task, axes: Axes, kept: Kept | None = None) -> nn.Module:
    """Return one fresh network trained on a synthetic set; with `kept` it goes on from there, to the same bytes."""
    module, generator = task.fresh(axes), make_generator("evaluate", *axes)
    rho = task.options.flat_rho
    sharpness_aware = SharpnessAware("paper", rho, 1.0) if rho else None
    optimiser = task.optimiser(module.parameters(), 0, None)
    progress = _Progress(module.state_dict(), [generator], kept)
    for epoch in range(progress.resume(optimiser), task.options.epochs):
        optimiser = task.optimiser(module.parameters(), epoch, optimiser)
        with progress.epoch(epoch, optimiser):
            train_epoch(
                module,
                optimiser,
                task.synthetic,
                task.options.batch_size,
                task.used_augmentation,
                generator,
                sharpness_aware=sharpness_aware,
            )
    return module


def train_together(task: Task, axes: Sequence[Axes], kept: Kept | None = None) -> list[nn.Module]:
    """Return fresh networks trained on one set at once: each step is one call with stacked weights `[R, …]`.

    Batches and augmentations of each network are those of `train`, so the results differ by rounding only. With `kept`
    they go on from there, to the same bytes.
    """
    modules, data, size = [task.fresh(one) for one in axes], task.synthetic, task.options.batch_size
    generators = [make_generator("evaluate", *one) for one in axes]
    augmentation, device = task.used_augmentation, task.synthetic.labels.device
    weights, buffers = torch.func.stack_module_state(modules)
    skeleton = copy.deepcopy(modules[0]).to("meta").train()

    def loss(own: dict[str, Tensor], held: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        return soft_cross_entropy(torch.func.functional_call(skeleton, (own, held), (images,)), labels)

    losses = torch.vmap(loss)
    optimiser = task.optimiser(weights.values(), 0, None)
    progress = _Progress({**weights, **buffers}, generators, kept)
    for epoch in range(progress.resume(optimiser), task.options.epochs):
        optimiser = task.optimiser(weights.values(), epoch, optimiser)
        with progress.epoch(epoch, optimiser):
            orders = [torch.randperm(len(data), generator=generator) for generator in generators]
            for chosen in zip(*(order.split(size) for order in orders), strict=True):
                check_stop()
                batches = []
                for part, generator in zip(chosen, generators, strict=True):
                    images, labels = data.batch(part.to(device))
                    draw = augmentation.draw(generator, len(images), images.shape[-1])
                    batches.append((augmentation.apply(images, draw), labels))
                images, labels = (torch.stack(parts) for parts in zip(*batches, strict=True))
                optimiser.zero_grad()
                losses(weights, buffers, images, labels).sum().backward()
                optimiser.step()
    for index, module in enumerate(modules):
        state = {name: held[index].detach() for name, held in {**weights, **buffers}.items()}
        module.load_state_dict(state)
    return modules


class _Progress:
    """Keeps a training between its epochs, and brings it back to where it was.

    The tensors, weights and buffers by name, are changed in place by the training.
    """

    def __init__(self, tensors: Mapping[str, Tensor], generators: Sequence[torch.Generator], kept: Kept | None) -> None:
        self._tensors, self._generators, self._kept = tensors, generators, kept

    def resume(self, optimiser: torch.optim.Optimizer) -> int:
        """Bring everything to the state that was kept; return its epochs, 0 where there is none."""
        found = self._kept.load() if self._kept else None
        if found is None:
            return 0
        epoch, held = found
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in held.items():
            kind, _, place = name.partition("/")
            if kind == "network":
                with torch.no_grad():
                    self._tensors[place].copy_(tensor)
            elif kind == "generator":
                self._generators[int(place)].set_state(tensor)
            else:
                index, _, moment = place.partition("/")
                moments.setdefault(int(index), {})[moment] = tensor
        optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
        return epoch

    @contextlib.contextmanager
    def epoch(self, epoch: int, optimiser: torch.optim.Optimizer) -> Iterator[None]:
        """Let an epoch, counted from 0, end before a stop where it can be kept, and keep what there is after it."""
        if self._kept is None:
            yield
            return
        with uninterruptible():
            yield
        self._kept.save(epoch + 1, partial(self._all, optimiser))
        check_stop()

    def _all(self, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
        found = {f"network/{name}": held for name, held in self._tensors.items()}
        for index, moments in optimiser.state_dict()["state"].items():
            named = {name: held for name, held in moments.items() if isinstance(held, Tensor)}
            found |= {f"optimiser/{index}/{name}": held for name, held in named.items()}
        return found | {f"generator/{index}": each.get_state() for index, each in enumerate(self._generators)}


def settled(task: Task, held_out: Callable[[], TrainingImages], axes: Axes) -> Task:
    """Return a task whose step size is known: where the options search it, with the images that `held_out` gives."""
    if task.options.lr != "searched":
        return task
    return replace(task, options=task.options.model_copy(update={"lr": search_rate(task, held_out(), axes)}))


def search_rate(task: Task, real: TrainingImages, axes: Axes) -> float:
    """Return the step size of `options.lr_grid` whose network is best on real images; ties go to the first.

    Args:
        task: with any `lr`.
        real: images that are not the ones to be tested on.
        axes: names of this search; every step size trains the same fresh network.

    Raises:
        RunError: training diverged with every one of them.
    """
    best = (-1.0, 0.0)
    for rate in task.options.lr_grid:
        tried = replace(task, options=task.options.model_copy(update={"lr": rate}))
        score = evaluate(tried, real, [(*axes, "search")])[0]
        if score.accuracy > best[0]:  # never where it is NaN
            best = (score.accuracy, rate)
    if best[0] < 0:
        rates = ", ".join(f"{rate:g}" for rate in task.options.lr_grid)
        raise RunError(f"training diverged with every step size of lr_grid, {rates}; set lr_grid to smaller ones")
    return best[1]


def _optimiser(parameters: Iterable[Tensor], options: EvaluateOptions, rate: float) -> torch.optim.Optimizer:
    """Return a fresh optimiser of the kind that the options name."""
    if options.optimiser == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=options.weight_decay)
    return torch.optim.SGD(parameters, lr=rate, momentum=options.momentum, weight_decay=options.weight_decay)
