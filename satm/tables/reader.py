"""Reading of the files behind tables and figures, with checks that each is of the expected run."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import pandas

from satm.config import Cell, Resolver
from satm.errors import MissingRun, UsageError
from satm.results.columns import BOUNDS, EVALUATION, METRICS, SHARPNESS, TRAJECTORY, VARIANCE, Columns
from satm.results.rows import read_run
from satm.storage.files import expect
from satm.storage.identity import differing_field, hash_file

if TYPE_CHECKING:
    from satm.results.distilled import DistilledDataset

P = ParamSpec("P")
T = TypeVar("T")

ANALYSED = {"sharpness": SHARPNESS, "trajectory": TRAJECTORY, "variance": VARIANCE, "bounds": BOUNDS}
"""The columns of each measurement at a synthetic set (`satm.config.ANALYSES`)."""


@dataclass
class Reader:
    """Reads the files of a campaign."""

    resolver: Resolver
    partial: bool = False
    """Allow files that do not exist yet (`attempt`)."""
    remarks: Sequence[str] = ()
    """Sentences to write below every table or figure made with this reader."""
    missing: list[str] = field(default_factory=list, init=False)
    """Descriptions of the runs that were left out, each with the command that makes it."""
    _hash: Callable[[Path], str] = field(default_factory=lambda: cache(hash_file), init=False)  # many files share a set

    def attempt(self, make: Callable[P, T], *args: P.args, **options: P.kwargs) -> T | None:
        """Return the result of a function that reads files; with `partial`, None if one is missing (`MissingRun`)."""
        try:
            return make(*args, **options)
        except MissingRun as error:
            if not self.partial:
                raise
            self.missing.append(str(error))
            return None

    def run(
        self,
        path: str,
        columns: Columns,
        command: str,
        axes: Mapping[str, object],
        further: Mapping[str, object] = MappingProxyType({}),
    ) -> tuple[pandas.DataFrame, dict[str, Any]]:
        """Return the rows of one file and the options of its run, reading the file once.

        Args:
            path: path of the file.
            columns: kind of the file.
            command: the stage that makes it, and fixed flags.
            axes: flags that name the run; they are also columns of the file.
            further: values of columns that are constant in the file.

        Raises:
            MissingRun: (a `UsageError`) the file is missing; the text has the command that makes it.
            UsageError: the file is broken, of another run, of another synthetic set than the stored one, or has
                duplicate rows.
        """
        what = f"{columns.what} {path}"
        if not Path(path).is_file():
            raise MissingRun(f"{what} is missing; make it with: {self._command(command, axes)}")
        frame, circumstances = read_run(Path(path), columns)
        for axis, value in {**axes, **further}.items():
            if axis in frame.columns and len(other := frame[frame[axis] != value]):
                raise UsageError(f"{what} is of {axis} {other[axis].iloc[0]}, expected {value}; make it again")
        refuse_repeats({path: frame}, columns)
        options: dict[str, Any] = expect({"options": {}, **circumstances}, {"options": dict}, what)["options"]
        self._check_sets(what, options, {**axes, **further}, command)
        return frame, options

    def full(self, dataset: str, recipe: str, network: str) -> pandas.DataFrame:
        """Return the evaluation of networks trained on all real images, as `run`."""
        axes = {"dataset": dataset, "what": "full", "recipe": recipe, "network": network}
        path = self.resolver.layout.full(dataset, recipe, network)
        return self.run(path, EVALUATION, "evaluate", axes, {"method": f"full-{recipe}", "labelled": "own"})[0]

    def metrics(self, cell: Cell) -> pandas.DataFrame:
        """Return the metrics of a distillation, as `run`: the last attempt at each iteration.

        `UsageError` also if they are of another version of the run than the stored synthetic set.
        """
        from satm.storage.tensors import open_tensors, read_metadata  # needs torch; the workflow reads tables' options

        path = self.resolver.layout.metrics(cell)
        frame, options = self.run(path, METRICS, "distill", cell.axes)
        if (axes := options.get("axes", list(cell))) != list(cell):
            actual, expected = (" ".join(map(str, each)) for each in (axes, cell))
            raise UsageError(f"metrics {path} are of {actual}, expected {expected}; make them again")
        beside = Path(self.resolver.layout.distilled(cell))
        if "options" in options and beside.is_file():
            with open_tensors(beside, "synthetic set") as file:
                stored = read_metadata(file, beside, "synthetic set").get("options")
            if difference := differing_field(options["options"], stored):
                raise UsageError(
                    f"metrics {path} and the synthetic set {beside} are of two versions of one run: {difference}; "
                    f"delete both and make them with: {self._command('distill', cell.axes)}"
                )
        return frame.drop_duplicates("iteration", keep="last") if len(frame) else frame

    def evaluation(self, cell: Cell, network: str) -> pandas.DataFrame:
        """Return the accuracies of networks trained on a synthetic set, as `run`."""
        path = self.resolver.layout.evaluation(cell, network)
        return self.run(path, EVALUATION, "evaluate", {**cell.axes, "network": network}, {"labelled": "own"})[0]

    def accuracies(self, cells: Sequence[Cell], network: str, split: str = "test") -> list[pandas.DataFrame]:
        """Return the evaluations of one method's sets of several seeds: of averaged sets first, then of raw ones.

        If sets are moving averages over the iterations, their files have rows of both, which are never mixed.

        Args:
            cells: cells of one dataset, IPC and method.
            network: network that was trained on the sets.
            split: real images on which accuracies were measured.

        Raises:
            UsageError: as `run`, or the sets of the seeds are not comparable.
        """
        frames = []
        for cell in cells:
            frame = self.evaluation(cell, network)
            frames.append(frame[frame["split"] == split])
            if frames[-1].empty:
                path = self.resolver.layout.evaluation(cell, network)
                raise UsageError(f"evaluation {path} has no accuracies on {split} images; make it again")
        rows = pandas.concat(frames, ignore_index=True)
        what = f"the evaluations of {cells[0].method} on {cells[0].dataset}, ipc {cells[0].ipc},"
        if len(selections := sorted(set(rows["selection"]))) > 1:
            raise UsageError(
                f"{what} mix the selections {', '.join(selections)}, which are not comparable; make them again with one"
            )
        averages = [sorted(set(frame["average"])) for frame in frames]
        if any(each != averages[0] for each in averages):
            raise UsageError(
                f"{what} are of averaged sets at some seeds and only of raw ones at others, which are not comparable; "
                "make them again with one"
            )
        return [rows[rows["average"] == average] for average in averages[0]]

    def distilled(self, cell: Cell) -> "DistilledDataset":
        """Return a synthetic set (errors: `run`)."""
        from satm.results.distilled import load_distilled  # needs torch; the workflow reads tables' options

        path = Path(self.resolver.layout.distilled(cell))
        what = f"the synthetic set {path}"
        if not path.is_file():
            raise MissingRun(f"{what} is missing; make it with: {self._command('distill', cell.axes)}")
        data = load_distilled(path)
        for axis, value in cell.axes.items():
            if (actual := getattr(data, axis)) != value:
                raise UsageError(f"{what} is of {axis} {actual}, expected {value}; make it again")
        return data

    def analysis(self, what: str, cells: Sequence[Cell]) -> pandas.DataFrame:
        """Return the measurements at some synthetic sets, as `run`; `what` as in `ANALYSED`."""
        frames = []
        for cell in cells:
            path = self.resolver.layout.analysis(what, cell)
            frames.append(self.run(path, ANALYSED[what], f"analyse --what {what}", cell.axes)[0])
        return pandas.concat(frames, ignore_index=True)

    def _check_sets(self, what: str, options: Mapping[str, Any], axes: Mapping[str, Any], command: str) -> None:
        """Refuse a file (`what`) of other synthetic sets than the stored ones; a set may be missing.

        The options of its run have the hash of a set, or hashes of several sets by dataset, or neither.
        """
        one = {axes["dataset"]: options["distilled"]} if "distilled" in options else {}
        for dataset, stated in expect({"sets": one, **options}, {"sets": dict}, what)["sets"].items():
            path = Path(self.resolver.layout.distilled(Cell(dataset, axes["ipc"], axes["method"], axes["seed"])))
            if path.is_file() and stated != self._hash(path):
                raise UsageError(
                    f"{what} is of another synthetic set than {path}; make it again: delete it and run "
                    f"`python -m satm {command}` with its names"
                )

    def _command(self, stage: str, axes: Mapping[str, object]) -> str:
        """Return the command that makes a run."""
        config = f" --config {shlex.quote(str(self.resolver.path))}" if self.resolver.path else ""
        return f"python -m satm {stage}{config} {' '.join(f'--{axis} {value}' for axis, value in axes.items())}"

    @property
    def notes(self) -> list[str]:
        """The remarks, and the number of runs that were left out, with the command of the first."""
        missing = list(dict.fromkeys(self.missing))
        more = f" {len(missing) - 1} more are missing." if len(missing) > 1 else ""
        return [*self.remarks, *(f"Not run yet: {first}.{more}" for first in missing[:1])]


def refuse_repeats(files: Mapping[str, pandas.DataFrame], columns: Columns) -> None:
    """Raise a `UsageError` for two rows with the same values of `Columns.key`, among the files of one run."""
    rows, key = pandas.concat(files), list(columns.key)  # indexed by file and row
    repeated = rows[rows.duplicated(key, keep=False)]
    if repeated.empty:
        return
    _, same = next(iter(repeated.groupby(key, dropna=False, sort=False)))
    both = same.iloc[:2]
    differing = [name for name in both.columns if both[name].nunique(dropna=False) > 1]
    texts = [f"row {row} of {path}" for path, row in both.index]
    if shown := next((name for name in ("accuracy", "loss", *differing) if name in differing), None):
        texts = [f"{text} ({shown} {value})" for text, value in zip(texts, both[shown], strict=True)]
    about = ", ".join(f"{name} {both[name].iloc[0]}" for name in key)
    raise UsageError(
        f"two rows of {columns.what} are about the same, {about}: {' and '.join(texts)}; "
        "delete what is wrong and make it again"
    )
