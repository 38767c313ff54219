"""SATM from easy to hard segments (SATM-DA)."""

from typing import ClassVar, Literal

from pydantic import Field

from satm.methods.base import MethodOptions, register
from satm.methods.satm import Satm, SatmOptions


class SatmDaOptions(SatmOptions):
    """Options of SATM-DA; the defaults of these are DATM's."""

    experts: str = "flat"
    """Name of the experts."""
    init: Literal["real", "correct", "gaussian"] = "correct"
    """What the synthetic images start from."""
    labels: Literal["hard", "learned", "teacher"] = "learned"
    """What the set says."""
    skip_above: float | None = Field(1.0, gt=0)
    """Iterations with a larger loss move nothing."""


@register("satm-da")
class SatmDa(Satm):
    """SATM from easy to hard segments, as DATM orders them.

    Composition: flat experts; images that experts classify correctly, learned labels; expanding segments; the rest as
    `satm`.

    Source: SATM Table 12 and section A.10, which name DATM's schedule. Inferred, because they say nothing else:
    experts, start, labels and the skipping of large losses are DATM's too.
    """

    options: ClassVar[type[MethodOptions]] = SatmDaOptions
