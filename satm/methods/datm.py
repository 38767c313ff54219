"""Difficulty-aligned trajectory matching (DATM)."""

from typing import ClassVar, Literal

from pydantic import Field

from satm.config import Options
from satm.methods.base import MethodOptions, register
from satm.methods.matching_options import MatchingOptions
from satm.methods.mtt import Mtt


class AlignedOptions(Options):
    """What DATM starts from and skips; the first of the bases of a method's options that take it over."""

    experts: str = "flat"
    """Name of the experts."""
    init: Literal["real", "correct", "gaussian"] = "correct"
    """What the synthetic images start from; DATM: real images that an expert classifies correctly."""
    labels: Literal["hard", "learned", "teacher"] = "learned"
    """What the set says; DATM: soft labels that start from the experts' logits and are learned."""
    skip_above: float | None = Field(1.0, gt=0)
    """Iterations with a larger loss move nothing; 1 in DATM's public code, 1.1 for CIFAR-10 at one image per class."""


class DatmOptions(AlignedOptions, MatchingOptions):
    """Options of DATM."""


@register("datm")
class Datm(Mtt):
    """Match early segments first, with learned labels; descend on the exact hypergradient as MTT does.

    Composition: flat experts; images that experts classify correctly, learned labels; expanding segments where a preset
    gives the range they begin with (`segments`, `expand_from`, `expand_iterations`), as the published configurations
    do, else uniform ones; exact estimator and step-size gradient; descent that skips large losses.

    Source: Guo et al. 2024 (DATM) and its public code; settings from its configuration files.
    Differs: the starting images come in the order that all methods here share.
    """

    options: ClassVar[type[MethodOptions]] = DatmOptions
