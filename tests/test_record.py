"""The record of what a job takes: attempts that were killed, refused, nested; SLURM's times; no effect on results."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import Refuse

import satm
from satm.cli import main
from satm.errors import RunError, UsageError
from satm.results.circumstances import run_metadata
from satm.results.columns import EVALUATION, METRICS
from satm.results.rows import read_rows_metadata
from satm.run import machine, record
from satm.run.record import Record, account, attempts, begun_before, computes_on, find_record, mark_complete
from satm.run.slurm import submission

ROOT = Path(satm.__file__).parent.parent
RUN = Path("results/tiny")
HAND = Path("results/hand/tiny")
"""Folder of runs with other options than the campaign's."""
CELL = ("--config", "tiny.yaml", "--dataset", "digits", "--ipc", "1", "--method", "satm")
DISTILLED = RUN / "distilled/digits/ipc-1/satm/seed-0/distilled.safetensors"
METRICS_FILE = DISTILLED.with_name("metrics.parquet")
KEPT = RUN / "logs/distill/digits/ipc-1/satm/seed-0.json"


def read(path: Path) -> Record:
    found = find_record(path)
    assert found is not None
    return found


def test_a_job_adds_up_its_attempts_until_it_is_done(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    with pytest.raises(RunError), account(path):
        raise RunError("the loss exploded")
    with pytest.raises(KeyboardInterrupt), account(path):
        raise KeyboardInterrupt
    assert [read(path).done, len(read(path).attempts)] == [False, 2]
    with account(path):
        told = attempts()
        assert told is not None and len(told) == 3 and told[-1]["device"] == "cpu"
    found = read(path)
    assert found.done and len(found.attempts) == 3 and len({each.id for each in found.attempts}) == 3
    assert all(each.seconds is not None and each.seconds >= 0 for each in found.attempts)
    with account(path):  # made anew
        pass
    assert len(read(path).attempts) == 1 and attempts() is None


def test_a_refused_command_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    with pytest.raises(UsageError), account(path):
        raise UsageError("no such method")
    assert not list(tmp_path.iterdir())
    with account(path):
        pass
    before = path.read_bytes()
    with pytest.raises(UsageError), account(path):
        raise UsageError("no such method")
    assert path.read_bytes() == before


def test_a_process_that_is_refused_does_not_erase_the_one_at_work(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    with account(path):
        other = record.Account(path, 0.0, None)  # as another process does
        assert len(read(path).attempts) == 2
        other.withdraw()
        assert len(read(path).attempts) == 1
    assert read(path).done and len(read(path).attempts) == 1


def test_parts_of_a_command_have_accounts_of_their_own(tmp_path: Path) -> None:
    whole, part = tmp_path / "all.json", tmp_path / "part.json"
    with account(whole):
        computes_on(torch.device("cpu"))
        with account(whole), account(part):
            assert attempts() is not None
            assert not read(part).done
        assert read(part).done and not read(whole).done
    assert read(whole).done


def test_who_finds_a_job_done_leaves_the_record_to_those_who_did_it(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    with pytest.raises(RunError), account(path):
        raise RunError("killed after the last file")
    with account(path):
        mark_complete()
    assert read(path).done and len(read(path).attempts) == 2
    before = path.read_bytes()
    with account(path):
        mark_complete()
    assert path.read_bytes() == before


def test_a_full_disk_and_a_broken_record_end_no_job(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text('{"attempts": [{"seconds"')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with account(path):
            told = attempts()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert told is not None
    assert [each.name for each in tmp_path.iterdir()] == ["job.json"] and find_record(path) is None
    with account(path):
        pass
    assert read(path).done
    path.write_text('{"attempts": [{"seconds": 1, "colour": "red"}], "done": true}')  # of a later version
    assert read(path).attempts[0].seconds == 1


def test_the_record_is_kept_up_while_the_job_runs(tmp_path: Path) -> None:
    with account(tmp_path / "job.json", beat=0.01):
        begun = read(tmp_path / "job.json").attempts[0].seconds
        until = time.monotonic() + 30
        while read(tmp_path / "job.json").attempts[0].seconds == begun:
            assert time.monotonic() < until, "the record stands still"
            time.sleep(0.01)


KILLED = """
import os, signal, sys
from satm.cli import main

replace, times = os.replace, []

def counted(source, target):
    replace(source, target)
    times.extend([1] if "/state/" in str(target) else [])
    if len(times) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = counted
main(sys.argv[1:])
"""
"""Runs a command and kills it after it wrote its state three times."""


def test_a_run_that_was_killed_counts_the_time_of_both_its_attempts(campaign: Path) -> None:
    longer = ("distill", *CELL, "--iterations", "120", "--checkpoint-seconds", "0")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED, *longer], env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = HAND / KEPT.relative_to(RUN)
    first = read(kept)
    assert not first.done and len(first.attempts) == 1
    assert main(list(longer)) == 0
    found = read(kept)
    assert found.done and len(found.attempts) == 2 and found.attempts[0] == first.attempts[0]
    carried = read_rows_metadata(HAND / METRICS_FILE.relative_to(RUN), METRICS)["accounting"]
    assert [each["id"] for each in carried] == [each.id for each in found.attempts]


def test_results_carry_the_account_and_nothing_else_changes(campaign: Path) -> None:
    part = RUN / "experts/digits/sgd/part-0-0.json"
    before = {path: path.read_bytes() for path in (DISTILLED, part)}
    old = read_rows_metadata(METRICS_FILE, METRICS)
    assert main(["distill", *CELL, "--overwrite"]) == 0
    assert main(["experts", *CELL[:4]]) == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    new = read_rows_metadata(METRICS_FILE, METRICS)
    assert new["options"] == old["options"] and new["accounting"] != old["accounting"]
    assert set(new) == {"options", "commit", "versions", "device", "host", "time", "accounting"}
    tested = RUN / "evaluation/digits/ipc-1/satm/seed-0/convnet.parquet"
    (attempt,) = read_rows_metadata(tested, EVALUATION)["accounting"]
    assert attempt["device"] == "cpu" and attempt["gpus"] == 0 and attempt["slurm"] is None
    assert attempt["seconds"] > 0 and attempt["cpu_seconds"] > 0 and attempt["peak_host_bytes"] > 10**7
    assert "accounting" not in run_metadata({})
    kept = sorted(path.relative_to(RUN / "logs").as_posix() for path in (RUN / "logs").rglob("*.json"))
    parts = ["all", "manifest", "part-0-0", "part-1-1"]
    assert kept == [
        *("data/digits/all.json", "data/digits/images.json", "distill/digits/ipc-1/satm/seed-0.json"),
        *("evaluate/digits/ipc-1/satm/seed-0/convnet.json", *(f"experts/digits/sgd/{name}.json" for name in parts)),
    ]


def test_a_command_that_cannot_run_leaves_the_account_of_the_one_that_did(campaign: Path, refused: Refuse) -> None:
    before = KEPT.read_bytes()
    (RUN / "data/digits/images.safetensors").unlink()
    refused("distill", *CELL)
    assert KEPT.read_bytes() == before


SQUEUE = """#!/bin/sh
test "$SLURM_TIME_FORMAT" = %s || exit 1
echo "$@" > asked
echo "{told}"
"""


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `squeue` that writes down what it was asked, in a machine of another time zone."""
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "bin" / "squeue"
    program.parent.mkdir()
    program.write_text(SQUEUE.format(told="1769921990,1769923800"))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("TZ", "America/New_York")
    for name in ("SLURM_JOB_START_TIME", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    time.tzset()
    return program


@pytest.fixture(autouse=True)
def _own_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    yield
    monkeypatch.undo()
    time.tzset()


def test_slurm_is_asked_when_a_job_was_submitted_and_began(squeue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert submission() is None
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    submitted, started = "2026-02-01T04:59:50+00:00", "2026-02-01T05:30:00+00:00"
    assert submission() == {"job": "77", "submitted": submitted, "started": started}
    assert Path("asked").read_text() == "-h -j 77 -o %V,%S\n"
    monkeypatch.setenv("SLURM_JOB_START_TIME", "1769923860")
    assert submission() == {"job": "77", "submitted": submitted, "started": "2026-02-01T05:31:00+00:00"}
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    submission()
    assert Path("asked").read_text() == "-h -j 70_3 -o %V,%S\n"


@pytest.mark.parametrize("told", ["N/A,Unknown", "", "slurm_load_jobs error: Invalid job id specified"])
def test_what_slurm_does_not_tell_is_not_known(squeue: Path, monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    squeue.write_text(SQUEUE.format(told=told))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert submission() == {"job": "77", "submitted": None, "started": None}
    monkeypatch.setenv("PATH", "nowhere")
    assert submission() == {"job": "77", "submitted": None, "started": None}


def test_slurm_is_asked_once_for_a_command_and_its_parts(squeue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with account(Path("all.json")):
        Path("asked").unlink()
        with account(Path("part.json")):
            pass
    assert not Path("asked").exists()
    assert read(Path("part.json")).attempts[0].slurm == read(Path("all.json")).attempts[0].slurm


def test_the_peak_of_a_gpu_outlives_its_resets(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, held = torch.device("cuda:0"), {"now": 0}
    monkeypatch.setattr(machine, "_highest", {})
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: held["now"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: held.update(now=0))
    for peak in (5, 9, 2):
        machine.reset_peak(gpu)
        held["now"] = peak
    assert machine.peak_memory(gpu) == 2 and machine.highest_memory(gpu) == 9
    assert machine.highest_memory(torch.device("cpu")) == 0


def test_time_counts_from_the_start_of_the_process(tmp_path: Path) -> None:
    begun_before(100.0)
    for name in ("first", "second"):
        with account(tmp_path / f"{name}.json"):
            pass
    first, second = (read(tmp_path / f"{name}.json").attempts[0] for name in ("first", "second"))
    assert first.seconds is not None and second.seconds is not None
    assert first.seconds >= 100 > second.seconds
    assert json.loads((tmp_path / "first.json").read_text())["attempts"][0]["began"] < second.began
    one, two = machine.process_age(), machine.process_age()
    assert 0 <= one <= two


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": "long"},
        {"seconds": float("nan")},
        {"peak_device_bytes": 10**30},
        {"gpus": None},
        {"slurm": ["1"]},
        {"slurm": {"job": 1}},
        {"id": 3},
    ],
    ids=str,
)
def test_a_record_of_other_values_counts_as_none(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "job.json"
    content = {"attempts": [{"id": "a", "seconds": 1, "gpus": 0}], "done": True}
    path.write_text(json.dumps(content))
    assert read(path).attempts[0].seconds == 1
    content["attempts"][0] |= change
    path.write_text(json.dumps(content))
    assert find_record(path) is None
    path.write_text("[" * 100_000)
    assert find_record(path) is None
