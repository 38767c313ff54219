"""Ordinary training of one network, shared by the experts and by evaluation.

Shapes: B images of a batch, C x H x W an image, K classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from satm.data import Augmentation, Preprocessor, Split

TEST_BATCH = 1000
"""Images a step when accuracy is measured: a compromise between speed and memory, without effect on the result."""


@dataclass(frozen=True)
class TrainingImages:
    """Images on the device with their labels, given out in the space that networks train in.

    Normalised images stay uint8 and are normalised a batch at a time, which takes a quarter of the memory. Whitening
    costs a product with a matrix of all pixels, so whitened images are made once and kept as float32.
    """

    images: Tensor
    """`[n, C, H, W]` uint8, or float32 already in that space."""
    labels: Tensor
    """`[n]` int64, or float32 `[n, K]` soft labels."""
    preprocessor: Preprocessor | None = None
    """Applied to each batch; None: the images are in that space."""

    @classmethod
    def of(cls, split: Split, preprocessor: Preprocessor, device: torch.device) -> "TrainingImages":
        """Return real images on a device."""
        moved = preprocessor.to(device)
        if preprocessor.whitening:
            return cls(moved.apply(split.images), split.labels.to(device))
        return cls(split.images.to(device), split.labels.to(device), moved)

    def __len__(self) -> int:
        """Return n."""
        return len(self.images)

    def batch(self, chosen: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return images `[B, C, H, W]` float32 and their labels."""
        images, labels = self.images[chosen], self.labels[chosen]
        return (self.preprocessor.apply(images) if self.preprocessor else images), labels


def soft_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `[]` the cross-entropy of `[B, K]` logits and `[B]` classes, or `[B, K]` soft labels' logits.

    Soft labels are kept as logits and become probabilities here, so that gradients may move them freely.
    """
    targets = labels.softmax(1) if labels.is_floating_point() else labels
    return functional.cross_entropy(logits, targets)


def train_epoch(
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    data: TrainingImages,
    batch_size: int,
    augmentation: Augmentation,
    generator: torch.Generator,
) -> float:
    """Train one pass over the images in a random order; return the mean loss.

    Args:
        module: changed in place.
        optimiser: of the module's parameters.
        data: images and labels.
        batch_size: the last batch may be smaller.
        augmentation: drawn anew for each batch.
        generator: on the CPU; draws the order and the augmentation.
    """
    module.train()
    order = torch.randperm(len(data), generator=generator)
    total = torch.zeros((), device=data.labels.device)
    for chosen in order.split(batch_size):
        images, labels = data.batch(chosen.to(data.labels.device))
        images = augmentation.apply(images, augmentation.draw(generator, len(images), images.shape[-1]))
        loss = soft_cross_entropy(module(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        total += loss.detach() * len(chosen)
    return float(total) / len(data)


@torch.no_grad()
def measure(module: nn.Module, data: TrainingImages) -> tuple[float, float]:
    """Return the accuracy, a fraction, and the mean cross-entropy on images with integer labels, not augmented."""
    module.eval()
    right = torch.zeros((), dtype=torch.int64, device=data.labels.device)
    total = torch.zeros((), dtype=torch.float64, device=data.labels.device)
    for start in range(0, len(data), TEST_BATCH):
        images, labels = data.batch(slice(start, start + TEST_BATCH))
        logits = module(images)
        right += (logits.argmax(1) == labels).sum()
        total += functional.cross_entropy(logits, labels, reduction="sum").double()
    return int(right) / len(data), float(total) / len(data)
