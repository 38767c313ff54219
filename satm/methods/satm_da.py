"""SATM from easy to hard segments (SATM-DA)."""

from typing import ClassVar

from satm.methods.base import MethodOptions, register
from satm.methods.datm import AlignedOptions
from satm.methods.satm import Satm, SatmOptions


class SatmDaOptions(AlignedOptions, SatmOptions):
    """Options of SATM-DA."""


@register("satm-da")
class SatmDa(Satm):
    """SATM from easy to hard segments, as DATM orders them.

    Composition: flat experts; images that experts classify correctly, learned labels; expanding segments; the rest as
    `satm`.

    Source: SATM Table 12 and section A.10, which name DATM's schedule. Inferred, because they say nothing else:
    experts, start, labels and the skipping of large losses are DATM's too.
    """

    options: ClassVar[type[MethodOptions]] = SatmDaOptions
