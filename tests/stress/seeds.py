"""Run the tests under other seeds, orders, threads and instruction sets: `python tests/stress/seeds.py --count 20`.

Run number N draws its random numbers and the order of its tests from seed N, which also chooses, in turn, one or two
threads and `ATEN_CPU_CAPABILITY` default, avx2 or avx512, as far as this machine has it. A table with a row per run is
printed, and the command that repeats each failed run. Files or other arguments of pytest follow `--`; without, all
tests run.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import torch

TESTS = Path(__file__).parent.parent

CAPABILITIES = ("default", "avx2", "avx512")
"""Instruction sets of torch, each a superset of those before."""

ROW = "{:>6} {:>8} {:>11} {:>7} {:>7} {:>8} {:>8}  {}"
HEADINGS = ("seed", "threads", "capability", "passed", "failed", "skipped", "seconds", "which failed")


@dataclass(frozen=True)
class Outcome:
    """What a run of pytest ended with."""

    passed: int
    failed: tuple[str, ...]
    skipped: int
    seconds: float
    text: str


def capabilities() -> tuple[str, ...]:
    """Return the instruction sets that this machine has."""
    here = torch.backends.cpu.get_cpu_capability().lower()
    return CAPABILITIES[: CAPABILITIES.index(here) + 1] if here in CAPABILITIES else ("default",)


def settings(seed: int, threads: int, capability: str) -> dict[str, str]:
    """Return the environment variables of a run."""
    return {
        "SATM_TEST_SEED": str(seed),
        "SATM_TEST_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",  # threads that wait leave the processors to other work
        "ATEN_CPU_CAPABILITY": capability,
    }


def pytest_command(seed: int, arguments: list[str]) -> list[str]:
    """Return the command of a run: all tests in the order of the seed."""
    order = ["--random-order-bucket=global", f"--random-order-seed={seed}"]
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *order, *(arguments or [str(TESTS)])]


def outcome(seed: int, variables: dict[str, str], arguments: list[str]) -> Outcome:
    """Run the tests once."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        begun = time.monotonic()
        command = [*pytest_command(seed, arguments), f"--junitxml={report}"]
        done = subprocess.run(
            command, env={**os.environ, **variables}, capture_output=True, text=True, errors="replace", check=False
        )
        seconds = time.monotonic() - begun
        text = done.stdout + done.stderr
        if not report.exists():
            return Outcome(0, (f"pytest ended with {done.returncode}",), 0, seconds, text)
        cases = list(ElementTree.parse(report).iter("testcase"))
    failed = tuple(
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    )
    if done.returncode and not failed:
        failed = (f"pytest ended with {done.returncode}",)
    skipped = sum(case.find("skipped") is not None for case in cases)
    return Outcome(len(cases) - len(failed) - skipped, failed, skipped, seconds, text)


def start() -> int:
    """Read the flags and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="runs")
    parser.add_argument("--first", type=int, default=1, help="seed of the first run")
    parser.add_argument("arguments", nargs="*", help="files and flags of pytest, after `--`")
    flags = parser.parse_args()
    ways = list(itertools.product(capabilities(), (1, 2)))
    print(ROW.format(*HEADINGS), flush=True)
    broken = []
    for seed in range(flags.first, flags.first + flags.count):
        capability, threads = ways[seed % len(ways)]
        variables = settings(seed, threads, capability)
        found = outcome(seed, variables, flags.arguments)
        counts = (found.passed, len(found.failed), found.skipped, f"{found.seconds:.0f}")
        print(ROW.format(seed, threads, capability, *counts, ", ".join(found.failed)).rstrip(), flush=True)
        if found.failed:
            given = " ".join(f"{name}={value}" for name, value in variables.items())
            broken.append(f"{given} {' '.join(pytest_command(seed, flags.arguments))}")
            print(found.text[-4000:], file=sys.stderr, flush=True)
    print(f"{flags.count - len(broken)} of {flags.count} runs passed", *broken, sep="\nrepeat: ")
    return 1 if broken or not flags.count else 0


if __name__ == "__main__":
    sys.exit(start())
