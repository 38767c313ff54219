"""Random numbers and threads of the tests.

All random numbers follow from `$SATM_TEST_SEED`, which is 0 by default, so that a test passes or fails each time;
`tests/stress/seeds.py` varies it.
"""

import os
import random

import numpy
import torch

SEED = int(os.environ.get("SATM_TEST_SEED", "0"))
"""Seed of all random numbers of the tests."""

THREADS = int(os.environ.get("SATM_TEST_THREADS", "1"))
"""Threads of torch in a test process; more than one changes the order of sums."""

_APART = 1_000_003
"""Distance of two sessions' seeds, so that their generators share none."""


def torch_generator(number: int = 0) -> torch.Generator:
    """Return a generator of torch, another one for each number and each seed of the session."""
    return torch.Generator().manual_seed(number + _APART * SEED)


def numpy_generator(number: int = 0) -> numpy.random.Generator:
    """Return a generator of numpy, another one for each number and each seed of the session."""
    return numpy.random.default_rng(number + _APART * SEED)


def seed_everything() -> None:
    """Start the global generators of Python, numpy and torch from the session's seed."""
    random.seed(SEED)
    numpy.random.seed(SEED % 2**32)
    torch.manual_seed(SEED)
