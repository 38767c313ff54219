"""How the synthetic set is moved: which hypergradients an outer step asks for, and what it makes of them."""

from satm.outer.base import Oracle, OuterGradient
from satm.outer.descent import descent
from satm.outer.smoothed import Smoothing, smoothed

__all__ = ["Oracle", "OuterGradient", "Smoothing", "descent", "smoothed"]
