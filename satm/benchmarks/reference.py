"""The loops of the published code in plain words, for comparison: seconds, memory and results.

They do what the public code of MTT and TESLA does where its cost lies: parameters in one flat vector, a graph through
all inner steps (`create_graph`), augmentation in each step, a data loader for training on real images, one network
after another in evaluation. Networks are PyTorch's layers as they are.

Shapes: n synthetic images of C x H x W, P parameters, N inner steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from satm.data import Augmentation
from satm.params import call_flat


@dataclass(frozen=True)
class Matching:
    """A problem of trajectory matching.

    Args:
        module: the network.
        images, labels: `[n, C, H, W]` in the space of training, `[n]` classes.
        start, target: `[P]` weights of the expert.
        step_size: of the inner SGD.
        batches: for each inner step the indices of its images.
        augment: `(images, index of the step) -> images`.
    """

    module: nn.Module
    images: Tensor
    labels: Tensor
    start: Tensor
    target: Tensor
    step_size: float
    batches: Sequence[Tensor]
    augment: Callable[[Tensor, int], Tensor]


Found = tuple[Tensor, Tensor, Tensor]
"""`[]` matching loss, `[n, C, H, W]` gradient of the images, `[]` gradient of the step size."""


def mtt(problem: Matching) -> Found:
    """Return the hypergradient of MTT through the graph of all steps.

    Source: MTT's public `distill.py`.
    """
    images = problem.images.clone().requires_grad_()
    rate = torch.tensor(problem.step_size, dtype=images.dtype, device=images.device, requires_grad=True)
    weights = [problem.start.clone().requires_grad_()]
    for step, batch in enumerate(problem.batches):
        seen = problem.augment(images[batch], step)
        loss = functional.cross_entropy(call_flat(problem.module, weights[-1], seen), problem.labels[batch])
        (gradient,) = torch.autograd.grad(loss, weights[-1], create_graph=True)
        weights.append(weights[-1] - rate * gradient)
    distance = functional.mse_loss(weights[-1], problem.target, reduction="sum")
    matching = distance / functional.mse_loss(problem.start, problem.target, reduction="sum")
    slope, rate_slope = torch.autograd.grad(matching, [images, rate])
    return matching.detach(), slope, rate_slope


def tesla(problem: Matching) -> Found:
    """Return TESLA's gradients, which need the graph of one step at a time.

    Source: TESLA's public `distill_tesla.py`: one pass for the sum of the gradients, and one for their gradients.
    Differs: the images' gradient is not halved.
    """
    batches, module, rate = problem.batches, problem.module, problem.step_size
    weights, total = [problem.start.clone().requires_grad_()], torch.zeros_like(problem.start)
    for step, batch in enumerate(batches):
        seen = problem.augment(problem.images[batch], step)
        loss = functional.cross_entropy(call_flat(module, weights[-1], seen), problem.labels[batch])
        (gradient,) = torch.autograd.grad(loss, weights[-1], create_graph=True)
        total += gradient.detach()
        weights.append((weights[-1] - rate * gradient).detach().requires_grad_())
    scale = (problem.start - problem.target).square().sum()
    end_slope = 2 * (weights[-1].detach() - problem.target) / scale
    slope = torch.zeros_like(problem.images)
    for step, batch in enumerate(batches):
        images = problem.images[batch].clone().requires_grad_()
        seen = problem.augment(images, step)
        loss = functional.cross_entropy(call_flat(module, weights[step], seen), problem.labels[batch])
        (gradient,) = torch.autograd.grad(loss, weights[step], create_graph=True)
        (share,) = torch.autograd.grad((-rate * end_slope) @ gradient, images)
        slope[batch] += share
    matching = (weights[-1].detach() - problem.target).square().sum() / scale
    return matching, slope, -torch.dot(end_slope, total)


def train_epochs(
    module: nn.Module,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    augmentation: Augmentation,
    generator: torch.Generator,
    *,
    batch_size: int = 256,
    lr: float = 0.01,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> float:
    """Train a network, in place, and return the mean loss of the last epoch.

    Images are `[n, C, H, W]` float32 in the space of training and labels `[n]`, both on the CPU; each batch is moved to
    the network's device.

    Source: MTT's public `buffer.py` for experts, and `evaluate_synset` of its `utils.py` for evaluation.
    """
    device = next(module.parameters()).device
    loader = DataLoader(TensorDataset(images, labels), batch_size, shuffle=True, num_workers=0, generator=generator)
    optimiser = torch.optim.SGD(module.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    module.train()
    total = 0.0
    for _ in range(epochs):
        total = 0.0
        for batch, targets in loader:
            seen, classes = batch.float().to(device), targets.long().to(device)
            seen = augmentation.apply(seen, augmentation.draw(generator, len(seen), seen.shape[-1]))
            outputs = module(seen)
            loss = functional.cross_entropy(outputs, classes)
            right = (outputs.argmax(1) == classes).sum().item()
            total += loss.item() * len(seen) + 0 * right
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return total / len(images)
