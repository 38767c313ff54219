"""The paper's jobs on the test cluster, each of them a short sleep: what submission itself costs.

    python tests/stress/cluster.py start
    python tests/stress/standin.py --every 16 --seconds 2
    python tests/stress/cluster.py stop

The rules, their inputs, resources and the profile are the real ones, and so is the time that each job's own Snakemake
takes to begin. Of the experiments one in so many is kept. The run is repeated for each way of submission: a job each,
one SLURM job for several jobs of a rule (`per_job` in site.yaml), and arrays (`arrays`).
"""

import argparse
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any

from checkouts import ROOT, make_checkout

from satm.workflow.campaigns import Campaigns
from satm.workflow.jobs import campaigns_of, jobs
from satm.workflow.rules import RULES

COMPLETED = Path("/var/tmp/satm-slurm/completed.txt")
"""Where the test cluster's SLURM writes a line for each job that ended (tests/stress/cluster.py)."""

PER_JOB = {"distill": 4, "evaluate": 4, "variants": 4, "nas": 4}
WAYS = {
    "a job each": {},
    "several in one": {"per_job": PER_JOB},
    "arrays": {"arrays": ["all"]},
}
PREPARING = ("images", "zca", "experts_part", "experts", "difficulty")
"""Rules whose jobs are planned for what others need."""

SITE = {"gpu_partition": "gpu", "cpu_partition": "cpu"}


def act(every: int, seconds: float) -> None:
    """Let the Snakefile that is read next plan few experiments, and its rules sleep and touch their outputs."""
    import snakemake.workflow

    command = f"sleep {seconds}; for file in {{output:q}}; do echo made > $file; done"
    snakemake.workflow.parse = functools.partial(snakemake.workflow.parse, overwrite_shellcmd=command)
    plain = Campaigns.inputs

    def inputs(self: Campaigns, rule: str, wildcards: Any) -> dict[str, list[str]]:
        """Return the inputs that few experiments have in place of all, but at least one of parts and of steps."""
        found = plain(self, rule, wildcards)
        if not RULES[rule].gathers and rule not in ("experts", "continual"):
            return found
        few = {name: [path for path in files if kept(path, every)] for name, files in found.items()}
        return few if RULES[rule].gathers else {name: few[name] or files[:1] for name, files in found.items()}

    Campaigns.inputs = inputs


def kept(path: str, every: int) -> bool:
    """Say whether a file is among those of few experiments; those of one synthetic set all are, or none is."""
    cell = re.search(r"[^/]+/ipc-\d+/[^/]+/seed-\d+(?!.*/part-)", path)
    return zlib.crc32((cell[0] if cell else path).encode()) % every == 0


def targets(every: int) -> list[str]:
    """Return the files of few of the paper's experiments, of its tables and of its figures."""
    planned = jobs(campaigns_of(ROOT / "config" / "paper.yaml"), "results")
    found = [str(job.outputs[0]) for job in planned if job.rule not in PREPARING]
    return [path for path in found if kept(path, every)]


def prepare(folder: Path, way: dict[str, Any], every: int, seconds: float) -> None:
    """Write a checkout whose jobs sleep."""
    make_checkout(folder)
    (folder / "slurm" / "site.yaml").write_text(json.dumps({**SITE, **way}))
    here = str(ROOT / "tests" / "stress")
    read = f"import sys\n\nsys.path.append({here!r})\nimport standin\n\nstandin.act({every}, {seconds})\n"
    (folder / "Standin").write_text(f'{read}\n\ninclude: "Snakefile"\n')
    counter = folder / "bin" / "sbatch"
    counter.parent.mkdir()
    counter.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *--test-only*) ;; *) echo call >> {folder}/calls ;; esac\n'
        f'exec {shutil.which("sbatch")} "$@"\n'
    )
    counter.chmod(0o755)


def run(folder: Path, every: int) -> tuple[int, float]:
    """Return how many jobs a run of the workflow did, and its seconds."""
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    alike = {**os.environ, "PATH": path, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "snakemake", "--snakefile", "Standin", "--profile", "slurm", *targets(every)]
    began = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=alike, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    took = time.monotonic() - began
    if done.returncode:
        sys.exit(f"{done.stdout}\nthe run failed")
    total = re.search(r"^total\s+(\d+)$", done.stdout, re.MULTILINE)
    assert total is not None
    return int(total[1]), took


def allocated(folder: Path) -> list[float]:
    """Return the seconds that each SLURM job of a run held its processors."""
    found = []
    for line in COMPLETED.read_text().splitlines():
        if f"WorkDir={folder} " in line:
            ends = [re.search(rf"{name}=(\S+)", line)[1] for name in ("StartTime", "EndTime")]  # type: ignore[index]
            start, end = (datetime.fromisoformat(text) for text in ends)
            found.append((end - start).total_seconds())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every", type=int, default=16, help="keep one experiment in so many")
    parser.add_argument("--seconds", type=float, default=2.0, help="that each job sleeps")
    parser.add_argument("--way", choices=list(WAYS), nargs="*", default=list(WAYS))
    given = parser.parse_args()
    print("| submission | jobs | sbatch calls | SLURM jobs | wall (s) | overhead (s a job) |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for way in given.way:
        with tempfile.TemporaryDirectory(prefix="standin-") as name:
            folder = Path(name)
            prepare(folder, WAYS[way], given.every, given.seconds)
            count, wall = run(folder, given.every)
            calls = len((folder / "calls").read_text().splitlines())
            held = allocated(folder)
            overhead = (sum(held) - count * given.seconds) / count
            print(f"| {way} | {count} | {calls} | {len(held)} | {wall:.0f} | {overhead:.1f} |", flush=True)


if __name__ == "__main__":
    main()
