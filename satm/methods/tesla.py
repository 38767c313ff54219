"""TESLA: trajectory matching in constant memory, with the labels of a teacher."""

from typing import ClassVar, Literal

from satm.methods.base import MethodOptions, register
from satm.methods.matching_options import MatchingOptions
from satm.methods.mtt import Mtt


class TeslaOptions(MatchingOptions):
    """Options of TESLA."""

    engine: Literal["mixed", "reverse", "tesla"] = "tesla"
    """How the hypergradient is computed. `tesla`, the published formula, equals the exact hypergradient for one inner
    step only; `mixed` is exact for any number, in little memory too."""
    labels: Literal["hard", "learned", "teacher"] = "teacher"
    """What the set says; TESLA: what the expert at the segment's end says of the images, in each iteration anew."""
    step_size_gradient: Literal["exact", "first-order", "fixed"] = "first-order"
    """How the inner step size is learned; TESLA's public code holds the inner gradients constant."""


@register("tesla")
class Tesla(Mtt):
    """MTT by a gradient that needs the memory of one inner step, with soft labels of the expert.

    Composition: SGD experts; real images, teacher labels; uniform segments; TESLA's estimator; first-order step-size
    gradient; descent.

    The published gradient is presented as an exact rearrangement of MTT's. It holds each step's weights constant and so
    leaves out their dependence on the images of earlier steps: it is exact for one inner step and an approximation for
    more. `--engine mixed` gives the exact hypergradient in the memory of one step's activations plus two vectors of
    weights for each step.

    Source: Cui et al. 2023 (TESLA) and its public code, which halves the images' gradient (`tesla_scale: code`).
    Differs: the stored labels are those of the last iteration's teacher on the final images; the code's are those on
        the images one step earlier.
    """

    options: ClassVar[type[MethodOptions]] = TeslaOptions
