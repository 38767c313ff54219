"""The candidates of an architecture search that fit images; no torch."""

import functools

from satm.evaluation.search import Candidate, candidates
from satm.networks import NETWORKS, resolve


@functools.cache
def fitting(size: int, width_factor: float = 1.0) -> tuple[Candidate, ...]:
    """Return the candidates that the network can build for images of `size` x `size` pixels."""
    fit = []
    for candidate in candidates(width_factor):
        name, options = resolve(candidate.network)
        try:
            NETWORKS[name].check(size, options)
        except ValueError:
            continue
        fit.append(candidate)
    return tuple(fit)
