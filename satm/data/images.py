"""Decoded images of a dataset, their file, and the map from raw pixels to the space that networks are trained in.

Shapes: n images; C channels, 1 or 3; H = W pixels.
Spaces: raw uint8 in 0..255; [0, 1]; normalised, `(x - mean) / std` per channel; whitened (`satm.data.whitening`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from satm.data.listing import natural_order
from satm.data.whitening import Whitening
from satm.errors import UsageError
from satm.seeds import make_generator
from satm.storage.files import expect
from satm.storage.tensors import hash_tensors, open_tensors, read_metadata, write_tensors

CHUNK_NUMBERS = 2**23
"""Numbers converted at a time: 32 MiB of float32 in addition to the result."""

LISTED = 12
"""Classes that an order is written out for."""

PARTS, WHAT = ("train", "validation", "test"), ("images", "labels")
FIELDS = {"name": str, "class_names": list, "mean": list, "std": list, "hash": str, "notes": list, "doubts": list}
"""Metadata of a file of images, with the type of each JSON value."""

ADDED: dict[str, object] = {"notes": [], "doubts": []}
"""What a file of an earlier version lacks."""


@dataclass(frozen=True)
class Split:
    """Images with their labels."""

    images: Tensor
    """`[n, C, H, W]` uint8, raw."""
    labels: Tensor
    """`[n]` int64, classes from 0."""

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, chosen: Tensor) -> "Split":
        """Return the images that an index or a mask, `[n]` bool, selects, in their order."""
        return Split(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class ImageData:
    """A dataset, decoded."""

    name: str
    """Name in the campaign."""
    train: Split
    """Training images; every class has some."""
    validation: Split
    """Held out of the training images for choosing checkpoints and options; may be empty."""
    test: Split
    """Test images."""
    class_names: tuple[str, ...]
    """Names of the classes by label."""
    mean: tuple[float, ...]
    """Mean per channel, [0, 1] scale; that of the training images unless set in the options."""
    std: tuple[float, ...]
    """Standard deviation per channel, [0, 1] scale; that of the training images unless set in the options."""
    hash: str
    """SHA-256 of the images and labels of the three splits."""
    notes: tuple[str, ...] = ()
    """What was converted or left out on the way from the files, with counts."""
    doubts: tuple[str, ...] = ()
    """Signs that the dataset is not what it should be, with counts."""

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


def numbered(names: Sequence[str]) -> str:
    """Describe an order of classes: `0 = cat, 1 = dog, 2 = eel, …, 9 = yak`; long ones are cut in the middle.

    It is said where names would be in another order as text, because other code may number classes so.
    """
    order = _shortened([f"{label} = {name}" for label, name in enumerate(names)])
    text = sorted(names)
    differs = list(names) == sorted(names, key=natural_order) != text
    return order + (f" (numbers by value; sorted as text: {_shortened(text)})" if differs else "")


def _shortened(texts: Sequence[str]) -> str:
    return ", ".join(texts if len(texts) <= LISTED else [*texts[: LISTED - 2], "…", texts[-1]])


def hold_out(split: Split, per_class: int, seed: int) -> tuple[Split, Split]:
    """Divide a split into the images to train on and `per_class` held-out images of each class; both keep its order.

    Raises:
        UsageError: a class has no image left to train on.
    """
    order = torch.randperm(len(split), generator=make_generator("hold-out", seed))
    mask = torch.zeros(len(split), dtype=torch.bool)
    for label in split.labels.unique().tolist() if per_class else ():
        own = order[split.labels[order] == label]
        if len(own) <= per_class:
            raise UsageError(
                f"cannot hold out {per_class} validation images of class {label}, which has {len(own)} training "
                f"images; set `validation` to at most {len(own) - 1}"
            )
        mask[own[:per_class]] = True
    return split.select(~mask), split.select(mask)


def keep_classes(data: ImageData, name: str, labels: Sequence[int]) -> ImageData:
    """Return the part of a dataset with certain labels, renumbered from 0 in the given order.

    Mean and std stay those of the whole dataset, so that all its parts are in one space; held-out images stay held out.
    `name` is the part's name, `labels` are distinct labels of the whole dataset.
    """
    new = torch.full((data.classes,), -1)
    new[list(labels)] = torch.arange(len(labels))

    def part(split: Split) -> Split:
        kept = split.select(new[split.labels] >= 0)
        return Split(kept.images, new[kept.labels])

    train, validation, test = part(data.train), part(data.validation), part(data.test)
    names = tuple(data.class_names[label] for label in labels)
    hash = hash_images(train, validation, test)
    return replace(data, name=name, train=train, validation=validation, test=test, class_names=names, hash=hash)


def hash_images(*splits: Split) -> str:
    """Return the SHA-256 of the images and labels of the splits, in order."""
    return hash_tensors(*(tensor for split in splits for tensor in (split.images, split.labels)))


def save_images(path: Path, data: ImageData, stated: Mapping[str, object] = MappingProxyType({})) -> None:
    """Write a dataset as safetensors, atomically; the images stay uint8.

    `stated` has further metadata, JSON values: the options, and the state of the files that they were read from.
    """
    tensors: dict[str, Tensor] = {}
    for part in PARTS:
        split: Split = getattr(data, part)
        tensors |= {f"{part}.images": split.images, f"{part}.labels": split.labels}
    fields = {field: getattr(data, field) for field in FIELDS}
    write_tensors(path, tensors, {"kind": "images", **stated, **fields})


def load_images(path: Path) -> ImageData:
    """Return the dataset in a file that `save_images` wrote.

    Raises:
        UsageError: the file is missing, cut short, something else, or does not match its stated hash.
    """
    with open_tensors(path, "images") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata, hashed = read_metadata(file, path, "images"), file.hashed
    if metadata.get("kind") != "images" or set(tensors) != {f"{part}.{what}" for part in PARTS for what in WHAT}:
        raise UsageError(f"{path} holds {metadata.get('kind', 'something else')}, expected images; make it again")
    values = expect({**ADDED, **metadata}, FIELDS, f"images {path}")
    train, validation, test = (Split(tensors[f"{part}.images"], tensors[f"{part}.labels"]) for part in PARTS)
    # A file with a hash for each tensor was checked while reading; hashing everything once more takes seconds.
    if not hashed and (actual := hash_images(train, validation, test)) != values["hash"]:
        raise UsageError(
            f"images {path} were changed: their hash is {actual[:12]}, it states {values['hash'][:12]}; make them again"
        )
    names, mean, std, notes, doubts = (
        tuple(values[field]) for field in ("class_names", "mean", "std", "notes", "doubts")
    )
    return ImageData(values["name"], train, validation, test, names, mean, std, values["hash"], notes, doubts)


class Preprocessor:
    """The map from raw images to the space that networks are trained in, and back.

    Without whitening, images are normalised: `(x - mean) / std` per channel, x in [0, 1]. With whitening, images in
    [0, 1] are whitened, and neither mean nor std is used. Training and test images go through the same map. The way
    back is exact up to rounding and clamping, except with a `per_image` whitening, which gives every image the
    brightness and contrast of an average training image; the result is only for viewing.

    Mean and std (positive) are per channel on the [0, 1] scale; the whitening was fitted on the training images.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], whitening: Whitening | None) -> None:
        self.mean, self.std, self.whitening = tuple(mean), tuple(std), whitening
        self.device = whitening.mean.device if whitening else torch.device("cpu")

    @classmethod
    def from_identity(cls, identity: Mapping[str, Any], whitening: Whitening | None) -> "Preprocessor":
        """Return the preprocessor with the `identity` stated in the file of a synthetic set.

        Raises:
            UsageError: the dataset's stored whitening (None: it has none) is not the one in the identity.
        """
        expected, actual = identity["whitening_hash"], whitening.hash if whitening else None
        if expected != actual:
            raise UsageError(
                f"the images were made with whitening {str(expected)[:12]}, got whitening {str(actual)[:12]}; "
                "give the whitening they were made with, or make them again"
            )
        return cls(tuple(identity["mean"]), tuple(identity["std"]), whitening)

    @property
    def identity(self) -> dict[str, object]:
        """JSON values that identify this map: space, mean, std, whitening_hash (`Whitening.hash`)."""
        return {
            "space": "whitened" if self.whitening else "normalised",
            "mean": list(self.mean),
            "std": list(self.std),
            "whitening_hash": self.whitening.hash if self.whitening else None,
        }

    def to(self, device: torch.device | str) -> "Preprocessor":
        """Return this preprocessor on a device."""
        moved = Preprocessor(self.mean, self.std, self.whitening.to(device) if self.whitening else None)
        moved.device = torch.device(device)
        return moved

    def apply(self, images: Tensor) -> Tensor:
        """Return images in the space that networks are trained in, without a graph.

        Images are `[n, C, H, W]` uint8, or floating point in [0, 1], on any device. The result is float32 on this
        preprocessor's device; conversion in chunks takes a few tens of MiB in addition.

        Raises:
            UsageError: a wrong number of channels, or with whitening of pixels.
        """
        mean, std = torch.tensor([self.mean, self.std], device=self.device)[:, None, :, None, None]

        def forward(images: Tensor) -> Tensor:
            scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
            return self.whitening.apply(scaled) if self.whitening else (scaled - mean) / std

        return self._in_chunks(images, forward)

    def to_pixels(self, images: Tensor, clip: bool = True) -> Tensor:
        """Return normalised or whitened images in [0, 1], clamped with `clip`, without a graph.

        Images are `[n, C, H, W]` floating point, on any device; the result and errors are as those of `apply`.
        """
        mean, std = torch.tensor([self.mean, self.std], device=self.device)[:, None, :, None, None]

        def backward(images: Tensor) -> Tensor:
            return self.whitening.invert(images.float()) if self.whitening else images.float() * std + mean

        pixels = self._in_chunks(images, backward)
        return pixels.clamp(0, 1) if clip else pixels

    @torch.no_grad()
    def _in_chunks(self, images: Tensor, convert: Callable[[Tensor], Tensor]) -> Tensor:
        if images.ndim != 4 or images.shape[1] != len(self.mean):
            raise UsageError(
                f"expected images [n, {len(self.mean)}, H, W] because mean and std have {len(self.mean)} channels, "
                f"got shape {tuple(images.shape)}; give images of this dataset"
            )
        result = torch.empty(images.shape, device=self.device)
        rows = max(1, CHUNK_NUMBERS // max(1, math.prod(images.shape[1:])))
        for start in range(0, len(images), rows):
            result[start : start + rows] = convert(images[start : start + rows].to(self.device))
        return result
