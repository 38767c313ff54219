"""What a method is, its common options, and the registry that it enters with one line.

Shapes: n synthetic images of C x H x W, K classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from satm.config import Cell, Options
from satm.data import Augmentation, ImageData, Preprocessor
from satm.errors import UsageError
from satm.experts import TrajectoryStore
from satm.methods.parts import init as starts
from satm.methods.parts.parameterisation import DIRECT, Parameterisation
from satm.networks.training import TrainingImages
from satm.outer import NOTHING, Memory, OuterGradient
from satm.params import flatten
from satm.seeds import derive_seed, make_generator


class MethodOptions(Options):
    """Options of every method."""

    step_size: float = Field(0.01, gt=0)
    """Step size of SGD that belongs to the synthetic set; where a method learns it, its start."""


class IterativeOptions(MethodOptions):
    """Options of every method that moves its synthetic set in iterations."""

    iterations: int = Field(5000, ge=1)
    """Outer steps."""
    init: Literal["real", "correct", "gaussian"] = "real"
    """What the synthetic images start from: real images of each class, those of them that an expert classifies
    correctly, or Gaussian noise."""
    init_norm: float | None = Field(None, gt=0)
    """Norm that each image of Gaussian noise is scaled to; None: as drawn, with standard deviation 1."""
    labels: Literal["hard", "learned", "teacher"] = "hard"
    """What the set says: the class of each image; soft labels that are learned as logits and start from the experts'
    logits, where there are experts; or those that a segment's end, a network, gives the images in each iteration."""
    confidence: float = Field(0.9, gt=0, lt=1)
    """Probability of an image's own class in soft labels that start without an expert's opinion."""
    outer: Literal["sgd", "adam"] = "sgd"
    """Outer optimiser: SGD with momentum, or Adam."""
    lr_images: float = Field(1000.0, gt=0)
    """Outer step size of the images."""
    momentum: float = Field(0.5, ge=0, lt=1)
    """Outer momentum of SGD, of the images and of the step size. 0.5 as in the public code of MTT, FTD, TESLA, DATM."""
    lr_labels: float = Field(1.0, ge=0)
    """Outer step size of learned labels' logits."""
    momentum_labels: float = Field(0.9, ge=0, lt=1)
    """Outer momentum of SGD, of learned labels. 0.9 as in DATM's public code."""
    lr_step_size: float = Field(1e-5, ge=0)
    """Outer step size of the inner step size."""
    ema: float | None = Field(None, ge=0, lt=1)
    """Decay of an exponential moving average of images and learned labels, which becomes the synthetic set; the raw one
    is kept and evaluated beside it. None: no average; 0: the average is the raw set."""
    skip_above: float | None = Field(None, gt=0)
    """Iterations with a larger loss move nothing. None: none is skipped."""
    selection: Literal["last", "validation", "test"] = "last"
    """Which iteration is kept: the last, or the one best on held-out real images, or (as published code does, and
    optimistic) on the test images."""
    watch: Literal["validation", "test"] | None = None
    """Look at the accuracy of the set on the way, on these real images, and write it beside the metrics; nothing is
    chosen by it. `selection` other than last looks already."""
    evaluate_every: int = Field(500, ge=1)
    """Iterations between two looks at the accuracy, with `selection` other than last or with `watch`; the last one is
    looked at too."""
    evaluate_networks: int = Field(1, ge=1)
    """Networks of each look."""
    snapshots: int = Field(0, ge=0)
    """So many states of the set on its way, evenly spread from the start to the last iteration, are kept in its file
    (`history`); 1: the start alone. They are of the raw set, not of an average."""
    explode: float = Field(100.0, gt=0)
    """A loss above this counts as exploded. A matching loss of 1 means no better than not training."""
    max_rollbacks: int = Field(10, ge=0)
    """How often the loop may go back to a good state and lower a rate before it gives up."""
    lower: float = Field(0.5, gt=0, lt=1)
    """Factor on the offending rate each time."""


@dataclass(frozen=True)
class Synthetic:
    """A synthetic set, in the space that networks are trained in.

    Args:
        images: `[n, C, H, W]` float.
        labels: `[n]` int64, or `[n, K]` float logits.
        step_size: `[]` float.
    """

    images: Tensor
    labels: Tensor
    step_size: Tensor


@dataclass(frozen=True)
class Problem:
    """Everything that a method may use.

    Args:
        data: the real images, raw.
        preprocessor: from raw images to the space that networks are trained in.
        augmentation: of real and synthetic images.
        build: a freshly initialised network of the kind that is trained on the set, by seed.
        ipc: images per class.
        device: where to compute.
        cell: what is distilled; names this run for its seeds.
        experts: the trajectory store; None for methods without.
    """

    data: ImageData
    preprocessor: Preprocessor
    augmentation: Augmentation
    build: Callable[[int], nn.Module]
    ipc: int
    device: torch.device
    cell: Cell
    experts: TrajectoryStore | None = None

    @cached_property
    def module(self) -> nn.Module:
        """A network whose weights mean nothing, to be called with others."""
        return self.build(0).to(self.device)

    @cached_property
    def real(self) -> TrainingImages:
        """All real training images, ready for training."""
        return TrainingImages.of(self.data.train, self.preprocessor, self.device)

    @cached_property
    def members(self) -> list[Tensor]:
        """Indices of the training images of each class, `[m]` int64 on the CPU, ascending."""
        labels = self.data.train.labels
        return [(labels == label).nonzero().squeeze(1) for label in range(self.data.classes)]

    def generator(self, *purpose: str | int) -> torch.Generator:
        """Return a generator of this run for a purpose, such as ``"iteration", 12``."""
        return make_generator("distill", *self.cell, *purpose)

    def fresh_weights(self, *purpose: str | int) -> Tensor:
        """Return `[P]` weights of a freshly initialised network, by purpose as `generator`."""
        return flatten(self.build(derive_seed("network", "distill", *self.cell, *purpose))).to(self.device)


class Method:
    """A way to make a synthetic set. Subclasses say what distinguishes them and compose the rest.

    Args:
        options: checked, of the class's `options`.
        problem: what it may use.

    Raises:
        UsageError: (on construction) options, experts and data that do not fit together.
    """

    name: ClassVar[str]
    options: ClassVar[type[MethodOptions]] = MethodOptions
    needs_experts: ClassVar[bool] = False

    def __init__(self, options: Any, problem: Problem) -> None:
        self.settings = options
        self.problem = problem

    def start(self) -> Synthetic:
        """Return the set before the first iteration: real images with hard labels."""
        images, labels = starts.real(self.problem)
        return self.synthetic(images, labels)

    @property
    def notes(self) -> Mapping[str, str]:
        """What was decided beyond the options, in words by subject: logged, and stored beside them. None here."""
        return {}

    @property
    def selection(self) -> str:
        """Which iteration the set is: `last`, or the best on `validation` or `test` images."""
        return "last"

    def synthetic(self, images: Tensor, labels: Tensor) -> Synthetic:
        """Return images and labels with the step size that they start with."""
        return Synthetic(images, labels, torch.tensor(self.settings.step_size, device=images.device))


class IterativeMethod(Method):
    """A method that moves its set in iterations."""

    options: ClassVar[type[MethodOptions]] = IterativeOptions
    parameterisation: Parameterisation = DIRECT

    def __init__(self, options: Any, problem: Problem) -> None:
        super().__init__(options, problem)
        if options.selection != "last" and options.watch not in (None, options.selection):
            raise UsageError(
                f"selection {options.selection!r} looks at the accuracy on those images, watch is {options.watch!r}; "
                "leave watch out"
            )
        for name, value in (("init", "correct"), ("labels", "teacher")):
            if getattr(options, name) == value and not self.needs_experts:
                raise UsageError(
                    f"{name} {value!r} needs experts, method {self.name!r} uses none; choose another {name}"
                )

    @property
    def selection(self) -> str:
        """Which iteration is kept, as the option says."""
        options: IterativeOptions = self.settings
        return options.selection

    def start(self) -> Synthetic:
        """Return the set before the first iteration, as `init` and `labels` say."""
        options: IterativeOptions = self.settings
        problem, experts = self.problem, self.problem.experts
        if options.init == "gaussian":
            images, labels = starts.gaussian(problem, options.init_norm)
        elif options.init == "correct" and experts is not None:
            images, labels = starts.correct(problem, experts)
        else:
            images, labels = starts.real(problem)
        if options.labels == "learned" and experts is not None:
            labels = starts.expert_labels(problem, experts, images, labels)
        elif options.labels == "learned":
            labels = starts.confident(labels, problem.data.classes, options.confidence)
        return self.synthetic(images, labels)

    def rates(self) -> dict[str, float]:
        """Return the outer step size of each number that is learned."""
        options: IterativeOptions = self.settings
        soft = {"labels": options.lr_labels} if options.labels == "learned" else {}
        return {"images": options.lr_images, **soft, "step_size": options.lr_step_size}

    def gradient(self, synthetic: Synthetic, iteration: int, memory: Memory = NOTHING) -> OuterGradient:
        """Return what the outer step of this iteration follows; a pure function of its arguments.

        Args:
            synthetic: the set.
            iteration: outer steps done before.
            memory: what the iteration before has left in its `OuterGradient.memory`.
        """
        raise TypeError(f"{type(self).__name__} must define gradient()")

    def observe(self, synthetic: Synthetic, iteration: int) -> Mapping[str, float]:
        """Return further numbers about the set before an iteration, by column of the metrics. Nothing here."""
        return {}

    def finish(self, synthetic: Synthetic, iteration: int) -> Synthetic:
        """Return the set as it is tested and stored after so many iterations."""
        return synthetic


M = TypeVar("M", bound=type[Method])

METHODS: dict[str, type[Method]] = {}
"""Every method by its name."""


def register(name: str) -> Callable[[M], M]:
    """Enter a method class under a name."""

    def enter(method: M) -> M:
        method.name = name
        METHODS[name] = method
        return method

    return enter
