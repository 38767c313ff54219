"""MTT with robust learning."""

from typing import ClassVar

from pydantic import Field

from satm.methods.base import MethodOptions, register
from satm.methods.matching_options import MatchingOptions
from satm.methods.mtt import Mtt


class MttRobustOptions(MatchingOptions):
    """Options of MTT with robust learning."""

    start_noise: float = Field(0.001, ge=0)
    """Standard deviation of Gaussian noise on the student's first weights; not given in the paper."""


@register("mtt-robust")
class MttRobust(Mtt):
    """MTT from start weights with Gaussian noise on them.

    Composition: as `mtt`, with noise on the start.

    Source: FTD Eq. 9 and Table 1, "robust learning". Not given there: the noise's standard deviation.
    """

    options: ClassVar[type[MethodOptions]] = MttRobustOptions
