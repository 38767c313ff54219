"""The recipe of one expert, as a stream of snapshots.

Shapes: P parameters.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from satm.config import ExpertsOptions
from satm.data import Augmentation
from satm.experts.difficulty import easiest, pace
from satm.networks.training import SharpnessAware, TrainingImages, train_epoch
from satm.params import flatten, load_flat, unflatten
from satm.seeds import make_generator


@dataclass(frozen=True)
class Snapshot:
    """An expert after some epochs; the tensors own their memory."""

    epoch: int
    """Epochs trained; 0 is the initialisation."""
    weights: Tensor
    """`[P]` float32 on the CPU."""
    momentum: Tensor | None
    """`[P]` buffer of SGD, or None before the first step and without momentum."""
    loss: float
    """Mean training loss of the last epoch; NaN at the start."""


def train_expert(
    module: nn.Module,
    data: TrainingImages,
    options: ExpertsOptions,
    augmentation: Augmentation,
    axes: tuple[str | int, ...],
    after: Snapshot | None = None,
    order: Tensor | None = None,
) -> Iterator[Snapshot]:
    """Yield the expert after each epoch; the first is the initialisation, unless going on from a snapshot.

    Each epoch has a generator of its own, derived from its number, so going on gives the same bytes as never stopping.

    Args:
        module: freshly initialised, on the data's device; trained in place. Running statistics of batch norms are not
            part of a snapshot, as a trajectory is made of parameters.
        data: real images.
        options: the recipe.
        augmentation: of the real images.
        axes: names of this expert for its seeds.
        after: go on from here.
        order: `[n]` int64 on the CPU, the images from easy to hard, where the options ask for a curriculum; None: none.

    Raises:
        ValueError: a curriculum without an order, or an order without a curriculum.

    Source: MTT's public recipe: SGD with a constant step size. Flat: FTD Algorithm 1. Curriculum: ConTra Appendix B.
    Differs: ConTra does not say how its curriculum experts descend; here plain SGD unless the options ask for `flat`.
    """
    if (order is None) == (options.order != "full"):
        raise ValueError(f"the options' order is {options.order!r}, the images' order is {order}; give both or none")
    if after is None:
        after = Snapshot(0, flatten(module).cpu(), None, float("nan"))
        yield after
    load_flat(module, after.weights.to(data.labels.device))
    optimiser = torch.optim.SGD(
        module.parameters(), lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay
    )
    if after.momentum is not None:
        buffers = unflatten(module, after.momentum.to(data.labels.device))
        for name, parameter in module.named_parameters():
            optimiser.state[parameter]["momentum_buffer"] = buffers[name].clone()
    sharpness_aware = None
    if options.optimiser == "flat":
        sharpness_aware = SharpnessAware(options.flat_rule, options.rho, options.alpha, options.adaptive)
    for epoch in range(after.epoch + 1, options.epochs + 1):
        among = None if order is None else easiest(order, _share(options, epoch))
        loss = train_epoch(
            module,
            optimiser,
            data,
            options.batch_size,
            augmentation,
            make_generator(*axes, epoch),
            among=among,
            sharpness_aware=sharpness_aware,
        )
        yield Snapshot(epoch, flatten(module).cpu(), _momentum(module, optimiser), loss)


def _share(options: ExpertsOptions, epoch: int) -> float:
    """Return the fraction of the images that an epoch, counted from 1, of a curriculum sees."""
    full_epoch = max(1, options.epochs // 2) if options.full_epoch is None else options.full_epoch
    return pace(epoch - 1, options.start_fraction, full_epoch)


def _momentum(module: nn.Module, optimiser: torch.optim.SGD) -> Tensor | None:
    """Return SGD's buffers as one vector on the CPU, or None where it keeps none."""
    buffers = [optimiser.state[parameter].get("momentum_buffer") for parameter in module.parameters()]
    held = [buffer.reshape(-1) for buffer in buffers if buffer is not None]
    return torch.cat(held).to("cpu", copy=True) if held else None
