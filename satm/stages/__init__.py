"""The stages: each reads the files of the one before it and writes its own. The only place that joins both worlds.

A function here does what one command does, by names; `satm.cli` turns flags into these calls.
"""

from satm.stages.analyse import (
    make_bounds,
    make_expert_sharpness,
    make_sharpness,
    make_trajectory,
    make_variance,
)
from satm.stages.continual import make_continual
from satm.stages.data import make_images, make_zca
from satm.stages.distill import make_distilled
from satm.stages.evaluate import make_evaluation, make_full, make_variants
from satm.stages.experts import collect_experts, make_difficulty, make_experts
from satm.stages.nas import make_real_search, make_search
from satm.stages.report import make_figure, make_overview, make_table

__all__ = [
    "collect_experts",
    "make_bounds",
    "make_continual",
    "make_difficulty",
    "make_distilled",
    "make_evaluation",
    "make_expert_sharpness",
    "make_experts",
    "make_figure",
    "make_full",
    "make_images",
    "make_overview",
    "make_real_search",
    "make_search",
    "make_sharpness",
    "make_table",
    "make_trajectory",
    "make_variance",
    "make_variants",
    "make_zca",
]
