"""Signs that a dataset is not what it should be: copies, empty or tiny classes, blank images, similar names."""

import statistics
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from hashlib import blake2b

from satm.data.decode import Decoded
from satm.data.listing import Doubt, Listing
from satm.errors import some

SHARE = 0.01
"""Share of copies above which they are refused; published datasets have some (CINIC-10: 0.9 % within its classes)."""

TINY = 10
"""A class with a tenth of the training images of the median class, or fewer, is pointed out."""

DARK = 64
"""A dataset whose largest pixel is below this is pointed out."""

BLANK_AT_ONCE = 1024
"""Images that are compared with their first pixel at a time."""

Copies = list[tuple[int, int]]
"""Rows of an image and of an earlier one with the same pixels."""


def find_doubts(listing: Listing, train: Decoded, test: Decoded, names: Sequence[str]) -> list[Doubt]:
    """Return what looks wrong in a dataset; `names` are those of its classes by label."""
    inside, leaked, repeated = _copies(train, test)
    doubts = list(listing.doubts)
    for copies, part, other, text, allow in (
        (leaked, test, train, "test images are training images too", "train-in-test"),
        (inside, train, train, "training images are copies of another one", "duplicates"),
        (repeated, test, test, "test images are copies of another one", None),
    ):
        if copies:
            total, pairs = len(part.split), [f"{part.where(row)} = {other.where(first)}" for row, first in copies[:10]]
            refused = allow if len(copies) > SHARE * total and not listing.published else None
            doubts.append(Doubt(f"{len(copies)} of {total} {text}: {some(pairs, len(copies))}", refused))
    texts = [*_differing(inside, train, train), *_differing(leaked, test, train), *_differing(repeated, test, test)]
    if texts:
        doubts.append(Doubt(f"images of different classes have the same pixels, {len(texts)} times: {some(texts)}"))
    train_counts, test_counts = (part.split.labels.bincount(minlength=len(names)).tolist() for part in (train, test))
    if untested := [name for name, count in zip(names, test_counts, strict=True) if not count]:
        doubts.append(Doubt(f"{len(untested)} of {len(names)} classes have no test images: {some(untested)}"))
    median = statistics.median(train_counts)
    if tiny := [f"{name} ({n})" for name, n in zip(names, train_counts, strict=True) if n * TINY <= median]:
        doubts.append(
            Doubt(
                f"{len(tiny)} of {len(names)} classes have few training images, the median is {median:g}: {some(tiny)}"
            )
        )
    for part, what in ((train, "training"), (test, "test")):
        if blank := _blank(part):
            listed = some([part.where(row) for row in blank])
            doubts.append(Doubt(f"{len(blank)} of {len(part.split)} {what} images have one colour only: {listed}"))
    if (largest := int(train.split.images.max())) < DARK:
        doubts.append(Doubt(f"the training images are dark: no value is above {largest} of 255; were they scaled?"))
    if alike := _alike(names):
        doubts.append(Doubt(f"names of classes differ in case or Unicode form only: {some(alike)}"))
    return doubts


def _copies(train: Decoded, test: Decoded) -> tuple[Copies, Copies, Copies]:
    """Return the copies within the training images, of training images among the test images, and within those."""
    hashes = [
        [blake2b(image.numpy().data, digest_size=16).digest() for image in part.split.images] for part in (train, test)
    ]
    firsts = [{digest: row for row, digest in reversed(list(enumerate(part)))} for part in hashes]
    inside, repeated = (
        [(row, first[digest]) for row, digest in enumerate(part) if first[digest] != row]
        for part, first in zip(hashes, firsts, strict=True)
    )
    return inside, [(row, firsts[0][digest]) for row, digest in enumerate(hashes[1]) if digest in firsts[0]], repeated


def _differing(copies: Copies, part: Decoded, other: Decoded) -> list[str]:
    """Return the copies whose labels differ."""
    labels, others = part.split.labels, other.split.labels
    return [f"{part.where(row)} = {other.where(first)}" for row, first in copies if labels[row] != others[first]]


def _blank(part: Decoded) -> list[int]:
    """Return the rows of images all of whose pixels are the same."""
    chunks = part.split.images.split(BLANK_AT_ONCE)
    masks = [(chunk == chunk[:, :, :1, :1]).flatten(1).all(1) for chunk in chunks]
    return [row for row, blank in enumerate(flag for mask in masks for flag in mask.tolist()) if blank]


def _alike(names: Sequence[str]) -> list[str]:
    groups = defaultdict(list)
    for name in names:
        groups[unicodedata.normalize("NFKC", name).casefold()].append(name)
    return [" and ".join(group) for group in groups.values() if len(group) > 1]
