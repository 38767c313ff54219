"""What the methods share that SATM is compared with: MTT, truncated as SATM is, under other outer optimisers.

`keep_divisor: 1` and `step_size_gradient: exact` (and `reuse: false` of the sharpness-aware ones) give each without
SATM's approximations.

Source: SATM Table 4 and section 4.3.1. Not given there: rho, alpha, eta, theta and the decay, which it says were tuned.
"""

from typing import Literal

from pydantic import Field

from satm.methods.matching_options import MatchingOptions


class TruncatedOptions(MatchingOptions):
    """MTT with SATM's approximations of the hypergradient."""

    step_size_gradient: Literal["exact", "first-order", "fixed"] = "first-order"
    """How the inner step size is learned; as SATM, by its first-order gradient."""
    keep_divisor: int = Field(3, ge=1)
    """Differentiate through the last int(inner_steps / keep_divisor) steps of each unroll."""
