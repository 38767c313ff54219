"""Conversion of encoded images to upright 8-bit grey or RGB, where an image has one meaning.

| image | becomes |
| --- | --- |
| 8-bit grey or RGB | itself |
| palette | the colours of its pixels; grey if all of them are |
| 1 bit | black and white |
| CMYK | RGB, by Pillow's formula without colour profiles |
| transparency | the image over white; an opaque alpha channel is dropped |
| 10, 12 or 16 bits per channel | the upper 8 bits |
| an EXIF tag of orientation | the image turned upright |

Refused, because there is more than one meaning: several frames or pages, floating point and 32-bit numbers, other
colour spaces, CMYK in a JPEG that does not say whether it is inverted. Refused as well: JPEG 2000 in colour of more
than 8 bits, whose white Pillow reads as black. Colour profiles are not applied.
"""

import io
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from satm.data.listing import Encoded

FORMATS = {
    *("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP"),
}
"""Pillow's names of formats of pixels. Others, such as EPS, would run a program or are no pictures."""

PALETTE = "with a palette, converted to its colours"
BITMAP = "of 1 bit: black and white"
CMYK = "in CMYK: converted without colour profiles"
CLEAR = "with transparency: put over white"
OPAQUE = "with an opaque alpha channel: it was dropped"
DEEP = "of more than 8 bits per channel: the upper 8 were kept"
TURNED = "with an EXIF tag of orientation: turned upright"
ENLARGED = "smaller than `size`: enlarged"
GREY = "in grey among colour: three equal channels"
KINDS = (PALETTE, BITMAP, CMYK, CLEAR, OPAQUE, DEEP, TURNED, ENLARGED, GREY)
"""What was done to an image, after `3 images`."""

EXIF = {"exif", "Raw profile type exif"}
ORIENTATION = 0x0112

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to turn an image upright by the value of its EXIF tag."""

STRETCH = {"L;2": 85, "L;4": 17}
"""Factor from stored grey values of 2 and 4 bits to those of the decoded image."""

SIZ = b"\xff\x4f\xff\x51"
"""Start of the description of the channels in a JPEG 2000 file."""

HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"heif", b"mif1", b"msf1"}


class Unusable(Exception):
    """An image that cannot be read or has no single meaning; the text says why, in a few words."""


def read_image(source: Encoded) -> tuple[Image.Image, list[str]]:
    """Return an image in mode L or RGB, upright, and what was done to it (some of `KINDS`).

    Raises:
        Unusable: it cannot be read, or there is more than one way to convert it.
    """
    if source is None:
        raise Unusable("no bytes: store the images themselves, not only their paths")
    try:
        if isinstance(source, Path):
            source = source.read_bytes()
        image = Image.open(io.BytesIO(source)) if isinstance(source, bytes) else source
        if image.format is not None and image.format not in FORMATS:
            raise Unusable(f"format {image.format}, expected JPEG, PNG or another format of pixels")
        # The further pictures of an MPO, a JPEG of cameras and phones, are previews.
        if image.format != "MPO" and getattr(image, "is_animated", False):
            raise Unusable("several frames or pages, expected one")
        deep = isinstance(source, bytes) and _is_deep_coded(image.format, source)
        if deep and image.format == "JPEG2000" and image.mode != "I;16":
            raise Unusable(
                "JPEG 2000 in colour of more than 8 bits per channel, whose white would turn black: convert it"
            )
        return _convert(image, deep)
    except UnidentifiedImageError as error:
        assert isinstance(source, bytes)
        raise Unusable(_unknown(source)) from error
    except Unusable:
        raise
    except Exception as error:  # on damaged bytes Pillow's decoders raise errors of many unrelated kinds
        raise Unusable(f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error


def _unknown(content: bytes) -> str:
    """Say what bytes are that Pillow does not know."""
    if not content:
        return "an empty file"
    if content.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS: get the image with `git lfs pull`"
    if content[4:8] == b"ftyp" and content[8:12] in HEIC:
        return "HEIC, which Pillow does not read"
    if content.lstrip()[:1] == b"<":
        return "a web page or SVG, no image of pixels"
    return "not an image, or of an unknown format"


def _convert(image: Image.Image, deep: bool) -> tuple[Image.Image, list[str]]:
    tiles = getattr(image, "tile", None) or [("",) * 4]
    stored = str(tiles[0][3])  # how the file has the pixels, such as 'L;2'; Pillow forgets it when it reads them
    turned = image.format == "TIFF" and image.getexif().get(ORIENTATION) in TURNS  # by Pillow, when it reads them
    image.load()
    eight, done = _eight_bits(image, stored, deep)
    if image.format != "TIFF" and (turn := TURNS.get(_orientation(image))) is not None:
        eight, turned = eight.transpose(turn), True
    return eight, [*done, TURNED] if turned else done


def _orientation(image: Image.Image) -> int:
    """Return the value of the EXIF tag of orientation; 0: none."""
    try:
        return int(image.getexif().get(ORIENTATION, 0)) if image.info.keys() & EXIF else 0
    except Exception:  # on damaged tags, which say nothing of the pixels, Pillow raises errors of many kinds
        return 0


def _eight_bits(image: Image.Image, stored: str, deep_coded: bool) -> tuple[Image.Image, list[str]]:
    """Return a loaded image in mode L or RGB, and what was done to it."""
    mode, clear = image.mode, image.info.get("transparency")
    deep = [DEEP] if deep_coded or _is_deep(image, stored) else []
    if mode in ("L", "RGB", "1") or mode.startswith("I"):
        if mode.startswith("I") and not deep:
            raise Unusable("32 bits per pixel, expected 8 or 16: scale it")
        if mode == "RGB" and deep and clear is not None:
            raise Unusable("a transparent colour of 16 bits: convert it to 8 bits or to an alpha channel")
        done = [BITMAP] if mode == "1" else deep
        if mode in ("L", "RGB") and clear is None:
            return image, done
        if mode == "1":  # whose transparent value is 1 in some versions of Pillow and 255 in others
            image, clear = image.convert("L"), None if clear is None else 255 * bool(clear)
        return _without_clear(np.asarray(image), clear, stored, done)
    if mode == "P":
        with_alpha = clear is not None or (image.palette is not None and image.palette.mode == "RGBA")
        image = image.convert("RGBA" if with_alpha else "RGB")
        image, done = _over_white(image) if with_alpha else (image, [])
        red, green, blue = image.split()
        return red if red.tobytes() == green.tobytes() == blue.tobytes() else image, [PALETTE, *done]
    if mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        grey = mode in ("LA", "La") or "LA;16" in stored
        image, done = _over_white(image.convert("RGBA"))
        return image.getchannel("R") if grey else image, [*([PALETTE] if mode == "PA" else deep), *done]
    if mode == "CMYK":
        if image.format == "JPEG" and "adobe" not in image.info:
            raise Unusable("CMYK without Adobe's marker, which may or may not be inverted: convert it to RGB")
        return image.convert("RGB"), [CMYK]
    raise Unusable(f"mode {mode}, expected 8-bit or 16-bit grey or colours: convert it to RGB")


def _is_deep(image: Image.Image, stored: str) -> bool:
    """Return whether an image has more than 8 bits per channel; of RGB, Pillow reads the upper 8."""
    if image.format == "PPM":
        largest = re.fullmatch(r"\('\w+', (\d+)\)", stored)
        return int(largest[1]) > 255 if largest else image.mode == "I"
    in_file = image.format in ("PNG", "TIFF", "SGI") and ";16" in stored
    return in_file or image.mode.startswith("I;16") or (image.format == "PNG" and image.mode == "I")


def _is_deep_coded(form: str | None, content: bytes) -> bool:
    """Return whether a JPEG 2000 or AVIF file has more than 8 bits per channel, which Pillow does not tell."""
    if form == "JPEG2000" and (start := content.find(SIZ)) >= 0:
        return content[start + 42 : start + 43] > b"\x07"  # one less than the bits of the first channel
    if form == "AVIF" and (start := content.find(b"av1C")) >= 0:
        return any(byte & 0x40 for byte in content[start + 6 : start + 7])
    return False


def _without_clear(
    values: NDArray[np.generic], clear: object, stored: str, done: list[str]
) -> tuple[Image.Image, list[str]]:
    """Return grey or RGB values of 8 or 16 bits as an image, in which one value or colour, if given, becomes white."""
    eight = values if values.dtype == np.uint8 else (values.astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
    if isinstance(clear, int | tuple):
        mask = values == np.multiply(clear, STRETCH.get(stored, 1))
        mask = mask.all(-1) if mask.ndim == 3 else mask
        if mask.any():
            eight = eight.copy()
            eight[mask] = 255
            done = [*done, CLEAR]
    return Image.fromarray(eight), done


def _over_white(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Return an image of mode RGBA over white, in RGB, and whether anything of it was transparent."""
    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB"), [OPAQUE]
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"), [CLEAR]
