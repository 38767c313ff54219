"""Options of real datasets, and the built-in datasets."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from satm.config.base import Options
from satm.errors import UsageError, pick, short

AUGMENTATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
"""Families of augmentation (`satm.data.augment`)."""

T = TypeVar("T")

_SOURCE_FILES = (Path(__file__).parents[1] / "data" / "sources").glob("[!_]*.py")
SOURCES = tuple(sorted(path.stem.replace("_", "-") for path in _SOURCE_FILES))
"""All sources of images: the files in `satm/data/sources/`, not imported here because they need torch."""


Accepted = Literal["train-in-test", "duplicates", "missing-shards", "other-split", "changed-files"]
"""Values of the option `allow`."""


class DatasetOptions(Options):
    """Location of a dataset's images and their preparation for a network."""

    source: str = Field(json_schema_extra={"enum": [*SOURCES]})
    """`digits` comes with scikit-learn; `cifar10` and `cifar100` are their authors' archives (binary version),
    downloaded into `path` unless it holds image-parquet files; `tiny-imagenet` is its published folder layout or
    image-parquet; `parquet` any folder of image-parquet files; `folder` any folder `path/{train,test}/CLASS/image`."""
    path: str = ""
    """Folder; `$NAME` and `${NAME}` are expanded. Empty: `$SATM_DATA/SOURCE`, or `data/SOURCE`."""
    train: str = "train*.parquet"
    """File pattern of the training images below `path` (image-parquet only)."""
    test: str = "{test,valid,val}*.parquet"
    """File pattern of the test images below `path` (image-parquet only); `{a,b}` means either."""
    image_column: str | None = None
    """Column with the encoded images; None: the only one whose type is a struct of bytes and path."""
    label_column: str | None = None
    """Column with the integer labels; None: `label`, else `fine_label`."""
    classes: tuple[int, ...] | None = None
    """Labels to keep, renumbered from 0 in this order; None: all."""
    size: int | None = Field(None, ge=4, le=4096)
    """Height and width in pixels that images are resized to; None: that of all images."""
    resize: Literal["crop", "squash"] = "crop"
    """Resize the shorter side to `size` and crop the centre of the longer one, or resize both sides, which changes the
    aspect ratio: `squash`, as the public code of MTT and FTD does with subsets of ImageNet."""
    validation: int = Field(0, ge=0)
    """Training images per class held out for choosing checkpoints and options; never trained on."""
    split_seed: int = 0
    """Seed of the choice of held-out images."""
    zca: bool = False
    """Whiten with ZCA, fitted on the training images, instead of subtracting the mean and dividing by the std."""
    zca_eps: float = Field(0.1, gt=0)
    """Added to the eigenvalues of the covariance before the inverse root."""
    zca_per_image: bool = False
    """Standardise each image to mean 0 and norm 1 before whitening, instead of subtracting the mean image. With
    `zca_relative` this is the whitening of RaT-BPTT. Images are then shown with average brightness and contrast."""
    zca_relative: bool = False
    """Measure `zca_eps` in units of the mean eigenvalue."""
    mean: tuple[float, ...] | None = None
    """Mean per channel, [0, 1] scale; None: of the training images."""
    std: tuple[float, ...] | None = None
    """Standard deviation per channel, [0, 1] scale; None: of the training images."""
    augment: str = "color_crop_cutout_flip_scale_rotate"
    """Families of differentiable Siamese augmentation, joined by `_`; empty: none."""
    augment_share: Literal["image", "batch"] = "image"
    """Draw the parameters of the augmentation per image or once per batch."""
    variant_of: str = ""
    """Name of a dataset with the same images, prepared otherwise, whose `settings` apply to this one too; the tables of
    that dataset may show methods on this one (`prepared`)."""
    # Not dumped: it changes no number, so it is part of no identity and repeats no job.
    allow: tuple[Accepted, ...] = Field((), exclude=True)
    """Faults of the images that are warned of instead of refused: `train-in-test` (over 1 % of the test images are
    training images too), `duplicates` (over 1 % of the training images are copies of another one), `missing-shards` (of
    image-parquet files numbered 00000-of-00003, some are missing), `other-split` (a column such as `split` says that
    training rows are test rows, or the reverse), `changed-files` (the files have changed since the stored images were
    made)."""

    @field_validator("source")
    @classmethod
    def _source_exists(cls, source: str) -> str:
        if source not in SOURCES:
            raise ValueError(f"expected one of {', '.join(map(repr, SOURCES))}, got {short(source)}")
        return source

    @field_validator("augment")
    @classmethod
    def _families_exist(cls, augment: str) -> str:
        for name in augment.split("_") if augment else ():
            pick(name, dict.fromkeys(AUGMENTATIONS), "family of augmentation")
        return augment

    @model_validator(mode="after")
    def _squash_needs_size(self) -> "DatasetOptions":
        if self.resize != "crop" and self.size is None:
            raise ValueError(f"resize is {self.resize!r}, but no size is given; set size or leave resize out")
        return self

    @model_validator(mode="after")
    def _variants_need_zca(self) -> "DatasetOptions":
        for name in ("zca_per_image", "zca_relative"):
            if getattr(self, name) and not self.zca:
                raise ValueError(f"{name} changes the whitening, but zca is false; set zca to true or leave it out")
        return self


def _standardised(source: str) -> DatasetOptions:
    """Return a dataset prepared as in RaT-BPTT (C.1 and section 3).

    Each image is standardised to mean 0 and norm 1, whitened (eps 0.1 times the mean eigenvalue), and flipped or
    rotated.
    """
    whitening = {"zca": True, "zca_per_image": True, "zca_relative": True}
    return DatasetOptions(source=source, variant_of=source, **whitening, augment="flip_rotate")


CIFAR_PIXELS = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
"""Statistics by which public code normalises CIFAR-10, that of MTT also CIFAR-100. The deviations are smaller than
those over all pixels (0.2470, 0.2435, 0.2616)."""

IMAGENET_PIXELS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Statistics by which public code normalises ImageNet and Tiny ImageNet."""


def _plain(source: str) -> DatasetOptions:
    """Return a dataset that is normalised by channel and not whitened, with the statistics of MTT's public code."""
    pixels = IMAGENET_PIXELS if source == "tiny-imagenet" else CIFAR_PIXELS
    return DatasetOptions(source=source, variant_of=source, zca=False, **pixels)


BUILTIN_DATASETS = {
    "digits": DatasetOptions(source="digits", augment="crop_scale_rotate"),
    **{source: DatasetOptions(source=source, zca=True) for source in ("cifar10", "cifar100", "tiny-imagenet")},
    **{f"{source}-standardised": _standardised(source) for source in ("cifar10", "cifar100", "tiny-imagenet")},
    **{f"{source}-plain": _plain(source) for source in ("cifar10", "cifar100", "tiny-imagenet")},
}
"""Datasets in every campaign. Digits are not flipped, coloured or cut out: a mirrored 6 is not a digit, and 8 pixels
leave little to cut."""


def built_in(name: str) -> str:
    """Return the options of a built-in dataset as YAML, to begin an entry with that replaces it."""
    return json.dumps(BUILTIN_DATASETS[name].model_dump(exclude_unset=True)).replace('"', "")


def lost_options(options: DatasetOptions) -> str | None:
    """Return a doubt about a dataset with a built-in one's images that, without saying so, prepares them otherwise."""
    usual = BUILTIN_DATASETS.get(options.source)
    names = [name for name in ("zca", "augment") if usual and name not in options.model_fields_set]
    lost = [name for name in names if getattr(options, name) != getattr(usual, name)]
    if not lost:
        return None
    here, there = (
        " and ".join(f"{name} {json.dumps(getattr(each, name))}" for name in lost) for each in (options, usual)
    )
    return f"does not state {' and '.join(lost)}, so it has {here}; the built-in {options.source} has {there}; state it"


@dataclass(frozen=True)
class Contents:
    """What is known of a dataset's images; None: not before its files are read."""

    channels: int | None = None
    """Channels of an image."""
    size: int | None = None
    """Height and width in pixels."""
    classes: int | None = None
    """Number of classes."""
    train: tuple[int, ...] | None = None
    """Training images of each class, without held-out ones."""
    test: tuple[int, ...] | None = None
    """Test images of each class."""
    names: tuple[str, ...] | None = None
    """Names of the classes."""

    @property
    def numbers(self) -> int | None:
        """Numbers of an image."""
        return None if self.channels is None or self.size is None else self.channels * self.size**2

    def of(self, labels: Iterable[int]) -> "Contents":
        """Return the contents of the classes with these labels."""
        kept = tuple(labels)

        def part(each: tuple[T, ...] | None) -> tuple[T, ...] | None:
            return each and tuple(each[label] for label in kept if 0 <= label < len(each))

        return replace(self, classes=len(kept), train=part(self.train), test=part(self.test), names=part(self.names))

    def called(self, label: int) -> str:
        """Return a class for messages."""
        return f"class {label}{f' ({self.names[label]})' if self.names else ''}"


SOURCE_CONTENTS = {
    "digits": Contents(1, 8, 10, (142, 146, 141, 147, 145, 146, 145, 143, 138, 144), (36,) * 10),
    "cifar10": Contents(3, 32, 10, (5000,) * 10, (1000,) * 10),
    "cifar100": Contents(3, 32, 100, (500,) * 100, (100,) * 100),
    "tiny-imagenet": Contents(3, 64, 200, (500,) * 200, (50,) * 200),
}
"""Contents of the sources that are always the same."""

CLASSES = {source: len(each.train or ()) for source, each in SOURCE_CONTENTS.items()}
"""Number of classes of the sources with a fixed number."""

LARGEST_WHITENED = 20_000
"""Largest number of numbers of a whitened image: float64 matrices of its square take 3 GiB each, and several are needed
at once."""


def stated_contents(options: DatasetOptions) -> Contents:
    """Return what the options of a dataset say about its images, before its files are read."""
    whole = SOURCE_CONTENTS.get(options.source, Contents())
    fixed = options.mean or options.std
    channels = len(fixed) if whole.channels is None and fixed else whole.channels
    train = whole.train and tuple(max(0, count - options.validation) for count in whole.train)
    found = replace(whole, channels=channels, size=options.size or whole.size, train=train)
    return found if options.classes is None else found.of(options.classes)


def data_path(options: DatasetOptions) -> Path:
    """Return the folder of a dataset; raises as `expand`."""
    return expand(options.path) if options.path else Path(os.environ.get("SATM_DATA", "data")) / options.source


def existing(path: Path) -> Path:
    """Return a path; UsageError if nothing is there."""
    if not path.exists():
        raise UsageError(f"{path} does not exist; correct the path, or put the file there")
    return path


def expand(path: str) -> Path:
    """Return a path with environment variables, `$NAME` or `${NAME}`, and the home folder `~` expanded.

    Raises:
        UsageError: a variable is not set, or the path leads out of the working folder without being absolute.
    """
    try:
        os.fsencode(path)
        expanded = os.path.expandvars(path)
    except UnicodeEncodeError:  # a locale without its letters, such as C; names of files are UTF-8 almost everywhere
        expanded = os.path.expandvars(os.fsdecode(path.encode(errors="surrogateescape")))
    if "$" in expanded:
        raise UsageError(f"the path {path!r} has an environment variable that is not set; set it or write the path out")
    if "\0" in expanded:
        raise UsageError(f"the path {path!r} has a zero byte, which no path can have; correct it")
    try:
        folder = Path(expanded).expanduser()
    except RuntimeError as error:
        raise UsageError(f"the path {path!r} begins with the home folder of an unknown user; write it out") from error
    # The path as written: a folder in an environment variable is the user's own choice.
    if not folder.is_absolute() and Path(os.path.normpath(path)).parts[:1] == (os.pardir,):
        raise UsageError(f"the path {path!r} leads out of the working folder; if intended, write an absolute path")
    return folder
