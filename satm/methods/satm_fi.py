"""SATM on flat experts (SATM-FI)."""

from typing import ClassVar

from satm.methods.base import MethodOptions, register
from satm.methods.satm import Satm, SatmOptions


class SatmFiOptions(SatmOptions):
    """Options of SATM-FI."""

    experts: str = "flat"
    """Name of the experts."""


@register("satm-fi")
class SatmFi(Satm):
    """SATM on flat experts, as FTD trains them.

    Composition: flat experts; the rest as `satm`.

    Source: SATM Table 10 and section A.8.
    """

    options: ClassVar[type[MethodOptions]] = SatmFiOptions
