"""The files that tables and figures are made of, checked to be of the run that they should be of."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import pandas

from satm.config import Cell, Resolver
from satm.errors import MissingRun, UsageError
from satm.results.columns import BOUNDS, EVALUATION, METRICS, SHARPNESS, TRAJECTORY, VARIANCE, Columns
from satm.results.rows import read_run
from satm.storage.files import expect
from satm.storage.identity import differing_field, hash_file

if TYPE_CHECKING:
    from satm.results.distilled import DistilledDataset

T = TypeVar("T")

ANALYSED = {"sharpness": SHARPNESS, "trajectory": TRAJECTORY, "variance": VARIANCE, "bounds": BOUNDS}
"""The columns of each measurement at a synthetic set (`satm.config.ANALYSES`)."""


class Reader:
    """Reads the files of a campaign.

    Args:
        resolver: the campaign.
        partial: what was not run yet may be left out (`attempt`).
        remarks: what is to be said below everything that is made with this reader.
    """

    def __init__(self, resolver: Resolver, partial: bool = False, remarks: Sequence[str] = ()) -> None:
        self.resolver = resolver
        self.partial = partial
        self.remarks = list(remarks)
        self.missing: list[str] = []
        """What was left out, in words that end with the command that makes it."""
        self._hash = cache(hash_file)  # many files are of one set

    def attempt(self, make: Callable[[], T]) -> T | None:
        """Return what a function makes from files; None where one is missing and may be.

        Raises:
            MissingRun: as the function, unless `partial`.
        """
        try:
            return make()
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
        """Return the rows of one file and the options of its run, from one look at the file.

        Args:
            path: of the file.
            columns: its kind.
            command: the stage that makes it, and fixed flags.
            axes: flags that name the run, which are columns of the file too.
            further: columns that have one value in such a file, and that value.

        Raises:
            MissingRun: (a `UsageError`) it is missing; the text has the command that makes it.
            UsageError: it is broken, of another run or of another synthetic set than the one that lies there, or says
                two things of the same.
        """
        if not Path(path).is_file():
            raise MissingRun(f"{columns.what} {path} is missing; make it with: {self._command(command, axes)}")
        frame, circumstances = read_run(Path(path), columns)
        for axis, value in {**axes, **further}.items():
            if axis in frame.columns and len(other := frame[frame[axis] != value]):
                raise UsageError(
                    f"{columns.what} {path} is of {axis} {other[axis].iloc[0]}, expected {value}; make it again"
                )
        refuse_repeats({path: frame}, columns)
        told = f"{columns.what} {path}"
        options: dict[str, Any] = expect({"options": {}, **circumstances}, {"options": dict}, told)["options"]
        self._of_these_sets(told, options, {**axes, **further}, command)
        return frame, options

    def full(self, dataset: str, recipe: str, network: str) -> pandas.DataFrame:
        """Return the evaluation of networks trained on all real images, as `run`."""
        axes = {"dataset": dataset, "what": "full", "recipe": recipe, "network": network}
        path = self.resolver.layout.full(dataset, recipe, network)
        return self.run(path, EVALUATION, "evaluate", axes, {"method": f"full-{recipe}", "labelled": "own"})[0]

    def metrics(self, cell: Cell) -> pandas.DataFrame:
        """Return what was measured in the iterations of a distillation, as `run`; of each the last attempt.

        Raises:
            UsageError: also where they are of another version of the run than the synthetic set that lies there.
        """
        from satm.storage.tensors import open_tensors, read_metadata  # needs torch; the workflow reads tables' options

        path = self.resolver.layout.metrics(cell)
        frame, made = self.run(path, METRICS, "distill", cell.axes)
        if (found := made.get("axes", list(cell))) != list(cell):
            has, wanted = (" ".join(map(str, each)) for each in (found, cell))
            raise UsageError(f"metrics {path} are of {has}, expected {wanted}; make them again")
        beside = Path(self.resolver.layout.distilled(cell))
        if "options" in made and beside.is_file():
            with open_tensors(beside, "synthetic set") as file:
                options = read_metadata(file, beside, "synthetic set").get("options")
            if difference := differing_field(made["options"], options):
                raise UsageError(
                    f"metrics {path} and the synthetic set {beside} are of two versions of one run: {difference}; "
                    f"delete both and make them with: {self._command('distill', cell.axes)}"
                )
        return frame.drop_duplicates("iteration", keep="last") if len(frame) else frame

    def evaluation(self, cell: Cell, network: str) -> pandas.DataFrame:
        """Return the accuracies of networks trained on a synthetic set, as `run`."""
        path = self.resolver.layout.evaluation(cell, network)
        return self.run(path, EVALUATION, "evaluate", {**cell.axes, "network": network}, {"labelled": "own"})[0]

    def distilled(self, cell: Cell) -> "DistilledDataset":
        """Return a synthetic set.

        Raises:
            MissingRun: it is missing; the text has the command that makes it.
            UsageError: the file is broken or of another run.
        """
        from satm.results.distilled import load_distilled  # needs torch; the workflow reads tables' options

        path = Path(self.resolver.layout.distilled(cell))
        if not path.is_file():
            raise MissingRun(
                f"the synthetic set {path} is missing; make it with: {self._command('distill', cell.axes)}"
            )
        data = load_distilled(path)
        for axis, value in cell.axes.items():
            if (found := getattr(data, axis)) != value:
                raise UsageError(f"the synthetic set {path} is of {axis} {found}, expected {value}; make it again")
        return data

    def analysis(self, what: str, cells: Sequence[Cell]) -> pandas.DataFrame:
        """Return what was measured at some synthetic sets, as `run`; `what` as in `ANALYSED`."""
        found = []
        for cell in cells:
            path = self.resolver.layout.analysis(what, cell)
            found.append(self.run(path, ANALYSED[what], f"analyse --what {what}", cell.axes)[0])
        return pandas.concat(found, ignore_index=True)

    def _of_these_sets(self, what: str, options: Mapping[str, Any], axes: Mapping[str, Any], command: str) -> None:
        """Refuse a file that states other synthetic sets than those that are there; a set may be missing.

        Args:
            what: the file, in words.
            options: of its run: the hash of a set, or those of several by the names of their datasets, or neither.
            axes: where the sets are.
            command: the stage that makes the file, and fixed flags.
        """
        one = {axes["dataset"]: options["distilled"]} if "distilled" in options else {}
        for dataset, stated in expect({"sets": one, **options}, {"sets": dict}, what)["sets"].items():
            made = Path(self.resolver.layout.distilled(Cell(dataset, axes["ipc"], axes["method"], axes["seed"])))
            if made.is_file() and stated != self._hash(made):
                raise UsageError(
                    f"{what} is of another synthetic set than {made}; make it again: delete it and run "
                    f"`python -m satm {command}` with its names"
                )

    def _command(self, stage: str, axes: Mapping[str, object]) -> str:
        """Return the command that makes a run."""
        config = f" --config {shlex.quote(str(self.resolver.path))}" if self.resolver.path else ""
        return f"python -m satm {stage}{config} {' '.join(f'--{axis} {value}' for axis, value in axes.items())}"

    @property
    def notes(self) -> list[str]:
        """The remarks, and what was left out, in words, with the first command."""
        left = list(dict.fromkeys(self.missing))
        if not left:
            return self.remarks
        more = f" Nor are {len(left) - 1} more." if len(left) > 1 else ""
        return [*self.remarks, f"Not run yet: {left[0]}.{more}"]


def refuse_repeats(files: Mapping[str, pandas.DataFrame], columns: Columns) -> None:
    """Refuse rows of one run that say two things of the same.

    Args:
        files: their rows, by path.
        columns: their kind.

    Raises:
        UsageError: naming both rows.
    """
    rows = pandas.concat(files)  # indexed by file and row
    key = list(columns.key)
    again = rows[rows.duplicated(key, keep=False)]
    if again.empty:
        return
    _, same = next(iter(again.groupby(key, dropna=False, sort=False)))
    both = same.iloc[:2]
    differing = [name for name in both.columns if both[name].nunique(dropna=False) > 1]
    told = [f"row {row} of {path}" for path, row in both.index]
    shown = next((name for name in ("accuracy", "loss", *differing) if name in differing), None)
    if shown is not None:
        told = [f"{place} ({shown} {value})" for place, value in zip(told, both[shown], strict=True)]
    about = ", ".join(f"{name} {both[name].iloc[0]}" for name in key)
    raise UsageError(
        f"two rows of {columns.what} are about the same, {about}: {' and '.join(told)}; "
        "delete what is wrong and make it again"
    )
