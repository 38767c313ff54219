"""Training of one expert, as a stream of snapshots.

Shapes: P parameters.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from satm.config import ExpertsOptions
from satm.data import Augmentation
from satm.experts.difficulty import easiest, pace
from satm.networks.training import SharpnessAware, TrainingImages, train_epoch
from satm.params import flatten, load_flat, stored_buffers, unflatten
from satm.seeds import make_generator


@dataclass(frozen=True)
class Snapshot:
    """An expert after some epochs; the tensors, `[P]` float32 on the CPU, own their memory."""

    epoch: int  # 0 is the initialisation
    weights: Tensor
    momentum: Tensor | None  # buffer of SGD; None before the first step and without momentum
    loss: float  # mean training loss of the last epoch; NaN at the start
    buffers: Mapping[str, Tensor] = field(default_factory=dict)  # running statistics by name; most networks have none


def train_expert(
    module: nn.Module,
    data: TrainingImages,
    options: ExpertsOptions,
    augmentation: Augmentation,
    axes: tuple[str | int, ...],
    after: Snapshot | None = None,
    order: Tensor | None = None,
) -> Iterator[Snapshot]:
    """Yield the expert after each epoch, beginning with its initialisation unless it resumes from a snapshot.

    The generator of an epoch is derived from its number, so a resumed expert has the same bytes.

    Args:
        module: freshly initialised network on the data's device, trained in place.
        data, options, augmentation: real images, and the recipe.
        axes: names of this expert for its seeds.
        after: snapshot to resume from.
        order: `[n]` int64 on the CPU, the images from easy to hard, for the curriculum that the options ask for.

    Raises:
        ValueError: a curriculum without an order, or an order without a curriculum.

    Source: MTT's public recipe: SGD with a constant step size. Flat: FTD Algorithm 1. Curriculum: ConTra Appendix B.
    Not given: the optimiser of ConTra's curriculum experts; here plain SGD unless the options ask for `flat`.
    """
    if (order is None) == (options.order != "full"):
        raise ValueError(f"the options' order is {options.order!r}, the images' order is {order}; give both or none")
    if after is None:
        after = Snapshot(0, flatten(module).cpu(), None, float("nan"), stored_buffers(module))
        yield after
    load_flat(module, after.weights.to(data.labels.device))
    module.load_state_dict(after.buffers, strict=False)
    optimiser = torch.optim.SGD(
        module.parameters(), lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay
    )
    if after.momentum is not None:
        stored = unflatten(module, after.momentum.to(data.labels.device))
        for name, parameter in module.named_parameters():
            optimiser.state[parameter]["momentum_buffer"] = stored[name].clone()
    full_epoch = max(1, options.epochs // 2) if options.full_epoch is None else options.full_epoch
    rule = (options.flat_rule, options.rho, options.alpha, options.adaptive)
    flat = SharpnessAware(*rule) if options.optimiser == "flat" else None
    for epoch in range(after.epoch + 1, options.epochs + 1):
        among = None if order is None else easiest(order, pace(epoch - 1, options.start_fraction, full_epoch))
        how = (options.batch_size, augmentation, make_generator(*axes, epoch))
        loss = train_epoch(module, optimiser, data, *how, among=among, sharpness_aware=flat)
        buffers = [optimiser.state[parameter].get("momentum_buffer") for parameter in module.parameters()]
        parts = [buffer.reshape(-1) for buffer in buffers if buffer is not None]
        momentum = torch.cat(parts).to("cpu", copy=True) if parts else None
        yield Snapshot(epoch, flatten(module).cpu(), momentum, loss, stored_buffers(module))
