"""Datasets by the name of their source: encoded images and labels from where they lie, decoded once into `ImageData`.

A source (`DATASETS`) only lists what there is (`Listing`); subsets of classes, decoding, resizing and all checks are
the same for every source.

Images: Pillow's modes RGB and L (8-bit grey). If a dataset holds both, grey images get three equal channels; a dataset
of grey images only keeps one channel. Every other mode (palette, alpha, CMYK, 16 bits) is refused by the image's name,
because there is more than one way to convert it. Orientation tags are not applied.

With `size`, an image is resized (Pillow, bilinear with antialiasing) until its shorter side has that length, and
cropped at the centre, as raw uint8 before any normalisation. Differs: the MTT code normalises before it resizes, which
is the same up to rounding to whole grey values, since the weights of the interpolation add up to 1.
"""

import io
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from satm.config import DatasetOptions, data_path
from satm.data.cifar import read_cifar
from satm.data.images import ImageData, Split, hash_images
from satm.errors import UsageError, pick
from satm.seeds import make_generator

DIGITS_TEST = 36
"""Test images per class of digits."""

READ_AT_ONCE = 1024
"""Rows of a parquet file, or files of a folder, whose encoded images are held in memory together."""

SMALL = 8192
"""Bytes of an encoded image below which threads do not help: 60,000 CIFAR images take 7 s without them, 10 s with."""

Encoded = bytes | Path | Image.Image


@dataclass(frozen=True)
class Part:
    """The encoded images of one split."""

    labels: list[int]
    """One per image; not checked for their range yet."""
    images: Iterable[Encoded]
    """Read once, in the order of the labels: the bytes of an image file, its path, or a decoded image."""
    where: Callable[[int], str]
    """Name of the image of that index, for messages."""


@dataclass(frozen=True)
class Listing:
    """What a source offers."""

    train: Part
    test: Part
    class_names: tuple[str, ...] | None
    """By label; None: not known, the classes are 0 to the largest training label."""


def load_dataset(name: str, options: DatasetOptions) -> ImageData:
    """Return a dataset, decoded and checked.

    Args:
        name: what it is called in files and messages.
        options: source, folder, classes, size, held-out part and normalisation.

    Raises:
        UsageError: files that are missing or damaged, images of two sizes or of an unusable kind, labels out of range,
            a class without training images, or options that do not fit; the text names file and row.
        RunError: a download failed.
    """
    listing = pick(options.source, DATASETS, "source of a dataset")(options)
    labels = listing.train.labels
    # Where the classes are unknown, a label beyond the number of images cannot be right: a class below it has none.
    names = listing.class_names or tuple(map(str, range(min(max(labels, default=-1) + 1, len(labels)))))
    for part, what in ((listing.train, "training"), (listing.test, "test")):
        if not part.labels:
            raise UsageError(f"dataset {name!r} has no {what} images in {data_path(options)}; check files and options")
        for index, label in enumerate(part.labels):
            if not 0 <= label < len(names):
                raise UsageError(
                    f"{part.where(index)}: label {label} is out of range, expected 0 to {len(names) - 1}; correct it"
                )
    kept = _kept_classes(name, options, len(names))
    missing = sorted(set(kept) - set(listing.train.labels), key=kept.index)
    if missing:
        raise UsageError(
            f"dataset {name!r}: class {missing[0]} ({names[missing[0]]}) has no training images; "
            "add some, or name the classes to keep in `classes`"
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


def hold_out(split: Split, per_class: int, seed: int) -> tuple[Split, Split]:
    """Return the split without some images of each class, and these images.

    Args:
        split: to be divided; both parts keep its order.
        per_class: images of each class that are held out.
        seed: which ones.

    Raises:
        UsageError: a class has no image left to train on.
    """
    order = torch.randperm(len(split), generator=make_generator("hold-out", seed))
    held = torch.zeros(len(split), dtype=torch.bool)
    for label in split.labels.unique().tolist() if per_class else ():
        own = order[split.labels[order] == label]
        if len(own) <= per_class:
            raise UsageError(
                f"cannot hold out {per_class} validation images of class {label}, which has {len(own)} training "
                f"images; set `validation` to at most {len(own) - 1}"
            )
        held[own[:per_class]] = True
    return Split(split.images[~held], split.labels[~held]), Split(split.images[held], split.labels[held])


def load_digits(options: DatasetOptions) -> Listing:
    """List scikit-learn's handwritten digits: 8 x 8 pixels, grey, 10 classes; 1,437 training and 360 test images.

    There is no official split. The test images are 36 of each class, the same ones always. Grey values 0 to 16 are
    stretched to 0 to 255.
    """
    from sklearn.datasets import load_digits as load

    bunch = load()
    pixels = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target)
    parts = hold_out(Split(pixels, labels), DIGITS_TEST, seed=0)
    train, test = (_decoded_part(part.images[:, 0].numpy(), part.labels.tolist(), "digits") for part in parts)
    return Listing(train, test, tuple(str(digit) for digit in range(10)))


def load_cifar(options: DatasetOptions) -> Listing:
    """List CIFAR-10 or CIFAR-100, of 32 x 32 pixels, from image-parquet or else from its authors' archive.

    CIFAR-10 has 10 classes of 5,000 training and 1,000 test images, CIFAR-100 has 100 of 500 and 100.
    """
    folder = data_path(options)
    if _holds_parquet(folder):
        return load_parquet(options)
    held = read_cifar(folder, options.source)
    train = _decoded_part(held.train, held.train_labels, f"{folder} train")
    test = _decoded_part(held.test, held.test_labels, f"{folder} test")
    return Listing(train, test, held.class_names)


def load_tiny_imagenet(options: DatasetOptions) -> Listing:
    """List Tiny ImageNet: 64 x 64 pixels, 200 classes of 500 training and 50 validation images, tested on the latter.

    From its published folders (`wnids.txt`, `train/WNID/images/`, `val/images/`, `val/val_annotations.txt`), or from
    image-parquet. Classes are in the order of their WordNet ids, sorted as text, which are also their names.
    """
    folder = _existing(options)
    listed = folder / "wnids.txt"
    if not listed.is_file():
        if _holds_parquet(folder):
            return load_parquet(options)
        raise UsageError(
            f"{folder} holds neither wnids.txt of the published Tiny ImageNet nor parquet files; put one of them there"
        )
    names = tuple(sorted(_text(listed).split()))
    if strange := [name for name in names if Path(name).name != name]:
        raise UsageError(f"{listed} names the class {strange[0]!r}, which is no name of a folder; correct it")
    by_class = [(label, files_in(folder / "train" / name / "images")) for label, name in enumerate(names)]
    train = paths_part([(path, label) for label, paths in by_class for path in paths])
    annotations = folder / "val" / "val_annotations.txt"
    if not annotations.is_file():
        raise UsageError(f"{annotations} does not exist; unpack the whole Tiny ImageNet")
    labels = {name: label for label, name in enumerate(names)}
    items = []
    for number, line in enumerate(_text(annotations).splitlines(), 1):
        fields = line.split()
        if len(fields) < 2 or fields[1] not in labels or Path(fields[0]).name != fields[0]:
            raise UsageError(f"{annotations} line {number}: expected an image and a class of wnids.txt, got {line!r}")
        items.append((folder / "val" / "images" / fields[0], labels[fields[1]]))
    return Listing(train, paths_part(items), names)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text ({error}); it is damaged: unpack it again") from error


def load_folder(options: DatasetOptions) -> Listing:
    """List a folder `path/train/CLASS/image`, tested on `path/test/`, else `path/valid/`, else `path/val/`.

    Classes are in the order of the training folders' names. Hidden files are left out.
    """
    folder = _existing(options)
    test = next((folder / name for name in ("test", "valid", "val") if (folder / name).is_dir()), None)
    if not (folder / "train").is_dir() or test is None:
        raise UsageError(f"{folder} needs the folders train/CLASS and test/CLASS (or valid, val); make them")
    names = tuple(path.name for path in entries(folder / "train") if path.is_dir())
    items: dict[str, list[tuple[Path, int]]] = {"train": [], test.name: []}
    for part, found in items.items():
        for path in entries(folder / part):
            if path.name not in names:
                raise UsageError(f"{path} is not a class: train/ has the class folders {', '.join(names)}; move it")
            found += [(file, names.index(path.name)) for file in files_in(path)]
    return Listing(paths_part(items["train"]), paths_part(items[test.name]), names)


def load_parquet(options: DatasetOptions) -> Listing:
    """List image-parquet files in the layout of Hugging Face: an image column, struct of bytes and path, and a label.

    The files of a split are those that match its pattern, in the order of their names. Of the alternatives `{a,b}` in a
    pattern, the first one that matches a file counts, so that a dataset with test and validation files is tested on
    the former. Class names come from the `huggingface` entry of the schema where it has them.
    """
    folder = _existing(options)
    train, test = (_matching(folder, getattr(options, part), part) for part in ("train", "test"))
    if both := set(train) & set(test):
        raise UsageError(f"{min(both)} matches the patterns of both `train` and `test`; make one of them narrower")
    tables = {path: Table.open(path, options) for path in (*train, *test)}
    names = {path: table.class_names for path, table in tables.items()}
    first = train[0]
    for path, found in names.items():
        if found != names[first]:
            raise UsageError(f"{path} and {first} have different class names; use files of one dataset")
    return Listing(
        parquet_part([tables[path] for path in train]), parquet_part([tables[path] for path in test]), names[first]
    )


Source = Callable[[DatasetOptions], Listing]

DATASETS: Mapping[str, Source] = {
    "digits": load_digits,
    "cifar10": load_cifar,
    "cifar100": load_cifar,
    "tiny-imagenet": load_tiny_imagenet,
    "parquet": load_parquet,
    "folder": load_folder,
}
"""What lists the images of each source."""


@dataclass(frozen=True)
class Table:
    """One image-parquet file with its columns found and its labels read."""

    path: Path
    image: str
    labels: list[int]
    class_names: tuple[str, ...] | None

    @classmethod
    def open(cls, path: Path, options: DatasetOptions) -> "Table":
        """Return a file as the dataset's options say; a damaged one, or one without such columns, is refused."""
        try:
            schema = pq.read_schema(path)
            image = _image_column(path, schema, options.image_column)
            label = _label_column(path, schema, options.label_column)
            held = pq.read_table(path, columns=[label], partitioning=None, page_checksum_verification=True)
            labels = held.column(label).to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # also names that are no text
            raise _damaged(path, error) from error
        if None in labels:
            raise UsageError(f"{path} row {labels.index(None)}: column {label!r} has no label; correct it")
        return cls(path, image, labels, _class_names(schema, label))

    def encoded(self) -> Iterator[bytes]:
        """Yield the bytes of each image, holding a few rows at a time."""
        try:
            with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
                row = 0
                for batch in file.iter_batches(READ_AT_ONCE, columns=[f"{self.image}.bytes"]):
                    for content in batch.column(0).field("bytes"):
                        if not content.is_valid:
                            raise UsageError(
                                f"{self.path} row {row}: column {self.image!r} has no bytes; "
                                "store the images themselves, not only their paths"
                            )
                        yield content.as_py()
                        row += 1
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path, error) from error


def _damaged(path: Path, error: Exception) -> UsageError:
    text = " ".join(str(error).split())
    return UsageError(f"{path} is not a whole parquet file ({text}); it is damaged or cut short: fetch it again")


def _image_column(path: Path, schema: pa.Schema, name: str | None) -> str:
    usable: list[str] = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type)
        and (index := field.type.get_field_index("bytes")) >= 0
        and pa.types.is_binary(field.type.field(index).type)
    ]
    if name is None and len(usable) == 1:
        return usable[0]
    if name is not None and name in usable:
        return name
    got = "no `image_column` is given" if name is None else f"`image_column` is {name!r}"
    raise UsageError(
        f"{path}: {got}, and the columns that are a struct of bytes and path are {usable or 'none'} "
        f"of {schema.names}; name one of them in `image_column`"
    )


def _label_column(path: Path, schema: pa.Schema, name: str | None) -> str:
    for column in [name] if name else ("label", "fine_label"):
        if column in schema.names:
            if not pa.types.is_integer(found := schema.field(column).type):
                raise UsageError(f"{path}: column {column!r} holds {found}, expected integer labels; name another one")
            return column
    raise UsageError(
        f"{path} has no column {name or 'label'!r}; it has {schema.names}: name the integer labels in `label_column`"
    )


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Return the class names of the labels if the file carries any in the way of Hugging Face."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def parquet_part(tables: list[Table]) -> Part:
    """List the images of some files, one file after another."""

    def where(index: int) -> str:
        for table in tables:
            if index < len(table.labels):
                return f"{table.path} row {index}"
            index -= len(table.labels)
        raise IndexError(index)

    labels = [label for table in tables for label in table.labels]
    return Part(labels, itertools.chain.from_iterable(table.encoded() for table in tables), where)


def _matching(folder: Path, pattern: str, part: str) -> list[Path]:
    for alternative in _alternatives(pattern):
        if os.pardir in Path(alternative).parts:
            raise UsageError(f"the pattern {pattern!r} of `{part}` leads out of {folder}; give one below it")
        try:
            if found := sorted(path for path in folder.glob(alternative) if path.is_file()):
                return found
        except (ValueError, NotImplementedError) as error:
            raise UsageError(
                f"the pattern {pattern!r} of `{part}` cannot be used ({error}); give one relative to `path`"
            ) from error
    raise UsageError(
        f"no file in {folder} matches {pattern!r}, the pattern of `{part}`; "
        f"put the files there or correct `path` or `{part}`"
    )


def _alternatives(pattern: str) -> list[str]:
    """Return the patterns without braces that `{a,b}` stands for, in order."""
    if not (found := re.search(r"\{([^{}]*)\}", pattern)):
        return [pattern]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [one for middle in found[1].split(",") for one in _alternatives(before + middle + after)]


def _holds_parquet(folder: Path) -> bool:
    return next(folder.rglob("*.parquet"), None) is not None


def _existing(options: DatasetOptions) -> Path:
    folder = data_path(options)
    if not folder.is_dir():
        raise UsageError(f"the dataset's folder {folder} does not exist; make it, or set `path` or SATM_DATA")
    return folder


def entries(folder: Path) -> list[Path]:
    """Return what a folder holds, hidden files left out, sorted by name; nothing if there is no such folder."""
    return sorted(path for path in folder.glob("*") if not path.name.startswith("."))


def files_in(folder: Path) -> list[Path]:
    """Return the files of a folder, sorted by name; a folder among them is refused."""
    found = entries(folder)
    for path in found:
        if not path.is_file():
            raise UsageError(f"{path} is a folder among images; move the images up or the folder away")
    return found


def paths_part(items: list[tuple[Path, int]]) -> Part:
    """List image files with their labels."""
    return Part([label for _, label in items], [path for path, _ in items], lambda index: str(items[index][0]))


def _decoded_part(pixels: NDArray[np.uint8], labels: list[int], what: str) -> Part:
    """List images that are decoded already: `[n, H, W]` grey or `[n, H, W, 3]`."""
    return Part(labels, map(Image.fromarray, pixels), lambda index: f"{what} image {index}")


def _kept_classes(name: str, options: DatasetOptions, count: int) -> tuple[int, ...]:
    kept = tuple(range(count)) if options.classes is None else options.classes
    if not kept or len(set(kept)) < len(kept):
        raise UsageError(f"dataset {name!r}: `classes` is {list(kept)}, expected different labels, at least one")
    for label in kept:
        if not 0 <= label < count:
            raise UsageError(
                f"dataset {name!r}: `classes` names class {label}, the known ones are 0 to {count - 1}; correct it"
            )
    return kept


def decode_part(part: Part, kept: tuple[int, ...], size: int | None, wanted: int | None) -> tuple[Split, bool]:
    """Return the images of the kept classes, renumbered, and whether all are grey.

    Args:
        part: to decode.
        kept: labels in their new order.
        size: height and width to resize and crop to; None: as they are.
        wanted: height and width that the images must have; None: those of the first image.

    Returns:
        Images with three channels, grey or not.
    """
    renumber = {label: new for new, label in enumerate(kept)}
    chosen = [index for index, label in enumerate(part.labels) if label in renumber]
    items = ((index, image) for index, image in enumerate(part.images) if part.labels[index] in renumber)
    pixels = np.empty((0, 3, wanted or 0, wanted or 0), np.uint8)
    grey, row = True, 0

    def decode(group: list[tuple[int, Encoded]]) -> list[NDArray[np.uint8]]:
        return [_decode_image(image, part.where(index), size) for index, image in group]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while batch := list(itertools.islice(items, READ_AT_ONCE)):
            groups = [batch[start : start + 32] for start in range(0, len(batch), 32)]
            decoded = map(decode, groups) if _is_small(batch[0][1]) else pool.map(decode, groups)
            for (at, _), image in zip(batch, itertools.chain.from_iterable(decoded), strict=True):
                height, width = image.shape[:2]
                if wanted is None and height == width:
                    wanted = height
                if (height, width) != (wanted, wanted):
                    expected = f"{wanted} x {wanted} as the others" if wanted else "as many rows as columns"
                    raise UsageError(
                        f"{part.where(at)}: the image has {height} x {width} pixels, expected {expected}; "
                        "resize it; a dataset with the option `size` resizes and crops all its images"
                    )
                if not len(pixels):
                    pixels = np.empty((len(chosen), 3, height, width), np.uint8)
                if image.ndim == 3:
                    grey = False
                    image = image.transpose(2, 0, 1)
                pixels[row] = image
                row += 1
    labels = torch.tensor([renumber[part.labels[index]] for index in chosen], dtype=torch.int64)
    return Split(torch.from_numpy(pixels), labels), grey


def _is_small(source: Encoded) -> bool:
    """Say whether threads would cost more than they gain: on small images they wait for the interpreter's lock."""
    return isinstance(source, Image.Image) or (isinstance(source, bytes) and len(source) < SMALL)


def _decode_image(source: Encoded, where: str, size: int | None) -> NDArray[np.uint8]:
    """Return an image as `[H, W]` (grey) or `[H, W, 3]`, resized and cropped to `size` if one is given.

    Raises:
        UsageError: it cannot be read, or is neither 8-bit grey nor RGB.
    """
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
        width, height = source.size
        shorter = min(width, height)
        width, height = (max(size, round(side * size / shorter)) for side in (width, height))
        left, top = (width - size) // 2, (height - size) // 2
        source = source.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return np.asarray(source)


def _statistics(name: str, images: Tensor, options: DatasetOptions) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel over all pixels, [0, 1] scale, or what the options fix."""
    channels = images.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.int64)  # a histogram needs little memory
    for chunk in images.split(READ_AT_ONCE):
        counts += torch.stack([chunk[:, channel].reshape(-1).bincount(minlength=256) for channel in range(channels)])
    # Whole numbers until the last step, so that every processor gets the same bits: files of synthetic sets name them.
    means, stds = [], []
    for row in counts.tolist():
        pixels = sum(row)
        total, squares = (sum(count * level**power for level, count in enumerate(row)) for power in (1, 2))
        means.append(total / (255 * pixels))
        stds.append(math.sqrt(pixels * squares - total**2) / (255 * pixels))
    for what, fixed in (("mean", options.mean), ("std", options.std)):
        if fixed is not None and len(fixed) != channels:
            raise UsageError(f"dataset {name!r}: `{what}` has {len(fixed)} values, the images have {channels} channels")
    result = options.mean or tuple(means), options.std or tuple(stds)
    if not min(result[1]) > 0:
        raise UsageError(
            f"dataset {name!r}: the std of a channel is {min(result[1])}, expected above 0; set `std`, "
            "or check that the images are not all of one colour"
        )
    return result
