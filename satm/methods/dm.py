"""Distribution matching (DM).

Shapes: n synthetic images of C x H x W, m of them of one class, F features.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from satm.data.augment import Draw
from satm.methods.base import MethodOptions, Synthetic, register
from satm.methods.class_matching import ClassMatching, ClassMatchingOptions
from satm.methods.parts.embedding import embed_flat
from satm.outer import NOTHING, Memory, OuterGradient

CHUNK = 500
"""Synthetic images that are embedded in one go, or those of one class if these are more: a compromise between speed and
memory."""


class DmOptions(ClassMatchingOptions):
    """Options of DM."""

    iterations: int = Field(20000, ge=1)
    """Outer steps."""
    lr_images: float = Field(1.0, gt=0)
    """Outer step size of the images."""


@register("dm")
class Dm(ClassMatching):
    """Match the mean features of real and of synthetic images, class by class, in a fresh random network each time.

    The features are what the last linear layer sees; both sides have one random change, drawn anew for each class.

    Composition: no experts; real images, hard labels; distribution matching; the step size is fixed; descent.

    Source: Zhao and Bilen 2023 (DM), Eq. 6 and Algorithm 1, and its public code.
    Differs: the public code embeds the classes one after another, here several go through the network together.
    """

    options: ClassVar[type[MethodOptions]] = DmOptions
    settings: DmOptions

    def gradient(self, synthetic: Synthetic, iteration: int, memory: Memory = NOTHING) -> OuterGradient:
        """Return the gradient of the squared distances between mean features, summed over the classes."""
        weights = self.problem.fresh_weights("network", iteration).to(synthetic.images)
        generator = self.problem.generator("iteration", iteration)
        loss, images = torch.zeros_like(synthetic.step_size), torch.zeros_like(synthetic.images)
        together = max(1, CHUNK // self.problem.ipc)
        classes = range(self.problem.data.classes)
        for first in classes[::together]:
            asked = [self._asked(synthetic, label, generator, weights) for label in classes[first : first + together]]
            chosen = torch.cat([places for places, _, _ in asked])
            own = synthetic.images[chosen].detach().requires_grad_()
            distance = self._distance(own, asked, weights)
            images[chosen] = torch.autograd.grad(distance, own)[0]
            loss = loss + distance.detach()
        return OuterGradient(loss, images, None, torch.zeros_like(synthetic.step_size))

    def _asked(
        self, synthetic: Synthetic, label: int, generator: torch.Generator, weights: Tensor
    ) -> tuple[Tensor, Draw, Tensor]:
        """Return the places of a class in the set, its change, and `[F]` the mean features that it should have."""
        comparison = self.comparison(synthetic, label, generator)
        with torch.no_grad():
            target = embed_flat(self.problem.module, weights, comparison.real).mean(0)
        return comparison.chosen, comparison.draw, target

    def _distance(self, own: Tensor, asked: list[tuple[Tensor, Draw, Tensor]], weights: Tensor) -> Tensor:
        """Return `[]` the distance of some classes, given their synthetic images one class after another."""
        counts = [len(places) for places, _, _ in asked]
        changed = [self.siamese.apply(part, ask[1]) for part, ask in zip(own.split(counts), asked, strict=True)]
        features = embed_flat(self.problem.module, weights, torch.cat(changed)).split(counts)
        targets = [target for _, _, target in asked]
        means = [part.mean(0) for part in features]
        return (torch.stack(means) - torch.stack(targets)).square().sum()
