"""The inner loop and its hypergradient."""

from satm.unroll.engines import ENGINES, Gradients, Hypergradient
from satm.unroll.hypergradient import hypergradient, obstacle
from satm.unroll.loop import Augment, InnerLoop, Loss, Point
from satm.unroll.rules import Adam, Momentum, Rule, Scheduled, Sgd, descent_rule
