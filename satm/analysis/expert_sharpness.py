"""How much the training loss rises at the worst neighbour of an expert's weights, along its path.

Shapes: n images, K classes, P parameters.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from satm.experts import TrajectoryStore
from satm.networks.training import TrainingImages, soft_cross_entropy
from satm.params import call_flat, flatten

LENGTHS = (0.005, 0.01, 0.03, 0.05, 0.1)
"""Lengths of the step to the neighbour: those that FTD chose from (section A.3.1)."""


def sharpness_at(
    module: nn.Module, weights: Tensor, data: TrainingImages, lengths: Sequence[float]
) -> Iterator[dict[str, float]]:
    """Yield the loss, the loss at the worst neighbour and their difference, for one length of the step after another.

    ``S(w) = max L(w + eps) - L(w)`` over ``|eps| <= rho``, L the mean cross-entropy of the images, not augmented; the
    maximum is taken where the loss rises fastest: ``eps = rho * g / |g|``, g the gradient of L.

    Args:
        module: the experts' network; it is put to test and otherwise left alone.
        weights: `[P]` floating point, on the images' device.
        data: the images.
        lengths: rho, each in the norm over all weights.

    Source: FTD Eq. 12, with the maximum of Eq. 15. The paper prints no values of it.
    Differs: for small rho this is nearly ``rho * |g|``, so experts are compared at one length, and short and long ones
        are measured.
    """
    module.eval()
    place = weights.detach().clone().requires_grad_()
    loss = 0.0
    gradient = torch.zeros_like(weights)
    for images, labels in data.batches():
        part = soft_cross_entropy(call_flat(module, place, images), labels) * len(labels) / len(data)
        gradient += torch.autograd.grad(part, place)[0]
        loss += float(part.detach())
    norm = gradient.norm()
    direction = gradient / norm if norm > 0 else gradient
    for rho in lengths:
        perturbed = _loss(module, weights + rho * direction, data)
        yield {"rho": rho, "loss": loss, "perturbed_loss": perturbed, "sharpness": perturbed - loss}


def measure_expert_sharpness(
    module: nn.Module, store: TrajectoryStore, data: TrainingImages, experts: int, lengths: Sequence[float]
) -> Iterator[list[dict[str, float]]]:
    """Yield the sharpness of one snapshot after another, one entry for each length: all epochs of the first expert, …

    Args:
        module: the experts' network, on the images' device.
        store: the experts.
        data: real training images, the same for all recipes that are compared.
        experts: how many, the first ones; at most as many as there are.
        lengths: rho of `sharpness_at`.
    """
    place = flatten(module)
    for expert in range(min(experts, len(store))):
        for epoch in range(store.epochs + 1):
            weights = store.snapshot(expert, epoch).to(place)
            found = sharpness_at(module, weights, data, lengths)
            yield [{"expert": expert, "epoch": epoch, **values} for values in found]


@torch.no_grad()
def _loss(module: nn.Module, weights: Tensor, data: TrainingImages) -> float:
    """Return the mean cross-entropy of all images."""
    total = 0.0
    for images, labels in data.batches():
        total += float(soft_cross_entropy(call_flat(module, weights, images), labels) * len(labels) / len(data))
    return total
