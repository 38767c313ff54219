"""The inner loop and its hypergradient."""

from satm.unroll.engines import ENGINES
from satm.unroll.hypergradient import Hypergradient, hypergradient
from satm.unroll.loop import Augment, InnerLoop, Loss, Point
from satm.unroll.rules import Adam, Momentum, Rule, Scheduled, Sgd
