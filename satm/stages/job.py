"""The frame of every stage: lock, account, resuming, progress and the writing of results."""

import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from satm.config import UNNAMED, Layout, Resolver, place_of
from satm.errors import UsageError
from satm.evaluation.networks import Axes, Group, Task, evaluate_tasks
from satm.networks.training import TrainingImages
from satm.results.circumstances import run_metadata
from satm.results.columns import Columns
from satm.results.rows import read_rows_metadata, write_rows
from satm.run.disk import patiently
from satm.run.lock import exclusive, in_workflow, link
from satm.run.machine import describe_backend
from satm.run.progress import Progress
from satm.run.record import account, mark_complete
from satm.run.stopping import check_stop, saved
from satm.seeds import derive_seed
from satm.stages.checkpoint import Content, Generations, NetworkState, has_state, other_state
from satm.storage.files import check_writable
from satm.storage.identity import Identity, differing_fields
from satm.storage.tensors import read_tensors
from satm.workflow.rules import RULES

LOG = logging.getLogger("satm")

Row = Mapping[str, Any]
"""JSON values by column."""


def account_of(layout: Layout, rule: str, **names: object) -> contextlib.AbstractContextManager[None]:
    """Record the cost of a job; rule and names as in `satm.config.place_of`."""
    return account(Path(layout.account(*place_of(rule, **names))))


def may_replace(resolver: Resolver) -> bool:
    """Return whether a finished result may be replaced: the command says so, or the workflow runs the job again."""
    return resolver.overwrite or in_workflow()


def otherwise(resolver: Resolver, verb: str = "replace") -> str:
    """Return what to do about a result with other options, for a message."""
    apart = resolver.by_hand is not None and resolver.by_hand.name != UNNAMED
    return f"add --overwrite to {verb} it, or --run NAME to keep both" + (" (it reads nothing of this run)" * apart)


def refuse_other_state(resolver: Resolver, folder: Path, identity: Identity) -> None:
    """Refuse to replace the state of an unfinished run by hand; a workflow replaces it.

    Args:
        resolver: the campaign.
        folder: folder of the state.
        identity: identity of the run that would replace it.

    Raises:
        UsageError: the state is of another run.
    """
    if not may_replace(resolver) and (difference := other_state(folder, identity)):
        raise UsageError(
            f"{folder} has the state of an unfinished run that differs ({difference}); finish that run, or "
            f"{otherwise(resolver, 'discard')}"
        )


class Job:
    """One run of a stage; while the context is open, no other process works on it.

    It owns the lock on the state folder, the account of the run's cost, the identity, the state from which a killed run
    resumes, progress and writing. On entering, results that were kept for a killed workflow (`satm.run.lock.KEPT`) are
    restored, and finished results of the same identity are found. Leaving without an error removes the state, but not
    one of other options beside results that were finished.

    Args:
        resolver: the campaign, with the paths of files.
        rule: key of the table of jobs (`satm.workflow.rules.RULES`), which lists the results.
        names: the job's wildcards.
        identity: everything that determines the results.
        columns: columns of the result's rows, if it has rows.
        device: device of the run, for the metadata of rows.
        doubts: signs that the data or the experts are not what they should be, for the metadata of rows.
        is_ours: checks that tensors are of this run, else returns False or raises a `UsageError`; None: rows are
            checked by their metadata.

    Raises:
        UsageError: (on entering) another process works on this run, or a finished result or an unfinished state has
            another identity and is not to be overwritten.
        RunError: (on entering) the state folder, or that of a result, cannot be written.
    """

    done: bool
    """True if the results exist already."""
    folder: Path
    """Folder of the state."""
    path: Path
    """Path of the first result."""

    def __init__(
        self,
        resolver: Resolver,
        rule: str,
        names: Mapping[str, object],
        identity: Identity,
        columns: Columns | None = None,
        device: torch.device | None = None,
        is_ours: Callable[[Path], bool] | None = None,
        doubts: Sequence[str] = (),
    ) -> None:
        place, outputs, layout = place_of(rule, **names), RULES[rule].outputs.values(), resolver.layout
        self._outputs = [Path(pattern.format(root=layout.root, **names)) for pattern in outputs]
        self._results = self._outputs if RULES[rule].keeps else []
        self._resolver, self.path = resolver, self._outputs[0]
        self.identity, self.folder = identity, Path(layout.state(*place))
        self._account, self._name = account_of(layout, rule, **names), place[0]
        self.progress = partial(Progress, self._name)
        self._doubts = {"doubts": list(doubts)} if doubts else {}
        self._columns, self._device, self._is_ours = columns, device or torch.device("cpu"), is_ours
        self._backend, self._kept = describe_backend(self._device), 0
        self._rows = Generations(self.folder, "rows", identity, self._backend)

    def __enter__(self) -> "Job":
        check_stop()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._account)
            self._lock = stack.enter_context(exclusive(self.folder, f"the {self._name} job"))
            self.done = bool(self._results) and self._find_results()
            if not self.done:
                refuse_other_state(self._resolver, self.folder, self.identity)
                for path in self._outputs:
                    check_writable(path)
                if self._lock.inherited and not has_state(self.folder):
                    LOG.info("an earlier process was killed here before it saved anything; starting from the beginning")
                if self._results and self._resolver.by_hand:
                    self._resolver.by_hand.remember()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is None and not (self.done and self._other_state() and not in_workflow()):
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
        self.write(lambda: write_rows(path, rows, columns, run_metadata(self.identity, self._device) | self._doubts))

    def _find_results(self) -> bool:
        """Return whether the results exist already, after restoring kept ones.

        Raises:
            UsageError: they are finished with another identity, or damaged, and are not to be overwritten.
        """
        if (kept := self._lock.kept(*self._results)) is not None:
            try:
                if difference := self._difference(kept):
                    raise UsageError(f"the results kept in {kept[0].parent} are others: {difference}")
            except UsageError as error:
                LOG.warning("%s", error)
            else:
                for source, path in zip(kept, self._results, strict=True):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    link(source, path)
                LOG.info("%s was made by another process", self.path)
                return True
        finished = all(path.is_file() for path in self._results)
        # The workflow deletes the results of a job that it runs, unless another process makes them in the meantime.
        if not finished or (self._resolver.overwrite and not self._lock.waited):
            return False
        try:
            difference = self._difference(self._results)
        except UsageError as error:  # it is damaged
            if not in_workflow():
                raise
            difference = str(error)
        if difference:
            if in_workflow():
                LOG.warning("%s is replaced: %s", self.path, difference)
                return False
            also = f"; --overwrite also discards the state of an unfinished run, {self.folder}"
            todo = otherwise(self._resolver) + (also if self._other_state() else "")
            raise UsageError(f"{self.path} is finished, but differs: {difference}; {todo}")
        LOG.info("%s is finished already; --overwrite makes it again", self.path)
        mark_complete()
        return True

    def _other_state(self) -> bool:
        """Return whether an unfinished run of other options, which was to replace the results, has left a state."""
        return other_state(self.folder, self.identity) is not None

    def _difference(self, paths: Sequence[Path]) -> str | None:
        """Return in what results differ from those of this run; None: in nothing. `UsageError` if one is damaged."""
        for path in paths:
            if self._is_ours is not None:
                if not self._is_ours(path):
                    return "it belongs to another run"
            elif self._columns is None or path.suffix != ".parquet":
                read_tensors(path, "synthetic set")
            elif difference := differing_fields(self.identity, read_rows_metadata(path, self._columns)["options"]):
                return difference
        return None
