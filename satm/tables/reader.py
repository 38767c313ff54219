"""Reading of the files behind tables and figures, with checks that each is of the expected run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import pandas

from satm.config import Cell, Resolver, place_of
from satm.errors import MissingRun, UsageError, shortened
from satm.results.columns import BOUNDS, EVALUATION, METRICS, SHARPNESS, TRAJECTORY, VARIANCE, Columns
from satm.results.rows import read_run
from satm.storage.files import expect
from satm.storage.identity import Identity, differing_fields
from satm.workflow.asked import sets_of, wildcards
from satm.workflow.commands import command_of, remedy
from satm.workflow.provenance import Provenance, stated_identity
from satm.workflow.rules import RULES

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

    unchecked: dict[str, dict[str, None]] = field(default_factory=dict, init=False)
    """Missing synthetic sets and image files of results, which could therefore not be compared with them, by kind."""

    doubts: dict[str, None] = field(default_factory=dict, init=False)
    """Doubts about images, experts and synthetic sets that the results state, each once."""

    def __post_init__(self) -> None:
        """Prepare the comparison of results with the campaign."""
        self._provenance = Provenance(self.resolver)

    def identity(self, rule: str, name: str) -> Identity:
        """Return what a table or figure, made now, states of itself (`Provenance.of_exhibit`)."""
        return self._provenance.of_exhibit(rule, name, self.partial)

    def remedy(self, rule: str, **names: object) -> str:
        """Return what to do about a result, for a message (`Provenance.remedy`)."""
        return self._provenance.remedy(rule, **names)

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
        rule: str,
        columns: Columns,
        names: Mapping[str, object],
        further: Mapping[str, object] = MappingProxyType({}),
    ) -> tuple[pandas.DataFrame, dict[str, Any]]:
        """Return the rows of one result and the options of its run, reading the file once.

        Args:
            rule: key of the table of jobs (`satm.workflow.rules.RULES`) for the job that makes it.
            columns: kind of the file.
            names: wildcards of the job; they are also columns of the file.
            further: values of columns that are constant in the file.

        Raises:
            MissingRun: (a `UsageError`) the file is missing, broken, of another run or has duplicate rows; or the file
                or its synthetic set was made with other options or inputs than the campaign asks for. The text has the
                command that makes it.
        """
        self.resolver.dataset(str(names["dataset"]))  # an unknown name has no results
        patterns = RULES[rule].outputs.values()
        path = Path(next(each for each in patterns if each.endswith(".parquet")).format(**names, root=self.root))
        what = f"{columns.what} {path}"
        if not path.is_file():
            todo = self.remedy(rule, **names)
            raise MissingRun(f"{what} is missing{self._failure(rule, names)}; {todo}")
        with remedy(command_of(self.resolver, rule, names, overwrite=True), MissingRun):
            frame, circumstances = read_run(path, columns)
            for name, value in {**names, **further}.items():
                if name in frame.columns and len(other := frame[frame[name] != value]):
                    raise UsageError(f"{what} is of {name} {other[name].iloc[0]}, expected {value}; make it again")
            refuse_repeats({str(path): frame}, columns)
        self._compare(what, rule, names)
        self.doubts |= dict.fromkeys(
            map(str, expect({"doubts": [], **circumstances}, {"doubts": list}, what)["doubts"])
        )
        options: dict[str, Any] = expect({"options": {}, **circumstances}, {"options": dict}, what)["options"]
        return frame, options

    @property
    def root(self) -> str:
        """Folder of the campaign's results."""
        return self.resolver.layout.root

    def full(self, dataset: str, recipe: str, network: str) -> pandas.DataFrame:
        """Return the evaluation of networks trained on all real images, as `run`."""
        names = {"dataset": dataset, "recipe": recipe, "network": network}
        return self.run("full", EVALUATION, names, {"method": f"full-{recipe}", "labelled": "own"})[0]

    def metrics(self, cell: Cell) -> pandas.DataFrame:
        """Return the metrics of a distillation, as `run`: the last attempt at each iteration.

        `UsageError` also if they are of another version of the run than the stored synthetic set.
        """
        from satm.storage.tensors import open_tensors, read_metadata  # needs torch; the workflow reads tables' options

        path = self.resolver.layout.metrics(cell)
        frame, options = self.run("distill", METRICS, cell.axes)
        beside = Path(self.resolver.layout.distilled(cell))
        if "options" in options and beside.is_file():
            with open_tensors(beside, "synthetic set") as file:
                stored = read_metadata(file, beside, "synthetic set").get("options")
            if difference := differing_fields(options["options"], stored):
                raise UsageError(
                    f"metrics {path} and the synthetic set {beside} are of two versions of one run: {difference}; "
                    f"make both again with: {command_of(self.resolver, 'distill', cell.axes, overwrite=True)}"
                )
        return frame.drop_duplicates("iteration", keep="last") if len(frame) else frame

    def evaluation(self, cell: Cell, network: str) -> pandas.DataFrame:
        """Return the accuracies of networks trained on a synthetic set, as `run`."""
        return self.run("evaluate", EVALUATION, {**cell.axes, "network": network}, {"labelled": "own"})[0]

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
                todo = self.remedy("evaluate", **cell.axes, network=network)
                raise UsageError(f"evaluation {path} has no accuracies on {split} images; {todo}")
        rows = pandas.concat(frames, ignore_index=True)
        what = f"the evaluations of {cells[0].method} on {cells[0].dataset}, ipc {cells[0].ipc},"
        if len(selections := sorted(set(rows["selection"]))) > 1:
            todo = self.remedy("evaluate", **cells[0].axes, network=network)
            mixed = f"{what} mix the selections {', '.join(selections)}, which are not comparable"
            raise UsageError(f"{mixed}; for each seed, {todo}")
        averages = [sorted(set(frame["average"])) for frame in frames]
        if any(each != averages[0] for each in averages):
            todo = self.remedy("evaluate", **cells[0].axes, network=network)
            mixed = (
                f"{what} are of averaged sets at some seeds and only of raw ones at others, which are not comparable"
            )
            raise UsageError(f"{mixed}; for each seed, {todo}")
        return [rows[rows["average"] == average] for average in averages[0]]

    def distilled(self, cell: Cell) -> "DistilledDataset":
        """Return a synthetic set whose images can be shown (errors: `run`)."""
        from satm.results.distilled import load_distilled  # needs torch; the workflow reads tables' options

        path = Path(self.resolver.layout.distilled(cell))
        what = f"the synthetic set {path}"
        if not path.is_file():
            failure = self._failure("distill", cell.axes)
            todo = self.remedy("distill", **cell.axes)
            raise MissingRun(f"{what} is missing{failure}; {todo}")
        with remedy(command_of(self.resolver, "distill", cell.axes, overwrite=True), MissingRun):
            data = load_distilled(path)
            for axis, value in cell.axes.items():
                if (actual := getattr(data, axis)) != value:
                    raise UsageError(f"{what} is of {axis} {actual}, expected {value}; make it again")
        self._compare(what, "distill", cell.axes)
        if (whitening := data.whitening_path) is not None and stated_identity(whitening) is None:
            state = "damaged" if whitening.is_file() else "missing"
            todo = self.remedy("zca", dataset=self.resolver.whole(cell.dataset))
            raise MissingRun(f"{what} is of whitened images, and the whitening {whitening} is {state}; {todo}")
        return data

    def analysis(self, what: str, cells: Sequence[Cell]) -> pandas.DataFrame:
        """Return the measurements at some synthetic sets, as `run`; `what` as in `ANALYSED`."""
        frames = [self.run("analysis", ANALYSED[what], {"what": what, **cell.axes})[0] for cell in cells]
        return pandas.concat(frames, ignore_index=True)

    def _failure(self, rule: str, names: Mapping[str, object]) -> str:
        """Return why a missing result could not be made, for a message: its job or a distillation before it failed."""
        from satm.run.record import failure  # needs torch; the workflow reads tables' options

        before = sets_of(self.resolver, wildcards(names)) if "distilled" in RULES[rule].inputs else []
        for job, own in [*(("distill", cell.axes) for cell in before), (rule, names)]:
            if error := failure(Path(self.resolver.layout.account(*place_of(job, **own)))):
                return f" because {RULES[job].stage} failed ({error})"
        return ""

    def _compare(self, what: str, rule: str, names: Mapping[str, object]) -> None:
        """Refuse a result that differs, or whose inputs differ, from what is asked for; `what` names it in messages."""
        layout, dataset = self.resolver.layout, self.resolver.whole(str(names["dataset"]))
        sets = sets_of(self.resolver, wildcards(names)) if "distilled" in RULES[rule].inputs else []
        behind = {"synthetic sets": [*map(layout.distilled, sets)], "image files": [layout.images(dataset)]}
        for kind, paths in behind.items():
            missing = (path for path in paths if not Path(path).is_file())
            self.unchecked.setdefault(kind, {}).update(dict.fromkeys(missing))
        if changed := self._provenance.changed_files(dataset):
            self.doubts[f"images of {dataset}: {changed}"] = None
        if difference := self._provenance.difference(rule, **names):
            todo = self.remedy(rule, **names)
            raise MissingRun(f"{what} is not what the campaign asks for: {difference}; {todo}")

    @property
    def gaps(self) -> list[str]:
        """A sentence for each kind of missing file with which results could not be compared."""
        return [
            f"Missing {kind}: {len(paths)}, so their results could not be compared with them. First: {min(paths)}."
            for kind, paths in self.unchecked.items()
            if paths
        ]

    @property
    def notes(self) -> list[str]:
        """The remarks, and what makes the numbers doubtful or incomplete.

        These are doubts about images, experts and synthetic sets, sets and images that are missing, and the number of
        runs that were left out, with the command of the first.
        """
        missing = list(dict.fromkeys(self.missing))
        more = f" And {len(missing) - 1} more." if len(missing) > 1 else ""
        return [
            *self.remarks,
            *(f"Doubtful: {shortened(doubt)}." for doubt in self.doubts),
            *self.gaps,
            *(f"Left out: {first}.{more}" for first in missing[:1]),
        ]


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
