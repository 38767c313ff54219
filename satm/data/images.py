"""Decoded images of a dataset, their file, and the way from raw pixels to what a network is trained on.

Shapes: n images; C channels, 1 or 3; H = W pixels.
Spaces: raw uint8 in 0..255; [0, 1]; normalised, `(x - mean) / std` per channel; whitened (`satm.data.whitening`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from satm.data.whitening import Whitening
from satm.errors import UsageError
from satm.storage.files import expect
from satm.storage.tensors import hash_tensors, open_tensors, read_metadata, write_tensors

CHUNK_NUMBERS = 2**23
"""Numbers that are converted at once: 32 MiB of float32 beside the result."""

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Images with their labels."""

    images: Tensor
    """`[n, C, H, W]` uint8, raw."""
    labels: Tensor
    """`[n]` int64, classes from 0."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageData:
    """A dataset, decoded."""

    name: str
    """What the campaign calls it."""
    train: Split
    """Images to train on; every class has some."""
    validation: Split
    """Held out of the training images for choosing checkpoints and options; may be empty."""
    test: Split
    """Images to test on."""
    class_names: tuple[str, ...]
    """By label."""
    mean: tuple[float, ...]
    """Per channel, [0, 1] scale; of the training images unless the options fix it."""
    std: tuple[float, ...]
    """Per channel, [0, 1] scale; of the training images unless the options fix it."""
    hash: str
    """SHA-256 over images and labels of the three splits."""

    @property
    def channels(self) -> int:
        """Channels of an image: 1 or 3."""
        return self.train.images.shape[1]

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return self.train.images.shape[2]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def keep_classes(data: ImageData, name: str, labels: Sequence[int]) -> ImageData:
    """Return the part of a dataset that has these labels, renumbered from 0 in this order.

    Mean and std stay those of the whole, so that all parts of it are in one space; held-out images stay held out.

    Args:
        data: the whole.
        name: what the part is called.
        labels: different ones of the whole.
    """
    places = torch.full((data.classes,), -1)
    places[list(labels)] = torch.arange(len(labels))

    def part(split: Split) -> Split:
        kept = places[split.labels] >= 0
        return Split(split.images[kept], places[split.labels[kept]])

    train, validation, test = part(data.train), part(data.validation), part(data.test)
    names = tuple(data.class_names[label] for label in labels)
    found = hash_images(train, validation, test)
    return ImageData(name, train, validation, test, names, data.mean, data.std, found)


def hash_images(*splits: Split) -> str:
    """Return the SHA-256 over the images and labels of the splits, in order."""
    return hash_tensors(*(tensor for split in splits for tensor in (split.images, split.labels)))


def save_images(path: Path, data: ImageData) -> None:
    """Write a dataset as safetensors, atomically; the images stay uint8."""
    tensors: dict[str, Tensor] = {}
    for part in PARTS:
        split: Split = getattr(data, part)
        tensors |= {f"{part}.images": split.images, f"{part}.labels": split.labels}
    fields = ("name", "class_names", "mean", "std", "hash")
    write_tensors(path, tensors, {"kind": "images", **{field: getattr(data, field) for field in fields}})


def load_images(path: Path) -> ImageData:
    """Return the dataset in a file that `save_images` wrote.

    Raises:
        UsageError: the file is missing, cut short, holds something else, or does not have the hash that it states.
    """
    with open_tensors(path, "images") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata, hashed = read_metadata(file, path, "images"), file.hashed
    wanted = {f"{part}.{what}" for part in PARTS for what in ("images", "labels")}
    if metadata.get("kind") != "images" or set(tensors) != wanted:
        raise UsageError(f"{path} holds {metadata.get('kind', 'something else')}, expected images; make it again")
    fields = {"name": str, "class_names": list, "mean": list, "std": list, "hash": str}
    values = expect(metadata, fields, f"images {path}")
    train, validation, test = (Split(tensors[f"{part}.images"], tensors[f"{part}.labels"]) for part in PARTS)
    # The hash of a file that has one of each tensor is among what was compared; hashing all once more takes seconds.
    if not hashed and (found := hash_images(train, validation, test)) != values["hash"]:
        raise UsageError(
            f"images {path} were changed: their hash is {found[:12]}, it states {values['hash'][:12]}; make them again"
        )
    return ImageData(
        values["name"],
        train,
        validation,
        test,
        tuple(values["class_names"]),
        tuple(values["mean"]),
        tuple(values["std"]),
        values["hash"],
    )


class Preprocessor:
    """From raw images to the space that networks are trained in, and back.

    Without whitening: normalised, `(x - mean) / std` per channel, x in [0, 1]. With it: x in [0, 1], whitened, and
    neither mean nor std is used. Training and test images go through the same map. The way back is exact up to rounding
    and clamping, except from a whitening `per_image`: it gives every image the brightness and contrast of an average
    training image then, which serves for looking at only.

    Args:
        mean: per channel, [0, 1] scale.
        std: per channel, [0, 1] scale, positive.
        whitening: fitted on the training images, or None.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], whitening: Whitening | None) -> None:
        self.mean, self.std, self.whitening = tuple(mean), tuple(std), whitening
        self.device = whitening.mean.device if whitening else torch.device("cpu")

    @classmethod
    def from_identity(cls, identity: Mapping[str, Any], whitening: Whitening | None) -> "Preprocessor":
        """Return the preprocessor whose `identity` this is, as a synthetic set's file carries it.

        Args:
            identity: of the preprocessor that made the file.
            whitening: the dataset's stored whitening, or None where the identity names none.

        Raises:
            UsageError: the whitening is not the one that the identity names.
        """
        wanted, got = identity["whitening_hash"], whitening.hash if whitening else None
        if wanted != got:
            raise UsageError(
                f"the images were made with whitening {str(wanted)[:12]}, got whitening {str(got)[:12]}; "
                "give the whitening they were made with, or make them again"
            )
        return cls(tuple(identity["mean"]), tuple(identity["std"]), whitening)

    @property
    def identity(self) -> dict[str, Any]:
        """JSON that says which map this is: space, mean, std, whitening_hash (of what the whitening was fitted on)."""
        return {
            "space": "whitened" if self.whitening else "normalised",
            "mean": list(self.mean),
            "std": list(self.std),
            "whitening_hash": self.whitening.hash if self.whitening else None,
        }

    def to(self, device: torch.device | str) -> "Preprocessor":
        """Return this preprocessor computing on a device."""
        moved = Preprocessor(self.mean, self.std, self.whitening.to(device) if self.whitening else None)
        moved.device = torch.device(device)
        return moved

    def apply(self, images: Tensor) -> Tensor:
        """Return images in the space of training. No graph is kept.

        Images are moved to this preprocessor's device and converted in chunks, so that beside the result only some
        tens of MiB are needed.

        Args:
            images: `[n, C, H, W]` uint8, or floating point in [0, 1]; on any device.

        Returns:
            `[n, C, H, W]` float32, normalised or whitened, on this preprocessor's device.

        Raises:
            UsageError: the images have another number of channels, or of pixels where they are whitened.
        """
        return self._in_chunks(images, self._forward)

    def to_pixels(self, images: Tensor, clip: bool = True) -> Tensor:
        """Return images in [0, 1] from normalised or whitened ones. No graph is kept.

        Args:
            images: `[n, C, H, W]` floating point, on any device.
            clip: clamp what lies beyond; without, it shows how much does.

        Returns:
            `[n, C, H, W]` float32 on this preprocessor's device.

        Raises:
            UsageError: the images have another number of channels, or of pixels where they are whitened.
        """
        pixels = self._in_chunks(images, self._backward)
        return pixels.clamp(0, 1) if clip else pixels

    def _forward(self, images: Tensor) -> Tensor:
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        if self.whitening:
            return self.whitening.apply(scaled)
        mean, std = self._statistics()
        return (scaled - mean) / std

    def _backward(self, images: Tensor) -> Tensor:
        if self.whitening:
            return self.whitening.invert(images.float())
        mean, std = self._statistics()
        return images.float() * std + mean

    def _statistics(self) -> tuple[Tensor, Tensor]:
        mean, std = torch.tensor([self.mean, self.std], device=self.device)[:, None, :, None, None]
        return mean, std

    @torch.no_grad()
    def _in_chunks(self, images: Tensor, convert: Any) -> Tensor:
        if images.ndim != 4 or images.shape[1] != len(self.mean):
            raise UsageError(
                f"expected images [n, {len(self.mean)}, H, W] as mean and std have {len(self.mean)} channels, "
                f"got shape {tuple(images.shape)}; give images of this dataset"
            )
        result = torch.empty(images.shape, device=self.device)
        rows = max(1, CHUNK_NUMBERS // max(1, math.prod(images.shape[1:])))
        for start in range(0, len(images), rows):
            chunk = images[start : start + rows].to(self.device)
            result[start : start + rows] = convert(chunk)
        return result
