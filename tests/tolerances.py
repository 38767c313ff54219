"""How far apart two ways of computing one number may be in the tests, relative to it, and why.

A float64 operation rounds by 1.1e-16 of its result and a float32 operation by 6e-8; each bound is some hundred times
what its kind of computation loses under other seeds, numbers of threads and instruction sets
(`tests/stress/seeds.py`). The defaults of `torch.testing.assert_close` (1.3e-6 and 1e-5 in float32, 1e-7 in float64)
stand for one formula in one precision, and that of `pytest.approx` (1e-6) for averages of a few numbers.
"""

ROUNDING = 1e-14
"""Float64, some dozen operations: one formula written in two ways."""

SUMS = 1e-12
"""Float64, one pass through a tiny network or sums of some thousand numbers in another order."""

LOOPS = 1e-10
"""Float64, an inner loop and its second derivatives: each step multiplies what the steps before have lost."""

TRAINING = 1e-9
"""Float64, training on mini-batches or an iteration with normalised lengths, which divide by small numbers."""

SINGLE = 1e-5
"""Float32, one pass or sums of some thousand numbers."""

SINGLE_LOOPS = 1e-4
"""Float32, some epochs of training, or whitening, whose matrix has entries up to 100 times those of the images."""

DISTINCT = 1e-6
"""Least difference of what must differ: a thousand times more than any rounding in float64."""

FINITE_DIFFERENCES = 1e-6
"""Float64, a slope by central differences: their steps lose some 1e-8, and curvature as much."""

WRITTEN = 1e-4
"""Numbers that a table states with five digits."""
