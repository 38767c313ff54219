"""Measurements of ways to do one thing: seconds in turn, memory in processes of their own."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy
import torch
from rich.table import Table

from satm.benchmarks.cases import Evaluation, Experts, Matching, Measuring
from satm.benchmarks.ways import Found, ways_of
from satm.errors import RunError, UsageError
from satm.ops.choice import measured
from satm.results.circumstances import run_metadata
from satm.results.columns import BENCH
from satm.results.rows import read_rows, write_rows
from satm.run.machine import choose_device, describe_backend, peak_inside
from satm.run.progress import Progress
from satm.unroll.planning import plans

CASES: dict[str, type[Any]] = {
    "hypergradient": Matching,
    "distill": Matching,
    "experts": Experts,
    "evaluate": Evaluation,
}

_FEW: dict[str, Any] = {
    "width": 4,
    "depth": 1,
    "size": 8,
    "classes": 2,
    "ipc": 1,
    "batch": None,
    "steps": 4,
    "kept": None,
}

SMALL: dict[str, dict[str, Any]] = {
    "hypergradient": _FEW,
    "distill": _FEW,
    "experts": {"width": 4, "depth": 1, "size": 8, "images": 8, "batch": 4},
    "evaluate": {"size": 16, "classes": 2, "epochs": 1},
}
"""Changes of a case, so small that a process that solves it has loaded what all cases need and little else."""


@dataclass(frozen=True)
class Setting:
    """What is measured, and on what."""

    kind: str
    case: Any
    precision: str
    device: torch.device

    @classmethod
    def of(cls, kind: str, case: Any, precision: str, device: str, threads: int | None) -> "Setting":
        """Return the setting, with the device chosen and the threads set."""
        return cls(kind, case, precision, choose_device(device, threads))

    def way(self, name: str) -> Callable[[], Found]:
        """Return a way to solve the case; the random values are the same for all ways, and precisions."""
        return ways_of(self.kind, self.case, self.precision, self.device, name)

    def seconds(self, way: Callable[[], object]) -> float:
        """Return the seconds of one run."""
        self.wait()
        started = time.perf_counter()
        way()
        self.wait()
        return time.perf_counter() - started

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {value}" for name, value in asdict(self.case).items() if value is not None)
        return f"{self.kind} in {self.precision} on {describe_backend(self.device)}: {sizes}"


def compare(setting: Setting, names: Sequence[str], how: Measuring, out: Path) -> None:
    """Measure the ways in turn, show a table and write its rows."""
    rounds, memory = how.rounds, how.memory
    if rounds < 1 or not names:
        raise UsageError(f"expected --ways and --rounds of at least 1, got {len(names)} ways and {rounds} rounds")
    ways = {name: setting.way(name) for name in names}
    console = Progress.console()
    console.print(str(setting))
    peaks = {name: in_own_process(setting, name, 0) for name in names} if memory else {}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with Progress("bench", (rounds + 1) * len(names)) as progress:
        for turn in range(rounds + 1):
            for name, way in ways.items():
                took = setting.seconds(way)
                if turn:  # the first is a warm-up
                    seconds[name].append(took)
                progress.step(f"{name}: {took:.3f} s")
    base, rows = names[0], []
    table = Table("way", "seconds", "times as fast", *(("MiB", "of the memory", "predicted") if memory else ()))
    for name in names:
        ratio = median(first / this for first, this in zip(seconds[base], seconds[name], strict=True))
        row = {"kind": setting.kind, "way": name, "seconds": median(seconds[name]), "times_as_fast": ratio}
        cells = [name, f"{row['seconds']:.3f}", f"{ratio:.2f}"]
        if memory:
            peak, predicted = (peaks[name][what] for what in ("peak", "predicted"))
            row |= {"peak_memory_bytes": peak}
            cells += [f"{peak / 2**20:.0f}", f"{peak / max(peaks[base]['peak'], 1):.3f}"]
            if predicted:
                row |= {"predicted_memory_bytes": predicted}
                cells.append(f"{predicted / 2**20:.0f}")
        rows.append({**row, "of": "", "value": 0})
        table.add_row(*cells)
    console.print(table)
    keep(setting, rows, out)


def show(files: Mapping[str, Path]) -> None:
    """Show the comparisons that some files hold, by name, in one table."""
    table = Table("setting", "way", "seconds", "times as fast", "MiB", "of the memory", "predicted")
    for name, path in files.items():
        frame = read_rows(path, BENCH)
        first = float(frame["peak_memory_bytes"].iloc[0])
        for row in frame.to_dict("records"):
            peak, predicted = float(row["peak_memory_bytes"]), float(row["predicted_memory_bytes"])
            ratios = [f"{row['seconds']:.3f}", f"{row['times_as_fast']:.2f}"]
            memory = [f"{peak / 2**20:.0f}", f"{peak / max(first, 1):.3f}", f"{predicted / 2**20:.0f}"]
            table.add_row(name, str(row["way"]), *ratios, *("" if text == "nan" else text for text in memory))
    Progress.console().print(table)


def keep(setting: Setting, rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Write the rows of a benchmark."""
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {"case": asdict(setting.case), "precision": setting.precision, "threads": torch.get_num_threads()}
    write_rows(out, rows, BENCH, run_metadata(about, setting.device))
    Progress.console().print(f"written to {out}")


def differences(setting: Setting, names: Sequence[str]) -> None:
    """Print how far the results of the ways lie from the first one's in float64, also those of this precision."""
    exact = replace(setting, precision="float64")
    first = exact.way(names[0])()
    for name in names:
        if name != names[0]:
            print(f"{name} against {names[0]}, float64: {apart(exact.way(name)(), first):.1e}")
        if setting.precision != "float64":
            print(
                f"{name} in {setting.precision} against {names[0]} in float64: {apart(setting.way(name)(), first):.1e}"
            )


def apart(one: Found, other: Found) -> float:
    """Return the relative difference of two gradients of the images."""
    a, b = (found[1].double() for found in (one, other))
    return float((a - b).norm() / b.norm())


def scaling(setting: Setting, of: str, values: Sequence[int], names: Sequence[str], rounds: int, out: Path) -> None:
    """Measure the ways at some sizes, each in a process of its own, and print slopes."""
    if len(set(values)) < 2:
        raise UsageError(f"a slope needs two sizes at least, got {list(values)}; give more")
    console, rows = Progress.console(), []
    console.print(str(setting))
    table = Table("way", of, "seconds", "MiB")
    slopes = Table("way", f"seconds for one more of {of}", "MiB for one more")
    for name in names:
        found = []
        for value in values:
            sized = replace(setting, case=replace(setting.case, **{of: value}))
            found.append(in_own_process(sized, name, rounds))
            table.add_row(name, str(value), f"{found[-1]['seconds']:.3f}", f"{found[-1]['peak'] / 2**20:.0f}")
            row = {"kind": setting.kind, "way": name, "of": of, "value": value, "seconds": found[-1]["seconds"]}
            rows.append({**row, "peak_memory_bytes": found[-1]["peak"]})
        seconds, memory = (numpy.polyfit(values, [each[what] for each in found], 1)[0] for what in ("seconds", "peak"))
        slopes.add_row(name, f"{seconds:.4f}", f"{memory / 2**20:.2f}")
    console.print(table)
    console.print(slopes)
    keep(setting, rows, out)


def in_own_process(setting: Setting, way: str, rounds: int) -> dict[str, float]:
    """Return what a way adds to the peak memory of a fresh process, in bytes, and the least of some measured seconds.

    A small case is solved first, so that the libraries' own buffers are not counted. A process that had to measure
    which operations are faster, which takes memory too, is followed by another one. Also returned is what was predicted
    to be added, `predicted`; 0 without a prediction.

    Raises:
        RunError: the process failed, for example because memory ran out.
    """
    threads = torch.get_num_threads()
    about = [setting.kind, asdict(setting.case), setting.precision, str(setting.device), threads, way, rounds]
    command = [sys.executable, "-W", "ignore", "-c", "from satm.benchmarks.measure import child; child()"]
    result: dict[str, float] = {}
    for _ in range(2):
        done = subprocess.run(command, input=json.dumps(about), capture_output=True, encoding="utf-8", check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise RunError(f"measuring {way} failed: {last}; use a smaller case, or leave this way out")
        result = json.loads(done.stdout.splitlines()[-1])
        if not result.pop("choices"):
            break
    return result


def child() -> None:
    """Measure what the standard input asks for and print it: the process that `in_own_process` starts."""
    kind, values, precision, device, threads, way, rounds = json.load(sys.stdin)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    case = CASES[kind](**values)
    setting = Setting.of(kind, case, precision, device, threads)
    replace(setting, case=replace(case, **SMALL[kind])).way(way)()
    setting.wait()
    small, before_choices = plans(), measured()
    with peak_inside(setting.device) as peak:
        before = peak()
        run = setting.way(way)
        seconds = [setting.seconds(run) for _ in range(1 + rounds)]
        rise = peak() - before
    predicted = max((plan.peak - before for plan in plans() if plan not in small), default=0)
    found = {"peak": rise, "predicted": predicted, "seconds": min(seconds[1:] or seconds)}
    print(json.dumps({**found, "choices": measured() - before_choices}))
