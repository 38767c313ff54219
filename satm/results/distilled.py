"""Synthetic sets as safetensors, with everything that is needed to use them.

Shapes: n synthetic images of C channels, H times W pixels; K classes.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from satm.data.images import Preprocessor
from satm.data.whitening import Whitening, load_whitening
from satm.errors import UsageError
from satm.storage.files import AGAIN, expect
from satm.storage.tensors import read_tensors, write_tensors
from satm.version import __version__

RAW_PARTS = ("raw_images", "raw_labels")
"""Tensors of a synthetic set's file that are there beside an average only."""

STORED = "stored."
"""Begins the name of a tensor that images are computed from, in a synthetic set's file."""

HISTORY = "history."
"""Begins the name of a tensor of the set on its way, in a synthetic set's file."""


@dataclass(frozen=True, eq=False)
class History:
    """States of a synthetic set on its way, s of them; raw ones, where the set itself is an average."""

    iterations: Tensor
    """`[s]` int64, outer steps done before each state, ascending; the first is 0, the start."""
    images: Tensor
    """`[s, n, C, H, W]` float32 in the space of the set's images."""
    labels: Tensor
    """`[s, n]` int64 or `[s, n, K]` float32, like the set's labels."""
    step_size: Tensor
    """`[s]` float32."""

    def __len__(self) -> int:
        return len(self.iterations)


@dataclass(frozen=True, eq=False)
class DistilledDataset(Dataset[tuple[Tensor, Tensor]]):
    """A synthetic set, ready to train networks on; its items are (image, label)."""

    images: Tensor
    """`[n, C, H, W]` float32 in the space that networks are trained in: normalised, or whitened."""
    labels: Tensor
    """`[n]` int64 classes, or `[n, K]` float32 logits of soft labels (`satm.networks.training.soft_cross_entropy`)."""
    step_size: Tensor
    """`[]` float32, SGD's step size that belongs to the images."""
    preprocessing: Mapping[str, Any]
    """Which map leads from pixels to `images`: `satm.data.Preprocessor.identity`."""
    class_names: tuple[str, ...]
    """By label."""
    dataset: str
    """Name of the real dataset."""
    ipc: int
    """Images per class."""
    method: str
    """Name of the method."""
    seed: int
    """Seed of the distillation."""
    options: Mapping[str, Any]
    """Resolved options of the distillation, JSON values."""
    iteration: int
    """Iterations that led to this set."""
    selection: str
    """Which iteration this is: `last`, or the best on `validation` or `test` images."""
    whitening_path: Path | None = None
    """File of the whitening, where there is one."""
    average: str = "raw"
    """What images and labels are: `raw`, those of one iteration, or `ema`, an exponential moving average over them."""
    raw_images: Tensor | None = None
    """Beside an average: the images `[n, C, H, W]` of the iteration itself, in the same space."""
    raw_labels: Tensor | None = None
    """Beside an average: the labels of the iteration itself, like `labels`; None: they are `labels`."""
    stored: Mapping[str, Tensor] = field(default_factory=dict)
    """What the images of the iteration (not an average of them) are computed from, by name, such as basis images and
    their weights; empty where they are numbers of their own."""
    history: History | None = None
    """The set on its way, where the distillation's option `snapshots` kept it."""

    def __post_init__(self) -> None:
        """Check that the parts fit together.

        Raises:
            UsageError: a shape, a type or a label does not fit.
        """
        if self.average not in ("raw", "ema"):
            raise UsageError(f"the images of a synthetic set are raw or ema, got average {self.average!r}")
        if self.average == "raw" and (self.raw_images is not None or self.raw_labels is not None):
            raise UsageError("raw_images and raw_labels stand beside an average, got average 'raw'; leave them out")
        for one, other in ((self.raw_images, self.images), (self.raw_labels, self.labels)):
            if one is not None and (one.shape != other.shape or one.dtype != other.dtype):
                raise UsageError(
                    f"the raw part beside an average must be like it, {other.dtype} {tuple(other.shape)}, got "
                    f"{one.dtype} {tuple(one.shape)}"
                )
        if self.step_size.shape != () or not self.step_size.is_floating_point():
            raise UsageError(
                f"a synthetic set needs one number as its step size, got {self.step_size.dtype} "
                f"{tuple(self.step_size.shape)}"
            )
        if self.images.ndim != 4 or self.images.dtype != torch.float32:
            raise UsageError(
                f"a synthetic set needs float32 images [n, C, H, W], got {self.images.dtype} {tuple(self.images.shape)}"
            )
        count, classes = len(self.images), len(self.class_names)
        hard = self.labels.dtype == torch.int64 and self.labels.shape == (count,)
        soft = self.labels.dtype == torch.float32 and self.labels.shape == (count, classes)
        if not hard and not soft:
            raise UsageError(
                f"a synthetic set of {count} images and {classes} classes needs labels int64 [{count}] or "
                f"float32 [{count}, {classes}], got {self.labels.dtype} {tuple(self.labels.shape)}"
            )
        if hard and count and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < classes:
            raise UsageError(
                f"the labels of a synthetic set of {classes} classes must be 0 to {classes - 1}, "
                f"got {int(self.labels.min())} to {int(self.labels.max())}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    @property
    def classes(self) -> Tensor:
        """`[n]` int64, the class of each image; of soft labels the largest."""
        return self.labels if self.labels.ndim == 1 else self.labels.argmax(1)

    @property
    def stored_numbers(self) -> int:
        """How many numbers the set is made of, to compare sets at an equal budget.

        Counted are `stored`, or without it (and for an average, which is not computed from it) the numbers of the
        images; and, where labels are soft, their logits. Not counted are integer labels, which follow from the order of
        the images, the step size, and what stands beside an average.
        """
        computed = self.average == "raw" and self.stored
        count = sum(tensor.numel() for tensor in self.stored.values()) if computed else self.images.numel()
        return count + (self.labels.numel() if self.labels.is_floating_point() else 0)

    def first(self, ipc: int) -> "DistilledDataset":
        """Return the set of the first so many images of each class; `stored` is kept whole.

        Of a set that is good in every prefix (boosted distillation) it is a set for a smaller budget.

        Raises:
            UsageError: there are fewer images, or the images are not sorted by class with as many of each.
        """
        classes = len(self.class_names)
        each, rest = divmod(len(self), classes)
        order = torch.arange(classes).repeat_interleave(each)
        if rest or (self.labels.ndim == 1 and not torch.equal(self.labels.cpu(), order)):
            raise UsageError(
                f"the first images of each class can be taken where images are sorted by class with as many of each, "
                f"which these {len(self)} images of {classes} classes are not"
            )
        if not 1 <= ipc <= each:
            raise UsageError(
                f"the synthetic set has {each} images of each class, asked for the first {ipc}; ask for 1 to {each}"
            )
        chosen = (torch.arange(classes)[:, None] * each + torch.arange(ipc)).reshape(-1).to(self.images.device)
        parts = ("images", "labels", *RAW_PARTS)
        held: dict[str, Any] = {part: whole[chosen] for part in parts if (whole := getattr(self, part)) is not None}
        if (way := self.history) is not None:
            held["history"] = replace(way, images=way.images[:, chosen], labels=way.labels[:, chosen])
        return replace(self, ipc=ipc, **held)

    def unaveraged(self) -> "DistilledDataset":
        """Return the raw set that stands beside an average; a raw set as it is.

        Raises:
            UsageError: the set is an average and its raw images were not kept.
        """
        if self.average == "raw":
            return self
        if self.raw_images is None:
            raise UsageError("the synthetic set is an average whose raw images were not kept; distil it again")
        labels = self.labels if self.raw_labels is None else self.raw_labels
        return replace(self, images=self.raw_images, labels=labels, average="raw", raw_images=None, raw_labels=None)

    def at(self, place: int) -> "DistilledDataset":
        """Return the raw set at one of the states of its history, counted from 0, the start.

        Raises:
            UsageError: the history was not kept, or has fewer states.
        """
        if self.history is None:
            raise UsageError(
                f"the synthetic set of {self.method} was stored without its history; distil it with snapshots above 0"
            )
        if not 0 <= place < len(self.history):
            raise UsageError(f"the history has the states 0 to {len(self.history) - 1}, asked for {place}")
        way = self.history
        return replace(
            self,
            images=way.images[place],
            labels=way.labels[place],
            step_size=way.step_size[place],
            iteration=int(way.iterations[place]),
            average="raw",
            raw_images=None,
            raw_labels=None,
            stored={},
            history=None,
        )

    def pixels(self, whitening: Whitening | None = None, clip: bool = True) -> Tensor:
        """Return `[n, C, H, W]` float32 images in [0, 1] for looking at.

        Args:
            whitening: the one that the images were made with; None: read from `whitening_path`. It is not part of a
                synthetic set's file, which would grow from some KiB to 76 MB (CIFAR-10).
            clip: clamp what lies beyond; without, it shows how much does.

        Raises:
            UsageError: the whitening's file is missing or broken, or it is not the one that the images were made with.
        """
        if self.preprocessing["whitening_hash"] is not None and whitening is None:
            whitening = load_whitening(self._found_whitening())
        return Preprocessor.from_identity(self.preprocessing, whitening).to_pixels(self.images, clip)

    def _found_whitening(self) -> Path:
        if self.whitening_path is None or not self.whitening_path.is_file():
            raise UsageError(
                f"the images are whitened and the whitening is not at {self.whitening_path}; make it with "
                f"`python -m satm data --dataset {self.dataset} --make zca`, or give pixels() the whitening"
            )
        return self.whitening_path


def save_distilled(path: Path, data: DistilledDataset) -> None:
    """Write a synthetic set as safetensors, atomically. Equal sets give equal bytes: no time, no host.

    The whitening's path is stored relative to `path`, so that a tree of results can be moved as a whole.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    whitening = data.whitening_path
    fields = ("class_names", "dataset", "ipc", "method", "seed", "iteration", "selection", "average")
    metadata = {
        "kind": "distilled",
        **{field: getattr(data, field) for field in fields},
        "preprocessing": dict(data.preprocessing),
        "options": dict(data.options),
        "whitening_path": os.path.relpath(whitening.resolve(), path.parent.resolve()) if whitening else None,
        "versions": {"satm": __version__, "torch": torch.__version__},
    }
    tensors = {"images": data.images, "labels": data.labels, "step_size": data.step_size.detach().float().reshape(())}
    extras = {name: getattr(data, name) for name in RAW_PARTS}
    extras |= {f"{STORED}{name}": tensor for name, tensor in data.stored.items()}
    extras |= {f"{HISTORY}{name}": tensor for name, tensor in vars(data.history).items()} if data.history else {}
    # The format refuses tensors that share memory, as raw and averaged labels may.
    tensors |= {name: tensor.clone() for name, tensor in extras.items() if tensor is not None}
    write_tensors(path, tensors, metadata)


def load_distilled(path: Path | str) -> DistilledDataset:
    """Return the synthetic set in a file that `save_distilled` wrote.

    Raises:
        UsageError: the file is missing, cut short or holds something else.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path, "synthetic set")
    stored = {name.removeprefix(STORED): tensors.pop(name) for name in sorted(tensors) if name.startswith(STORED)}
    way = {name.removeprefix(HISTORY): tensors.pop(name) for name in sorted(tensors) if name.startswith(HISTORY)}
    if metadata.get("kind") != "distilled" or set(tensors) - set(RAW_PARTS) != {"images", "labels", "step_size"}:
        kind = metadata.get("kind", "something else")
        raise UsageError(f"{path} holds {kind}, expected a synthetic set; give a distilled.safetensors")
    values = _values(metadata, f"synthetic set {path}")
    if values["whitening_path"] is not None:
        values["whitening_path"] = (path.parent.resolve() / values["whitening_path"]).resolve()
    history = _history(way, tensors, f"synthetic set {path}") if way else None
    values |= tensors
    return DistilledDataset(**values, stored=stored, history=history)


STATED: Mapping[str, type] = {
    "preprocessing": dict,
    "class_names": list,
    "dataset": str,
    "ipc": int,
    "method": str,
    "seed": int,
    "options": dict,
    "iteration": int,
    "selection": str,
    "average": str,
    "whitening_path": object,
}
"""What the metadata of a synthetic set's file say, with the type of each value."""


def _values(metadata: Mapping[str, object], where: str) -> dict[str, Any]:
    """Return the arguments of `DistilledDataset` that are no tensors, checked."""
    held = expect({"average": "raw", **metadata}, STATED, where)
    expect(held["preprocessing"], {"space": str, "mean": list, "std": list, "whitening_hash": object}, where)
    texts = [*held["class_names"], held["whitening_path"] or ""]
    if not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{where}: class_names or whitening_path are no texts; {AGAIN}")
    return {name: held[name] for name in STATED} | {"class_names": tuple(held["class_names"])}


def _history(way: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> History:
    """Return the states of a set on its way, checked to be states of this set."""
    count = len(way["iterations"]) if "iterations" in way and way["iterations"].ndim == 1 else 0
    like = {name: (tensors[name].dtype, (count, *tensors[name].shape)) for name in ("images", "labels", "step_size")}
    like["iterations"] = (torch.int64, (count,))
    if not count or {name: (part.dtype, tuple(part.shape)) for name, part in way.items()} != like:
        raise UsageError(f"{where}: its history holds no states of its images; {AGAIN}")
    return History(**way)
