"""The candidates of an architecture search as networks; `satm.evaluation.search`, which needs no torch, names them."""

import functools

import torch

from satm.evaluation.search import Candidate, candidates
from satm.networks import NETWORKS, resolve


@functools.cache
def fitting(channels: int, classes: int, size: int, width_factor: float = 1.0) -> tuple[Candidate, ...]:
    """Return the candidates that the network can build for images of `size` x `size` pixels."""
    fit = []
    for candidate in candidates(width_factor):
        name, options = resolve(candidate.network)
        try:
            with torch.device("meta"):  # shapes only: no weights are drawn
                NETWORKS[name].build(channels, classes, size, options)
        except ValueError:
            continue
        fit.append(candidate)
    return tuple(fit)
