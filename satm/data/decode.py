"""Decoding of listed images into tensors, on several threads.

`satm.data.convert` says which images are converted to 8-bit grey or RGB, and which are refused. A dataset with both has
grey images in three equal channels; a dataset of grey images only keeps one channel.

Raw uint8 images are resized as `Resizing` says (Pillow, bilinear with antialiasing). Differs: the MTT code normalises
before it resizes, which is the same up to rounding to whole grey values, since interpolation weights add up to 1.
"""

import itertools
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from satm.data.convert import ENLARGED, Unusable, read_image
from satm.data.images import Split
from satm.data.listing import Encoded, Fault, Part
from satm.errors import SHOWN

READ_AT_ONCE = 1024
"""Encoded images in memory at the same time."""

TASK = 32
"""Images that a thread decodes at a time."""

SMALL = 8192
"""Bytes of an encoded image below which threads do not help: 60,000 CIFAR images take 7 s without them, 10 s with."""

LEAST = 4
"""Pixels of the shorter side of an image, at least, as of the option `size`."""

SIZES = "pixels, expected"
"""In what is said of an image of the wrong size."""


class Resizing(NamedTuple):
    """The size that images are brought to, and how."""

    size: int
    """Height and width in pixels."""
    how: Literal["crop", "squash"]
    """Resize the shorter side and crop the centre, or resize both sides, which changes the aspect ratio."""


Result = tuple[NDArray[np.uint8], list[str]] | str
"""An image, `[H, W]` (grey) or `[H, W, 3]`, and what was done to it; or why it cannot be used."""


@dataclass(frozen=True)
class Decoded:
    """The decoded images of a part."""

    split: Split
    """With three channels; rows of faulty images are not filled."""
    grey: int
    """Number of images in grey."""
    done: Counter[str]
    """Numbers of converted images, by `satm.data.convert.KINDS`."""
    faults: list[Fault]
    """Images that cannot be used."""
    where: Callable[[int], str]
    """Name of the image in a row, for messages."""


def decode_part(part: Part, kept: tuple[int, ...], resizing: Resizing | None, expected: int | None) -> Decoded:
    """Return the images of the kept classes.

    Args:
        part: images to decode.
        kept: labels to keep, in the order of their new labels.
        resizing: size of the decoded images; None: images stay as they are.
        expected: height and width of all images; None: those of the first image.
    """
    renumber = {label: new for new, label in enumerate(kept)}
    rows = [index for index, label in enumerate(part.labels) if label in renumber]
    labels = torch.tensor([renumber[part.labels[index]] for index in rows], dtype=torch.int64)
    items = (image for index, image in enumerate(part.images) if part.labels[index] in renumber)
    pixels = np.empty((0, 3, expected or 0, expected or 0), np.uint8)
    grey, done, faults = 0, Counter[str](), list[Fault]()
    for row, result in enumerate(_decode_images(items, resizing)):
        where = part.where(rows[row])
        if isinstance(result, str):
            faults.append(Fault(where, result))
            continue
        image, kinds = result
        height, width = image.shape[:2]
        if expected is None and height == width:
            expected = height
        if (height, width) != (expected, expected):
            form = f"{expected} x {expected} like the others" if expected else "a square image"
            faults.append(Fault(where, f"{height} x {width} {SIZES} {form}"))
            continue
        if not len(pixels):
            pixels = np.empty((len(labels), 3, height, width), np.uint8)
        grey += image.ndim == 2
        done.update(kinds)
        pixels[row] = image if image.ndim == 2 else image.transpose(2, 0, 1)
    split = Split(torch.from_numpy(pixels), labels)
    return Decoded(split, grey, done, faults, lambda row: part.where(rows[row]))


def _decode_images(items: Iterator[Encoded], resizing: Resizing | None) -> Iterator[Result]:
    """Yield what comes of each image, in order."""

    def decode(task: list[Encoded]) -> list[Result]:
        return [_decode_image(image, resizing) for image in task]

    with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about tags and large images
        while batch := list(itertools.islice(items, READ_AT_ONCE)):
            tasks = [batch[start : start + TASK] for start in range(0, len(batch), TASK)]
            yield from itertools.chain.from_iterable((map if _is_small(batch[0]) else pool.map)(decode, tasks))


def describe_faults(faults: Sequence[Fault], total: int) -> str:
    """Say which of so many images cannot be used and why, the first ten by name, and what to do."""
    reasons: dict[str, list[str]] = {}
    for fault in faults[:SHOWN]:
        reasons.setdefault(fault.why, []).append(fault.where)
    shown = ", ".join(f"{', '.join(names)} ({why})" for why, names in reasons.items())
    more = f" and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    advice = f"convert, replace or remove {'it' if len(faults) == 1 else 'them'}"
    if any(SIZES in fault.why for fault in faults):
        advice += ", or set the dataset's `size` to resize all images"
    return f"{len(faults)} of {total} images cannot be used: {shown}{more}; {advice}"


def _is_small(source: Encoded) -> bool:
    """Return whether threads would cost more than they gain: on small images they wait for the interpreter's lock."""
    return source is None or isinstance(source, Image.Image) or (isinstance(source, bytes) and len(source) < SMALL)


def _decode_image(source: Encoded, resizing: Resizing | None) -> Result:
    """Return an image, resized if asked for, and what was done; or what is wrong with it."""
    try:
        image, done = read_image(source)
    except Unusable as error:
        return str(error)
    if resizing is None and min(image.size) < LEAST:
        return f"{image.height} x {image.width} {SIZES} at least {LEAST} x {LEAST}"
    if resizing and image.size != (size := resizing.size, size):
        shorter = min(image.size)
        done = [*done, ENLARGED] if shorter < size else done
        if resizing.how == "squash":
            return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)), done
        width, height = (max(size, round(side * size / shorter)) for side in image.size)
        if width * height > (Image.MAX_IMAGE_PIXELS or 0):
            return f"{image.height} x {image.width} pixels, too long and thin to resize to {size} x {size}"
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return np.asarray(image), done
