"""MTT with variance-suppressed SAM (VaSSO)."""

from dataclasses import replace
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from satm.methods.base import MethodOptions, Synthetic, register
from satm.methods.mtt_sam import MttSam, MttSamOptions
from satm.outer import NOTHING, Memory, OuterGradient, steepest


class MttVassoOptions(MttSamOptions):
    """Options of MTT with VaSSO."""

    theta: float = Field(0.4, gt=0, le=1)
    """Share of the newest hypergradient in the averaged one that points to the neighbour; 1: SAM."""


@register("mtt-vasso")
class MttVasso(MttSam):
    """MTT-SAM whose neighbour is pointed to by a moving average of hypergradients.

    Composition: as `mtt-sam`; VaSSO.

    Source: VaSSO: Li and Giannakis 2023, Algorithm 1, ``d = (1 - theta) d + theta g``.
    """

    options: ClassVar[type[MethodOptions]] = MttVassoOptions
    settings: MttVassoOptions

    def gradient(self, synthetic: Synthetic, iteration: int, memory: Memory = NOTHING) -> OuterGradient:
        """Return the hypergradient at the neighbour; the memory holds the average."""
        theta, kept = self.settings.theta, dict(memory)

        def ascent(gradient: Tensor) -> Tensor:
            before = memory.get("direction")
            average = theta * gradient if before is None else (1 - theta) * before + theta * gradient
            kept["direction"] = average
            return steepest(self.settings.rho)(average)

        found, _ = self.sharpened(synthetic, iteration, ascent)
        return replace(found, memory=kept)
