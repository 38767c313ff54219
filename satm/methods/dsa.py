"""Gradient matching with differentiable Siamese augmentation (DSA)."""

from typing import ClassVar

from satm.methods.base import MethodOptions, register
from satm.methods.dc import Dc, DcOptions


class DsaOptions(DcOptions):
    """Options of DSA."""

    augment: bool = True
    """Change the real and the synthetic images of a class alike before they are compared, and the synthetic ones while
    the network trains on them, with families of the dataset."""


@register("dsa")
class Dsa(Dc):
    """Match gradients on images that one random change was made to, the same for the real and the synthetic ones.

    The change is drawn anew for each class; while the network trains, each image has its own.

    Composition: as `dc`, with differentiable Siamese augmentation.

    Source: Zhao and Bilen 2021 (DSA), section 3, and its public code, which starts from real images.
    """

    options: ClassVar[type[MethodOptions]] = DsaOptions
