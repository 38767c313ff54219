"""Initial images of a synthetic set: `[n, C, H, W]` float32 in the space of training, with sorted `[n]` int64 classes.

The draws depend on dataset, images per class and seed, not on the method: compared methods start from the same images.

Shapes: n synthetic images of C x H x W, K classes.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from satm.errors import UsageError
from satm.methods.parts.problem import Problem
from satm.seeds import make_generator

CHUNK = 500
"""Real images per forward pass of an expert."""


def real(problem: Problem, norm: float | None) -> tuple[Tensor, Tensor]:
    """Return `ipc` random training images of each class.

    Raises:
        UsageError: a class has fewer images, or ipc is not positive.
    """
    return _gather(problem, [order[: problem.ipc] for order in _orders(problem)])


def gaussian(problem: Problem, norm: float | None) -> tuple[Tensor, Tensor]:
    """Return Gaussian noise, each image scaled to a norm; None: as drawn, with standard deviation 1."""
    dataset, _, _, seed = problem.cell
    data, ipc = problem.data, _positive(problem.ipc)
    shape = (data.classes * ipc, data.channels, data.size, data.size)
    images = torch.randn(shape, generator=make_generator("noise-init", dataset, ipc, seed)).to(problem.device)
    if norm is not None:
        images = norm * images / images.flatten(1).norm(dim=1)[:, None, None, None]
    return images, torch.arange(data.classes, device=problem.device).repeat_interleave(ipc)


def correct(problem: Problem, norm: float | None) -> tuple[Tensor, Tensor]:
    """Return the first images of each class, in the order of `real`, that the first expert classifies correctly.

    A class with too few of them is filled up in that order.

    Source: DATM's public code (samples that are predicted correctly).
    Differs: the order is that of `real`; the expert is the first one's last snapshot.
    """
    if (experts := problem.experts) is None:
        return real(problem, norm)
    expert, chosen = experts.state(problem.expert_module, 0, experts.epochs), []
    for label, order in enumerate(_orders(problem)):
        right = order[:0]
        for part in order.split(CHUNK):
            images, _ = problem.real.batch(part.to(problem.device))
            hit = (expert_outputs(problem, expert, images).argmax(1) == label).cpu()
            right = torch.cat([right, part[hit]])
            if len(right) >= problem.ipc:
                break
        chosen.append(torch.cat([right, order[~torch.isin(order, right)]])[: problem.ipc])
    return _gather(problem, chosen)


@torch.no_grad()
def expert_outputs(problem: Problem, expert: Mapping[str, Tensor], images: Tensor, embed: bool = False) -> Tensor:
    """Return `[n, K]` logits of `[n, C, H, W]` images by an expert (`TrajectoryStore.state`), or with `embed` features.

    Features are `[n, F]`, the input of the last linear layer.
    """
    state = {name: each.to(images if each.is_floating_point() else images.device) for name, each in expert.items()}
    module, extra = problem.expert_module, (True,) if embed else ()
    return torch.cat([torch.func.functional_call(module, state, (part, *extra)) for part in images.split(CHUNK)])


def _positive(ipc: int) -> int:
    if ipc < 1:
        raise UsageError(f"ipc, the images per class, must be at least 1, got {ipc}; use 1 or more")
    return ipc


def _orders(problem: Problem) -> list[Tensor]:
    """Return for each class the indices of its training images in a random order."""
    dataset, _, _, seed = problem.cell
    ipc = _positive(problem.ipc)
    generator = make_generator("init", dataset, ipc, seed)
    orders = []
    for label, members in enumerate(problem.members):
        if len(members) < ipc:
            raise UsageError(
                f"ipc {ipc} is too large: class {label} ({problem.data.class_names[label]}) of {dataset} has "
                f"{len(members)} training images; use a smaller ipc"
            )
        orders.append(members[torch.randperm(len(members), generator=generator)])
    return orders


def _gather(problem: Problem, chosen: list[Tensor]) -> tuple[Tensor, Tensor]:
    indices = torch.cat(chosen)
    images = problem.preprocessor.apply(problem.data.train.images[indices])
    return images.to(problem.device), problem.data.train.labels[indices].to(problem.device)


Init = Callable[[Problem, float | None], tuple[Tensor, Tensor]]
"""`(problem, norm) -> images, classes`; only Gaussian noise uses the norm."""

INITS: Mapping[str, Init] = {"real": real, "correct": correct, "gaussian": gaussian}
"""Initial images by the option `init`."""
