"""MTT with adaptive SAM (ASAM)."""

from typing import ClassVar

from pydantic import Field

from satm.methods.base import MethodOptions, Synthetic, register
from satm.methods.mtt_sam import MttSam, MttSamOptions
from satm.outer import NOTHING, Memory, OuterGradient, adaptive


class MttAsamOptions(MttSamOptions):
    """Options of MTT with ASAM."""

    eta: float = Field(0.01, ge=0)
    """Added to the size of each pixel, which scales its part of the step; 0.01 as in ASAM's public code."""


@register("mtt-asam")
class MttAsam(MttSam):
    """MTT-SAM whose neighbourhood scales with the pixels.

    Composition: as `mtt-sam`; ASAM.

    Source: ASAM: Kwon et al. 2021, Eq. 8.
    """

    options: ClassVar[type[MethodOptions]] = MttAsamOptions
    settings: MttAsamOptions

    def gradient(self, synthetic: Synthetic, iteration: int, memory: Memory = NOTHING) -> OuterGradient:
        """Return the hypergradient at the neighbour."""
        ascent = adaptive(synthetic.images, self.settings.rho, self.settings.eta)
        return self.sharpened(synthetic, iteration, ascent)[0]
