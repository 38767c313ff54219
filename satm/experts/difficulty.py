"""How hard each training image is, and which images an epoch of a curriculum sees.

Shapes: n training images, K classes, P parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from satm.errors import UsageError
from satm.experts.store import TrajectoryStore
from satm.networks.training import TrainingImages, outputs
from satm.params import load_flat
from satm.storage.identity import Identity, differing_field
from satm.storage.tensors import hash_tensors, read_tensors, write_tensors


@dataclass(frozen=True)
class Difficulty:
    """How hard each training image is."""

    epoch: Tensor
    """`[n]` float32, epochs until the image was first classified correctly, a mean over experts."""
    loss: Tensor
    """`[n]` float32, mean cross-entropy of the image over their snapshots."""

    def __len__(self) -> int:
        """Return n."""
        return len(self.epoch)

    @property
    def hash(self) -> str:
        """SHA-256 over the values."""
        return hash_tensors(self.epoch, self.loss)

    def order(self, labels: Tensor | None = None) -> Tensor:
        """Return `[n]` int64, the images from easy to hard.

        Args:
            labels: `[n]` int64; then an image goes by its place among those of its class, relative to their number, so
                that the easiest fraction of all is the easiest fraction of each class. None: by its place among all.

        Images of one epoch go by their loss; images of one loss too, which are copies as a rule, by their index. The
        index alone would bring the classes one after another where a dataset is sorted by them.
        """
        by_loss = self.loss.argsort(stable=True)
        order = by_loss[self.epoch[by_loss].argsort(stable=True)]
        if labels is None:
            return order
        place = torch.empty(len(order), dtype=torch.float64)
        for label in labels.unique():
            members = order[labels[order] == label]
            place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
        return order[place[order].argsort(stable=True)]


def expert_difficulty(module: nn.Module, store: TrajectoryStore, expert: int, data: TrainingImages) -> Difficulty:
    """Return how hard the images were for one expert.

    An image counts as learned at the first epoch, from 1 on, after which the expert classifies it correctly, whether it
    forgets it later or not; one that it never does, as learned one epoch after the last. The initialisation does not
    count: it answers one class to nearly every image, which would make that class easy.

    The training images are not augmented; the module's weights are overwritten.

    Source: ConTra Appendix B: how early an image is classified correctly in training on real data.
    Not given there: which training, and what decides between images of one epoch.
    """
    device = data.labels.device
    learned = torch.full((len(data),), store.epochs + 1, device=device)
    total = torch.zeros(len(data), dtype=torch.float64, device=device)
    for epoch in range(store.epochs, 0, -1):
        load_flat(module, store.snapshot(expert, epoch).to(device))
        right, loss = [], []
        for logits, labels in outputs(module, data):
            right.append(logits.argmax(1) == labels)
            loss.append(functional.cross_entropy(logits, labels, reduction="none"))
        learned[torch.cat(right)] = epoch
        total += torch.cat(loss)
    return Difficulty(learned.float().cpu(), (total / store.epochs).float().cpu())


def mean_difficulty(found: Sequence[Difficulty]) -> Difficulty:
    """Return the mean over experts."""
    epochs, losses = (torch.stack([getattr(one, name).double() for one in found]) for name in ("epoch", "loss"))
    return Difficulty(epochs.mean(0).float(), losses.mean(0).float())


def pace(epoch: int, start_fraction: float, full_epoch: int) -> float:
    """Return the fraction of the images, the easiest, that an epoch sees: ``min(1, lambda + (1 - lambda) e / gamma)``.

    Args:
        epoch: e, from 0; the first epoch sees `start_fraction`.
        start_fraction: lambda.
        full_epoch: gamma; from this epoch on all images are seen.

    Source: ConTra Eq. 12.
    """
    return min(1.0, start_fraction + (1 - start_fraction) * epoch / full_epoch)


def easiest(order: Tensor, fraction: float) -> Tensor:
    """Return the easiest fraction of the images in `order` `[n]`, at least one, sorted by index; all are `0..n-1`."""
    count = max(1, round(fraction * len(order)))
    return order[:count].sort().values


def save_difficulty(path: Path, difficulty: Difficulty, identity: Identity, experts: int) -> None:
    """Write how hard the images were for some experts of an identity, which holds the hash of the images."""
    metadata = {"kind": "difficulty", "identity": identity, "experts": experts}
    write_tensors(path, {"epoch": difficulty.epoch, "loss": difficulty.loss}, metadata)


def load_difficulty(path: Path, identity: Identity, experts: int, images: int) -> Difficulty:
    """Return what `save_difficulty` wrote of so many experts and images.

    Raises:
        UsageError: the file is missing, cut short or something else, or belongs to other experts or other images.
    """
    tensors, metadata = read_tensors(path, "difficulty of images")
    if metadata.get("kind") != "difficulty" or set(tensors) != {"epoch", "loss"}:
        raise UsageError(f"{path} holds {metadata.get('kind', 'something else')}, expected difficulties; make it again")
    if any(held.dtype != torch.float32 or held.shape != tensors["epoch"].shape[:1] for held in tensors.values()):
        raise UsageError(f"{path} does not hold two numbers of each image; measure the difficulty again")
    expected = {"identity": identity, "experts": experts, "images": images}
    found = {**metadata, "images": len(tensors["epoch"])}
    if difference := differing_field(expected, {name: found.get(name) for name in expected}):
        raise UsageError(f"{path} belongs to other experts: {difference}; measure the difficulty again")
    return Difficulty(tensors["epoch"], tensors["loss"])
