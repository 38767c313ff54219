"""How good a synthetic set is: fresh networks trained on it and tested on real images.

Shapes: n synthetic images of C x H x W, K classes.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from satm.config import EvaluateOptions
from satm.data import Augmentation
from satm.errors import UsageError
from satm.machine import peak_memory, reset_peak
from satm.networks import build
from satm.seeds import derive_seed, make_generator
from satm.training import SharpnessAware, TrainingImages, measure, train_epoch


@dataclass(frozen=True)
class Score:
    """One network trained on a synthetic set.

    Args:
        accuracy: fraction of the real images.
        loss: mean cross-entropy on them; may be infinite or NaN where training diverged.
        seconds: of training and testing.
        peak_memory_bytes: of this training on a GPU, of the process on a CPU.
    """

    accuracy: float
    loss: float
    seconds: float
    peak_memory_bytes: int


def evaluate(
    synthetic: TrainingImages,
    step_size: float,
    real: TrainingImages,
    network: Mapping[str, Any],
    classes: int,
    options: EvaluateOptions,
    augmentation: Augmentation,
    axes: tuple[str | int, ...],
) -> Score:
    """Train one fresh network on a synthetic set and test it.

    Args:
        synthetic: images `[n, C, H, W]` float32 in the space of training, and their labels.
        step_size: that belongs to the set, used where `options.lr` is `learned`.
        real: images to test on, with integer labels.
        network: `{"network": registered name, option: value…}`.
        classes: K.
        options: the recipe.
        augmentation: of the synthetic images, where the options augment.
        axes: names of this network for its seeds.

    Raises:
        UsageError: the step size is not positive, or the network does not fit the images.

    Source: protocol of MTT's public code; with `flat_rho`, "MTT + Flat Minimum" of FTD section 4.3, which is SAM; with
        `adam`, RaT-BPTT's.
    Differs: MTT's code trains epochs 0 to 1000 inclusive, one more than `epochs` here.
    """
    lr = step_size if options.lr == "learned" else options.lr
    if not lr > 0:
        raise UsageError(f"training needs a positive step size, the synthetic set has {lr:g}; set lr to a number")
    device = synthetic.labels.device
    started = time.perf_counter()
    reset_peak(device)
    _, channels, size, _ = synthetic.images.shape
    module = build(network, channels, classes, size, derive_seed("network", *axes)).to(device)
    generator = make_generator("evaluate", *axes)
    chosen = augmentation if options.augment else Augmentation("", augmentation.share)
    sharpness_aware = SharpnessAware("paper", options.flat_rho, 1.0) if options.flat_rho else None
    for epoch in range(options.epochs):
        if epoch in (0, options.decay_epoch):
            optimiser = _optimiser(module, options, lr if epoch == 0 else lr / 10)
        train_epoch(
            module, optimiser, synthetic, options.batch_size, chosen, generator, sharpness_aware=sharpness_aware
        )
    accuracy, loss = measure(module, real)
    return Score(accuracy, loss, time.perf_counter() - started, peak_memory(device))


def _optimiser(module: nn.Module, options: EvaluateOptions, rate: float) -> torch.optim.Optimizer:
    """Return a fresh optimiser of the kind that the options name."""
    parameters = module.parameters()
    if options.optimiser == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=options.weight_decay)
    return torch.optim.SGD(parameters, lr=rate, momentum=options.momentum, weight_decay=options.weight_decay)
