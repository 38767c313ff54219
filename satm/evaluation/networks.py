"""Evaluation of a synthetic set: fresh networks are trained on it and tested on real images.

Shapes: n synthetic images of C x H x W, K classes, R networks trained at once.
"""

import contextlib
import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
    """Test result of one network trained on a synthetic set."""

    accuracy: float  # fraction of the real images; NaN if training diverged
    loss: float  # mean cross-entropy on them; may be infinite or NaN if training diverged
    seconds: float  # of training and testing; networks trained at once have equal shares
    peak_memory_bytes: int  # of this training on a GPU, of the process on a CPU


@dataclass(frozen=True)
class Task:
    """Training set and recipe of networks.

    Raises:
        UsageError: the step size is not positive.

    Source: protocol of MTT's public code; with `flat_rho`, "MTT + Flat Minimum" of FTD section 4.3, which is SAM; with
        `adam`, RaT-BPTT's.
    Differs: MTT's code trains epochs 0 to 1000 inclusive, one more than `epochs` here.
    """

    synthetic: TrainingImages  # `[n, C, H, W]` float32 in the space of training
    step_size: float  # learned with the set, used if `options.lr` is `learned`
    network: Mapping[str, Any]  # `{"network": registered name, option: value…}`
    classes: int  # K
    options: EvaluateOptions
    augmentation: Augmentation  # of the synthetic images, if the options augment

    def __post_init__(self) -> None:
        if self.options.lr != "searched" and not self.rate > 0:
            raise UsageError(
                f"training needs a positive step size, the synthetic set has {self.rate:g}; set lr to a number"
            )

    @property
    def rate(self) -> float:
        """Step size of the first epoch.

        Raises:
            UsageError: it still has to be searched.
        """
        if self.options.lr == "searched":
            raise UsageError("lr 'searched' needs a search first (satm.evaluation.networks.settled); or set a number")
        return self.options.lr if isinstance(self.options.lr, float) else self.step_size

    @property
    def passes(self) -> list[int]:
        """Batches of each pass over the synthetic set.

        Raises:
            UsageError: their number still has to be chosen.
        """
        options, whole = self.options, -(-len(self.synthetic) // self.options.batch_size)
        if len(options.train_steps) > 1:
            raise UsageError("several train_steps need a choice first (satm.evaluation.networks.settled); or set one")
        if not options.train_steps:
            return [whole] * options.epochs
        count, rest = divmod(options.train_steps[0], whole)
        return [whole] * count + [rest] * bool(rest)

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
        self, parameters: Iterable[Tensor], epoch: int, previous: torch.optim.Optimizer | None
    ) -> torch.optim.Optimizer:
        """Return the optimiser of an epoch: the previous epoch's, or a new one if its state is reset."""
        options, rate = self.options, self.rate
        if options.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * epoch / len(self.passes)))
        elif options.decay_epoch is not None and epoch >= options.decay_epoch:
            rate /= 10
        if previous is None or (options.schedule == "step" and epoch == options.decay_epoch):
            if options.optimiser == "adam":
                return torch.optim.Adam(parameters, lr=rate, weight_decay=options.weight_decay)
            return torch.optim.SGD(parameters, lr=rate, momentum=options.momentum, weight_decay=options.weight_decay)
        for group in previous.param_groups:
            group["lr"] = rate
        return previous


class Kept(Protocol):
    """Storage of the state of a long training between epochs."""

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """Return the number of completed epochs and the tensors after them; None if nothing is stored."""

    def save(self, epoch: int, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        """Store the tensors after an epoch; may skip an epoch soon after a stored one, unless a stop is requested."""


Keep = Callable[[Sequence[Axes]], Kept]
"""Returns the storage for the state of some networks during training."""


def evaluate(task: Task, real: TrainingImages, axes: Sequence[Axes], kept: Keep | None = None) -> list[Score]:
    """Train a fresh network for each of `axes` and test it on real images with integer labels.

    `task.options.together` says whether they are trained at once.
    """
    results = train_and_test(task, axes, kept, partial(measure, data=real))
    return [Score(accuracy, loss, seconds, peak) for (accuracy, loss), seconds, peak in results]


def train_and_test(
    task: Task, axes: Sequence[Axes], kept: Keep | None, test: Callable[[nn.Module], T]
) -> Iterator[tuple[T, float, int]]:
    """Yield the test result of each freshly trained network, seconds of training and test, and peak memory in bytes."""
    device = task.synthetic.labels.device
    at_once = stacked(task, device) and len(axes) > 1
    for group in [axes] if at_once else [[one] for one in axes]:
        started = time.perf_counter()
        reset_peak(device)
        place = kept(group) if kept else None
        modules = train_together(task, group, place) if at_once else [train(task, group[0], place)]
        results = [test(module) for module in modules]
        seconds = (time.perf_counter() - started) / len(group)
        for result in results:
            yield result, seconds, peak_memory(device)


@dataclass(frozen=True)
class Group:
    """Tested networks of one task, trained at once, or one trained alone."""

    which: int  # index of the task
    task: Task
    scores: Mapping[int, Score]  # by number of the network among those of the task


def evaluate_tasks(
    tasks: Sequence[Callable[[], Task]],
    axes: Callable[[int, int], Axes],
    repeats: int,
    real: TrainingImages,
    done: int = 0,
    kept: Keep | None = None,
) -> Iterator[Group]:
    """Train and test `repeats` networks of each task, except the first `done`, which an earlier process has tested.

    A task is called when its first network is due, because a step size may have to be searched. `axes` gives the names
    of a network from the index of its task and its number; real images have integer labels.
    """
    for which in range(done // repeats, len(tasks)):
        task, left = tasks[which](), range(max(0, done - which * repeats), repeats)
        together = stacked(task, task.synthetic.labels.device)
        for numbers in [left] if together else [range(number, number + 1) for number in left]:
            names = [axes(which, number) for number in numbers]
            yield Group(which, task, dict(zip(numbers, evaluate(task, real, names, kept), strict=True)))


def stacked(task: Task, device: torch.device) -> bool:
    """Return whether the networks of a task are trained at once on a device."""
    if task.options.together == "auto":
        return device.type == "cuda" and not task.options.flat_rho
    return task.options.together == "yes"


def train(task: Task, axes: Axes, kept: Kept | None = None) -> nn.Module:
    """Return a fresh network trained on a synthetic set; with `kept` it resumes from that state, to the same bytes."""
    module, generator = task.fresh(axes), make_generator("evaluate", *axes)
    rho, augmentation = task.options.flat_rho, task.used_augmentation
    sharpness_aware = SharpnessAware("paper", rho, 1.0) if rho else None

    def epoch(optimiser: torch.optim.Optimizer, batches: int) -> None:
        data, size = task.synthetic, task.options.batch_size
        how = module, optimiser, data, size, augmentation, generator
        train_epoch(*how, sharpness_aware=sharpness_aware, batches=batches)

    _train_epochs(task, list(module.parameters()), module.state_dict(), [generator], kept, epoch)
    return module


def train_together(task: Task, axes: Sequence[Axes], kept: Kept | None = None) -> list[nn.Module]:
    """Return fresh networks trained on one set at once: each step is one call with stacked weights `[R, …]`.

    Batches and augmentations of each network are those of `train`, so the results differ by rounding only. With `kept`
    they resume from that state, to the same bytes.
    """
    modules, data, augmentation = [task.fresh(one) for one in axes], task.synthetic, task.used_augmentation
    generators = [make_generator("evaluate", *one) for one in axes]
    weights, buffers = torch.func.stack_module_state(modules)
    skeleton = copy.deepcopy(modules[0]).to("meta").train()

    def loss(own: dict[str, Tensor], buffer: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        return soft_cross_entropy(torch.func.functional_call(skeleton, (own, buffer), (images,)), labels)

    losses = torch.vmap(loss)

    def epoch(optimiser: torch.optim.Optimizer, batches: int) -> None:
        orders = [torch.randperm(len(data), generator=generator) for generator in generators]
        for chosen in zip(*(order.split(task.options.batch_size)[:batches] for order in orders), strict=True):
            check_stop()
            drawn = []
            for part, generator in zip(chosen, generators, strict=True):
                images, labels = data.batch(part.to(data.labels.device))
                draw = augmentation.draw(generator, len(images), images.shape[-1])
                drawn.append((augmentation.apply(images, draw), labels))
            images, labels = (torch.stack(parts) for parts in zip(*drawn, strict=True))
            optimiser.zero_grad()
            losses(weights, buffers, images, labels).sum().backward()
            optimiser.step()

    _train_epochs(task, weights.values(), {**weights, **buffers}, generators, kept, epoch)
    for index, module in enumerate(modules):
        module.load_state_dict({name: tensor[index].detach() for name, tensor in {**weights, **buffers}.items()})
    return modules


def _train_epochs(
    task: Task,
    parameters: Collection[Tensor],
    tensors: Mapping[str, Tensor],
    generators: Sequence[torch.Generator],
    kept: Kept | None,
    epoch: Callable[[torch.optim.Optimizer, int], None],
) -> None:
    """Train for all passes, from the stored state if any; `epoch(optimiser, batches)` changes `tensors` in place.

    `tensors` are the weights and buffers of the networks.

    With `kept`, a stop waits for the end of the epoch, and the state after each epoch is stored.
    """
    optimiser, done = task.optimiser(parameters, 0, None), 0
    if kept and (stored := kept.load()):
        done, moments = stored[0], defaultdict[int, dict[str, Tensor]](dict)
        for name, tensor in stored[1].items():
            match name.split("/"):
                case ["network", place]:
                    tensors[place].detach().copy_(tensor)
                case ["generator", index]:
                    generators[int(index)].set_state(tensor)
                case [_, index, moment]:
                    moments[int(index)][moment] = tensor
        optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
    for number, batches in enumerate(task.passes[done:], done):
        optimiser = task.optimiser(parameters, number, optimiser)
        with uninterruptible() if kept else contextlib.nullcontext():
            epoch(optimiser, batches)
        if kept:
            kept.save(number + 1, partial(_state, tensors, generators, optimiser))
            check_stop()


def _state(
    tensors: Mapping[str, Tensor], generators: Sequence[torch.Generator], optimiser: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Return the state of a training between two epochs."""
    state = {f"network/{name}": tensor for name, tensor in tensors.items()}
    for index, moments in optimiser.state_dict()["state"].items():
        state |= {f"optimiser/{index}/{name}": each for name, each in moments.items() if isinstance(each, Tensor)}
    return state | {f"generator/{index}": each.get_state() for index, each in enumerate(generators)}


def settled(task: Task, held_out: Callable[[], TrainingImages], axes: Axes) -> Task:
    """Return the task with a known step size and number of steps, chosen on held-out images if the options say so."""
    if not task.options.chooses:
        return task
    if task.options.lr == "searched":
        return search(task, "lr", task.options.lr_grid, held_out(), axes)
    return search(task, "train_steps", [(count,) for count in task.options.train_steps], held_out(), axes)


def search(task: Task, option: str, values: Sequence[Any], real: TrainingImages, axes: Axes) -> Task:
    """Return the task with the value of an option whose network is best on real images; ties go to the first.

    Every value trains the same fresh network, named by `axes`. The images must not be the test images.

    Raises:
        RunError: training diverged with every value.
    """
    best, chosen = -1.0, task
    for value in values:
        tried = replace(task, options=task.options.model_copy(update={option: value}))
        score = evaluate(tried, real, [(*axes, "search")])[0]
        if score.accuracy > best:  # never if it is NaN
            best, chosen = score.accuracy, tried
    if best < 0:
        every = ", ".join(f"{value:g}" if isinstance(value, float) else str(*value) for value in values)
        if option == "lr":
            raise RunError(f"training diverged with every step size of lr_grid, {every}; set lr_grid to smaller ones")
        raise RunError(f"training diverged with every number of {option}, {every}; set lr to a smaller number")
    return chosen
