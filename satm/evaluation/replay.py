"""Replay buffer of synthetic images for continual learning.

Shapes: n images in the buffer, C x H x W each; K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from satm.errors import UsageError
from satm.results.distilled import DistilledDataset
from satm.storage.identity import differing_fields

Data = DistilledDataset | tuple[Tensor, Tensor]
"""A synthetic set, or images `[m, C, H, W]` with labels `[m]` int64 or `[m, K]` float32 logits."""


class Memory:
    """Replay buffer: images of the classes learned so far, to train on or to mix with new data.

    Labels are stored unchanged, so all data must number the classes alike.
    """

    def __init__(self) -> None:
        self._data: tuple[Tensor, Tensor] | None = None  # images and labels
        self._classes: tuple[int, ...] = ()
        self._preprocessing: Mapping[str, Any] | None = None
        self._left = torch.empty(0, dtype=torch.int64)  # indices not drawn in this pass over the images

    @property
    def images(self) -> Tensor:
        """`[n, C, H, W]` in the space of the data, in the order of `add`."""
        return self._not_empty()[0]

    @property
    def labels(self) -> Tensor:
        """`[n]` int64 classes, or `[n, K]` float32 logits."""
        return self._not_empty()[1]

    @property
    def classes(self) -> tuple[int, ...]:
        """Classes in the order in which they were added."""
        return self._classes

    def __len__(self) -> int:
        """Return n."""
        return 0 if self._data is None else len(self._data[0])

    def add(self, data: Data, classes: Sequence[int] | None = None) -> None:
        """Add the images of some classes; None: of all.

        The class of an image is its label. With soft labels it follows from the image's place in a synthetic set; in a
        pair of tensors it is the largest logit. The space of a pair is unknown and not checked.

        Raises:
            UsageError: the tensors are not images with labels; size, space or kind of labels differ from those in the
                buffer; a class is in the buffer already, or has no images in the data.
        """
        preprocessing = self._preprocessing
        if isinstance(data, DistilledDataset):
            images, labels, preprocessing = data.images, data.labels, data.preprocessing
        else:
            images, labels = data
        members = _members(images, labels, by_place=isinstance(data, DistilledDataset))
        present = tuple(dict.fromkeys(members.tolist()))
        new = present if classes is None else tuple(dict.fromkeys(classes))
        if self._preprocessing is not None and (differs := differing_fields(self._preprocessing, preprocessing)):
            raise UsageError(f"the images are in another space than those of the memory: {differs}; add sets of one")
        for what, old, added in zip(("images", "labels"), self._data or (), (images, labels), strict=False):
            if (old.shape[1:], old.dtype) != (added.shape[1:], added.dtype):
                raise UsageError(
                    f"the memory holds {what} of {old.dtype} {tuple(old.shape[1:])}, got {added.dtype} "
                    f"{tuple(added.shape[1:])}; add sets of one kind"
                )
        for label in new:
            if label in self._classes:
                raise UsageError(f"class {label} is in the memory already; add each class once")
            if label not in present:
                raise UsageError(f"the data has no images of class {label}; it has the classes {sorted(present)}")
        chosen = torch.isin(members, torch.tensor(new, dtype=torch.int64, device=members.device))
        images, labels, size = images[chosen], labels[chosen], len(self)
        self._left = torch.cat([self._left, torch.arange(size, size + len(images))])
        if self._data is not None:
            images, labels = torch.cat([self._data[0], images]), torch.cat([self._data[1], labels])
        self._data, self._classes, self._preprocessing = (images, labels), self._classes + new, preprocessing

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return `[count, C, H, W]` random images and their labels; no image repeats before all were drawn.

        Images added later are drawn in the current pass. `count` may exceed n; the generator is on the CPU.

        Raises:
            UsageError: the buffer is empty, or `count` is not positive.
        """
        images, labels = self._not_empty()
        if count < 1:
            raise UsageError(f"a batch needs at least 1 image, got count {count}; use 1 or more")
        batches: list[Tensor] = []
        while count:
            if not len(self._left):
                self._left = torch.arange(len(self))
            order = self._left[torch.randperm(len(self._left), generator=generator)]
            batches.append(order[:count])
            self._left = order[count:]
            count -= len(batches[-1])
        indices = torch.cat(batches).to(images.device)
        return images[indices], labels[indices]

    def _not_empty(self) -> tuple[Tensor, Tensor]:
        if self._data is None:
            raise UsageError("the memory is empty; add a synthetic set first")
        return self._data


def _members(images: Tensor, labels: Tensor, by_place: bool) -> Tensor:
    """Return `[m]` int64, the class of each image: its label, or for soft labels its place or largest logit.

    Raises:
        UsageError: the tensors are not images with labels.
    """
    hard = labels.dtype == torch.int64 and labels.ndim == 1
    soft = labels.is_floating_point() and labels.ndim == 2
    if images.ndim != 4 or not len(images) or len(images) != len(labels) or not (hard or soft):
        raise UsageError(
            f"a memory needs images [m, C, H, W] with labels int64 [m] or float32 [m, K], got {tuple(images.shape)} "
            f"and {labels.dtype} {tuple(labels.shape)}; convert them"
        )
    if hard:
        return labels
    each, rest = divmod(len(images), labels.shape[1])
    if by_place and not rest:
        return torch.arange(labels.shape[1], device=labels.device).repeat_interleave(each)
    return labels.argmax(1)
