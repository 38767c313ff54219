"""Decoding of listed images into tensors, on several threads.

Pillow's modes RGB and L (8-bit grey) are accepted. A dataset with both has grey images in three equal channels; a
dataset of grey images only keeps one channel. Other modes (palette, alpha, CMYK, 16 bits) are refused, because there is
more than one way to convert them. Orientation tags are not applied.

With `size`, raw uint8 images are resized (Pillow, bilinear with antialiasing) to that length of their shorter side, and
cropped at the centre. Differs: the MTT code normalises before it resizes, which is the same up to rounding to whole
grey values, since interpolation weights add up to 1.
"""

import io
import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from satm.data.images import Split
from satm.data.listing import Encoded, Part
from satm.errors import UsageError

READ_AT_ONCE = 1024
"""Encoded images in memory at the same time."""

TASK = 32
"""Images that a thread decodes at a time."""

SMALL = 8192
"""Bytes of an encoded image below which threads do not help: 60,000 CIFAR images take 7 s without them, 10 s with."""


def decode_part(part: Part, kept: tuple[int, ...], size: int | None, expected: int | None) -> tuple[Split, bool]:
    """Return the images of the kept classes, with three channels, and whether all are grey.

    Args:
        part: images to decode.
        kept: labels to keep, in the order of their new labels.
        size: height and width to resize and crop to; None: images stay as they are.
        expected: height and width of all images; None: those of the first image.

    Raises:
        UsageError: an image that cannot be read, or of another mode, shape or size than expected.
    """
    renumber = {label: new for new, label in enumerate(kept)}
    labels = [renumber[label] for label in part.labels if label in renumber]
    items = ((index, image) for index, image in enumerate(part.images) if part.labels[index] in renumber)
    pixels = np.empty((0, 3, expected or 0, expected or 0), np.uint8)
    grey, row = True, 0

    def decode(task: list[tuple[int, Encoded]]) -> list[NDArray[np.uint8]]:
        return [_decode_image(image, part.where(index), size) for index, image in task]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while batch := list(itertools.islice(items, READ_AT_ONCE)):
            tasks = [batch[start : start + TASK] for start in range(0, len(batch), TASK)]
            decoded = map(decode, tasks) if _is_small(batch[0][1]) else pool.map(decode, tasks)
            for (index, _), image in zip(batch, itertools.chain.from_iterable(decoded), strict=True):
                height, width = image.shape[:2]
                if expected is None and height == width:
                    expected = height
                if (height, width) != (expected, expected):
                    form = f"{expected} x {expected} like the others" if expected else "a square image"
                    raise UsageError(
                        f"{part.where(index)}: the image has {height} x {width} pixels, expected {form}; "
                        "resize it, or set the dataset's `size` to resize and crop all images"
                    )
                if not len(pixels):
                    pixels = np.empty((len(labels), 3, height, width), np.uint8)
                grey = grey and image.ndim == 2
                pixels[row] = image if image.ndim == 2 else image.transpose(2, 0, 1)
                row += 1
    return Split(torch.from_numpy(pixels), torch.tensor(labels, dtype=torch.int64)), grey


def _is_small(source: Encoded) -> bool:
    """Return whether threads would cost more than they gain: on small images they wait for the interpreter's lock."""
    return isinstance(source, Image.Image) or (isinstance(source, bytes) and len(source) < SMALL)


def _decode_image(source: Encoded, where: str, size: int | None) -> NDArray[np.uint8]:
    """Return an image as `[H, W]` (grey) or `[H, W, 3]`, resized and cropped to `size` if one is given."""
    try:
        if not isinstance(source, Image.Image):
            source = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        source.load()
    except Exception as error:  # on damaged bytes Pillow's decoders raise errors of many unrelated kinds
        text = " ".join(str(error).split())
        raise UsageError(f"{where}: the image cannot be read ({text}); replace or remove it") from error
    if source.mode not in ("L", "RGB"):
        raise UsageError(f"{where}: the image has mode {source.mode}, expected RGB or L (8-bit grey); convert it")
    if size and source.size != (size, size):
        shorter = min(source.size)
        width, height = (max(size, round(side * size / shorter)) for side in source.size)
        left, top = (width - size) // 2, (height - size) // 2
        source = source.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return np.asarray(source)
