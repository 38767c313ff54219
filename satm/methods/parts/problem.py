"""The problem that a method works on, and a synthetic set.

Shapes: n synthetic images of C x H x W, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from satm.config import Cell
from satm.data import Augmentation, ImageData, Preprocessor
from satm.experts import TrajectoryStore
from satm.methods.checks import Facts
from satm.networks.training import TrainingImages
from satm.params import flatten
from satm.seeds import derive_seed, make_generator


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
    """The inputs of a method: data, networks and experts.

    Args:
        data: the real images, raw.
        preprocessor: maps raw images to the space of training.
        augmentation: augmentation of real and synthetic images.
        build: returns, for a seed, a freshly initialised network of the architecture trained on the set.
        ipc: images per class.
        device: device of all computations.
        cell: the distillation run; all its seeds derive from it.
        experts: the trajectory store; None for methods without experts.
    """

    data: ImageData
    preprocessor: Preprocessor
    augmentation: Augmentation
    build: Callable[[int], nn.Module]
    ipc: int
    device: torch.device
    cell: Cell
    experts: TrajectoryStore | None = None

    @property
    def facts(self) -> Facts:
        """What the checks of a method's options need to know."""
        data, experts = self.data, self.experts
        about = (self.ipc, data.classes, data.channels * data.size**2)
        return Facts(*about) if experts is None else Facts(*about, len(experts), experts.epochs)

    @cached_property
    def module(self) -> nn.Module:
        """A network to be called with other weights; its own are never used."""
        return self.build(0).to(self.device)

    @cached_property
    def expert_module(self) -> nn.Module:
        """A network in evaluation mode, to be called with the weights and buffers of an expert."""
        return self.build(0).to(self.device).eval()

    @cached_property
    def real(self) -> TrainingImages:
        """All real training images, preprocessed."""
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
        """Return `[P]` weights of a freshly initialised network for a purpose, as in `generator`."""
        return flatten(self.build(derive_seed("network", "distill", *self.cell, *purpose))).to(self.device)
