"""Difficulty-aligned trajectory matching (DATM): early segments first, with learned labels.

Composition of `datm`: experts flat; init correct; labels learned; segments uniform (expanding if the preset of a
dataset and IPC says so, as the published configurations do); objective match; estimator exact; step size exact; outer
descent. Iterations with a loss above 1 are skipped.

Source: Guo et al. 2024 (DATM) and its public code; settings from its configuration files, where losses above 1.1 are
    skipped for CIFAR-10 at one image per class.
Differs: the starting images come in the order that all methods here share.
"""

from typing import Any

from satm.config.methods import MatchingOptions
from satm.methods.mtt import step
from satm.methods.recipe import MATCHING, recipe

ALIGNED: dict[str, Any] = {"experts": "flat", "init": "correct", "labels": "learned", "skip_above": 1.0}
"""DATM's experts, initial images and labels, and the loss above which it skips an iteration."""


def expanding(options: MatchingOptions, iteration: int | None) -> int:
    """Return the exclusive upper bound of start epochs; it grows with the iteration, so that easy segments come first.

    It grows linearly from `expand_from` to `max_start_epoch` in `expand_iterations`; `iteration` None: its final value.

    Source: DATM's public code.
    """
    first, last, over = options.expand_from, options.max_start_epoch, options.expand_iterations
    assert first is not None  # expanding segments without it are refused
    return last if iteration is None or iteration >= over else first + (last - first) * iteration // over


recipe("datm", MATCHING, MatchingOptions, step, **ALIGNED)
