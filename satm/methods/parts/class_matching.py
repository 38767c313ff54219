"""Comparison of real and synthetic images class by class, under the same augmentation.

Shapes: n synthetic images of C x H x W, m of them of one class, b real images of it, K classes.
"""

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from satm.config.methods import ClassMatchingOptions
from satm.data import Augmentation
from satm.data.augment import Draw
from satm.methods.parts.method import Method
from satm.methods.parts.problem import Problem, Synthetic
from satm.methods.recipe import Recipe


@dataclass(frozen=True)
class Comparison:
    """One class in one iteration: `[m]` int64 indices of its synthetic images, and real images augmented by `draw`.

    The synthetic images are to be augmented by the same draw.
    """

    label: int
    chosen: Tensor
    real: Tensor
    draw: Draw


OptionsT = TypeVar("OptionsT", bound=ClassMatchingOptions, covariant=True)


class ClassMatching(Method[OptionsT]):
    """A method whose loss is a sum over classes. The step size is not learned.

    A recipe's code is ``step(matching, synthetic, iteration, state) -> OuterGradient``.
    """

    def __init__(self, recipe: Recipe, options: OptionsT, problem: Problem) -> None:
        super().__init__(recipe, options, problem)
        families = problem.augmentation.strategy if options.augment else ""
        self.siamese: Augmentation = replace(problem.augmentation, strategy=families, share="batch")
        """One draw serves batches of any length."""

    def comparison(self, synthetic: Synthetic, label: int, generator: torch.Generator) -> Comparison:
        """Return the images of one class to compare; the classes draw from the iteration's generator in their order.

        Source: public code of DSA and DM: each class draws its own real images and augmentation.
        """
        members, options = self.problem.members[label], self.options
        order = torch.randperm(len(members), generator=generator)[: options.real_batch]
        real, _ = self.problem.real.batch(members[order].to(self.problem.device))
        draw = self.siamese.draw(generator, len(real), real.shape[-1])
        chosen = (synthetic.labels == label).nonzero().squeeze(1)
        return Comparison(label, chosen, self.siamese.apply(real.to(synthetic.images), draw), draw)
