"""What a synthetic set starts from.

Every start returns images `[n, C, H, W]` float32 in the space of training and labels `[n]` int64, sorted by class. The
draws depend on the dataset, the images per class and the seed, not on the method, so that methods that are compared
start from the same images.

Shapes: n synthetic images of C x H x W, K classes.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from satm.errors import UsageError
from satm.experts import TrajectoryStore
from satm.params import call_flat
from satm.seeds import make_generator

if TYPE_CHECKING:
    from satm.methods.base import Problem

CHUNK = 500
"""Real images that an expert looks at in one go."""


def real(problem: "Problem") -> tuple[Tensor, Tensor]:
    """Return `ipc` random training images of each class.

    Raises:
        UsageError: a class has fewer images, or ipc is not positive.
    """
    return _gather(problem, [order[: problem.ipc] for order in _orders(problem)])


def gaussian(problem: "Problem", norm: float | None) -> tuple[Tensor, Tensor]:
    """Return Gaussian noise, each image scaled to a norm; None: as drawn, with standard deviation 1."""
    dataset, _, _, seed = problem.cell
    data, ipc = problem.data, _positive(problem.ipc)
    shape = (data.classes * ipc, data.channels, data.size, data.size)
    images = torch.randn(shape, generator=make_generator("noise-init", dataset, ipc, seed)).to(problem.device)
    if norm is not None:
        images = norm * images / images.flatten(1).norm(dim=1)[:, None, None, None]
    return images, torch.arange(data.classes, device=problem.device).repeat_interleave(ipc)


def correct(problem: "Problem", experts: TrajectoryStore) -> tuple[Tensor, Tensor]:
    """Return the first `ipc` images of each class, in the order of `real`, that the first expert classifies correctly.

    A class with fewer of them is filled with others in that order.

    Source: DATM's public code (samples that are predicted correctly).
    Differs: the order is that of `real`; the expert is the first one's last snapshot.
    """
    weights = experts.snapshot(0, experts.epochs).to(problem.device)
    chosen = []
    for label, order in enumerate(_orders(problem)):
        found: list[Tensor] = []
        for part in order.split(CHUNK):
            images, _ = problem.real.batch(part.to(problem.device))
            found.append(part[(_logits(problem, weights, images).argmax(1) == label).cpu()])
            if sum(map(len, found)) >= problem.ipc:
                break
        right = torch.cat(found)
        rest = order[~torch.isin(order, right)]
        chosen.append(torch.cat([right, rest])[: problem.ipc])
    return _gather(problem, chosen)


def expert_labels(problem: "Problem", experts: TrajectoryStore, images: Tensor, labels: Tensor) -> Tensor:
    """Return `[n, K]` logits: the mean over the experts that classify the image correctly; of all where none does.

    Args:
        problem: the run.
        experts: their last snapshots are asked.
        images: `[n, C, H, W]`.
        labels: `[n]` int64.

    Source: DATM's public code.
    """
    total = torch.zeros(len(images), problem.data.classes, device=images.device)
    right, count = torch.zeros_like(total), torch.zeros(len(images), 1, device=images.device)
    for index in range(len(experts)):
        logits = _logits(problem, experts.snapshot(index, experts.epochs).to(images), images)
        correctly = (logits.argmax(1) == labels)[:, None]
        total, right, count = total + logits, right + logits * correctly, count + correctly
    return torch.where(count > 0, right / count.clamp_min(1), total / len(experts))


def confident(labels: Tensor, classes: int, probability: float) -> Tensor:
    """Return `[n, K]` float32 logits that give each image's class a probability and the others equal shares of the
    rest.

    Raises:
        UsageError: there is one class only.
    """
    if classes < 2:
        raise UsageError("soft labels need at least 2 classes, the dataset has 1; use labels hard")
    hot = torch.nn.functional.one_hot(labels, classes).to(torch.float32)
    return hot * float(torch.tensor(probability * (classes - 1) / (1 - probability)).log())


@torch.no_grad()
def _logits(problem: "Problem", weights: Tensor, images: Tensor) -> Tensor:
    found = [call_flat(problem.module, weights, part) for part in images.split(CHUNK)]
    return torch.cat(found)


def _positive(ipc: int) -> int:
    if ipc < 1:
        raise UsageError(f"ipc, the images per class, must be at least 1, got {ipc}; use 1 or more")
    return ipc


def _orders(problem: "Problem") -> list[Tensor]:
    """Return for each class the indices of its training images in a random order."""
    dataset, _, _, seed = problem.cell
    ipc = _positive(problem.ipc)
    generator = make_generator("init", dataset, ipc, seed)
    orders = []
    for label, members in enumerate(problem.members):
        if len(members) < ipc:
            raise UsageError(
                f"{ipc} images per class were asked for, class {label} ({problem.data.class_names[label]}) of "
                f"{dataset} has {len(members)} training images; use a smaller ipc"
            )
        orders.append(members[torch.randperm(len(members), generator=generator)])
    return orders


def _gather(problem: "Problem", chosen: list[Tensor]) -> tuple[Tensor, Tensor]:
    indices = torch.cat(chosen)
    images = problem.preprocessor.apply(problem.data.train.images[indices])
    return images.to(problem.device), problem.data.train.labels[indices].to(problem.device)
