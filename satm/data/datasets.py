"""Loading of a dataset.

Its source lists the images. Checks, subsets of classes, decoding, held-out images and normalisation statistics are the
same for every source.
"""

import math

import torch
from torch import Tensor

from satm.config import DatasetOptions, data_path
from satm.data.decode import decode_part
from satm.data.images import ImageData, Split, hash_images, hold_out
from satm.data.listing import Listing
from satm.data.sources import DATASETS
from satm.errors import UsageError, pick

CHUNK = 1024
"""Images whose pixels are counted at a time."""


def load_dataset(name: str, options: DatasetOptions) -> ImageData:
    """Return a dataset, decoded and checked; `name` is its name in files and messages.

    Raises:
        UsageError: missing or damaged files, images of different sizes or of an unsupported mode, labels out of range,
            a class without training images, or options that do not fit; the message names file and row.
        RunError: a download failed.
    """
    listing = pick(options.source, DATASETS, "source")(options)
    names = _class_names(name, listing, options)
    kept = _kept_classes(name, options, len(names))
    missing = sorted(set(kept) - set(listing.train.labels), key=kept.index)
    if missing:
        raise UsageError(
            f"dataset {name!r}: class {missing[0]} ({names[missing[0]]}) has no training images; "
            "add some, or list the classes to keep in `classes`"
        )
    train, train_grey = decode_part(listing.train, kept, options.size, None)
    test, test_grey = decode_part(listing.test, kept, options.size, train.images.shape[-1])
    if not len(test):
        raise UsageError(f"dataset {name!r} has no test images of the classes {list(kept)}; choose others")
    if train_grey and test_grey:
        train, test = (Split(split.images[:, :1].contiguous(), split.labels) for split in (train, test))
    train, validation = hold_out(train, options.validation, options.split_seed)
    mean, std = _statistics(name, train.images, options)
    class_names = tuple(names[label] for label in kept)
    return ImageData(name, train, validation, test, class_names, mean, std, hash_images(train, validation, test))


def _class_names(name: str, listing: Listing, options: DatasetOptions) -> tuple[str, ...]:
    """Return the names of all classes by label, after checking the labels of both splits."""
    labels = listing.train.labels
    # If classes are unknown, a label beyond the number of images cannot be right: some class below it has no image.
    names = listing.class_names or tuple(map(str, range(min(max(labels, default=-1) + 1, len(labels)))))
    for part, what in ((listing.train, "training"), (listing.test, "test")):
        if not part.labels:
            raise UsageError(f"dataset {name!r} has no {what} images in {data_path(options)}; check files and options")
        for index, label in enumerate(part.labels):
            if not 0 <= label < len(names):
                raise UsageError(
                    f"{part.where(index)}: label {label} is out of range, expected 0 to {len(names) - 1}; correct it"
                )
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
