"""Loading of a dataset.

Its source lists the images. Checks, subsets of classes, decoding, held-out images and normalisation statistics are the
same for every source.
"""

import math
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from satm.config import DatasetOptions, data_path
from satm.data.convert import GREY, KINDS
from satm.data.decode import Decoded, Resizing, decode_part, describe_faults
from satm.data.doubts import find_doubts
from satm.data.images import ImageData, Split, hash_images, hold_out
from satm.data.listing import Fault, Listing, Part
from satm.data.sources import DATASETS
from satm.errors import UsageError, pick, some

CHUNK = 1024
"""Images whose pixels are counted at a time."""


def load_dataset(name: str, options: DatasetOptions) -> ImageData:
    """Return a dataset, decoded and checked; `name` is its name in files and messages.

    Raises:
        UsageError: missing or damaged files, images that cannot be used, labels out of range, a class without training
            images, options that do not fit, or faults of the images that `options.allow` does not name. The message has
            the number of faulty images and the names of ten.
        RunError: a download failed.
    """
    listing = _named_below(data_path(options), pick(options.source, DATASETS, "source")(options))
    parts = {"training": listing.train, "test": listing.test}
    problems = [
        f"there are no {what} images; check files and options" for what, part in parts.items() if not part.labels
    ]
    names, faults = _class_names(name, listing, options), list(listing.faults)
    if not names:
        _refuse(name, options, [*problems, *([describe_faults(faults, len(faults))] if faults else [])])
    kept = _kept_classes(name, options, len(names))
    class_names = tuple(names[label] for label in kept)
    trained, tested = (set(part.labels) for part in parts.values())
    if trained and (missing := [f"{label} ({names[label]})" for label in kept if label not in trained]):
        count = f"{len(missing)} of {len(kept)} classes"
        problems.append(
            f"{count} have no training images: {some(missing)}; add some, or list the classes to keep in `classes`"
        )
    if tested and not tested & set(kept):
        problems.append(f"there are no test images of the classes {list(kept)}; choose others")
    resizing = None if options.size is None else Resizing(options.size, options.resize)
    train = decode_part(listing.train, kept, resizing, None)
    test = decode_part(listing.test, kept, resizing, train.split.images.shape[-1] or None)
    total = len(train.split) + len(test.split)
    if faults := [*faults, *train.faults, *test.faults]:
        problems.append(describe_faults(faults, total + len(listing.faults)))
    _refuse(name, options, problems)
    doubts = find_doubts(listing, train, test, class_names)
    if refused := [doubt for doubt in doubts if doubt.allow not in (None, *options.allow)]:
        accept = ", ".join(dict.fromkeys(str(doubt.allow) for doubt in refused))
        remedy = f"correct this, or accept it with the option `allow: [{accept}]` of the dataset"
        _refuse(name, options, [*(doubt.text for doubt in refused), remedy])
    all_grey = train.grey + test.grey == total
    used, held = (one.split if not all_grey else _one_channel(one.split) for one in (train, test))
    used, validation = hold_out(used, options.validation, options.split_seed)
    mean, std = _statistics(name, used.images, options)
    said = _notes(listing, train, test, all_grey), tuple(doubt.text for doubt in doubts)
    identity = hash_images(used, validation, held)
    return ImageData(name, used, validation, held, class_names, mean, std, identity, *said)


def _named_below(folder: Path, listing: Listing) -> Listing:
    """Return a listing whose files have names relative to the folder of the dataset."""

    def below(where: str) -> str:
        return where.removeprefix(f"{folder}{os.sep}")

    def named(part: Part) -> Part:
        return replace(part, where=lambda index: below(part.where(index)))

    faults = tuple(Fault(below(fault.where), fault.why) for fault in listing.faults)
    return replace(listing, train=named(listing.train), test=named(listing.test), faults=faults)


def _one_channel(split: Split) -> Split:
    return Split(split.images[:, :1].contiguous(), split.labels)


def _notes(listing: Listing, train: Decoded, test: Decoded, all_grey: bool) -> tuple[str, ...]:
    """Say what was converted and left out."""
    done = train.done + test.done + Counter({GREY: 0 if all_grey else train.grey + test.grey})
    total = len(train.split) + len(test.split)
    notes = [f"{done[kind]} of {total} images {kind}" for kind in KINDS if done[kind]]
    if listing.left_out:
        left_out = [f"{number} {file}" for file, number in sorted(listing.left_out.items())]
        notes.append(f"left out, as no images: {listing.left_out.total()}, namely {some(left_out)}")
    return tuple(notes)


def _refuse(name: str, options: DatasetOptions, problems: list[str]) -> None:
    """Raise a UsageError with all that is wrong with a dataset, if anything is."""
    if problems:
        raise UsageError(f"dataset {name!r} in {data_path(options)}: {'; '.join(problems)}")


def _class_names(name: str, listing: Listing, options: DatasetOptions) -> tuple[str, ...]:
    """Return the names of all classes by label, after checking the labels of both splits."""
    labels = listing.train.labels
    # If classes are unknown, a label beyond the number of images cannot be right: some class below it has no image.
    names = listing.class_names or tuple(map(str, range(min(max(labels, default=-1) + 1, len(labels)))))
    wrong = []
    for part in (listing.train, listing.test):
        wrong += [(part.where(index), label) for index, label in enumerate(part.labels) if not 0 <= label < len(names)]
    if names and wrong:
        listed = some([f"{where} ({label})" for where, label in wrong])
        count = f"{len(wrong)} of {len(labels) + len(listing.test.labels)} labels"
        _refuse(name, options, [f"{count} are out of range, expected 0 to {len(names) - 1}: {listed}; correct them"])
    return names


def _kept_classes(name: str, options: DatasetOptions, count: int) -> tuple[int, ...]:
    kept = tuple(range(count)) if options.classes is None else options.classes
    if not kept or len(set(kept)) < len(kept):
        raise UsageError(
            f"dataset {name!r}: `classes` is {list(kept)}, expected different labels, at least one; correct it"
        )
    for label in kept:
        if not 0 <= label < count:
            raise UsageError(f"dataset {name!r}: `classes` has class {label}, expected 0 to {count - 1}; correct it")
    return kept


def _statistics(name: str, images: Tensor, options: DatasetOptions) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel over all pixels, [0, 1] scale, or those in the options."""
    channels = images.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.int64)  # a histogram needs little memory
    for chunk in images.split(CHUNK):
        counts += torch.stack([chunk[:, channel].reshape(-1).bincount(minlength=256) for channel in range(channels)])
    # Integers until the last step, so that every processor gets the same bits: files of synthetic sets contain them.
    means, stds = [], []
    for row in counts.tolist():
        pixels = sum(row)
        total, squares = (sum(count * level**power for level, count in enumerate(row)) for power in (1, 2))
        means.append(total / (255 * pixels))
        stds.append(math.sqrt(pixels * squares - total**2) / (255 * pixels))
    for what, fixed in (("mean", options.mean), ("std", options.std)):
        if fixed is not None and len(fixed) != channels:
            raise UsageError(
                f"dataset {name!r}: `{what}` has {len(fixed)} values, expected {channels}, one per channel; correct it"
            )
    mean, std = options.mean or tuple(means), options.std or tuple(stds)
    if not min(std) > 0:
        raise UsageError(
            f"dataset {name!r}: the std of a channel is {min(std)}, expected above 0; set `std`, "
            "or check that the images are not all of one colour"
        )
    return mean, std
