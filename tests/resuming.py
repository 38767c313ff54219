"""What tests of experts share: training that is stopped after each epoch and goes on from its stored state."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch

from satm.checkpoint import ExpertState
from satm.experts import Snapshot

Train = Callable[[Snapshot | None], Iterator[Snapshot]]
"""Snapshots after a stored one; None: from the beginning."""


def check_resumes(train: Train, epochs: int, folder: Path) -> None:
    """Check that going on from any epoch ends at the bytes of not stopping."""
    whole = list(train(None))
    for stop in range(epochs + 1):
        state = ExpertState(folder / str(stop), {"name": "it"})
        for snapshot in islice(train(None), stop + 1):
            state.save(snapshot)
        after = ExpertState(folder / str(stop), {"name": "it"}).load()
        assert after is not None and after.epoch == stop
        for snapshot in train(after):
            state.save(snapshot)
        for one, other in zip(state.snapshots(), whole, strict=True):
            assert torch.equal(one, other.weights)
