"""Gradient matching (DC).

Shapes: n synthetic images of C x H x W, P parameters.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from satm.methods.base import MethodOptions, Problem, Synthetic, register
from satm.methods.class_matching import ClassMatching, ClassMatchingOptions, Comparison
from satm.networks.training import soft_cross_entropy
from satm.outer import NOTHING, Memory, OuterGradient
from satm.params import unflatten
from satm.unroll import InnerLoop, Momentum, Point, Sgd

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""Published image updates of an episode and epochs of training between them, by images per class."""

EPSILON = 1e-6
"""Added to the product of the norms under a cosine, as in the public code."""


class DcOptions(ClassMatchingOptions):
    """Options of DC."""

    augment: bool = False
    """Change the real and the synthetic images of a class alike before they are compared, and the synthetic ones while
    the network trains on them, with families of the dataset."""
    iterations: int = Field(1000, ge=1)
    """Image updates: episodes, each with a network of its own, times `outer_loop`."""
    lr_images: float = Field(0.1, gt=0)
    """Outer step size of the images."""
    outer_loop: int | None = Field(None, ge=1)
    """Image updates of an episode; None: as published, for the nearest smaller number of images per class."""
    inner_loop: int | None = Field(None, ge=1)
    """Epochs that the network trains on the synthetic set between two of them; None: as `outer_loop`."""
    lr_network: float = Field(0.01, gt=0)
    """Step size of that training."""
    momentum_network: float = Field(0.0, ge=0, lt=1)
    """Its momentum; 0 in the public code, whose first version had 0.5."""
    weight_decay_network: float = Field(0.0, ge=0)
    """Added to its gradient, times the weight; 0 in the public code."""
    batch_size: int = Field(256, ge=1)
    """Synthetic images of a step of that training; the last batch of an epoch may be smaller."""


def loops(ipc: int) -> tuple[int, int]:
    """Return the published image updates of an episode, and the epochs of training between two of them.

    Differs: the public code knows the numbers of images per class in `LOOPS` only; here others take those of the
    nearest smaller one.
    """
    return LOOPS[max(known for known in LOOPS if known <= max(1, ipc))]


def gradient_distance(synthetic: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Return `[]` the sum of 1 - cosine over the layers and the output channels of each.

    Args:
        synthetic: of each layer `[out, ...]` the gradient of its weights on synthetic images.
        real: the same on real images; constant.

    Source: DC Eq. 10 and the public code (`distance_wb`).
    """

    def layer(one: Tensor, two: Tensor) -> Tensor:
        cosine: Tensor = (one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1) + EPSILON)
        return (1 - cosine).sum()

    pairs = zip(synthetic, real, strict=True)
    return torch.stack([layer(one.flatten(1), two.flatten(1)) for one, two in pairs]).sum()


@register("dc")
class Dc(ClassMatching):
    """Match the gradients of a network's weights on real and on synthetic images, class by class.

    An episode is a fresh network; each of its iterations is one image update, and between two of them the network
    trains on the synthetic set. Its weights are the memory, so a run goes on, or back, in the middle of an episode.

    Composition: no experts; real images, hard labels; gradient matching; the step size is fixed; descent.

    Source: Zhao, Mopuri and Bilen 2021 (DC), Algorithm 1 and section 3.2, and its public code, whose own default is
        `init` gaussian: there both starts are said to be about equally good.
    Differs: the public code also has other distances, lets a layer norm's scale contribute, and freezes batch norms at
        real statistics; here only weights of convolutions and linear layers are compared, and networks with batch norm
        are not meant to be distilled with.
    """

    options: ClassVar[type[MethodOptions]] = DcOptions
    settings: DcOptions

    def __init__(self, options: DcOptions, problem: Problem) -> None:
        super().__init__(options, problem)
        outer, inner = loops(problem.ipc)
        self.outer_loop = outer if options.outer_loop is None else options.outer_loop
        self.inner_loop = inner if options.inner_loop is None else options.inner_loop
        self.rule = (
            Momentum(options.momentum_network, weight_decay=options.weight_decay_network)
            if options.momentum_network
            else Sgd(options.weight_decay_network)
        )

    def gradient(self, synthetic: Synthetic, iteration: int, memory: Memory = NOTHING) -> OuterGradient:
        """Return the gradient of the distance summed over the classes.

        The memory holds the network between two image updates of an episode; without it an episode begins.
        """
        point = self._trained(synthetic, iteration, memory) if memory else self._fresh(synthetic, iteration)
        generator = self.problem.generator("iteration", iteration)
        loss, images = torch.zeros_like(synthetic.step_size), torch.zeros_like(synthetic.images)
        for label in range(self.problem.data.classes):
            comparison = self.comparison(synthetic, label, generator)
            distance, images[comparison.chosen] = self._compare(synthetic, label, comparison, point.weights)
            loss = loss + distance
        ended = (iteration + 1) % self.outer_loop == 0
        kept = NOTHING if ended else {"weights": point.weights, **point.state}
        return OuterGradient(loss, images, None, torch.zeros_like(synthetic.step_size), memory=kept)

    def _compare(
        self, synthetic: Synthetic, label: int, comparison: Comparison, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the distance of one class and its gradient with respect to the synthetic images of the class."""
        module = self.problem.module
        values = {name: held.requires_grad_() for name, held in unflatten(module, weights.detach().clone()).items()}
        compared = [held for held in values.values() if held.ndim in (2, 4)]

        def slopes(images: Tensor, create_graph: bool) -> tuple[Tensor, ...]:
            labels = torch.full((len(images),), label, device=images.device)
            inner = soft_cross_entropy(torch.func.functional_call(module, values, (images,)), labels)
            return torch.autograd.grad(inner, compared, create_graph=create_graph)

        own = synthetic.images[comparison.chosen].detach().requires_grad_()
        real = slopes(comparison.real, False)
        distance = gradient_distance(slopes(self.siamese.apply(own, comparison.draw), True), real)
        return distance.detach(), torch.autograd.grad(distance, own)[0]

    def _fresh(self, synthetic: Synthetic, iteration: int) -> Point:
        """Return a network's weights and the state of its optimiser at the start of an episode."""
        weights = self.problem.fresh_weights("network", iteration).to(synthetic.images)
        return Point(weights, self.rule.start(weights))

    def _trained(self, synthetic: Synthetic, iteration: int, memory: Memory) -> Point:
        """Return the network of the image update before, trained on the set that came out of it."""
        options, problem = self.settings, self.problem
        generator, count = problem.generator("train", iteration), len(synthetic.images)
        batches: list[Tensor] = []
        for _ in range(self.inner_loop):
            batches += torch.randperm(count, generator=generator).split(options.batch_size)
        families = problem.augmentation.strategy if options.augment else ""
        augmentation = replace(problem.augmentation, strategy=families)
        draws = [augmentation.draw(generator, len(batch), synthetic.images.shape[-1]) for batch in batches]
        batches = [batch.to(synthetic.images.device) for batch in batches]
        loop = InnerLoop(
            problem.module,
            soft_cross_entropy,
            self.rule,
            len(batches),
            batches,
            lambda images, step: augmentation.apply(images, draws[step]),
        )
        step_size = torch.full_like(synthetic.step_size, options.lr_network)
        point = Point(memory["weights"], {name: held for name, held in memory.items() if name != "weights"})
        for step in range(len(batches)):
            point, _, _ = loop.advance(point, synthetic.images, synthetic.labels, step_size, step)
        return point
