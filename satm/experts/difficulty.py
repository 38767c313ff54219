"""Difficulty of each training image, and the images that an epoch of a curriculum uses.

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
from satm.storage.identity import Identity, differing_fields
from satm.storage.tensors import hash_tensors, read_tensors, write_tensors


@dataclass(frozen=True)
class Difficulty:
    """Difficulty of each training image, a mean over experts; both `[n]` float32."""

    epoch: Tensor  # epochs until the image was first classified correctly
    loss: Tensor  # mean cross-entropy of the image over the snapshots

    @property
    def hash(self) -> str:
        """SHA-256 over the values."""
        return hash_tensors(self.epoch, self.loss)

    def order(self, labels: Tensor | None = None) -> Tensor:
        """Return `[n]` int64, the images from easy to hard.

        With labels, `[n]` int64, images are ordered by their relative rank within their class, so that the easiest
        fraction of all is the easiest fraction of each class. Ties of the epoch are broken by the loss, those of both,
        usually copies, by the index, which alone would order a sorted dataset by class.
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
    """Return the difficulty of the images for one expert.

    An image counts as learned at the first epoch, from 1 on, after which the expert classifies it correctly, even if it
    is forgotten later; an image never classified correctly, one epoch after the last. The initialisation does not
    count: it predicts one class for nearly every image, which would make that class easy.

    The training images are not augmented; the module's weights are overwritten.

    Source: ConTra Appendix B: how early an image is classified correctly in training on real data.
    Not given: the training run that is meant, and the order of images learned in the same epoch.
    """
    device = data.labels.device
    learned = torch.full((len(data),), store.epochs + 1, device=device)
    total = torch.zeros(len(data), dtype=torch.float64, device=device)
    for epoch in range(store.epochs, 0, -1):
        store.load(module, expert, epoch)
        right, loss = [], []
        for logits, labels in outputs(module, data):
            right.append(logits.argmax(1) == labels)
            loss.append(functional.cross_entropy(logits, labels, reduction="none"))
        learned[torch.cat(right)] = epoch
        total += torch.cat(loss)
    return Difficulty(learned.float().cpu(), (total / store.epochs).float().cpu())


def mean_difficulty(experts: Sequence[Difficulty]) -> Difficulty:
    """Return the mean over experts."""
    values = ([getattr(one, name).double() for one in experts] for name in ("epoch", "loss"))
    return Difficulty(*(torch.stack(each).mean(0).float() for each in values))


def pace(epoch: int, start_fraction: float, full_epoch: int) -> float:
    """Return the fraction of easiest images that an epoch uses: ``min(1, lambda + (1 - lambda) e / gamma)``.

    The first epoch, e = 0, uses the fraction lambda; from `full_epoch`, gamma, on all images are used.

    Source: ConTra Eq. 12.
    """
    return min(1.0, start_fraction + (1 - start_fraction) * epoch / full_epoch)


def easiest(order: Tensor, fraction: float) -> Tensor:
    """Return the easiest fraction, at least one, of images ordered from easy to hard (`[n]` indices), by index."""
    count = max(1, round(fraction * len(order)))
    return order[:count].sort().values


def save_difficulty(path: Path, difficulty: Difficulty, identity: Identity, experts: int) -> None:
    """Write a difficulty with the number of its experts and their identity, which includes the hash of the images."""
    about = {"kind": "difficulty", "identity": identity, "experts": experts}
    write_tensors(path, vars(difficulty), {**about, "hash": difficulty.hash})


def load_difficulty(path: Path, identity: Identity, experts: int, images: int) -> Difficulty:
    """Return the difficulty that `save_difficulty` wrote for a number of experts and of images.

    Raises:
        UsageError: the file is missing, damaged or of another kind, or of other experts or images.
    """
    tensors, metadata = read_tensors(path, "difficulty of images")
    if metadata.get("kind") != "difficulty" or set(tensors) != {"epoch", "loss"}:
        raise UsageError(f"{path} holds {metadata.get('kind', 'something else')}, expected difficulties; make it again")
    if any(each.dtype != torch.float32 or each.shape != tensors["epoch"].shape[:1] for each in tensors.values()):
        raise UsageError(f"{path} does not hold two numbers for each image; measure the difficulty again")
    expected = {"identity": identity, "experts": experts, "images": images}
    stored = {**metadata, "images": len(tensors["epoch"])}
    if difference := differing_fields(expected, {name: stored.get(name) for name in expected}):
        raise UsageError(f"{path} belongs to other experts: {difference}; measure the difficulty again")
    return Difficulty(**tensors)
