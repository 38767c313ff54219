"""Sequences of commands over one campaign, by hand and by the workflow, in any order and with any mishap in between.

Whatever was done, a table that is made shows what a fresh run of the campaign shows, or is refused with what differs;
and the workflow makes the table of a fresh run.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import pandas
from forks import Forks
from fuzzing import MET, Wrong
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

ROOT = Path(__file__).parent.parent.parent
RUN, HAND = Path("results/it"), Path("results/hand")
CAMPAIGN = """
datasets:
  few: {{source: digits, classes: [0, 1, 2], augment: {augment}}}
networks:
  convnet: {{depth: 1, width: {width}}}
experts:
  sgd: {{count: 2, epochs: {expert_epochs}, lr: 0.05, batch_size: 64, per_job: 1}}
settings:
  - {{stage: evaluate, options: {{repeats: 2, epochs: {epochs}, decay_epoch: 2}}}}
  - {{method: mtt, options: {{inner_steps: 3, expert_epochs: 1, max_start_epoch: 1, lr_images: 1, step_size: 0.05}}}}
  - {{method: mtt, options: {{iterations: {iterations}}}}}
tables:
  table2: {{datasets: {{few: [1]}}, methods: [random, mtt], seeds: [0, 1]}}
"""
USUAL = {"augment": "crop_scale_rotate", "width": "3", "expert_epochs": "2", "epochs": "3", "iterations": "3"}
OTHER = {"augment": "flip", "width": "4", "expert_epochs": "3", "epochs": "4", "iterations": "4"}
"""What an edit of the campaign exchanges."""

NUMBERS = ["dataset", "ipc", "method", "accuracy_mean", "accuracy_std", "n"]
"""Columns of the table that are no measurements of time."""

Step = tuple[str, ...]


def _cell(method: str, seed: str) -> list[str]:
    return ["--dataset", "few", "--ipc", "1", "--method", method, "--seed", seed]


def _files(root: Path) -> list[str]:
    """Return what the commands make below a folder of results."""
    runs = [f"few/ipc-1/{method}/seed-{seed}" for method in ("random", "mtt") for seed in (0, 1)]
    made = [f"distilled/{run}/{name}" for run in runs for name in ("distilled.safetensors", "metrics.parquet")]
    made += [f"evaluation/{run}/convnet.parquet" for run in runs]
    experts = ["manifest.json", "part-0-0.json", "expert-000.safetensors", "expert-001.safetensors"]
    made += [f"experts/few/sgd/{name}" for name in experts] + ["data/few/images.safetensors"]
    return [str(root / name) for name in made]


def steps() -> SearchStrategy[Step]:
    """Return a strategy for one step: a command by hand, the workflow, an edit, or a mishap with files."""
    seeds, methods = st.sampled_from("01"), st.sampled_from(["random", "mtt"])
    cells = st.tuples(methods, seeds).map(lambda cell: _cell(*cell))
    runs = st.sampled_from([[], [], ["--run", "it"], ["--run", "mine"]])
    again = st.sampled_from([[], ["--overwrite"]])

    def command(stage: str, names: SearchStrategy[list[str]], *options: list[str]) -> SearchStrategy[Step]:
        some = st.sampled_from([[], [], *options])
        return st.tuples(names, some, runs, again).map(lambda parts: ("satm", stage, *chain.from_iterable(parts)))

    few = st.just(["--dataset", "few"])
    existing = st.sampled_from([*_files(RUN), f"{RUN}/table2.csv"])
    anywhere = st.sampled_from(_files(RUN) + _files(HAND / "it") + _files(HAND / "mine"))
    same = st.tuples(st.sampled_from(_files(Path())), st.sampled_from([HAND / "it", HAND / "mine"]))
    return st.one_of(
        command("evaluate", cells, ["--epochs", "2"], ["--repeats", "1"], ["--network-seed", "1"]),
        command("distill", cells.filter(lambda cell: "mtt" in cell), ["--iterations", "1"], ["--lr-images", "2"]),
        command("distill", cells.filter(lambda cell: "random" in cell), ["--step-size", "0.1"]),
        command("experts", few, ["--epochs", "3"], ["--count", "1"], ["--lr", "0.02"]),
        st.just(("satm", "data", "--dataset", "few")),
        st.sampled_from([("table",), ("table", "--partial")]),
        st.just(("flow",)),
        st.sampled_from(list(USUAL)).map(lambda name: ("edit", name)),
        existing.map(lambda path: ("delete", path)),
        existing.map(lambda path: ("touch", path)),
        st.tuples(anywhere, existing).map(lambda paths: ("copy", *paths)),
        same.map(lambda pair: ("copy", str(pair[1] / pair[0]), str(RUN / pair[0]))),
    )


def sequences(length: int = 10) -> SearchStrategy[tuple[Step, ...]]:
    """Return a strategy for sequences of so many steps."""
    return st.lists(steps(), min_size=length, max_size=length).map(tuple)


@dataclass
class Sequences:
    """Tries sequences, each in a copy of a finished campaign."""

    base: Path
    forks: Forks
    _fresh: dict[str, pandas.DataFrame] = field(default_factory=dict)

    def check(self, sequence: Sequence[Step]) -> str:
        """Run a sequence; return how the table ended.

        Raises:
            Wrong: a table that differs from that of a fresh run, a traceback, or a workflow that fails.
        """
        usual = CAMPAIGN.format(**USUAL)
        self.fresh(usual)
        folder = self.base / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._folder(usual), folder)
        values = dict(USUAL)
        for step in sequence:
            self._take(folder, step, values)
        ended = self._table(folder, values)
        self._flow(folder)
        self._compare(folder, values, "the workflow at the end")
        return ended

    def fresh(self, campaign: str) -> pandas.DataFrame:
        """Return the table of a fresh run of a campaign."""
        if campaign not in self._fresh:
            folder = self._folder(campaign)
            folder.mkdir(exist_ok=True)
            (folder / "it.yaml").write_text(campaign)
            self._flow(folder)
            self._fresh[campaign] = pandas.read_csv(folder / RUN / "table2.csv")[NUMBERS].astype({"n": float})
        return self._fresh[campaign]

    def _folder(self, campaign: str) -> Path:
        return self.base / f"fresh-{abs(hash(campaign))}"

    def _take(self, folder: Path, step: Step, values: dict[str, str]) -> None:
        what, *rest = step
        if what == "satm":
            self._satm(folder, rest[0], "--config", "it.yaml", *rest[1:])
        elif what == "table":
            self._table(folder, values, *rest)
        elif what == "flow":
            self._flow(folder)
            self._compare(folder, values, "the workflow")
        elif what == "edit":
            name = rest[0]
            values[name] = OTHER[name] if values[name] == USUAL[name] else USUAL[name]
            (folder / "it.yaml").write_text(CAMPAIGN.format(**values))
        elif (folder / rest[0]).exists():
            if what == "delete":
                (folder / rest[0]).unlink()
            elif what == "touch":
                (folder / rest[0]).touch()
            elif rest[0] != rest[1]:
                (folder / rest[1]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / rest[0], folder / rest[1])

    def _satm(self, folder: Path, *arguments: str) -> int:
        code, told = self.forks.run(folder, "-m", "satm", *arguments)
        if code not in (0, 2) or "Traceback" in told:
            raise Wrong(f"exit code {code} of {' '.join(arguments)}: {told[-500:]}")
        if code:
            MET[told[told.find("satm: error: ") :]] += 1
        return code

    def _table(self, folder: Path, values: dict[str, str], *flags: str) -> str:
        if self._satm(folder, "table", "--config", "it.yaml", "--name", "table2", *flags):
            return "refused"
        self._compare(folder, values, "a table by hand", partial=bool(flags))
        return "shown"

    def _compare(self, folder: Path, values: dict[str, str], by: str, partial: bool = False) -> None:
        """Compare the table with that of a fresh run; if it is partial, only what it shows."""
        expected = self.fresh(CAMPAIGN.format(**values))
        actual = pandas.read_csv(folder / RUN / "table2.csv")[NUMBERS].astype({"n": float})
        if partial:
            shown = actual.set_index(NUMBERS[:3]).dropna(subset="accuracy_mean")
            expected, actual = expected.set_index(NUMBERS[:3]).loc[shown.index], shown
        if not actual.equals(expected):
            raise Wrong(f"{by} shows {actual.to_dict('records')}, a fresh run {expected.to_dict('records')}")

    def _flow(self, folder: Path) -> None:
        arguments = ["-s", str(ROOT / "Snakefile"), "--configfile", "it.yaml", "--cores", "1", f"{RUN}/table2.csv"]
        for _ in range(2):  # a second start goes on after what the first one found incomplete
            code, told = self.forks.run(folder, "-m", "snakemake", *arguments, "--rerun-incomplete", "--nolock")
            if not code:
                return
        logs = [path.read_text()[-300:] for path in (folder / RUN / "logs").rglob("*.log")]
        errors = [log for log in logs if "error" in log]
        raise Wrong(f"the workflow failed: {told[-600:]} {errors[:2]}")
