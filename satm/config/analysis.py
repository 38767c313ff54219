"""The options of measurements beside accuracies."""

from typing import Annotated

from pydantic import Field

from satm.config.base import Options

ANALYSES: dict[str, tuple[str, ...]] = {
    "sharpness": ("segments",),
    "trajectory": ("experts", "count", "starts"),
    "variance": ("samples",),
    "bounds": ("segments", "divisors"),
}
"""What can be measured at a synthetic set beside accuracies, and the options that each uses."""


class AnalyseOptions(Options):
    """How a synthetic set is measured; each measurement uses some of these (`ANALYSES`)."""

    segments: int = Field(20, ge=1)
    """Expert segments (sharpness, bounds)."""
    experts: str | None = None
    """Name of the experts whose path is followed (trajectory; None: those that the method matched), or whose sharpness
    is measured."""
    count: int = Field(5, ge=1)
    """Experts that are followed or measured, the first ones (trajectory, sharpness of experts)."""
    starts: tuple[Annotated[int, Field(ge=0)], ...] = (0, 10, 20, 30, 40, 45)
    """Epochs at which networks are begun that go on to the last one; those beyond it are left out (trajectory). Source:
    FTD Table 6."""
    samples: int = Field(100, ge=2)
    """Single real images (variance). Source: RaT-BPTT C.4."""
    divisors: tuple[Annotated[int, Field(ge=1)], ...] = (2, 3, 4, 5, 6)
    """The last int(inner_steps / divisor) steps are kept (bounds). Source: SATM Table 11."""
