"""Faults on the test cluster while a campaign runs there: `python tests/stress/faults.py [NAME ...]`.

A small campaign on digits is run without SLURM first. Then, once for each fault, it is run through the profile `slurm`
in an empty folder, the fault is injected while a distillation is at work, Snakemake is started again where it has ended
badly, and what is there in the end is compared: the table must be that of the first run but for what it measures, and
no file that was finished before the fault may have been made again. It prints a line of Markdown for each fault.
`--database`: the cluster has an accounting database, and Snakemake asks that how jobs ended. `--demo`: all faults one
after another in one run of the campaign of `make demo`, while experts or a distillation are at work.
"""

import argparse
import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cluster
import pandas

from satm.storage.identity import hash_file

ROOT = Path(__file__).parent.parent.parent
TABLE = "results/faults/table2.csv"
MEASURED = ("seconds", "memory")
"""What the names of measured columns hold."""

CAMPAIGN = """
experts:
  sgd: {count: 2, epochs: 4, lr: 0.05, batch_size: 128, per_job: 1}
settings:
  - {stage: network, network: convnet, options: {depth: 2, width: 16}}
  - {stage: evaluate, options: {repeats: 2, epochs: 20, decay_epoch: 10}}
  - method: [mtt, satm]
    options: {iterations: 600, inner_steps: 10, expert_epochs: 1, max_start_epoch: 3, lr_images: 1, step_size: 0.05}
tables:
  table2: {datasets: {digits: [1]}, methods: [random, mtt, satm]}
"""

THREADS = ["--set-threads", *(f"{rule}=1" for rule in ("experts_part", "distill", "evaluate"))]
"""The nodes share the processors of this machine: jobs of several threads each would only wait for one another."""

LIMIT = 3600
"""Seconds that a run of a campaign may take."""


class Failed(Exception):
    """Something was lost, made twice, or came out differently; the text says what."""


def slurm(*command: str) -> str:
    """Run a command of SLURM and return what it prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def computing(
    process: subprocess.Popen[Any], root: Path, rules: Sequence[str], saved: bool = True, but: Collection[Path] = ()
) -> tuple[str, Path]:
    """Return number and state of a job that computes; wait for it.

    Args:
        process: Snakemake.
        root: folder of the campaign.
        rules: of the job.
        saved: it has saved something already.
        but: states of no interest.

    Raises:
        Failed: Snakemake ends before there is one, or it takes too long.
    """
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        for lock in (lock for rule in rules for lock in (root / "state" / rule).rglob(".lock-*")):
            state = lock.parent
            log = (root / "logs" / state.relative_to(root / "state")).with_suffix(".log")
            there = any(state.glob("*.safetensors")) if saved else log.is_file() and PROGRESS.search(log.read_text())
            if there and state not in but and (job := job_of(state)):
                return job, state
        if process.poll() is not None:
            raise Failed(f"Snakemake ended with {process.returncode} before a job of {' or '.join(rules)} was met")
        time.sleep(0.2)
    raise Failed(f"no job of {' or '.join(rules)} came to compute")


@dataclass
class Run:
    """The campaign on the cluster, in the current folder.

    Args:
        site: settings of the cluster, as in site.yaml.
        rules: of the jobs that faults happen to.
        saved: they happen when a job has saved something already.
    """

    site: str
    rules: Sequence[str]
    saved: bool
    met: set[Path] = field(default_factory=set)
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    def start(self) -> None:
        """Start Snakemake."""
        for lock in Path(".snakemake/locks").glob("*"):  # of one that was killed; `--unlock` does the same
            lock.unlink()
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
        command += ["--profile", str(ROOT / "slurm"), "--configfile", "faults.yaml"]
        command += ["--slurm-init-seconds-before-status-checks", "5", "--max-jobs-per-timespan", "1000/1s"]
        command += [*THREADS, "--", TABLE]
        self.starts += 1
        Path("slurm").mkdir(exist_ok=True)
        Path("slurm/site.yaml").write_text(self.site)
        around = {**os.environ, "SATM_DEVICE": "cpu"}  # nothing can compute on the pretend GPUs
        with Path(f"snakemake-{self.starts}.log").open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=around, start_new_session=True)

    def running(self) -> tuple[str, Path]:
        """Return number and state of a job that computes and was not returned before; wait for it."""
        assert self.process is not None
        job, state = computing(self.process, Path("results/faults"), self.rules, self.saved, self.met)
        self.met.add(state)
        return job, state

    def end(self) -> None:
        """Wait for the end; start again after a bad one, at most three times."""
        while True:
            assert self.process is not None
            try:
                code = self.process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                raise Failed(f"it did not end within {LIMIT} s") from None
            if code == 0:
                return
            if self.starts == 4:
                raise Failed(f"Snakemake ended with {code} for the fourth time")
            self.start()


def python_of(state: Path) -> int:
    """Return the number of the process that makes what a state is of.

    Raises:
        StopIteration: nothing makes it.
    """
    lock = next(state.glob(".lock-*")).read_text()
    return int(lock.split('"pid": ')[1].split(",")[0])


def job_of(state: Path) -> str | None:
    """Return the number of the job that makes what a state is of; None: nothing makes it now."""
    try:
        around = Path(f"/proc/{python_of(state)}/environ").read_bytes()
    except (StopIteration, IndexError, OSError):  # it has just ended, or its lock is just being written
        return None
    found = re.search(rb"(?:^|\0)SLURM_JOB_ID=(\d+)", around)
    return found[1].decode() if found else None


# Faults: each is called with a run, and number and state of a job of it that computes; it returns in words what it did


def cancelled(run: Run, job: str, state: Path) -> str:
    slurm("scancel", job)
    return "`scancel` of a running job"


def requeued(run: Run, job: str, state: Path) -> str:
    slurm("scontrol", "requeue", job)
    return "`scontrol requeue` of a running job"


def preempted(run: Run, job: str, state: Path) -> str:
    for _ in range(2):
        slurm("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 20")
    return "two jobs of a partition that preempts take both nodes for 20 s"


def too_short(run: Run, job: str, state: Path) -> str:
    return "a time limit of one minute for distillations that take longer"


def cut_short(run: Run, job: str, state: Path) -> str:
    slurm("scontrol", "update", f"jobid={job}", "timelimit=1")
    return "the time limit of a running job cut to one minute"


def killed(run: Run, job: str, state: Path) -> str:
    os.kill(python_of(state), signal.SIGKILL)
    return "`kill -9` of the Python of a running job"


def snakemake_killed(run: Run, job: str, state: Path) -> str:
    assert run.process is not None
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    run.start()
    return "`kill -9` of Snakemake; a second start while its jobs run on"


def node_down(run: Run, job: str, state: Path) -> str:
    node = slurm("squeue", "--noheader", "--jobs", job, "--format", "%N").strip()
    slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    time.sleep(20)
    # Refused where the node has reported again and is back by itself.
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], capture_output=True, check=False)
    return "the node of a running job set down and resumed after 20 s"


def disk_full(run: Run, job: str, state: Path) -> str:
    filler = Path("results/faults/filler")
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    time.sleep(45)
    filler.unlink()
    return "the file system of the results full for 45 s"


FAULTS: dict[str, tuple[Callable[[Run, str, Path], str], str]] = {
    "requeue": (requeued, ""),
    "preemption": (preempted, ""),
    "scancel": (cancelled, ""),
    "time-limit": (too_short, "resources: {distill: {runtime: 1}}"),
    "limit-cut": (cut_short, ""),
    "kill-job": (killed, ""),
    "kill-snakemake": (snakemake_killed, ""),
    "node-down": (node_down, ""),
    "disk-full": (disk_full, ""),
}


PROGRESS = re.compile(r" \d+/\d+, \S+ left: ")
"""What a run writes now and then when it has begun to compute."""

UNTOUCHED = {"kill-snakemake", "disk-full"}
"""Faults that no distillation is stopped by: they compute on, and the others go on from a state."""

SECONDS, LONG = 45, {"time-limit": 150, "limit-cut": 150}
"""Least seconds of a distillation, so that it is met at work on fast machines, and those for limits of a minute."""

IN_THE_DEMO = [name for name in FAULTS if name != "time-limit"]
"""All but the time limit of all distillations, for which the demo's are too long on few processors."""


def outcome(path: Path) -> str:
    """Return a table without its measured columns."""
    table = pandas.read_csv(path)
    return str(table[[name for name in table if not any(word in name for word in MEASURED)]].to_csv(index=False))


def finished() -> dict[Path, tuple[int, str]]:
    """Return the files of finished jobs, each with what a file made again would not have: its inode and content.

    Its time says nothing: Snakemake renews that when it sees the job end.
    """
    places = [path for kind in ("parquet", "safetensors", "json") for path in Path("results/faults").rglob(f"*.{kind}")]
    done = [path for path in places if not {"state", "logs"} & {*path.parts}]
    return {path: (path.stat().st_ino, hash_file(path)) for path in done}


@contextlib.contextmanager
def folder(campaign: str, size: str | None = None) -> Iterator[None]:
    """Work in a folder with nothing but a campaign; `size`: of a file system of its own for the results."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="satm-faults-", dir="/var/tmp") as name:
        os.chdir(name)
        Path("faults.yaml").write_text(campaign)
        Path("results").mkdir()
        if size:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", f"{name}/results"], check=True)
        try:
            yield
        finally:
            os.chdir(before)
            if os.environ.get("SATM_KEEP"):
                shutil.copytree(name, os.environ["SATM_KEEP"], dirs_exist_ok=True)
            if size:
                subprocess.run(["umount", "--lazy", f"{name}/results"], check=False)


def reference(campaign: str) -> tuple[str, float]:
    """Return the table of a run of a campaign without SLURM, and the seconds of its shortest iterative distillation."""
    with folder(campaign):
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
        command += ["--profile", str(ROOT / "local"), "--configfile", "faults.yaml", "--quiet", "all"]
        command += [*THREADS, "--", TABLE]
        subprocess.run(command, check=True)
        accounts = [json.loads(path.read_text()) for path in Path("results/faults/logs/distill").rglob("m*/*.json")]
        return outcome(Path(TABLE)), min(sum(each["seconds"] for each in one["attempts"]) for one in accounts)


def prolonged(campaign: str, factor: float) -> str:
    """Return a campaign with a multiple of the iterations, which is not below their number."""
    (iterations,) = re.findall(r"iterations: (\d+)", campaign)
    return campaign.replace(f"iterations: {iterations}", f"iterations: {math.ceil(int(iterations) * max(1, factor))}")


def suffer(names: Sequence[str], expected: str, campaign: str, demo: bool) -> str:
    """Run a campaign with faults, one after another, and return a line of a table about it.

    Raises:
        Failed: something was lost, made twice or came out differently.
    """
    site = "\n".join(filter(None, (FAULTS[name][1] for name in names)))
    size = ("200m" if demo else "40m") if "disk-full" in names else None
    started = time.monotonic()
    with folder(campaign, size):
        run = Run(site, ("experts", "distill") if demo else ("distill",), saved=not demo)
        run.start()
        before: dict[Path, tuple[int, str]] = {}
        counts, did = [], []
        try:
            for name in names:
                job, state = run.running()
                before = finished() | before
                counts.append(str(len(before)))
                did.append(FAULTS[name][0](run, job, state))
            run.end()
        finally:
            if run.process is not None and run.process.poll() is None:
                os.killpg(run.process.pid, signal.SIGKILL)
            subprocess.run(["scancel", "--user=root"], check=False)
        who = ", ".join(names)
        if outcome(Path(TABLE)) != expected:
            raise Failed(f"{who}: the table differs")
        after = finished()
        if again := [path for path, file in before.items() if after.get(path) != file]:
            raise Failed(f"{who}: made again although it was finished: {', '.join(map(str, again))}")
        if left := [path for path in Path("results/faults/state").rglob("*") if path.is_file()]:
            raise Failed(f"{who}: {left[0]} is left of a state")
        resumed = sum(log.read_text().count("resuming after") for log in Path("results/faults/logs").rglob("*.log"))
        if not resumed and not set(names) <= UNTOUCHED:
            raise Failed(f"{who}: no distillation went on from a state")
        seconds = time.monotonic() - started
        made = f"{', '.join(counts)} of {len(after)}"
        return f"| {'; '.join(did)} | {run.starts} | {resumed} | {made} | {seconds:.0f} |"


def start(names: list[str], database: bool, demo: bool) -> int:
    """Suffer the named faults, or all, and print the table.

    Args:
        names: of faults.
        database: of the cluster.
        demo: all in one run of the demo.
    """
    if unknown := [name for name in names if name not in FAULTS]:
        print(f"unknown fault {unknown[0]!r}; known: {', '.join(FAULTS)}")
        return 2
    if why := cluster.lacking(database):
        print(why)
        return 2
    campaign = (ROOT / "config" / "demo.yaml").read_text() if demo else CAMPAIGN
    tables, worst = {campaign: reference(campaign)}, 0
    seconds = tables[campaign][1]
    print("| fault | starts of Snakemake | logs that went on | finished before the fault | seconds |")
    print("| --- | ---: | ---: | ---: | ---: |", flush=True)
    for together in [names or IN_THE_DEMO] if demo else [[name] for name in names or FAULTS]:
        cluster.start(database)
        try:
            longer = campaign if demo else prolonged(campaign, LONG.get(together[0], SECONDS) / seconds)
            tables[longer] = tables.get(longer) or reference(longer)
            print(suffer(together, tables[longer][0], longer, demo), flush=True)
        except Failed as failure:
            print(f"FAILED {failure}", flush=True)
            worst = 1
        finally:
            cluster.stop()
    return worst


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Faults on the test cluster while a campaign runs there.")
    parser.add_argument("--database", action="store_true", help="a cluster with an accounting database")
    parser.add_argument("--demo", action="store_true", help="all in one run of the campaign of `make demo`")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(FAULTS)}; all if none is named")
    given = parser.parse_args()
    sys.exit(start(given.names, given.database, given.demo))
