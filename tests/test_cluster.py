"""The workflow on a real SLURM cluster, started for these tests, without and with an accounting database.

`python -m pytest -m cluster -n 0` runs them.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cluster
import faults
import pandas as pd
import pytest
from checkouts import make_checkout

from satm.errors import UsageError
from satm.workflow import slurm

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True, params=[False, True], ids=["squeue", "sacct"], name="database")
def database_fixture(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Start a cluster; whether it has an accounting database."""
    if why := cluster.lacking(request.param):
        pytest.skip(why)
    try:
        cluster.start(request.param)
        yield request.param
    finally:
        cluster.stop()


def test_jobs_get_gpus_of_their_own(tmp_path: Path) -> None:
    for index in range(4):
        command = ["sbatch", "--gpus=1", f"--output={tmp_path}/{index}"]
        told = 'echo "$SLURM_JOB_NODELIST gpu $CUDA_VISIBLE_DEVICES"; sleep 2'
        subprocess.run([*command, f"--wrap={told}"], check=True, capture_output=True)
    until = time.monotonic() + 60
    while subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True).stdout:
        assert time.monotonic() < until, "the jobs do not end"
        time.sleep(0.2)
    found = sorted((tmp_path / str(index)).read_text().strip() for index in range(4))
    assert found == ["node1 gpu 0", "node1 gpu 1", "node2 gpu 0", "node2 gpu 1"]


TINY = """
experts: {sgd: {count: 2, epochs: 2, per_job: 1}}
settings:
  - {stage: network, network: convnet, options: {depth: 2, width: 16}}
  - {method: mtt, options: {iterations: 100, inner_steps: 4, expert_epochs: 1, max_start_epoch: 2}}
  - {stage: evaluate, options: {repeats: 1, epochs: 2, decay_epoch: 2}}
tables:
  table2: {datasets: {digits: [1]}, methods: [mtt], seeds: [0, 1]}
"""
SITE = """
gpu_partition: gpu
cpu_partition: plain
per_job: {evaluate: 2}
arrays: [experts_part, distill]
resources: {experts_part: {mem_mb: 4000}, distill: {mem_mb: 4000}}
"""
MEASURED = ["seconds", "peak_memory_bytes"]
"""Columns of a table that differ from run to run."""


ACCOUNT = """
account: project
gpu_partition: members
"""
"""Of a site with a database: who pays, and a partition for that account alone."""


def start(folder: Path, site: str, *arguments: str) -> subprocess.Popen[str]:
    """Start Snakemake in a checkout with the campaign above."""
    make_checkout(folder)
    (folder / "config" / "tiny.yaml").write_text(TINY)
    (folder / "slurm" / "site.yaml").write_text(site)
    # Alike in everything that a number could depend on.
    alike = {**os.environ, "PYTHONPATH": str(folder), "SATM_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "snakemake", *arguments, *faults.THREADS, "--", "results/tiny/table2.csv"]
    told = (folder / "printed").open("w")
    return subprocess.Popen(command, cwd=folder, env=alike, stdout=told, stderr=subprocess.STDOUT, text=True)


def test_a_campaign_on_the_cluster_makes_the_table_of_one_machine(tmp_path: Path, database: bool) -> None:
    """By single jobs, arrays, and several jobs in one; on partitions, and for the account, that site.yaml names.

    A distillation is put back into the queue while it computes, and goes on.
    """
    # Jobs that end soon are looked for soon.
    quick = ["--slurm-init-seconds-before-status-checks", "3", "--max-jobs-per-timespan", "1000/1s"]
    partition, site = ("members", SITE.replace("gpu_partition: gpu\n", ACCOUNT)) if database else ("gpu", SITE)
    runs = {"slurm": start(tmp_path / "slurm", site, "--profile", "slurm", *quick)}
    runs["local"] = start(tmp_path / "local", site, "--profile", "local")
    job, _ = faults.computing(runs["slurm"], tmp_path / "slurm" / "results" / "tiny", ["distill"], saved=False)
    subprocess.run(["scontrol", "requeue", job], check=True)
    printed, made = {}, {}
    for profile, run in runs.items():
        folder = tmp_path / profile
        code = run.wait(600)
        printed[profile] = (folder / "printed").read_text()
        assert code == 0, printed[profile]
        made[profile] = pd.read_csv(folder / "results/tiny/table2.csv")
    assert made["slurm"].drop(columns=MEASURED).equals(made["local"].drop(columns=MEASURED))
    assert made["slurm"].accuracy_mean.notna().all() and made["slurm"].n.tolist() == [2]
    logs = [log.read_text() for log in (tmp_path / "slurm" / "results").rglob("logs/distill/**/*.log")]
    assert sum("resuming after" in log for log in logs) == 1
    arrays = re.findall(r"individual task IDs are (\d+-\d+)", printed["slurm"])
    single = re.findall(r"Job (\S+) has been submitted with SLURM jobid", printed["slurm"])
    assert arrays == ["1-2", "1-2"]  # parts of the experts, distillations
    assert len(single) == 4  # images, manifest of the experts, two evaluations in one, table
    state = subprocess.run(["scontrol", "-o", "show", "job"], capture_output=True, text=True, check=True).stdout
    jobs = [dict(re.findall(r"(\S+?)=(\S+)", line)) for line in state.splitlines() if str(tmp_path / "slurm") in line]
    assert len(jobs) == 8
    assert all(job["JobState"] == "COMPLETED" and job["Requeue"] == "1" for job in jobs)
    on_gpus = [job for job in jobs if "gres:gpu:1" in job.get("TresPerJob", "")]
    assert len(on_gpus) == 5 and {job["Partition"] for job in on_gpus} == {partition}
    assert {job.get("Account") for job in jobs} == {"project" if database else "(null)"}
    assert {job["NodeList"] for job in jobs if job not in on_gpus} == {"node3"}


@pytest.mark.parametrize(
    ("resources", "told"),
    [
        ({"slurm_partition": "nowhere"}, "unknown partition 'nowhere' for jobs of distill; set one of cpu, gpu, "),
        ({"slurm_partition": "plain", "gpu": 1}, "need a GPU, partition plain has none, cpu, gpu, .* have some"),
        ({"gpu": 1, "gpu_model": "a100"}, "need a GPU of type 'a100', partition cpu has gpu:2"),
        ({"slurm_partition": "short", "runtime": 90}, "90 minutes, partition short gives at most 60"),
        (
            {"slurm_partition": "members"},
            "have (no account|account 'root', your default one), and partition members is",
        ),
        ({"slurm_partition": "members", "slurm_account": "other"}, "have account 'other', and partition members is"),
        ({"mem_mb": 32001}, "32001 MB of memory, partition cpu gives at most 32000"),
        ({"gpu": 5}, r"refuses jobs of distill \(Requested node configuration is not available\): .*--gpus=5"),
        ({"constraint": "fast"}, r"refuses jobs of distill \(Invalid feature specification\)"),
    ],
)
def test_what_the_cluster_would_never_run_is_told(resources: dict[str, Any], told: str, database: bool) -> None:
    usual = {"mem_mb": 4000, "runtime": 60, "_cores": 1}
    slurm.check_programs()
    slurm.check_status("squeue", 20)
    slurm.check_jobs({"distill": usual, "evaluate": {**usual, "slurm_partition": "gpu", "gpu": 2}})
    with pytest.raises(UsageError, match=told):
        slurm.check_jobs({"distill": {**usual, **resources}})


def test_sacct_is_refused_where_there_is_no_database(database: bool) -> None:
    with contextlib.nullcontext() if database else pytest.raises(UsageError, match="no accounting database"):
        slurm.check_status("sacct", 20)


def test_what_says_how_jobs_ended_is_found(database: bool) -> None:
    assert slurm.open_site().status_command == ("sacct" if database else "squeue")


STUTTER = """
from satm.workflow.slurm import check_cluster


onstart:
    check_cluster(workflow),


rule all:
    input:
        expand("done/{{rule}}-{{n}}", rule={rules}, n=range(2)),
    localrule: True

"""
"""A workflow of short jobs: single ones (distill), two in one (evaluate), and an array (nas)."""

RULE = """
rule {name}:
    output:
        "done/{name}-{{n}}",
    log:
        "logs/{name}-{{n}}.log",
    resources:
        mem_mb=lambda wildcards, attempt: {memory} * attempt,
        runtime=3,
        gpu=0,
    shell:
        "echo {{resources.mem_mb}} >> memory-{name}; {command}; touch {{output}}"

"""
WAYS = "gpu_partition: gpu\ncpu_partition: plain\nper_job: {evaluate: 2}\narrays: [nas]\n"
PROGRAMS = ("sbatch", "squeue", "sacct", "scancel", "scontrol")


@dataclass
class Stutter:
    """Snakemake in a folder, with programs of SLURM that misbehave as `faults` says: shell code by name.

    The code runs before the real program, with the number of the call in `$n`; `$real` is that program.
    """

    folder: Path
    command: str = "sleep 1"
    faults: dict[str, str] = field(default_factory=dict)
    memory: int = 600
    flags: tuple[str, ...] = ()
    rules: tuple[str, ...] = ("distill", "evaluate", "nas")

    def start(self) -> subprocess.Popen[str]:
        """Start it; what it prints goes into `printed`."""
        make_checkout(self.folder)
        rules = [RULE.format(name=name, command=self.command, memory=self.memory) for name in self.rules]
        (self.folder / "Stutter").write_text(STUTTER.format(rules=self.rules) + "".join(rules))
        (self.folder / "slurm" / "site.yaml").write_text(WAYS)
        programs = self.folder / "programs"
        programs.mkdir()
        for name in PROGRAMS:
            count = f"echo >> {self.folder}/calls-{name}; n=$(wc -l < {self.folder}/calls-{name})"
            real = f"real={shutil.which(name)}"
            fault = self.faults.get(name, "")
            (programs / name).write_text(f'#!/bin/bash\n{real}\n{count}\n{fault}\nexec $real "$@"\n')
            (programs / name).chmod(0o755)
        path = os.pathsep.join([str(programs), os.environ["PATH"]])
        alike = {**os.environ, "PYTHONPATH": str(self.folder), "PATH": path}
        # A shell that starts the tests in the background makes them ignore Ctrl-C.
        command = ["env", "--default-signal=INT", sys.executable]
        command += ["-m", "snakemake", "-s", "Stutter", "--profile", "slurm", "--retries", "0"]
        command += ["--slurm-init-seconds-before-status-checks", "3", "--max-jobs-per-timespan", "1000/1s", *self.flags]
        told = (self.folder / "printed").open("w")
        where = {"cwd": self.folder, "env": alike, "start_new_session": True}
        return subprocess.Popen(command, stdout=told, stderr=subprocess.STDOUT, text=True, **where)

    @property
    def printed(self) -> str:
        """What Snakemake has printed so far."""
        return (self.folder / "printed").read_text()

    def wait_for(self, happened: Callable[[], object], seconds: float = 120) -> None:
        """Wait until something has happened."""
        until = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < until, self.printed
            time.sleep(0.1)

    def jobs(self) -> list[dict[str, str]]:
        """Return the SLURM jobs of this folder."""
        state = subprocess.run(["scontrol", "-o", "show", "job"], capture_output=True, text=True, check=False).stdout
        lines = [line for line in state.splitlines() if f"WorkDir={self.folder}" in line]
        return [dict(re.findall(r"(\S+?)=(\S+)", line)) for line in lines]

    def succeed(self, run: subprocess.Popen[str], seconds: float = 300) -> None:
        """Wait for a good end; each job was submitted once and done once, with the memory of the first attempt."""
        assert run.wait(seconds) == 0, self.printed
        assert len(list((self.folder / "done").iterdir())) == 6
        assert len(self.jobs()) == 5 and {job["JobState"] for job in self.jobs()} == {"COMPLETED"}, self.printed
        for name in ("distill", "evaluate", "nas"):
            assert (self.folder / f"memory-{name}").read_text() == f"{self.memory}\n" * 2


AWAY = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
LATE = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"


def test_a_status_query_that_fails_is_made_again(tmp_path: Path, database: bool) -> None:
    """It fails for 20 seconds, and the user is told."""
    status, since = "sacct" if database else "squeue", tmp_path / "since"
    fault = f"[ -e {since} ] || date +%s > {since}\nif [ $(($(date +%s) - $(cat {since}))) -lt 20 ]"
    stutter = Stutter(tmp_path, faults={status: f'{fault}; then echo "{AWAY}" >&2; exit 1; fi'})
    stutter.succeed(stutter.start())
    assert f"{status} does not answer; the jobs continue, and it is asked again after a pause" in stutter.printed
    assert stutter.printed.count(f"{status} answers again") == 1


def test_a_controller_that_is_stopped_and_started_loses_no_job(tmp_path: Path) -> None:
    """A job that it would have had to start in the meantime, the second one of a group, is submitted again."""
    stutter = Stutter(tmp_path, command="sleep 6")
    run = stutter.start()
    stutter.wait_for(lambda: len(list(tmp_path.glob("memory-*"))) == 3)
    with cluster.no_controller():
        time.sleep(15)
    assert run.wait(300) == 0, stutter.printed
    assert {size for path in tmp_path.glob("memory-*") for size in path.read_text().split()} == {"600"}


@pytest.mark.parametrize("during", ["query", "submission", "submission, in a terminal"])
def test_an_interrupt_leaves_no_job_behind(tmp_path: Path, database: bool, during: str) -> None:
    """While the status is asked for, or while jobs are submitted whose number is not known yet.

    In a terminal all processes get the signal, also sbatch, which then never says the number.
    """
    status = "sacct" if database else "squeue"
    slow = 'case "$*" in *--test-only*) ;; *) $real "$@"; sleep 8; exit 0;; esac'
    faults = {status: "sleep 4"} if during == "query" else {"sbatch": slow}
    stutter = Stutter(tmp_path, command="sleep 90", faults=faults)
    run = stutter.start()
    asked = tmp_path / f"calls-{status}"
    stutter.wait_for(asked.is_file if during == "query" else stutter.jobs)
    if during.endswith("terminal"):
        os.killpg(run.pid, signal.SIGINT)
    else:
        run.send_signal(signal.SIGINT)
    assert run.wait(120) == 1, stutter.printed
    assert "Terminating processes on user request" in stutter.printed and "Traceback" not in stutter.printed
    assert stutter.jobs() and {job["JobState"] for job in stutter.jobs()} == {"CANCELLED"}, stutter.printed
    assert not (tmp_path / "done").exists()


def test_a_submission_is_repeated_unless_the_job_got_in(tmp_path: Path) -> None:
    """With the same memory, in the same attempt; sbatch also prints a site's lines with numbers."""
    failed = f"echo '{LATE}' >&2; exit 1"
    once = "[ ! -e {0} ] && touch {0} && {{ {1} }}"
    faults = [
        'case "$*" in *--test-only*) echo "HPC 2026, quota 45%"; exec $real "$@";; esac',
        f'case "$*" in *rule_distill_wildcards_0*) {once.format("first", f"{failed};")};; esac',
        f'case "$*" in *rule_evaluate*) {once.format("group", f"$real $@ >/dev/null; {failed};")};; esac',
        f'case "$*" in *rule_nas*) {once.format("array", f"$real $@ >/dev/null; {failed};")};; esac',
        'echo "HPC 2026, quota 45%"; $real "$@"; code=$?; case "$*" in *wildcards_1*) echo 45;; esac; exit $code',
    ]
    stutter = Stutter(tmp_path, faults={"sbatch": "\n".join(faults).replace("$@", '"$@"').replace('""$@""', '"$@"')})
    stutter.succeed(stutter.start())
    told = "sbatch failed (Batch job submission failed: Socket timed out on send/recv operation); in 5 seconds it is"
    assert stutter.printed.count(told) == 3
    assert "sbatch prints 'HPC 2026, quota 45%' and such besides the number of a job: ignored" in stutter.printed


def test_lack_of_memory_and_a_log_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    hog = "python -c 'import time; held = bytearray(1200 * 1024**2); time.sleep(20)'"
    stutter, logs = Stutter(tmp_path, command=hog), tmp_path / "logs"
    logs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(logs)], check=True)
    try:
        with contextlib.suppress(OSError), (logs / "filler").open("wb") as file:
            file.write(bytes(1 << 20))
        assert stutter.start().wait(300) == 1
    finally:
        subprocess.run(["umount", "--lazy", str(logs)], check=True)
    for name, count in (("distill", 2), ("evaluate", 1), ("nas", 2)):
        told = (
            rf"SLURM job \S+ of {name}\w*: killed for lack of memory, it had asked for {stutter.memory} MB; an attempt"
        )
        assert len(re.findall(told, stutter.printed)) == count, stutter.printed
    assert "its log logs/distill-1.log cannot be written: No space left on device" in stutter.printed


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        (
            "--set-resources distill:runtime=2",
            "slurm_partition of distill, evaluate, nas, gpu of distill, evaluate, nas",
        ),
        ("--default-resources slurm_account=root", "slurm_partition of table"),
    ],
)
def test_a_profile_that_the_command_line_replaces_is_refused(tmp_path: Path, flag: str, told: str) -> None:
    stutter = Stutter(tmp_path, flags=(*flag.split(), "--"), rules=("distill", "evaluate", "nas", "table"))
    assert stutter.start().wait(60) == 1
    assert f"{flag.split()[0]} replaced a section of the profile slurm, and so these are not set: " in stutter.printed
    assert told in stutter.printed and not stutter.jobs()


LEFT = "from satm.run.slurm import seconds_left; print(seconds_left())"
AUTO = "from satm.run.machine import choose_device; print(choose_device('auto'))"


@pytest.mark.parametrize("array", [[], ["--array=1-2"]], ids=["single", "array"])
def test_a_job_knows_its_time_and_its_gpu(tmp_path: Path, array: list[str]) -> None:
    """The time whatever the clock of its node says; the GPU even if torch sees none."""
    late = ["faketime -f -4m", "faketime -f +4m"] if shutil.which("faketime") else []
    steps = [f'{clock} {sys.executable} -c "{LEFT}" 2>&1' for clock in ["", *late]]
    steps += [f'{prefix} {sys.executable} -c "{AUTO}" 2>&1 | tail -n 1' for prefix in ("", "SATM_DEVICE=cpu")]
    script = tmp_path / "script"
    script.write_text("\n".join(["#!/bin/sh", *steps]))
    alike = {**os.environ, "PYTHONPATH": str(faults.ROOT)}
    command = ["sbatch", "--wait", "--gpus=1", "--partition=gpu", "--time=3", f"--output={tmp_path}/%a.told", *array]
    subprocess.run([*command, str(script)], check=True, env=alike, timeout=120, capture_output=True)
    for told in tmp_path.glob("*.told"):
        *left, refused, device = told.read_text().splitlines()
        assert len(left) == 1 + len(late) and all(100 < float(seconds) <= 180 for seconds in left)
        assert re.search(r"given a GPU \(SLURM_JOB_GPUS=\d\), and torch finds none: ", refused) and device == "cpu"
