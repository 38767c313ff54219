"""Gradient matching (DC), and with differentiable Siamese augmentation (DSA).

Match the gradients of a network's weights on real and on synthetic images, class by class. An episode is a fresh
network; each of its iterations is one image update, and between two of them the network trains on the synthetic set.
Its weights are part of the run's state, so a run can resume or roll back in the middle of an episode.

Composition of `dc`: experts none; init real; labels hard; segments none; objective class-match; estimator none; step
size fixed; outer descent.

`dsa`: as `dc`. One random augmentation, drawn for each class, is applied to its real and synthetic images; while the
network trains, each image has its own.

Source: Zhao, Mopuri and Bilen 2021 (DC), Algorithm 1 and section 3.2, and its public code, whose own default is `init`
    gaussian and which calls both starts about equally good. Zhao and Bilen 2021 (DSA), section 3, and its public code,
    which starts from real images.
Differs: the public code also has other distances, lets a layer norm's scale contribute, and freezes batch norms at real
    statistics; here only weights of convolutions and linear layers are compared, and networks with batch norm are not
    meant for distillation.

Shapes: n synthetic images of C x H x W, P parameters.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from satm.config.methods import ClassMatchingOptions
from satm.methods.recipe import CLASS_MATCHING, recipe

if TYPE_CHECKING:
    from torch import Tensor

    from satm.methods.parts.class_matching import ClassMatching, Comparison
    from satm.methods.parts.problem import Synthetic
    from satm.outer import MethodState, OuterGradient
    from satm.unroll import Point, Rule

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""Published image updates per episode and training epochs between them, by images per class."""

EPSILON = 1e-6
"""Added to the product of the norms under a cosine, as in the public code."""


class DcOptions(ClassMatchingOptions):
    """Options of DC and DSA."""

    outer_loop: int | None = Field(None, ge=1)
    """Image updates per episode; None: as published, for the nearest smaller number of images per class."""
    inner_loop: int | None = Field(None, ge=1)
    """Epochs of training the network on the synthetic set between two image updates; None: as `outer_loop`."""
    lr_network: float = Field(0.01, gt=0)
    """Step size of the network's training."""
    momentum_network: float = Field(0.0, ge=0, lt=1)
    """Momentum of the network's training; 0 in the public code, whose first version had 0.5."""
    weight_decay_network: float = Field(0.0, ge=0)
    """Weight decay of the network's training; 0 in the public code."""
    batch_size: int = Field(256, ge=1)
    """Synthetic images per step of the network's training; the last batch of an epoch may be smaller."""


def loops(ipc: int, options: DcOptions) -> tuple[int, int]:
    """Return the image updates per episode, and the training epochs between two of them.

    Differs: the public code only knows the images per class in `LOOPS`; here other numbers take the values of the
        nearest smaller one.
    """
    outer, inner = LOOPS[max(known for known in LOOPS if known <= max(1, ipc))]
    return options.outer_loop or outer, options.inner_loop or inner


def gradient_distance(synthetic: "Sequence[Tensor]", real: "Sequence[Tensor]") -> "Tensor":
    """Return `[]` the sum of 1 - cosine over the layers and the output channels of each.

    The arguments are the gradients of each layer's weights, `[out, ...]`; those on real images are constants.

    Source: DC Eq. 10 and the public code (`distance_wb`).
    """
    import torch

    def layer(one: "Tensor", two: "Tensor") -> "Tensor":
        cosine: Tensor = (one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1) + EPSILON)
        return (1 - cosine).sum()

    pairs = zip(synthetic, real, strict=True)
    return torch.stack([layer(one.flatten(1), two.flatten(1)) for one, two in pairs]).sum()


def step(
    matching: "ClassMatching[DcOptions]", synthetic: "Synthetic", iteration: int, state: "MethodState"
) -> "OuterGradient":
    """Return the gradient of the distance summed over the classes.

    The state is the network between two image updates of an episode; an empty state begins an episode.
    """
    import torch

    from satm.outer import NO_STATE, OuterGradient
    from satm.unroll import Point

    outer_loop, _ = loops(matching.problem.ipc, matching.options)
    if state:
        point = _trained(matching, synthetic, iteration, state)
    else:
        weights = matching.problem.fresh_weights("network", iteration).to(synthetic.images)
        point = Point(weights, _rule(matching.options).start(weights))
    generator = matching.problem.generator("iteration", iteration)
    loss, images = torch.zeros_like(synthetic.step_size), torch.zeros_like(synthetic.images)
    for label in range(matching.problem.data.classes):
        comparison = matching.comparison(synthetic, label, generator)
        distance, images[comparison.chosen] = _compare(matching, synthetic.images, comparison, point.weights)
        loss = loss + distance
    ended = (iteration + 1) % outer_loop == 0
    following = NO_STATE if ended else {"weights": point.weights, **point.state}
    return OuterGradient(loss, images, None, torch.zeros_like(synthetic.step_size), state=following)


def _compare(
    matching: "ClassMatching[DcOptions]", images: "Tensor", comparison: "Comparison", weights: "Tensor"
) -> "tuple[Tensor, Tensor]":
    """Return the distance of one class and its gradient with respect to the synthetic images of the class."""
    import torch

    from satm.networks.training import soft_cross_entropy
    from satm.params import unflatten

    module = matching.problem.module
    values = {name: value.requires_grad_() for name, value in unflatten(module, weights.detach().clone()).items()}
    layers = [value for value in values.values() if value.ndim in (2, 4)]

    def slopes(images: "Tensor", create_graph: bool) -> "tuple[Tensor, ...]":
        labels = torch.full((len(images),), comparison.label, device=images.device)
        inner = soft_cross_entropy(torch.func.functional_call(module, values, (images,)), labels)
        return torch.autograd.grad(inner, layers, create_graph=create_graph)

    own = images[comparison.chosen].detach().requires_grad_()
    real = slopes(comparison.real, False)
    distance = gradient_distance(slopes(matching.siamese.apply(own, comparison.draw), True), real)
    return distance.detach(), torch.autograd.grad(distance, own)[0]


def _rule(options: DcOptions) -> "Rule":
    """Return the optimiser of the network."""
    from satm.unroll import descent_rule

    return descent_rule(options.momentum_network, options.weight_decay_network)


def _trained(
    matching: "ClassMatching[DcOptions]", synthetic: "Synthetic", iteration: int, state: "MethodState"
) -> "Point":
    """Return the network of the previous image update, trained on the updated set."""
    import torch

    from satm.networks.training import soft_cross_entropy
    from satm.unroll import InnerLoop, Point

    options, problem = matching.options, matching.problem
    _, inner_loop = loops(problem.ipc, options)
    generator, count = problem.generator("train", iteration), len(synthetic.images)
    batches: list[Tensor] = []
    for _ in range(inner_loop):
        batches += torch.randperm(count, generator=generator).split(options.batch_size)
    augmentation = replace(matching.siamese, share=problem.augmentation.share)
    augment = augmentation.per_step(
        generator, [len(batch) for batch in batches], synthetic.images.shape[-1], synthetic.images.device
    )
    batches = [batch.to(synthetic.images.device) for batch in batches]
    loop = InnerLoop(problem.module, soft_cross_entropy, _rule(options), len(batches), batches, augment)
    step_size = torch.full_like(synthetic.step_size, options.lr_network)
    point = Point(state["weights"], {name: value for name, value in state.items() if name != "weights"})
    return loop.run(point, synthetic.images, synthetic.labels, step_size)


recipe("dc", CLASS_MATCHING, DcOptions, step, augment=False, iterations=1000, lr_images=0.1)
recipe("dsa", CLASS_MATCHING, DcOptions, step, iterations=1000, lr_images=0.1)
