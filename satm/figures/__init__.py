"""Figures: pure functions of the files that other stages left behind. Each kind is one file here.

`draw` of a kind takes the files' reader and its options (`satm.config.figures`) and returns the picture and the numbers
that it shows.
"""

from satm.figures import (
    accounting,
    bounds,
    continual,
    correlation,
    costs,
    iterations,
    pictures,
    sweep,
    trajectory,
    variance,
)
from satm.figures.base import FIGURES, Drawn

__all__ = [
    "FIGURES",
    "Drawn",
    "accounting",
    "bounds",
    "continual",
    "correlation",
    "costs",
    "iterations",
    "pictures",
    "sweep",
    "trajectory",
    "variance",
]
