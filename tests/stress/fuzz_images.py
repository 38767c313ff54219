"""Datasets of odd images: folders and parquet files as people have them, with pictures of every mode and what is none.

A case is a number, from which a small dataset is drawn together with what must come of it: by slow code of its own for
pixels, counts, copies and faults. The command `data` must store exactly that, or refuse the dataset in one line with
the number of faulty images and the names of ten.
"""

import io
import shutil
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from fuzzing import Wrong, command, inside
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from satm.data import load_images

Pixels = NDArray[np.uint8]
Rng = np.random.Generator

CASES = st.integers(0, 2**32)
"""Numbers of cases."""

SIDE = 6
"""Height and width of most images."""


@dataclass
class Drawn:
    """An encoded image and what must become of it."""

    content: bytes | None
    pixels: Pixels | None
    """`[H, W]` or `[H, W, 3]`; None: it must be refused."""
    notes: tuple[str, ...] = ()
    """Words of the notes that count it."""


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Return the bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(values: NDArray[np.generic], depth: int, colour: int, clear: bytes = b"") -> bytes:
    """Write a PNG by hand: `[H, W, C]` values of 16 bits, or of fewer in grey."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = values.shape[:2]
    if depth == 16:
        rows = [values[row].astype(">u2").tobytes() for row in range(height)]
    else:
        bits = [(values[..., None] >> shift) & 1 for shift in range(depth - 1, -1, -1)]
        rows = [np.packbits(row).tobytes() for row in np.concatenate(bits, -1).reshape(height, -1).astype(np.uint8)]
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"tRNS", clear) if clear else b""]
    parts += [chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def colours(rng: Rng, height: int, width: int) -> Pixels:
    """Draw an image in RGB."""
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def greys(rng: Rng, height: int, width: int) -> Pixels:
    """Draw an image in grey."""
    return rng.integers(0, 256, (height, width), dtype=np.uint8)


def over_white(pixels: Pixels, alpha: Pixels) -> Pixels:
    """Put an image over white, pixel by pixel, in whole numbers rounded to the nearest."""
    alpha = alpha.astype(np.int64) if pixels.ndim == 2 else alpha.astype(np.int64)[..., None]
    return ((2 * (pixels.astype(np.int64) * alpha + 255 * (255 - alpha)) + 255) // 510).astype(np.uint8)


# Images that are usable


def draw_plain(rng: Rng, height: int, width: int) -> Drawn:
    """Draw an image of 8 bits, in grey or RGB."""
    kind = rng.choice(["PNG", "PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG", "MPO", "JPEG2000"])
    if kind == "JPEG2000" and min(height, width) < 8:
        kind = "PNG"
    pixels = greys(rng, height, width) if rng.random() < 0.3 and kind != "WEBP" else colours(rng, height, width)
    image = Image.fromarray(pixels)
    if kind in ("JPEG", "MPO", "JPEG2000"):
        more = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
        content = encode(image, str(kind), **more)
        return Drawn(content, np.asarray(Image.open(io.BytesIO(content))))
    return Drawn(encode(image, str(kind), **({"lossless": True} if kind == "WEBP" else {})), pixels)


def draw_palette(rng: Rng, height: int, width: int) -> Drawn:
    """Draw an image with a palette, with or without transparent entries."""
    table = rng.integers(0, 256, (256, 3), dtype=np.uint8)
    if grey := rng.random() < 0.3:
        table[:] = table[:, :1]
    values = greys(rng, height, width)
    image = Image.fromarray(values, "P")
    image.putpalette(table.tobytes())
    pixels, alpha = table[values], np.full(256, 255, np.uint8)
    options: dict[str, object] = {}
    kind = str(rng.choice(["PNG", "GIF"]))
    if rng.random() < 0.4:
        alpha[values[0, 0]] = 0
        options["transparency"] = int(values[0, 0])
        if kind == "PNG" and rng.random() < 0.5:
            alpha = greys(rng, 1, 256)[0]
            options["transparency"] = alpha.tobytes()
        pixels = over_white(pixels, alpha[values])
    used = alpha[values]
    notes = ["palette", *(["put over white"] if (used < 255).any() else ["opaque"] if options else [])]
    if kind == "GIF" and not options:  # Pillow may write or read it as grey
        return Drawn(encode(image, kind), pixels[..., 0] if grey else pixels, ("palette",))
    flat = (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()
    return Drawn(encode(image, kind, **options), pixels[..., 0] if flat else pixels, tuple(notes))


def draw_alpha(rng: Rng, height: int, width: int) -> Drawn:
    """Draw an image with an alpha channel."""
    grey = rng.random() < 0.4
    pixels = greys(rng, height, width) if grey else colours(rng, height, width)
    alpha = greys(rng, height, width)
    if opaque := rng.random() < 0.4:
        alpha[:] = 255
    note = "opaque" if opaque else "put over white"
    expected = pixels if opaque else over_white(pixels, alpha)
    if rng.random() < 0.3:
        joined = np.concatenate([pixels.reshape(height, width, -1), alpha[..., None]], -1).astype(np.int64)
        low = rng.integers(0, 256, joined.shape)
        return Drawn(png(joined * 256 + low, 16, 4 if grey else 6), expected, ("more than 8 bits", note))
    image = Image.fromarray(pixels)
    image.putalpha(Image.fromarray(alpha))
    return Drawn(encode(image, str(rng.choice(["PNG", "TIFF"]))), expected, (note,))


def draw_clear(rng: Rng, height: int, width: int) -> Drawn:
    """Draw an image with a value or colour that is transparent."""
    note = ("put over white",)
    if rng.random() < 0.4:
        pixels = colours(rng, height, width)
        clear = tuple(int(value) for value in pixels[1, 1])
        expected = pixels.copy()
        expected[(pixels == clear).all(-1)] = 255
        return Drawn(encode(Image.fromarray(pixels), transparency=clear), expected, note)
    depth = int(rng.choice([1, 2, 4, 8, 16]))
    values = rng.integers(0, 2**depth, (height, width))
    eight = values >> 8 if depth == 16 else values * 255 // (2**depth - 1)
    expected = np.where(values == values[1, 1], 255, eight).astype(np.uint8)
    notes = {1: ("of 1 bit", *note), 16: ("more than 8 bits", *note)}.get(depth, note)
    return Drawn(png(values[..., None], depth, 0, struct.pack(">H", values[1, 1])), expected, notes)


def draw_deep(rng: Rng, height: int, width: int) -> Drawn:
    """Draw an image of 16 bits per channel, or of one bit."""
    way = rng.integers(5)
    if way == 0:
        values = rng.integers(0, 2, (height, width)).astype(bool)
        content = encode(Image.fromarray(values), str(rng.choice(["PNG", "TIFF"])))
        return Drawn(content, (values * 255).astype(np.uint8), ("of 1 bit",))
    values = rng.integers(0, 65536, (height, width) if way < 4 else (height, width, 3))
    expected = (values // 256).astype(np.uint8)
    if way == 1:
        return Drawn(png(values[..., None], 16, 0), expected, ("more than 8 bits",))
    if way == 2:
        return Drawn(encode(Image.fromarray(values.astype(np.uint16)), "TIFF"), expected, ("more than 8 bits",))
    if way == 3:
        return Drawn(
            b"P5 %d %d 65535\n" % (width, height) + values.astype(">u2").tobytes(), expected, ("more than 8 bits",)
        )
    return Drawn(png(values, 16, 2), expected, ("more than 8 bits",))


def draw_cmyk(rng: Rng, height: int, width: int) -> Drawn:
    """Draw an image in CMYK."""
    inks = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    content = encode(Image.fromarray(inks, "CMYK"), kind := str(rng.choice(["JPEG", "TIFF"])))
    if kind == "JPEG":
        inks = np.asarray(Image.open(io.BytesIO(content)))
    light = 255 - inks[..., 3:].astype(np.int64)
    taken = inks[..., :3] * light + 128
    pixels = (light - ((taken >> 8) + taken >> 8)).clip(0, 255)
    return Drawn(content, pixels.astype(np.uint8), ("in CMYK",))


TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}
"""The upright image by the tag of orientation, by the definition of EXIF: where row 0 and column 0 are."""


def draw_turned(rng: Rng, height: int, width: int) -> Drawn:
    """Draw an image with a tag of orientation, of a meaning or of none."""
    pixels, tag = colours(rng, height, width), int(rng.choice([*range(1, 9), 0, 9, 77]))
    exif = Image.Exif()
    exif[0x0112] = tag
    kind, known = str(rng.choice(["PNG", "TIFF", "JPEG"])), tag in range(2, 9)
    raw = exif.tobytes() if known or kind == "TIFF" or rng.random() < 0.5 else b"Exif\0\0MM\0*" + rng.bytes(9)
    content = encode(Image.fromarray(pixels), kind, exif=exif if kind == "TIFF" else raw)
    if kind == "JPEG":
        pixels = np.asarray(Image.open(io.BytesIO(content)))
    return Drawn(content, TURNS.get(tag, TURNS[1])(pixels), ("EXIF",) if known else ())


USABLE = (draw_palette, draw_alpha, draw_clear, draw_deep, draw_cmyk, draw_turned)


# Images that are not


def draw_unusable(rng: Rng, height: int, width: int) -> Drawn:
    """Draw something that is no image, or one with several meanings."""
    first, second = (Image.fromarray(colours(rng, height, width)) for _ in range(2))
    more = {"save_all": True, "append_images": [second]}
    whole = encode(Image.fromarray(colours(rng, 40, 40)), str(rng.choice(["PNG", "JPEG"])))
    marked = encode(first.convert("CMYK"), "JPEG")
    place = marked.index(b"\xff\xee")
    length = int.from_bytes(marked[place + 2 : place + 4], "big")
    ways: list[Callable[[], bytes | None]] = [
        lambda: b"",
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        lambda: b"<html>404</html>",
        lambda: b"\0\0\0\x18ftypheic" + rng.bytes(40),
        lambda: rng.bytes(int(rng.integers(1, 200))),
        lambda: whole[: len(whole) // 2],
        lambda: encode(first, "GIF", **more),
        lambda: encode(first, "WEBP", lossless=True, **more),
        lambda: encode(first, "PNG", **more),
        lambda: encode(first, "TIFF", **more),
        lambda: encode(first.convert("F"), "TIFF"),
        lambda: encode(first.convert("I"), "TIFF"),
        lambda: encode(first.convert("LAB"), "TIFF"),
        lambda: encode(first, "PDF"),
        lambda: encode(first, "EPS"),
        lambda: encode(first, "ICO"),
        lambda: marked[:place] + marked[place + 2 + length :],
        lambda: png(rng.integers(0, 65536, (height, width, 3)), 16, 2, bytes(6)),
        lambda: b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBBI", 13, b"IHDR", 50_000, 50_000, 8, 2, 0, 0, 0, 0),
    ]
    return Drawn(ways[rng.integers(len(ways))](), None)


def draw_odd_size(rng: Rng, height: int, width: int) -> Drawn:
    """Draw an image of another size."""
    sizes = [(1, 1), (3, 3), (height, width + 2), (height + 1, width + 1), (2, 9)]
    return draw_plain(rng, *sizes[rng.integers(len(sizes))])


# Datasets


@dataclass
class Dataset:
    """A dataset and what must come of it."""

    options: dict[str, object]
    names: list[str]
    parts: dict[str, list[tuple[str, int, Drawn]]]
    """Path below the folder, or row; label; image: in the order of the stored images."""
    in_the_way: list[str] = field(default_factory=list)
    """Paths that are a fault."""
    left_out: int = 0
    """Number of files that are no images."""


CLASSES = ["a", "b", "zwei Wörter", "Käse", "日本", "a.json", "B&W", "'quoted'", "x" * 60]
JUNK = ["Thumbs.db", ".DS_Store", "desktop.ini", "._a.png", "notes.txt", "labels.csv", "INFO.JSON"]
ENDINGS = [".png", ".JPG", ".jpeg", ".Png", ".webp", "", ".tar.gz"]


def draw_dataset(number: int) -> Dataset:
    """Draw the images of a dataset, not yet where they lie."""
    rng = np.random.default_rng(number)
    mood = rng.random(4)
    odd, bad = (0.0 if mood[0] < 0.2 else rng.random() ** 2), (0.0 if mood[1] < 0.5 else 0.6 * rng.random() ** 2)
    count = int(rng.integers(2, 4))
    names = sorted(str(name) for name in rng.choice(CLASSES, count, replace=False))
    size = SIDE if rng.random() < 0.3 else None
    parts: dict[str, list[tuple[str, int, Drawn]]] = {}
    for part, most in (("train", 7), ("test", 4)):
        parts[part] = rows = []
        for label in range(count):
            for index in range(int(rng.integers(part == "train", most)) if mood[2] < 0.3 else most - 2):
                shape = (SIDE, SIDE + int(rng.integers(5))) if size else (SIDE, SIDE)
                draw = draw_plain
                if rng.random() < odd:
                    draw = USABLE[rng.integers(len(USABLE))]
                if rng.random() < bad:
                    draw = draw_unusable if size or rng.random() < 0.7 else draw_odd_size
                drawn = draw(rng, *shape)
                if mood[3] < 0.2 and rng.random() < 0.3:
                    held = [one for other in parts.values() for _, _, one in other]
                    drawn = held[rng.integers(len(held))] if held else drawn
                rows.append((f"{index:02d}{rng.choice(ENDINGS)}", label, drawn))
    allow = [value for value in ("train-in-test", "duplicates") if rng.random() < 0.5]
    options: dict[str, object] = {"source": "folder", "path": "data", **({"size": size} if size else {})}
    return Dataset({**options, "allow": allow}, names, parts)


def write_folder(drawn: Dataset, base: Path, rng: Rng) -> None:
    """Write the images into class folders, and other things beside them."""
    for part, rows in drawn.parts.items():
        (base / part).mkdir(parents=True)
        named = []
        for index, name in enumerate(drawn.names):
            if part == "train" or any(label == index for _, label, _ in rows):
                (base / part / name).mkdir()
        for file, label, one in rows:
            path = base / part / drawn.names[label] / file
            if rng.random() < 0.1:  # a link to a file elsewhere
                target = base / "elsewhere" / part / drawn.names[label] / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(one.content or b"")
                path.symlink_to(target)
            else:
                path.write_bytes(one.content or b"")
            named.append((str(path.relative_to(base)), label, one))
        drawn.parts[part] = named
    folders = sorted(path for path in base.glob("t*/*") if path.is_dir())
    for _ in range(int(rng.integers(4))) if rng.random() < 0.5 else ():
        folder = folders[rng.integers(len(folders))]
        folder = folder.parent if rng.random() < 0.3 else folder
        if rng.random() < 0.2:
            junk = folder / str(rng.choice(["__MACOSX", "@eaDir", ".hidden"]))
            junk.mkdir(exist_ok=True)
            (junk / "00.png").write_bytes(b"?")
        else:
            (folder / str(rng.choice(JUNK))).write_bytes(b"?")
    drawn.left_out = sum(1 for pattern in ("t*/*", "t*/*/*") for path in base.glob(pattern) if is_junk(path, base))
    if rng.random() < 0.25:
        for way in rng.choice(["nested", "broken", "loop", "loose", "other"], int(rng.integers(1, 4)), replace=False):
            folder = folders[rng.integers(len(folders))]
            path = folder.parent / "zz" if way in ("loose", "other") else folder / f"zz-{way}"
            if path.exists() or (way == "other" and path.parent.name == "train"):
                continue
            if way in ("nested", "other"):
                path.mkdir()
            elif way == "broken":
                path.symlink_to("nowhere")
            elif way == "loop":
                path.symlink_to(path.name)
            else:
                path.write_bytes(b"?")
            drawn.in_the_way.append(str(path.relative_to(base)))


def is_junk(path: Path, base: Path) -> bool:
    """Return whether a path is one of those of `JUNK`, and in no other."""
    inside_junk = any(part in ("__MACOSX", "@eaDir", ".hidden") for part in path.relative_to(base).parts[:-1])
    return not inside_junk and path.name in [*JUNK, "__MACOSX", "@eaDir", ".hidden"]


def write_parquet(drawn: Dataset, base: Path, rng: Rng) -> None:
    """Write the images as rows, with a column of bytes of one of several types."""
    base.mkdir()
    kind = [pa.binary(), pa.large_binary()][rng.integers(2)]
    plain = rng.random() < 0.5
    for part, rows in drawn.parts.items():
        rows = [(file, label, Drawn(None, None) if rng.random() < 0.01 else one) for file, label, one in rows]
        column: pa.Array = pa.array([one.content for _, _, one in rows], kind)
        if not plain:
            paths = pa.array([file for file, _, _ in rows])
            column = pa.StructArray.from_arrays([column, paths], ["bytes", "path"])
        table = pa.table({"image": column, "label": pa.array([label for _, label, _ in rows], pa.int64())})
        parquet.write_table(table, base / f"{part}.parquet", row_group_size=4)
        drawn.parts[part] = [(f"{part}.parquet row {row}", label, one) for row, (_, label, one) in enumerate(rows)]
    drawn.options["source"] = "parquet"
    drawn.names = [str(label) for label in range(len(drawn.names))]


# What must come of it


@dataclass
class Expected:
    """What must come of a dataset: why it is refused, or its images."""

    faults: list[str]
    refusals: dict[str, int]
    """Values of `allow` that the refusal must name, with the number of copies."""
    parts: dict[str, tuple[list[Pixels], list[int]]]
    notes: Counter[str]
    grey: bool


def expected(drawn: Dataset) -> Expected:
    """Say what must come of a dataset, by plain loops."""
    size, side = drawn.options.get("size"), None
    faults, notes = list(drawn.in_the_way), Counter[str]()
    parts: dict[str, tuple[list[Pixels], list[int]]] = {}
    greys = 0
    for part, rows in drawn.parts.items():
        images, labels = parts[part] = [], []
        for name, label, one in rows:
            pixels = one.pixels
            if pixels is None:
                faults.append(name)
                continue
            height, width = pixels.shape[:2]
            if isinstance(size, int):  # the shorter side has it already
                top, left = (height - size) // 2, (width - size) // 2
                pixels = pixels[top : top + size, left : left + size]
            elif min(height, width) < 4 or height != width or height != (side or height):
                faults.append(name)
                continue
            side = side or pixels.shape[0]
            greys += pixels.ndim == 2
            notes.update(one.notes)
            images.append(np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels)
            labels.append(label)
    total = sum(len(images) for images, _ in parts.values())
    if 0 < greys < total:
        notes["in grey"] = greys
    held = {part: [image.tobytes() for image in images] for part, (images, _) in parts.items()}
    copies = sum(held["train"].index(one) < row for row, one in enumerate(held["train"]))
    leaked = sum(one in held["train"] for one in held["test"])
    allowed = str(drawn.options["allow"])
    refusals = {
        value: number
        for value, number, part in (("train-in-test", leaked, "test"), ("duplicates", copies, "train"))
        if value not in allowed and number * 100 > len(held[part])
    }
    return Expected(faults, refusals, parts, notes, greys == total)


def check_images(number: int, base: Path) -> str:
    """Try a case; return in a word what came of it.

    Raises:
        Wrong: what must never be.
    """
    rng = np.random.default_rng([number, 1])
    work = base / "images"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the damaged tags that are drawn
        drawn = draw_dataset(number)
    (write_folder if rng.random() < 0.7 else write_parquet)(drawn, work / "data", rng)
    written = ", ".join(f"{name}: {value}".replace("'", "") for name, value in drawn.options.items())
    (work / "f.yaml").write_text(f"datasets: {{odd: {{{written}}}}}\n")
    must = expected(drawn)
    with inside(work):
        code, told = command("data", "--config", "f.yaml", "--dataset", "odd", "--make", "images")
    stored = work / "results" / "f" / "data" / "odd" / "images.safetensors"
    if code:
        if stored.exists():
            raise Wrong(f"refused, and images are stored: {told}")
        return _refusal(drawn, must, told)
    if must.faults or must.refusals:
        raise Wrong(f"accepted, with {len(must.faults)} faults {must.faults[:5]} and {must.refusals}")
    data = load_images(stored)
    names = drawn.names
    if list(data.class_names) != names:
        raise Wrong(f"classes {data.class_names}, expected {names}")
    for part, (images, labels) in must.parts.items():
        split = getattr(data, part)
        if split.labels.tolist() != labels:
            raise Wrong(f"{part}: labels {split.labels.tolist()}, expected {labels}")
        for row, image in enumerate(images):
            channels = image.transpose(2, 0, 1)[: 1 if must.grey else 3]
            if not np.array_equal(split.images[row].numpy(), channels):
                raise Wrong(
                    f"other pixels than expected in {drawn.parts[part][row][0]}, {drawn.parts[part][row][2].notes}"
                )
    total = sum(len(images) for images, _ in must.parts.values())
    for note, count in must.notes.items():
        if not any(text.startswith(f"{count} of {total} images") and note in text for text in data.notes):
            raise Wrong(f"no note of {count} images {note!r} in {data.notes}")
    counted = [note for note in data.notes if " images " in note]
    if len(counted) != len(must.notes):
        raise Wrong(f"notes {data.notes}, expected {dict(must.notes)}")
    left_out = f"left out, as no images: {drawn.left_out}"
    if bool(drawn.left_out) != any(note.startswith(left_out) for note in data.notes):
        raise Wrong(f"{drawn.left_out} files were to be left out: {data.notes}")
    ways = [*(["converted"] if must.notes else []), *(["with doubts"] if data.doubts else [])]
    return f"accepted{', ' if ways else ''}{' and '.join(ways)}"


def _refusal(drawn: Dataset, must: Expected, told: str) -> str:
    """Return in a word why a dataset was refused; Wrong if it was not to be, or not in these words."""
    absent = set(range(len(drawn.names))) - {label for _, label, _ in drawn.parts["train"]}
    empty = [part for part, rows in drawn.parts.items() if not rows]
    if must.faults:
        number, shown = len(must.faults), sum(fault in told for fault in must.faults)
        if f"{number} of " not in told or "images cannot be used" not in told or shown < min(10, number):
            raise Wrong(f"{number} faults, {shown} of them named: {told} {must.faults}")
        return "refused, images that cannot be used"
    if absent or empty:
        if not ("have no training images" in told or "there are no t" in told):
            raise Wrong(f"no images of {absent or empty}, refused otherwise: {told}")
        return "refused, no images"
    for value, number in must.refusals.items():
        if value not in told or f"{number} of " not in told:
            raise Wrong(f"{number} {value}, refused otherwise: {told}")
    if must.refusals:
        return "refused, copies"
    raise Wrong(f"refused without reason: {told}")
