"""MTT with the outer optimisers that SATM is compared with: EMA, SAM, GSAM, ASAM and VaSSO.

All use SATM's approximations of the hypergradient; `keep_divisor: 1` and `step_size_gradient: exact` (and `reuse:
false` for the sharpness-aware ones) switch them off.

`mtt-ema`: as `mtt`, estimator truncated; step size first-order; outer descent + ema.
`mtt-sam`: as `mtt-ema`, outer sam.
`mtt-gsam`: as `mtt-ema`, outer gsam.
`mtt-asam`: as `mtt-ema`, outer asam.
`mtt-vasso`: as `mtt-ema`, outer vasso.

Source: SATM Table 4 and section 4.3.1; the average as in FTD, section 3.3; SAM: Foret et al. 2021; GSAM: Zhuang et al.
    2022, Algorithm 1; ASAM: Kwon et al. 2021, Eq. 8, eta as in its public code; VaSSO: Li and Giannakis 2023,
    Algorithm 1, ``d = (1 - theta) d + theta g``.
Not given: rho, alpha, eta, theta and the decay, which SATM says were tuned.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from satm.config.methods import MatchingOptions
from satm.methods import mtt
from satm.methods.recipe import MATCHING, recipe
from satm.methods.satm import TRUNCATED

if TYPE_CHECKING:
    from torch import Tensor

    from satm.methods.parts.matching import TrajectoryMatching
    from satm.methods.parts.problem import Synthetic
    from satm.outer import Ascent, MethodState, OuterGradient


class SamOptions(MatchingOptions):
    """Options of MTT with SAM."""

    rho: float = Field(0.1, ge=0)
    """Length of the step to the sharpest neighbour, in the norm over the whole set."""
    reuse: bool = True
    """Whether the second unroll reuses the first one's trajectory up to the first differentiated step."""


class GsamOptions(SamOptions):
    """Options of MTT with GSAM."""

    alpha: float = Field(0.4, ge=0)
    """Share that is removed of the hypergradient's component that only widens the surrogate gap; 0: SAM."""


class AsamOptions(SamOptions):
    """Options of MTT with ASAM."""

    eta: float = Field(0.01, ge=0)
    """Added to the magnitude of each pixel, which scales its part of the step; 0.01 as in ASAM's public code."""


class VassoOptions(SamOptions):
    """Options of MTT with VaSSO."""

    theta: float = Field(0.4, gt=0, le=1)
    """Weight of the newest hypergradient in the moving average that points to the neighbour; 1: SAM."""


def sharpened(
    matching: "TrajectoryMatching[SamOptions]", synthetic: "Synthetic", iteration: int, ascent: "Ascent"
) -> tuple["OuterGradient", "Tensor"]:
    """Return the hypergradient at the neighbour that the ascent leads to, and the one at the set."""
    from satm.outer import sharpness_aware

    options, oracle = matching.options, matching.oracle(synthetic, iteration)
    reuse_from = options.inner_steps - options.kept if options.reuse else 0
    return sharpness_aware(oracle, synthetic.images, ascent, last=options.kept, reuse_from=reuse_from)


def sam(
    matching: "TrajectoryMatching[SamOptions]", synthetic: "Synthetic", iteration: int, state: "MethodState"
) -> "OuterGradient":
    """Return the hypergradient at the sharpest neighbour."""
    from satm.outer import steepest

    return sharpened(matching, synthetic, iteration, steepest(matching.options.rho))[0]


def gsam(
    matching: "TrajectoryMatching[GsamOptions]", synthetic: "Synthetic", iteration: int, state: "MethodState"
) -> "OuterGradient":
    """Return the hypergradient at the sharpest neighbour, less a share of what only widens the surrogate gap."""
    from satm.outer import steepest, without_surrogate_gap

    sharp, plain = sharpened(matching, synthetic, iteration, steepest(matching.options.rho))
    return without_surrogate_gap(sharp, plain, matching.options.alpha)


def asam(
    matching: "TrajectoryMatching[AsamOptions]", synthetic: "Synthetic", iteration: int, state: "MethodState"
) -> "OuterGradient":
    """Return the hypergradient at the sharpest neighbour, in a neighbourhood that scales with the pixels."""
    from satm.outer import adaptive

    options = matching.options
    return sharpened(matching, synthetic, iteration, adaptive(synthetic.images, options.rho, options.eta))[0]


def vasso(
    matching: "TrajectoryMatching[VassoOptions]", synthetic: "Synthetic", iteration: int, state: "MethodState"
) -> "OuterGradient":
    """Return the hypergradient at the neighbour that a moving average of hypergradients, the state, points to."""
    from satm.outer import steepest

    theta, following = matching.options.theta, dict(state)

    def ascent(gradient: "Tensor") -> "Tensor":
        before = state.get("direction")
        following["direction"] = theta * gradient if before is None else (1 - theta) * before + theta * gradient
        return steepest(matching.options.rho)(following["direction"])

    sharp, _ = sharpened(matching, synthetic, iteration, ascent)
    return replace(sharp, state=following)


recipe("mtt-ema", MATCHING, MatchingOptions, mtt.step, **TRUNCATED, ema=0.999)
recipe("mtt-sam", MATCHING, SamOptions, sam, {"outer": "sam"}, **TRUNCATED)
recipe("mtt-gsam", MATCHING, GsamOptions, gsam, {"outer": "gsam"}, **TRUNCATED)
recipe("mtt-asam", MATCHING, AsamOptions, asam, {"outer": "asam"}, **TRUNCATED)
recipe("mtt-vasso", MATCHING, VassoOptions, vasso, {"outer": "vasso"}, **TRUNCATED)
