"""Flat trajectory distillation (FTD)."""

from typing import ClassVar

from pydantic import Field

from satm.methods.base import MethodOptions, register
from satm.methods.matching_options import MatchingOptions
from satm.methods.mtt import Mtt


class FtdOptions(MatchingOptions):
    """Options of FTD."""

    experts: str = "flat"
    """Name of the experts."""
    ema: float | None = Field(0.999, ge=0, lt=1)
    """Decay of an exponential moving average of the images. The text says 0.999, Table 7 a value for each setting,
    which the presets give."""


@register("ftd")
class Ftd(Mtt):
    """MTT on flat experts, with an average of the synthetic set.

    Composition: flat experts; real images, hard labels; uniform segments; exact estimator and step-size gradient;
    descent with a moving average.

    Source: Du et al. 2023, Algorithm 1, section 3.3 and Table 7. Its public code trains the experts by another rule;
    the experts `flat-code` follow it.
    Differs: where the best iteration is chosen, it is chosen by the averaged set alone; the code keeps a best one of
        each.
    """

    options: ClassVar[type[MethodOptions]] = FtdOptions
