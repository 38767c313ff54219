"""Synthetic sets made by other people's code, so that they can be evaluated, compared and used like any other.

Composition of `files`: experts none; init external; labels external; segments none; objective none; estimator none;
step size fixed; outer none. Images, labels and step size are converted to the space of training; nothing is learned.
Each seed gives the same set.

Source: layouts of the public code of MTT and of the code that builds on it (`images_best.pt`, `labels_best.pt`,
    `lr_best.pt`); image-parquet; class folders.
"""

from typing import Literal

from pydantic import Field

from satm.config.methods import MethodOptions
from satm.methods.recipe import EXTERNAL, recipe


class FilesOptions(MethodOptions):
    """Options of external sets. In paths, `$NAME`, `${NAME}` and `~` are replaced."""

    step_size: float = Field(0.01, gt=0)
    """Step size of SGD that belongs to the set, if no file contains one."""
    images: str = ""
    """Path of the images: `.pt` or `.safetensors` with tensors, `.parquet` (or a folder of such files) with encoded
    images, or a folder `CLASS/image`. `.pt` files are read as plain tensors only: no code in them is run."""
    labels_from: str = ""
    """Path of a `.pt` or `.safetensors` with the labels. Empty: those in the images' own file or folder, else those of
    `labels_best.pt` (or `labels.pt`) beside `images_best.pt`, else the images are assumed to be sorted by class."""
    step_size_from: str = ""
    """Path of a `.pt` or `.safetensors` with the step size. Empty: that in the images' own file, else that of
    `lr_best.pt` (or `lr.pt`) beside `images_best.pt`, else `step_size`."""
    space: Literal["auto", "pixels", "normalised", "whitened", "trained"] = "auto"
    """Value space of the images: `pixels`; `normalised` by `mean` and `std`; `whitened` as the dataset is; `trained`,
    the space of training here. `auto`: pictures and uint8 are pixels, other tensors are `trained`."""
    mean: tuple[float, ...] | None = None
    """Mean per channel, for images in [0, 1], with `space: normalised`. None: with three channels that of MTT's public
    code for CIFAR, else the dataset's own."""
    std: tuple[float, ...] | None = None
    """Standard deviation per channel, for images in [0, 1], with `space: normalised`. None: as `mean`."""
    label_kind: Literal["auto", "probabilities", "logits"] = "auto"
    """Kind of soft labels. `auto`: probabilities if none is negative and each row sums to 1, else logits."""
    image_column: str | None = None
    """Parquet column with the encoded images; None: the only one whose type is a struct of bytes and path."""
    label_column: str | None = None
    """Parquet column with the integer labels; None: `label`, else `fine_label`."""
    selection: Literal["auto", "last", "validation", "test"] = "auto"
    """How the authors selected the iteration, as named in tables. `auto`: as stated in a file of this project; `test`
    for other files, because the MTT family's code selects its best set on test images."""


recipe("files", EXTERNAL, FilesOptions, fixed={"init": "external", "labels": "external"})
