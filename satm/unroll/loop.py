"""The inner loop: training of a network on the synthetic set, as a pure function.

Shapes: n synthetic images of C x H x W, P parameters, N inner steps, b images of one step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from satm.ops import Precision, exact_products
from satm.params import call_flat
from satm.run.stopping import check_stop
from satm.unroll.rules import Rule, State

Loss = Callable[[Tensor, Tensor], Tensor]
"""`(outputs of the network [b, ...], labels [b, ...]) -> []`."""

Augment = Callable[[Tensor, int], Tensor]
"""`(images [b, C, H, W], index of the step) -> [b, C, H, W]`, deterministic for a given step."""


@dataclass(frozen=True)
class Point:
    """A point of an inner trajectory: weights, `[P]`, and the optimiser's state, both without a graph."""

    weights: Tensor
    state: State


@dataclass(frozen=True)
class InnerLoop:
    """Training of a network for N steps.

    Args:
        module: the network, best as `satm.ops.fused` returns it; its own parameters are neither used nor changed.
        loss: inner loss.
        rule: inner optimiser.
        steps: number of steps, N.
        batches: for each step the indices `[b]` (int64) of its synthetic images; None: all images in each step.
        augment: augmentation of the images of each step; None: no augmentation.
        precision: of products; it takes effect inside `satm.ops.products_of`.
        with_graph: compute gradients with a graph also where it is dropped, because they have other bytes without one.
    """

    module: nn.Module
    loss: Loss
    rule: Rule
    steps: int
    batches: Sequence[Tensor] | None = None
    augment: Augment | None = None
    precision: Precision = "float32"
    with_graph: bool = True

    def batch(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the images of one step, `[b, C, H, W]`, augmented, and their labels, from the whole set."""
        check_stop()
        if self.batches is not None:
            images, labels = images[self.batches[step]], labels[self.batches[step]]
        else:  # what belongs to this step is summed before it is added to that of other steps
            images, labels = images.view_as(images), labels.view_as(labels)
        if self.augment is not None:
            with exact_products():
                images = self.augment(images, step)
        return images, labels

    def slope(self, weights: Tensor, images: Tensor, labels: Tensor, graph: bool = True) -> Tensor:
        """Return the gradient of the inner loss on these images, `[P]`, if asked with a graph to the arguments."""
        inner = self.loss(call_flat(self.module, weights, images), labels)
        return torch.autograd.grad(inner, weights, create_graph=graph)[0]

    def gradient(self, weights: Tensor, images: Tensor, labels: Tensor, step: int, graph: bool = True) -> Tensor:
        """Return the gradient of the inner loss in one step, `[P]`, if asked with a graph to the arguments.

        The images, `[n, C, H, W]`, and labels are the whole set; the step's batch is selected and augmented here.
        """
        return self.slope(weights, *self.batch(images, labels, step), graph)

    def advance(
        self, point: Point, images: Tensor, labels: Tensor, step_size: Tensor, step: int
    ) -> tuple[Point, Tensor, Tensor]:
        """Return the point after one step, the step's direction, `[P]`, and its gradient, `[P]`, without a graph.

        Where the loop says so (`with_graph`) the gradient is computed with a graph, which is dropped. Without one,
        torch uses another formula for the backward pass of norms and some activations, and a rounding error that flips
        one ReLU would make this trajectory diverge from the differentiated one.
        """
        with torch.enable_grad():
            weights = point.weights.detach().requires_grad_()
            gradient = self.gradient(weights, images, labels, step, self.with_graph).detach()
        return *self.follow(point, gradient, step_size), gradient

    def follow(self, point: Point, gradient: Tensor, step_size: Tensor) -> tuple[Point, Tensor]:
        """Return the point after one step along a gradient, `[P]`, and the step's direction, `[P]`."""
        with torch.no_grad():
            direction, state = self.rule.direction(point.weights, point.state, gradient)
            return Point(point.weights - step_size * direction, state), direction

    def run(self, point: Point, images: Tensor, labels: Tensor, step_size: Tensor) -> Point:
        """Return the point after all steps, without a graph."""
        for step in range(self.steps):
            point, _, _ = self.advance(point, images, labels, step_size, step)
        return point
