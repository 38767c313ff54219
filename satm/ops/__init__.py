"""Operations with second derivatives of their own, and the pass that puts them into a network."""

from satm.ops.fuse import fused, has_plain_norm
