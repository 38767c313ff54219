"""MTT with surrogate-gap guided SAM (GSAM)."""

from typing import ClassVar

from pydantic import Field

from satm.methods.base import MethodOptions, Synthetic, register
from satm.methods.mtt_sam import MttSam, MttSamOptions
from satm.outer import NOTHING, Memory, OuterGradient, steepest, without_surrogate_gap


class MttGsamOptions(MttSamOptions):
    """Options of MTT with GSAM."""

    alpha: float = Field(0.4, ge=0)
    """How much of the hypergradient's part that only widens the surrogate gap is left out; 0: SAM."""


@register("mtt-gsam")
class MttGsam(MttSam):
    """MTT-SAM that also narrows the gap between the loss at the neighbour and at the set.

    Composition: as `mtt-sam`; GSAM.

    Source: GSAM: Zhuang et al. 2022, Algorithm 1.
    """

    options: ClassVar[type[MethodOptions]] = MttGsamOptions
    settings: MttGsamOptions

    def gradient(self, synthetic: Synthetic, iteration: int, memory: Memory = NOTHING) -> OuterGradient:
        """Return the hypergradient at the neighbour without a part of the gap's."""
        found, first = self.sharpened(synthetic, iteration, steepest(self.settings.rho))
        return without_surrogate_gap(found, first, self.settings.alpha)
