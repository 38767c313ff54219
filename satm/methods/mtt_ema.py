"""MTT with an exponential moving average."""

from typing import ClassVar

from pydantic import Field

from satm.methods.base import MethodOptions, register
from satm.methods.mtt import Mtt
from satm.methods.truncated import TruncatedOptions


class MttEmaOptions(TruncatedOptions):
    """Options of MTT with EMA."""

    ema: float | None = Field(0.999, ge=0, lt=1)
    """Decay of an exponential moving average of the images."""


@register("mtt-ema")
class MttEma(Mtt):
    """MTT with an exponential moving average of the synthetic set.

    Composition: as `mtt`, truncated, first-order step-size gradient; descent with a moving average.

    Source: SATM Table 4 and section 4.3.1; the average as in FTD, section 3.3.
    """

    options: ClassVar[type[MethodOptions]] = MttEmaOptions
