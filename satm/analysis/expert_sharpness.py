"""Rise of the training loss at the worst neighbour of an expert's weights, along its trajectory.

Shapes: n images, K classes, P parameters.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from satm.experts import TrajectoryStore
from satm.networks.training import TrainingImages, soft_cross_entropy
from satm.params import call_flat, flatten


def sharpness_at(
    module: nn.Module, weights: Tensor, data: TrainingImages, lengths: Sequence[float]
) -> Iterator[dict[str, float]]:
    """Yield the loss, the loss at the worst neighbour and their difference, for each length rho of the step.

    ``S(w) = max L(w + eps) - L(w)`` over ``|eps| <= rho``, L the mean cross-entropy of the images, not augmented; the
    maximum is taken where the loss rises fastest: ``eps = rho * g / |g|``, g the gradient of L and the norm over all
    `weights`, `[P]` on the images' device. The module is put into evaluation mode and not changed otherwise.

    Source: FTD Eq. 12, with the maximum of Eq. 15. The paper prints no values of it.
    Differs: for small rho this is nearly ``rho * |g|``, so experts are compared at one length, and short and long ones
        are measured.
    """
    module.eval()
    place = weights.detach().clone().requires_grad_()
    loss, gradient = 0.0, torch.zeros_like(weights)
    for part in _losses(module, place, data):
        gradient += torch.autograd.grad(part, place)[0]
        loss += float(part.detach())
    norm = gradient.norm()
    direction = gradient / norm if norm > 0 else gradient
    for rho in lengths:
        with torch.no_grad():
            perturbed = sum(float(part) for part in _losses(module, weights + rho * direction, data))
        yield {"rho": rho, "loss": loss, "perturbed_loss": perturbed, "sharpness": perturbed - loss}


def measure_expert_sharpness(
    module: nn.Module, store: TrajectoryStore, data: TrainingImages, experts: int, lengths: Sequence[float]
) -> Iterator[list[dict[str, float]]]:
    """Yield the rows of `sharpness_at` for one snapshot after another: all epochs of the first expert, …

    `experts` may exceed the number in the store. Recipes should be compared on the same images.
    """
    for expert in range(min(experts, len(store))):
        for epoch in range(store.epochs + 1):
            store.load(module, expert, epoch)
            rows = sharpness_at(module, flatten(module), data, lengths)
            yield [{"expert": expert, "epoch": epoch, **row} for row in rows]


def _losses(module: nn.Module, weights: Tensor, data: TrainingImages) -> Iterator[Tensor]:
    """Yield the share of each batch in the mean cross-entropy of all images."""
    for images, labels in data.batches():
        yield soft_cross_entropy(call_flat(module, weights, images), labels) * len(labels) / len(data)
