"""Matching training trajectories (MTT).

Match the student's end point to the expert's, by plain descent on the hypergradient.

Composition of `mtt`: experts sgd; init real; labels hard; segments uniform; objective match; estimator exact; step size
exact; outer descent.

Source: Cazenavette et al. 2022, section "Long-range parameter matching", and its public code.
"""

from typing import TYPE_CHECKING

from satm.config.methods import MatchingOptions
from satm.methods.recipe import MATCHING, recipe

if TYPE_CHECKING:
    from torch import Tensor

    from satm.methods.parts.matching import TrajectoryMatching
    from satm.methods.parts.problem import Synthetic
    from satm.outer import MethodState, OuterGradient


def matching_loss(student: "Tensor", start: "Tensor", target: "Tensor") -> "Tensor":
    """Return `[]` the squared distance from student to target, relative to the distance that the expert moved.

    0 is a perfect match, 1 no better than not training; values above 1 are possible. All are `[P]` weights: the student
    after N inner steps, the expert where the student began and M epochs later, both constant.

    Source: MTT; SATM Eq. 6; FTD section 3.1; ConTra Eq. 2.
    """
    return (student - target).square().sum() / (start - target).square().sum()


def step(
    matching: "TrajectoryMatching[MatchingOptions]", synthetic: "Synthetic", iteration: int, state: "MethodState"
) -> "OuterGradient":
    """Return the hypergradient of the matching loss at the synthetic set."""
    from satm.outer import descent

    return descent(matching.oracle(synthetic, iteration), synthetic.images, matching.options.kept)


recipe("mtt", MATCHING, MatchingOptions, step)
