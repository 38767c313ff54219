"""The frame of every stage: lock, account, resuming, progress and the writing of results."""

import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from satm.config import Layout, place_of
from satm.errors import UsageError
from satm.evaluation.networks import Axes, Group, Task, evaluate_tasks
from satm.networks.training import TrainingImages
from satm.results.circumstances import run_metadata
from satm.results.columns import Columns
from satm.results.rows import read_rows_metadata, write_rows
from satm.run.disk import patiently
from satm.run.lock import exclusive, link
from satm.run.machine import describe_backend
from satm.run.progress import Progress
from satm.run.record import account
from satm.run.stopping import check_stop, saved
from satm.seeds import derive_seed
from satm.stages.checkpoint import Content, Generations, NetworkState
from satm.storage.identity import Identity, differing_field
from satm.storage.tensors import read_tensors
from satm.workflow.rules import RULES

LOG = logging.getLogger("satm")

Row = Mapping[str, Any]
"""JSON values by column."""


def account_of(layout: Layout, rule: str, **names: object) -> contextlib.AbstractContextManager[None]:
    """Record the cost of a job; rule and names as in `satm.config.place_of`."""
    return account(Path(layout.account(*place_of(rule, **names))))


class Job:
    """One run of a stage; while the context is open, no other process works on it.

    It owns the lock on the state folder, the account of the run's cost, the identity, the state from which a killed run
    resumes, progress and writing. On entering, results that were kept for a killed workflow (`satm.run.lock.KEPT`) are
    restored. Leaving without an error removes the state.

    Args:
        layout: paths of files.
        rule: key of the table of jobs (`satm.workflow.rules.RULES`), which lists the results.
        names: the job's wildcards.
        identity: everything that determines the results.
        columns: columns of the result's rows, if it has rows.
        device: device of the run, for the metadata of rows.
        is_ours: checks that tensors are of this run, else returns False or raises a `UsageError`; None: rows are
            checked by their metadata.

    Raises:
        UsageError: (on entering) another process works on this run.
        RunError: (on entering) the state folder cannot be written.
    """

    done: bool
    """True if another process has already written the results."""
    folder: Path
    """Folder of the state."""
    path: Path
    """Path of the first result."""

    def __init__(
        self,
        layout: Layout,
        rule: str,
        names: Mapping[str, object],
        identity: Identity,
        columns: Columns | None = None,
        device: torch.device | None = None,
        is_ours: Callable[[Path], bool] | None = None,
    ) -> None:
        place, outputs = place_of(rule, **names), RULES[rule].outputs.values()
        self._outputs = [Path(pattern.format(root=layout.root, **names)) for pattern in outputs]
        self._results = self._outputs if RULES[rule].keeps else []
        self.path, self.identity, self.folder = self._outputs[0], identity, Path(layout.state(*place))
        self._account, self._name = account_of(layout, rule, **names), place[0]
        self.progress = partial(Progress, self._name)
        self._columns, self._device, self._is_ours = columns, device or torch.device("cpu"), is_ours
        self._backend, self._kept = describe_backend(self._device), 0
        self._rows = Generations(self.folder, "rows", identity, self._backend)

    def __enter__(self) -> "Job":
        check_stop()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._account)
            self._lock = stack.enter_context(exclusive(self.folder, f"the {self._name} job"))
            self.done = bool(self._results) and self._find_results()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is None:
            self._lock.finished(*self._results)
        self._stack.__exit__(kind, *error)

    def rows(self) -> list[Content]:
        """Return the rows stored by an earlier process."""
        state = self._rows.load()
        rows: list[Content] = state[1]["rows"] if state else []
        self._kept = len(rows)
        return rows

    def keep(self, rows: Sequence[Row]) -> None:
        """Store all rows measured so far."""
        self.check()
        if self._rows.save({}, {"rows": list(rows)}):
            saved()
        self._kept = len(rows)

    def networks(self, axes: Sequence[Axes]) -> NetworkState:
        """Return the storage for the state of networks in training, whose rows come next."""
        which = [[derive_seed(*one) for one in axes], self._kept]
        return NetworkState(self.folder, self.identity, which, self._backend)

    def test_networks(
        self,
        tasks: Sequence[tuple[Callable[[], Task], str]],
        axes: Callable[[int, int], Axes],
        repeats: int,
        real: TrainingImages,
        columns: Callable[[Group], Row],
    ) -> list[Row]:
        """Train and test the networks that have no row yet; return a row of each network.

        Args:
            tasks: tasks of `evaluate_tasks`, each with a text that follows a network's number in the progress.
            axes: names of a network for its seeds, from the index of its task and its number.
            repeats: networks of each task.
            real: images to test on.
            columns: columns that all rows of a group share.
        """
        rows: list[Row] = [*self.rows()]
        with self.progress(len(tasks) * repeats, len(rows)) as progress:
            some = [task for task, _ in tasks]
            for group in evaluate_tasks(some, axes, repeats, real, len(rows), self.networks):
                common = columns(group)
                rows += [{**common, "repeat": repeat, **vars(score)} for repeat, score in group.scores.items()]
                self.keep(rows)
                for repeat, score in group.scores.items():
                    result = "diverged" if math.isnan(score.accuracy) else f"accuracy {score.accuracy:.4f}"
                    progress.step(f"network {repeat}{tasks[group.which][1]}: {group.task.options.split} {result}")
        return rows

    def check(self) -> None:
        """Check that no other process has taken over this run; call it before writing anything.

        Raises:
            RunError: another process has taken it over.
        """
        self._lock.check()

    def write(self, write: Callable[[], object]) -> None:
        """Write a result; on a full disk wait for space."""
        self.check()
        patiently(write)

    def write_rows(self, rows: Sequence[Row]) -> None:
        """Write the rows to the result that is a parquet file."""
        path, columns = next(path for path in self._outputs if path.suffix == ".parquet"), self._columns
        assert columns is not None
        self.write(lambda: write_rows(path, rows, columns, run_metadata(self.identity, self._device)))

    def _find_results(self) -> bool:
        """Return whether the results exist already, after restoring kept ones."""
        kept = self._lock.kept(*self._results)
        if kept is None and not (self._lock.waited and all(path.is_file() for path in self._results)):
            return False
        try:
            if not all(map(self._is_ours or self._is_of_this_run, kept or self._results)):
                return False
        except UsageError as error:
            LOG.warning("%s", error)
            return False
        for source, path in zip(kept or (), self._results, strict=False):
            path.parent.mkdir(parents=True, exist_ok=True)
            link(source, path)
        LOG.info("%s was made by another process", self.path)
        return True

    def _is_of_this_run(self, path: Path) -> bool:
        if self._columns is None or path.suffix != ".parquet":
            read_tensors(path, "synthetic set")
            return True
        return differing_field(self.identity, read_rows_metadata(path, self._columns)["options"]) is None
