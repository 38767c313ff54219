"""Kill stages at random moments and compare their results: `python tests/stress/kill.py --kills 300`.

Experts, a distillation and an evaluation on digits are run undisturbed first. Then one of them is chosen, begun and
killed, with SIGKILL or SIGTERM, after a random time, until it ends by itself; what it leaves must be the bytes of the
undisturbed run, without its measurements of time and memory. The seed of the run is printed, and names its moments as
far as a machine that is busy with other work lets them be the same.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas
import torch

from satm.cli import main

CAMPAIGN = """
experts:
  sgd: {count: 2, epochs: 4, lr: 0.05, batch_size: 128, per_job: 2}
settings:
  - {stage: network, network: convnet, options: {depth: 2, width: 8}}
  - {stage: evaluate, options: {repeats: 3, epochs: 30, decay_epoch: 15, batch_size: 4}}
  - method: satm
    options: {iterations: 40, inner_steps: 4, expert_epochs: 1, max_start_epoch: 3, lr_images: 1, step_size: 0.05}
"""

WHERE = ["--config", "killed.yaml", "--dataset", "digits", "--device", "cpu", "--threads", "1"]
CELL = [*WHERE, "--ipc", "1", "--method", "satm"]
ROOT = Path("results/killed")

MEASURED = ["seconds", "peak_memory_bytes"]
"""Columns that differ from run to run."""


@dataclass(frozen=True)
class Stage:
    """A command, and the files or folders that it leaves."""

    command: list[str]
    left: tuple[Path, ...]


STAGES = {
    "experts": Stage(["experts", *WHERE, "--experts", "sgd"], (ROOT / "experts",)),
    "distill": Stage(["distill", *CELL, "--checkpoint-seconds", "0"], (ROOT / "distilled",)),
    "evaluate": Stage(["evaluate", *CELL], (ROOT / "evaluation",)),
}


class Failed(Exception):
    """A killed run ended in another way than it should; the text says how."""


def begun(command: list[str]) -> int:
    """Start a stage in a process of its own, which has the libraries already, and return its number."""
    if pid := os.fork():
        return pid
    handle = os.open("told.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    try:
        code = main(command)
    except BaseException:
        traceback.print_exc()
        code = 70
    # Not as a process usually ends, for this one has a parent's affairs on its stack.
    sys.stdout.flush()
    os._exit(code)


def ended(pid: int, seconds: float) -> int | None:
    """Return the exit code of a process, negative for a signal; None while it lives after so many seconds."""
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.002)


def outcome(stage: Stage) -> dict[str, str]:
    """Return the hash of every file that a stage leaves, of a table without its measured columns."""
    found = {}
    for path in sorted(_files(stage)):
        content = path.read_bytes()
        if path.suffix == ".parquet":
            table = pandas.read_parquet(path)
            content = table.drop(columns=[name for name in MEASURED if name in table]).to_csv(index=False).encode()
        found[str(path)] = hashlib.sha256(content).hexdigest()
    return found


def _files(stage: Stage) -> Iterator[Path]:
    for place in stage.left:
        yield from (path for path in place.rglob("*") if path.is_file() and path.suffix in (".parquet", ".safetensors"))


def forget(stage: Stage) -> None:
    """Remove what a stage leaves."""
    for place in stage.left:
        shutil.rmtree(place, ignore_errors=True)


def undisturbed(stage: Stage) -> tuple[dict[str, str], float]:
    """Return the outcome of a stage and how many seconds it took."""
    started = time.monotonic()
    code = ended(begun(stage.command), 600)
    if code != 0:
        raise Failed(f"undisturbed, {stage.command[0]} ended with {code}: {_told()}")
    return outcome(stage), time.monotonic() - started


def killed(stage: Stage, expected: dict[str, str], takes: float, draw: random.Random) -> Counter[str]:
    """Kill a stage until it ends by itself; return how often by which signal.

    Raises:
        Failed: it ended badly, or with another outcome.
    """
    found: Counter[str] = Counter()
    forget(stage)
    while True:
        Path("told.txt").unlink(missing_ok=True)
        pid, wait = begun(stage.command), draw.uniform(0, 1.1 * takes)
        takes *= 1.1  # on a machine that has become slower than it was, every run would be killed too early
        chosen = draw.choice((signal.SIGKILL, signal.SIGTERM))
        code = ended(pid, wait)
        if code is None:
            os.kill(pid, chosen)
            code = ended(pid, 60)
            found[chosen.name] += 1
            if code is None:
                os.kill(pid, signal.SIGKILL)
                raise Failed(f"{stage.command[0]} did not end within 60 s of {chosen.name}: {_told()}")
        if code == 0:
            break
        # A process that has not come to watch for signals yet is ended by them.
        if code not in (75, -signal.SIGKILL, -signal.SIGTERM):
            raise Failed(f"{stage.command[0]}, killed after {wait:.3f} s, ended with {code}: {_told()}")
        found[f"exit {code}"] += 1
    if (now := outcome(stage)) != expected:
        differ = [name for name in {*now, *expected} if now.get(name) != expected.get(name)]
        raise Failed(f"{stage.command[0]} has another outcome: {', '.join(sorted(differ))}")
    if left := [path for path in (ROOT / "state").rglob("*") if path.is_file()]:
        raise Failed(f"{stage.command[0]} left {left[0]} in its state")
    return found


def _told() -> str:
    path = Path("told.txt")
    return path.read_text()[-2000:] if path.exists() else "(nothing)"


def campaign(kills: int, seed: int, stages: list[str]) -> Counter[str]:
    """Kill so often in an empty folder; return counts by stage and signal.

    Raises:
        Failed: naming the run.
    """
    Path("killed.yaml").write_text(CAMPAIGN)
    torch.set_num_threads(1)
    if (code := ended(begun(["data", *WHERE[:4]]), 600)) != 0:
        raise Failed(f"data ended with {code}: {_told()}")
    expected = {name: undisturbed(stage) for name, stage in STAGES.items()}
    for name, (_, takes) in expected.items():
        print(f"{name}: {takes:.1f} s undisturbed", flush=True)
    draw = random.Random(seed)
    counts: Counter[str] = Counter()
    done = runs = 0
    while done < kills:
        name = draw.choice(stages)
        found = killed(STAGES[name], *expected[name], draw)
        runs += 1
        done += found["SIGKILL"] + found["SIGTERM"]
        counts.update({f"{name} {what}": count for what, count in found.items()})
        counts[f"{name} runs"] += 1
        print(f"run {runs}: {name}, {dict(found)}, the same bytes; {done} of {kills} kills", flush=True)
    return counts


def start() -> int:
    """Read the flags and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    flags = parser.parse_args()
    print(f"seed {flags.seed}, {flags.kills} kills", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            counts = campaign(flags.kills, flags.seed, flags.stages)
        except Failed as failure:
            print(f"FAILED: {failure}\nrepeat: python tests/stress/kill.py --kills {flags.kills} --seed {flags.seed}")
            return 1
        finally:
            os.chdir("/")
    print("every run ended at the bytes of the undisturbed one")
    for name, count in sorted(counts.items()):
        print(f"  {name}: {count}")
    return 0


if __name__ == "__main__":
    sys.exit(start())
