"""Options of measurements, other than accuracies, at synthetic sets and experts."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from satm.config.base import Options
from satm.errors import UsageError

ANALYSES: dict[str, tuple[str, ...]] = {
    "sharpness": ("segments",),
    "trajectory": ("experts", "count", "starts"),
    "variance": ("samples",),
    "bounds": ("segments", "divisors"),
}
"""Measurements at a synthetic set, other than accuracies, and the options that each uses."""

RHOS = (0.005, 0.01, 0.03, 0.05, 0.1)
"""Lengths of the step to an expert's neighbour (expert-sharpness): FTD's candidates (section A.3.1)."""


class AnalyseOptions(Options):
    """Options of the measurements at a synthetic set; each measurement uses some of them."""

    segments: int = Field(20, ge=1)
    """Expert segments (sharpness, bounds)."""
    experts: str | None = None
    """Experts to compare networks with (trajectory; None: the method's own) or to measure (expert-sharpness)."""
    count: int = Field(5, ge=1)
    """Number of experts to use, the first ones (trajectory, expert-sharpness)."""
    starts: tuple[Annotated[int, Field(ge=0)], ...] = (0, 10, 20, 30, 40, 45)
    """Epochs at which networks start, to train to the last epoch; later ones are left out (trajectory; FTD Table 6)."""
    samples: int = Field(100, ge=2)
    """Number of single real images (variance). Source: RaT-BPTT C.4."""
    divisors: tuple[Annotated[int, Field(ge=1)], ...] = (2, 3, 4, 5, 6)
    """The last int(inner_steps / divisor) steps are kept (bounds). Source: SATM Table 11."""


def kept_steps(steps: int, divisors: Sequence[int]) -> list[int]:
    """Return the numbers of last inner steps to keep, ``int(steps / divisor)``, ascending, excluding 0 and all steps.

    Raises:
        UsageError: no divisor keeps a part of them.
    """
    if keeps := sorted({steps // divisor for divisor in divisors if divisor > 1 and steps // divisor}):
        return keeps
    raise UsageError(f"the divisors {list(divisors)} of {steps} inner steps keep no part of them; use 2 or more")
