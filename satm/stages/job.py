"""What surrounds the computing of a stage: a stage opens its inputs, calls the library and writes its results."""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from satm.config import Layout
from satm.errors import UsageError
from satm.evaluation.networks import Axes
from satm.results.circumstances import run_metadata
from satm.results.columns import Columns
from satm.results.rows import read_rows_metadata, write_rows
from satm.run.disk import patiently
from satm.run.lock import exclusive, link
from satm.run.progress import Progress
from satm.run.record import account
from satm.run.stopping import check_stop, saved
from satm.seeds import derive_seed
from satm.stages.checkpoint import Content, Generations, NetworkState
from satm.storage.identity import Identity, differing_field
from satm.storage.tensors import read_tensors

LOG = logging.getLogger("satm")

Row = Mapping[str, Any]
"""JSON values by column."""


class Job:
    """One run of a stage; while the context is open, no other process works at it.

    It owns the lock on the state folder, the account of what the run takes, the identity, the state from which a killed
    run goes on, progress and writing. Results that were kept for a workflow that was killed (`satm.run.lock.KEPT`) are
    put back on entering. Leaving without an error removes the state.

    Args:
        layout: where files are.
        place: names of the run, which are those of its state folder, account and log.
        what: is made, for messages.
        identity: of the results.
        results: all files, the first of them the rows, the others tensors.
        columns: of the rows; None: the first file holds none.
        device: where the run computes.
        is_ours: whether results are of this run; None: their rows state the identity. A `UsageError` says no.

    Raises:
        UsageError: (on entering) another process works at this run.
        RunError: (on entering) the state folder cannot be written.
    """

    made: bool
    """Whether another process has made the results, while this one waited for the lock or before."""
    folder: Path
    """Of the state."""

    def __init__(
        self,
        layout: Layout,
        place: Sequence[str],
        what: str,
        identity: Identity,
        *results: Path,
        columns: Columns | None = None,
        device: torch.device | None = None,
        is_ours: Callable[..., bool] | None = None,
    ) -> None:
        self.identity, self.results, self.columns = identity, results, columns
        self.folder = Path(layout.state(*place))
        self._account, self._name, self._what = Path(layout.account(*place)), place[0], what
        self._device = device or torch.device("cpu")
        self._is_ours = is_ours or self._rows_are_ours
        self._rows, self._kept = Generations(self.folder, "rows", identity), 0

    def __enter__(self) -> "Job":
        check_stop()
        with contextlib.ExitStack() as stack:
            stack.enter_context(account(self._account))
            self._lock = stack.enter_context(exclusive(self.folder, self._what))
            self.made = self._find_results()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._lock.finished(*self.results)
        self._stack.__exit__(kind, error, trace)

    def progress(self, total: int, done: int = 0) -> Progress:
        """Return the progress of some steps, those of an earlier process included."""
        return Progress(self._name, total, done)

    def rows(self) -> list[Content]:
        """Return the rows that an earlier process has kept."""
        found = self._rows.load()
        rows: list[Content] = found[1]["rows"] if found else []
        self._kept = len(rows)
        return rows

    def keep(self, rows: Sequence[Row]) -> None:
        """Keep the rows measured so far, all of them."""
        self.check()
        if self._rows.save({}, {"rows": list(rows)}):
            saved()
        self._kept = len(rows)

    def networks(self, axes: Sequence[Axes]) -> NetworkState:
        """Return where the state of networks is kept while they are trained for the rows after those that are kept."""
        return NetworkState(self.folder, [[derive_seed(*one) for one in axes], self._kept, self.identity])

    def check(self) -> None:
        """Make sure that no other process has taken this run over; to be called before anything is written.

        Raises:
            RunError: one has.
        """
        self._lock.check()

    def write(self, write: Callable[[], object]) -> None:
        """Write a result; on a full disk wait for space."""
        self.check()
        patiently(write)

    def write_rows(self, rows: Sequence[Row]) -> None:
        """Write the rows, the first of the results."""
        assert self.columns is not None
        path, columns = self.results[0], self.columns
        self.write(lambda: write_rows(path, rows, columns, run_metadata(self.identity, self._device)))

    def _find_results(self) -> bool:
        """Return whether the results are there already, after putting back those that were kept."""
        kept = self._lock.kept(*self.results) if self.results else None
        if kept is None and not (self._lock.waited and self.results and all(path.is_file() for path in self.results)):
            return False
        try:
            if not self._is_ours(*(kept or self.results)):
                return False
        except UsageError as error:
            LOG.warning("%s", error)
            return False
        for source, path in zip(kept or (), self.results, strict=False):
            path.parent.mkdir(parents=True, exist_ok=True)
            link(source, path)
        LOG.info("%s was made by another process", self.results[0])
        return True

    def _rows_are_ours(self, rows: Path, *tensors: Path) -> bool:
        assert self.columns is not None
        for path in tensors:
            read_tensors(path, "synthetic set")
        return differing_field(self.identity, read_rows_metadata(rows, self.columns)["options"]) is None
