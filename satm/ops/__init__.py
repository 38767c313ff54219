"""Operations with second derivatives of their own, the pass that puts them into a network, and precision."""

from satm.ops.choice import fastest, own
from satm.ops.fuse import fused, has_plain_norm
from satm.ops.precision import Precision, exact_products, products_of
