"""Synthetic sets and their files: safetensors with everything needed to use the set.

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
"""Tensors of a file that only an averaged set has."""

RAW: Mapping[str, Any] = {"average": "raw", **dict.fromkeys(RAW_PARTS)}
"""Fields of a set that is no average."""

STORED, HISTORY = "stored.", "history."
"""Prefixes of tensor names in a file: tensors that the images are computed from, and earlier states of the set."""

STATED: Mapping[str, type] = {
    **dict.fromkeys(("dataset", "method", "selection", "average", "device_name"), str),
    **dict.fromkeys(("ipc", "seed", "iteration"), int),
    **dict.fromkeys(("preprocessing", "options"), dict),
    "class_names": list,
    "whitening_path": object,
}
"""Fields of a set in the metadata of its file, with the JSON type of each."""


@dataclass(frozen=True, eq=False)
class History:
    """States of a synthetic set during its distillation, s of them; raw even if the set is an average."""

    iterations: Tensor
    """`[s]` int64, outer steps before each state, ascending from 0."""
    images: Tensor
    """`[s, n, C, H, W]` float32 in the space of the set's images."""
    labels: Tensor
    """`[s, n]` int64 or `[s, n, K]` float32, like the set's labels."""
    step_size: Tensor
    """`[s]` float32."""

    def __len__(self) -> int:
        return len(self.iterations)


@dataclass(frozen=True, eq=False, repr=False)
class DistilledDataset(Dataset[tuple[Tensor, Tensor]]):
    """A synthetic set, ready for training; its items are (image, label)."""

    images: Tensor
    """`[n, C, H, W]` float32 in the space of training: normalised, or whitened."""
    labels: Tensor
    """`[n]` int64 classes, or `[n, K]` float32 logits of soft labels (`satm.networks.training.soft_cross_entropy`)."""
    step_size: Tensor
    """`[]` float32, step size of SGD that belongs to the images."""
    preprocessing: Mapping[str, Any]
    """The map from pixels to `images`: `satm.data.Preprocessor.identity`."""
    class_names: tuple[str, ...]
    """Names of the classes by label."""
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
    """Outer iterations before this set."""
    selection: str
    """How the iteration was chosen: `last`, or the best on `validation` or `test` images."""
    whitening_path: Path | None = None
    """File of the whitening, for a whitened set."""
    average: str = "raw"
    """`raw`: images and labels of one iteration; `ema`: their exponential moving average over the iterations."""
    raw_images: Tensor | None = None
    """For an average: `[n, C, H, W]` images of the iteration itself, in the same space."""
    raw_labels: Tensor | None = None
    """For an average: labels of the iteration itself, like `labels`; None: the same as `labels`."""
    stored: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors by name that raw images are computed from, such as basis and weights; empty: images are learned."""
    history: History | None = None
    """Earlier states, kept by the option `snapshots` of a distillation."""
    device_name: str = ""
    """Device of the distillation: a GPU's name, or `cpu`; empty: unknown."""

    def __post_init__(self) -> None:
        """Raise a UsageError if a shape, a type or a label does not fit the others."""
        images, labels, count, classes = self.images, self.labels, len(self.images), len(self.class_names)
        if self.average not in ("raw", "ema"):
            raise UsageError(f"the images of a synthetic set are raw or ema, got average {self.average!r}; correct it")
        if self.average == "raw" and (self.raw_images is not None or self.raw_labels is not None):
            raise UsageError("raw_images and raw_labels belong to an average, got average 'raw'; leave them out")
        for raw, part in ((self.raw_images, images), (self.raw_labels, labels)):
            if raw is not None and (raw.shape != part.shape or raw.dtype != part.dtype):
                raise UsageError(
                    f"raw parts of an averaged set must be like it, {_type(part)}, got {_type(raw)}; convert them"
                )
        if self.step_size.shape != () or not self.step_size.is_floating_point():
            raise UsageError(f"a synthetic set needs one number as step size, got {_type(self.step_size)}; correct it")
        if images.ndim != 4 or images.dtype != torch.float32:
            raise UsageError(f"a synthetic set needs float32 images [n, C, H, W], got {_type(images)}; convert them")
        hard = labels.dtype == torch.int64 and labels.shape == (count,)
        if not hard and not (labels.dtype == torch.float32 and labels.shape == (count, classes)):
            raise UsageError(
                f"a synthetic set of {count} images and {classes} classes needs labels int64 [{count}] or float32 "
                f"[{count}, {classes}], got {_type(labels)}; convert them"
            )
        if hard and count:
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= classes:
                raise UsageError(
                    f"the labels of {classes} classes must be 0 to {classes - 1}, got {low} to {high}; renumber them"
                )

    def __repr__(self) -> str:
        cell = f"{self.method} on {self.dataset}, ipc {self.ipc}, seed {self.seed}"
        return f"<DistilledDataset: {cell}, images {list(self.images.shape)}, iteration {self.iteration}>"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    @property
    def classes(self) -> Tensor:
        """`[n]` int64, the class of each image; for soft labels the most probable one."""
        return self.labels if self.labels.ndim == 1 else self.labels.argmax(1)

    @property
    def stored_numbers(self) -> int:
        """Size of the set in numbers, to compare sets at an equal budget.

        It counts `stored`, or the images if that is empty or the set is an average, and the logits of soft labels. It
        does not count integer labels, which follow from the order of the images, step size, raw parts and history.
        """
        computed = self.average == "raw" and self.stored
        count = sum(tensor.numel() for tensor in self.stored.values()) if computed else self.images.numel()
        return count + (self.labels.numel() if self.labels.is_floating_point() else 0)

    def first(self, ipc: int) -> "DistilledDataset":
        """Return the set of the first `ipc` images of each class; `stored` is kept whole.

        It turns a set from boosted distillation, where every prefix is a set, into one for a smaller budget.

        Raises:
            UsageError: a class has fewer images, or the images are not sorted by class with the same number of each.
        """
        classes = len(self.class_names)
        each, rest = divmod(len(self), classes)
        order = torch.arange(classes).repeat_interleave(each)
        if rest or (self.labels.ndim == 1 and not torch.equal(self.labels.cpu(), order)):
            raise UsageError(
                "taking the first images of each class needs images sorted by class with the same number of each; "
                f"these {len(self)} images of {classes} classes are not"
            )
        if not 1 <= ipc <= each:
            raise UsageError(f"the synthetic set has {each} images per class, got {ipc}; ask for 1 to {each}")
        chosen = (torch.arange(classes)[:, None] * each + torch.arange(ipc)).reshape(-1).to(self.images.device)
        names = ("images", "labels", *RAW_PARTS)
        parts: dict[str, Any] = {name: part[chosen] for name in names if (part := getattr(self, name)) is not None}
        if (history := self.history) is not None:
            parts["history"] = replace(history, images=history.images[:, chosen], labels=history.labels[:, chosen])
        return replace(self, ipc=ipc, **parts)

    def unaveraged(self) -> "DistilledDataset":
        """Return the raw set behind an average; a raw set unchanged.

        Raises:
            UsageError: the raw images of an average were not kept.
        """
        if self.average == "raw":
            return self
        if self.raw_images is None:
            raise UsageError("the synthetic set is an average whose raw images were not kept; distil it again")
        labels = self.labels if self.raw_labels is None else self.raw_labels
        return replace(self, images=self.raw_images, labels=labels, **RAW)

    def at(self, place: int) -> "DistilledDataset":
        """Return the raw set at a state of its history, counted from 0.

        Raises:
            UsageError: the history was not kept, or has fewer states.
        """
        if (history := self.history) is None:
            raise UsageError(
                f"the synthetic set of {self.method} was stored without its history; distil it with snapshots above 0"
            )
        if not 0 <= place < len(history):
            raise UsageError(f"the history has the states 0 to {len(history) - 1}, got {place}; use one of them")
        parts = {name: getattr(history, name)[place] for name in ("images", "labels", "step_size")}
        return replace(self, **parts, iteration=int(history.iterations[place]), stored={}, history=None, **RAW)

    def pixels(self, whitening: Whitening | None = None, clip: bool = True) -> Tensor:
        """Return `[n, C, H, W]` float32 images in [0, 1] for display.

        `clip` clamps values outside [0, 1]. `whitening` None: it is read from `whitening_path`, since its 76 MB (for
        CIFAR-10) are not stored in the set's own file of a few KiB.

        Raises:
            UsageError: the whitening's file is missing or broken, or it is not the whitening of these images.
        """
        if self.preprocessing["whitening_hash"] is not None and whitening is None:
            if self.whitening_path is None or not self.whitening_path.is_file():
                raise UsageError(
                    f"the images are whitened and the whitening is not at {self.whitening_path}; make it with "
                    f"`python -m satm data --dataset {self.dataset} --make zca`, or give pixels() the whitening"
                )
            whitening = load_whitening(self.whitening_path)
        return Preprocessor.from_identity(self.preprocessing, whitening).to_pixels(self.images, clip)


def _type(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def save_distilled(path: Path, data: DistilledDataset) -> None:
    """Write a synthetic set as safetensors, atomically; equal sets give equal bytes, without time and host.

    The path of the whitening is stored relative to `path`, so that a folder of results can be moved.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    whitening = data.whitening_path
    metadata = {
        **{name: getattr(data, name) for name in STATED},
        "kind": "distilled",
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
        UsageError: the file is missing, incomplete or of another kind.
    """
    path, where = Path(path), f"synthetic set {path}"
    tensors, metadata = read_tensors(path, "synthetic set")
    stored = {name.removeprefix(STORED): tensors.pop(name) for name in sorted(tensors) if name.startswith(STORED)}
    states = {name.removeprefix(HISTORY): tensors.pop(name) for name in sorted(tensors) if name.startswith(HISTORY)}
    if metadata.get("kind") != "distilled" or set(tensors) - set(RAW_PARTS) != {"images", "labels", "step_size"}:
        kind = metadata.get("kind", "something else")
        raise UsageError(f"{path} holds {kind}, expected a synthetic set; give a distilled.safetensors")
    values = expect({"average": "raw", "device_name": "", **metadata}, STATED, where)
    expect(values["preprocessing"], {"space": str, "mean": list, "std": list, "whitening_hash": object}, where)
    if not all(isinstance(text, str) for text in [*values["class_names"], values["whitening_path"] or ""]):
        raise UsageError(f"{where}: class_names and whitening_path must be text; {AGAIN}")
    fields: dict[str, Any] = {name: values[name] for name in STATED} | tensors
    fields["class_names"] = tuple(fields["class_names"])
    if (whitening := fields["whitening_path"]) is not None:
        fields["whitening_path"] = (path.parent.resolve() / whitening).resolve()
    return DistilledDataset(**fields, stored=stored, history=_history(states, tensors, where) if states else None)


def _history(states: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> History:
    """Return the states, checked to fit the set."""
    count = len(states["iterations"]) if "iterations" in states and states["iterations"].ndim == 1 else 0
    like = {name: (tensors[name].dtype, (count, *tensors[name].shape)) for name in ("images", "labels", "step_size")}
    like["iterations"] = (torch.int64, (count,))
    if not count or {name: (part.dtype, tuple(part.shape)) for name, part in states.items()} != like:
        raise UsageError(f"{where}: its history does not fit its images; {AGAIN}")
    return History(**states)
