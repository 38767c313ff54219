"""The workflow on a real SLURM cluster, started for these tests, without and with an accounting database.

`python -m pytest -m cluster -n 0` runs them.
"""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
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
    alike = {**os.environ, "PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
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
