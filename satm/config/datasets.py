"""The options of real images, and the datasets that are known by name."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from satm.config.base import Options
from satm.errors import UsageError


class DatasetOptions(Options):
    """Where the images of a dataset are and how they are prepared for a network."""

    source: Literal["digits", "cifar10", "cifar100", "tiny-imagenet", "parquet", "folder"]
    """`digits` comes with scikit-learn; `cifar10` and `cifar100` are their authors' archives (binary version),
    downloaded into `path` unless it holds image-parquet files; `tiny-imagenet` is its published folder layout or
    image-parquet; `parquet` any folder of image-parquet files; `folder` any folder `path/{train,test}/CLASS/image`."""
    path: str = ""
    """Folder; `$NAME` and `${NAME}` are replaced from the environment. Empty: `$SATM_DATA/SOURCE`, or `data/SOURCE`."""
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
    """Height and width in pixels; other images are resized on their shorter side and cropped at the centre. None: all
    images must have one size already."""
    validation: int = Field(0, ge=0)
    """Training images per class that are held out for choosing checkpoints and options; never trained on."""
    split_seed: int = 0
    """Which images are held out."""
    zca: bool = False
    """Whiten with ZCA, fitted on the training images, instead of subtracting the mean and dividing by the std."""
    zca_eps: float = Field(0.1, gt=0)
    """Added to the eigenvalues of the covariance before the inverse root."""
    zca_per_image: bool = False
    """Bring each image to mean 0 and norm 1 by itself before whitening, instead of subtracting the mean image. With
    `zca_relative` this is the whitening of RaT-BPTT. Images are shown with the average brightness and contrast then."""
    zca_relative: bool = False
    """`zca_eps` is in units of the mean eigenvalue."""
    mean: tuple[float, ...] | None = None
    """Per channel, images in [0, 1]; None: measured on the training images."""
    std: tuple[float, ...] | None = None
    """Per channel, images in [0, 1]; None: measured on the training images."""
    augment: str = "color_crop_cutout_flip_scale_rotate"
    """Families of differentiable Siamese augmentation, joined by `_`; empty: none."""
    augment_share: Literal["image", "batch"] = "image"
    """Each image draws its own parameters, or one draw serves the whole batch."""

    @model_validator(mode="after")
    def _variants_need_zca(self) -> "DatasetOptions":
        wrong = [name for name in ("zca_per_image", "zca_relative") if getattr(self, name) and not self.zca]
        if wrong:
            raise ValueError(f"{wrong[0]} changes the whitening and zca is false; set zca to true or leave it out")
        return self


STANDARDISED: tuple[Literal["cifar10", "cifar100", "tiny-imagenet"], ...] = ("cifar10", "cifar100", "tiny-imagenet")

BUILTIN_DATASETS = {
    "digits": DatasetOptions(source="digits", augment="crop_scale_rotate"),
    "cifar10": DatasetOptions(source="cifar10", zca=True),
    "cifar100": DatasetOptions(source="cifar100", zca=True),
    "tiny-imagenet": DatasetOptions(source="tiny-imagenet", zca=True),
    **{
        f"{source}-standardised": DatasetOptions(
            source=source, zca=True, zca_per_image=True, zca_relative=True, augment="flip_rotate"
        )
        for source in STANDARDISED
    },
}
"""The names that end in `-standardised` are prepared as RaT-BPTT prepares them (C.1 and section 3): each image without
its mean and of norm 1, whitened with 0.1 times the mean eigenvalue added to each, flipped or rotated.

Digits are neither flipped, nor coloured, nor cut out: a 6 mirrored is no digit, and 8 pixels leave little to cut."""

CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "tiny-imagenet": 200}
"""Classes of the sources that always have as many."""


def data_path(options: DatasetOptions) -> Path:
    """Return the folder of a dataset with the environment's variables put in.

    Raises:
        UsageError: the path names a variable that is not set.
    """
    return expand(options.path) if options.path else Path(os.environ.get("SATM_DATA", "data")) / options.source


def expand(path: str) -> Path:
    """Return a path with the environment's variables, `$NAME` and `${NAME}`, and the home folder `~` put in.

    Raises:
        UsageError: it names a variable that is not set, or leads out of the working folder without being absolute.
    """
    expanded = os.path.expandvars(path)
    if "$" in expanded:
        raise UsageError(f"the path {path!r} names a variable that is not set; set it or write the path out")
    if "\0" in expanded:
        raise UsageError(f"the path {path!r} holds a zero byte, which no path can; correct it")
    try:
        found = Path(expanded).expanduser()
    except RuntimeError as error:
        raise UsageError(f"the path {path!r} begins with the home folder of an unknown user; write it out") from error
    # As it is written: what the environment names is the user's own word.
    if not found.is_absolute() and Path(os.path.normpath(path)).parts[:1] == (os.pardir,):
        raise UsageError(
            f"the path {path!r} leads out of the working folder; write the whole path, from the root, if that is meant"
        )
    return found
