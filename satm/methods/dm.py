"""Distribution matching (DM): match the mean features of real and of synthetic images, class by class.

The features are the inputs of the last linear layer of a random network; each iteration draws a new network. The real
and synthetic images of a class share one random augmentation.

Composition of `dm`: experts none; init real; labels hard; segments none; objective class-match; estimator none; step
size fixed; outer descent.

Source: Zhao and Bilen 2023 (DM), Eq. 6 and Algorithm 1, and its public code.
Differs: the public code embeds the classes one after another, here several classes share a forward pass.

Shapes: n synthetic images of C x H x W, m of them of one class, F features.
"""

from typing import TYPE_CHECKING

from satm.config.methods import ClassMatchingOptions
from satm.methods.recipe import CLASS_MATCHING, recipe

if TYPE_CHECKING:
    from torch import Tensor

    from satm.data.augment import Draw
    from satm.methods.parts.class_matching import ClassMatching
    from satm.methods.parts.problem import Synthetic
    from satm.outer import MethodState, OuterGradient

CHUNK = 500
"""Synthetic images per forward pass, a compromise between speed and memory; a class with more has its own pass."""


def step(
    matching: "ClassMatching[ClassMatchingOptions]", synthetic: "Synthetic", iteration: int, state: "MethodState"
) -> "OuterGradient":
    """Return the gradient of the squared distances between mean features, summed over the classes."""
    import torch

    from satm.networks.layers import embed_flat
    from satm.outer import OuterGradient

    problem = matching.problem
    weights = problem.fresh_weights("network", iteration).to(synthetic.images)
    generator = problem.generator("iteration", iteration)

    def class_mean(label: int) -> "tuple[Tensor, Draw, Tensor]":
        """Return the indices of a class in the set, its augmentation, and `[F]` the mean features of real images."""
        comparison = matching.comparison(synthetic, label, generator)
        with torch.no_grad():
            target = embed_flat(problem.module, weights, comparison.real).mean(0)
        return comparison.chosen, comparison.draw, target

    def distance(own: "Tensor", classes: "list[tuple[Tensor, Draw, Tensor]]") -> "Tensor":
        """Return `[]` the distance summed over some classes, given their synthetic images in the order of classes."""
        counts = [len(places) for places, _, _ in classes]
        parts = zip(own.split(counts), classes, strict=True)
        augmented = [matching.siamese.apply(part, draw) for part, (_, draw, _) in parts]
        features = embed_flat(problem.module, weights, torch.cat(augmented)).split(counts)
        means = torch.stack([part.mean(0) for part in features])
        return (means - torch.stack([target for _, _, target in classes])).square().sum()

    loss, images = torch.zeros_like(synthetic.step_size), torch.zeros_like(synthetic.images)
    together = max(1, CHUNK // problem.ipc)
    labels = range(problem.data.classes)
    for first in labels[::together]:
        classes = [class_mean(label) for label in labels[first : first + together]]
        chosen = torch.cat([places for places, _, _ in classes])
        own = synthetic.images[chosen].detach().requires_grad_()
        part = distance(own, classes)
        images[chosen] = torch.autograd.grad(part, own)[0]
        loss = loss + part.detach()
    return OuterGradient(loss, images, None, torch.zeros_like(synthetic.step_size))


recipe("dm", CLASS_MATCHING, ClassMatchingOptions, step, iterations=20000, lr_images=1.0)
