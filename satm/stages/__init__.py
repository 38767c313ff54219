"""The stages: each reads the files of the one before it and writes its own. The only place that joins both worlds.

A function here does what one command does, by names; `satm.cli` turns flags into these calls.
"""

from satm.stages.analyse import make_expert_sharpness, make_sharpness
from satm.stages.data import make_images, make_zca
from satm.stages.distill import make_distilled
from satm.stages.evaluate import make_evaluation
from satm.stages.experts import collect_experts, make_difficulty, make_experts
from satm.stages.report import make_synthetic_figure, make_table

__all__ = [
    "collect_experts",
    "make_difficulty",
    "make_distilled",
    "make_evaluation",
    "make_expert_sharpness",
    "make_experts",
    "make_images",
    "make_sharpness",
    "make_synthetic_figure",
    "make_table",
    "make_zca",
]
