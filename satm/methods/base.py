"""What a method is, its common options, and the registry that it enters with one line.

Shapes: n synthetic images of C x H x W, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from satm.config import Options
from satm.data import Augmentation, ImageData, Preprocessor
from satm.errors import UsageError
from satm.experts import TrajectoryStore
from satm.outer import OuterGradient
from satm.seeds import make_generator


class MethodOptions(Options):
    """Options of every method."""

    step_size: float = Field(0.01, gt=0)
    """Step size of SGD that belongs to the synthetic set; where a method learns it, its start."""


class IterativeOptions(MethodOptions):
    """Options of every method that moves its synthetic set in iterations."""

    iterations: int = Field(5000, ge=1)
    """Outer steps."""
    lr_images: float = Field(1000.0, gt=0)
    """Outer step size of the images."""
    momentum: float = Field(0.5, ge=0, lt=1)
    """Outer momentum, of the images and of the step size. 0.5 as in the public code of MTT, FTD, TESLA and DATM."""
    lr_step_size: float = Field(1e-5, ge=0)
    """Outer step size of the inner step size."""
    selection: Literal["last", "validation", "test"] = "last"
    """Which iteration is kept: the last, or the one best on held-out real images, or (as published code does, and
    optimistic) on the test images."""
    evaluate_every: int = Field(500, ge=1)
    """Iterations between two looks at the accuracy, with `selection` other than last; the last one is looked at too."""
    evaluate_networks: int = Field(1, ge=1)
    """Networks of each look."""
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
        module: a network of the kind that is trained on the set; its weights mean nothing.
        ipc: images per class.
        device: where to compute.
        axes: names of this run for its seeds: ``dataset, ipc, method, seed``.
        experts: the trajectory store; None for methods without.
    """

    data: ImageData
    preprocessor: Preprocessor
    augmentation: Augmentation
    module: nn.Module
    ipc: int
    device: torch.device
    axes: tuple[str, int, str, int]
    experts: TrajectoryStore | None = None

    def generator(self, *purpose: str | int) -> torch.Generator:
        """Return a generator of this run for a purpose, such as ``"iteration", 12``."""
        return make_generator("distill", *self.axes, *purpose)

    def real_images(self) -> tuple[Tensor, Tensor]:
        """Return `ipc` random training images of each class, sorted by class: `[n, C, H, W]` float32 and `[n]` int64.

        The draw depends on the dataset, the images per class and the seed, not on the method, so that methods that are
        compared start from the same images.

        Raises:
            UsageError: a class has fewer images, or ipc is not positive.
        """
        dataset, ipc, _, seed = self.axes
        if ipc < 1:
            raise UsageError(f"ipc, the images per class, must be at least 1, got {ipc}; use 1 or more")
        generator = make_generator("init", dataset, ipc, seed)
        chosen = []
        for label in range(self.data.classes):
            members = (self.data.train.labels == label).nonzero().squeeze(1)
            if len(members) < ipc:
                raise UsageError(
                    f"{ipc} images per class were asked for, class {label} ({self.data.class_names[label]}) of "
                    f"{dataset} has {len(members)} training images; use a smaller ipc"
                )
            chosen.append(members[torch.randperm(len(members), generator=generator)[:ipc]])
        indices = torch.cat(chosen)
        images = self.preprocessor.apply(self.data.train.images[indices])
        return images.to(self.device), self.data.train.labels[indices].to(self.device)


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
        images, labels = self.problem.real_images()
        return Synthetic(images, labels, torch.tensor(self.settings.step_size, device=images.device))


class IterativeMethod(Method):
    """A method that moves its set in iterations."""

    options: ClassVar[type[MethodOptions]] = IterativeOptions

    def gradient(self, synthetic: Synthetic, iteration: int) -> OuterGradient:
        """Return what the outer step of this iteration follows; a pure function of its arguments."""
        raise TypeError(f"{type(self).__name__} must define gradient()")


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
