"""The stages: each reads the files of the one before it and writes its own. The only place that joins both worlds.

A function here does what one command does, by names; `satm.cli` turns flags into these calls.
"""

from satm.stages.analyse import make_expert_sharpness, make_sharpness
from satm.stages.continual import make_continual
from satm.stages.data import make_images, make_zca
from satm.stages.distill import make_distilled
from satm.stages.evaluate import make_evaluation, make_full, make_variants
from satm.stages.experts import collect_experts, make_difficulty, make_experts
from satm.stages.nas import make_real_search, make_search
from satm.stages.report import make_continual_figure, make_synthetic_figure, make_table

__all__ = [
    "collect_experts",
    "make_continual",
    "make_continual_figure",
    "make_difficulty",
    "make_distilled",
    "make_evaluation",
    "make_expert_sharpness",
    "make_experts",
    "make_full",
    "make_images",
    "make_real_search",
    "make_search",
    "make_sharpness",
    "make_synthetic_figure",
    "make_table",
    "make_variants",
    "make_zca",
]
