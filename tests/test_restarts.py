"""What a Snakemake that was killed left: results that it did not see are kept, jobs that only wait are cancelled."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from checkouts import make_checkout

from satm.config import Layout
from satm.lock import FINISHED, exclusive, link
from satm.restarts import KEPT, forget_results, keep_results
from satm.results import EVALUATION, run_metadata, write_rows
from satm.stages.common import made_already

ROW = {
    **{"dataset": "digits", "ipc": 1, "method": "mtt", "seed": 0, "network": "convnet", "repeat": 0, "labels": "hard"},
    **{"average": "raw", "labelled": "own", "split": "test", "selection": "last", "augmented": "yes"},
    **{"step_size": "learned", "rate": 0.1, "accuracy": 0.5, "loss": 1.0, "epochs": 3, "seconds": 1.0},
    "peak_memory_bytes": 1,
}


def outcome(path: Path, identity: dict[str, Any]) -> Path:
    """Write accuracies of a run."""
    write_rows(path, [ROW], EVALUATION, run_metadata(identity))
    return path


def test_finished_results_are_kept_where_they_were_asked_for(tmp_path: Path) -> None:
    state, result = tmp_path / "state", outcome(tmp_path / "made.parquet", {"a": 1})
    with exclusive(state, "it") as lock:
        lock.finished(result)
    assert not state.exists()
    (state / FINISHED).mkdir(parents=True)
    with exclusive(state, "it") as lock:
        assert lock.kept(result) is None
        (state / "checkpoint").write_text("")
        lock.finished(result)
    assert [each.name for each in state.iterdir()] == [FINISHED]
    result.unlink()  # by Snakemake, before the next job begins
    with exclusive(state, "it") as lock:
        assert not made_already(lock, EVALUATION, {"a": 2}, result)
        assert not result.exists()
        assert made_already(lock, EVALUATION, {"a": 1}, result)
    assert result.stat().st_ino == (state / FINISHED / result.name).stat().st_ino


def test_a_file_is_copied_where_it_cannot_have_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError

    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    monkeypatch.setattr(os, "link", refuse)
    link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "new" and len(list(tmp_path.iterdir())) == 2


def job(rule: str, seed: int, *results: str) -> SimpleNamespace:
    """Return a job as Snakemake has it."""
    names = {"dataset": "digits", "ipc": "1", "method": "mtt", "seed": str(seed), "network": "convnet", "table": "t"}
    return SimpleNamespace(
        rule=SimpleNamespace(name=rule),
        wildcards_dict={"root": "results/it", **names},
        output=[f"results/it/{each}" for each in results],
    )


def test_jobs_that_wait_are_cancelled_and_what_is_there_is_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    queue = f"12_3|{tmp_path}\n12_4|{tmp_path}\n9|/another/folder"
    for name, says in (("scancel", "$@"), ("squeue", queue)):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\necho "{says}" | tee -a {tmp_path}/{name}\n')
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    seen, running = job("distill", 0, "a", "b"), job("evaluate", 0, "c")
    table, new = job("table", 0, "t"), job("distill", 1, "d")
    for name in ("a", "b", "t"):
        path = Path("results/it", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    numbers = {"evaluate": ["12_3"], "table": ["9"]}
    settings = SimpleNamespace(forceall=False, forcetargets=False, forcerun=set())
    workflow = SimpleNamespace(
        dag_settings=settings,
        persistence=SimpleNamespace(external_jobids=lambda each: numbers.get(each.rule.name, [])),
        dag=SimpleNamespace(
            jobs=[seen, running, table, new],
            needrun_jobs=lambda: [seen, running, table, new],
            forcefiles={"results/it/a", "results/it/b", "results/it/t"},
        ),
    )
    settings.forcerun = {"distill"}
    keep_results(workflow)
    assert not Path("results/it/state").exists()
    settings.forcerun = set()
    keep_results(workflow)
    assert Path("scancel").read_text().splitlines() == ["--state=PENDING 12_3"] * 2
    found = sorted(str(each) for each in Path("results/it/state").rglob("*") if each.is_file() or FINISHED in each.name)
    state = "results/it/state"
    cell = "digits/ipc-1/mtt/seed-0"
    expected = [f"{state}/distill/{cell}/{FINISHED}{end}" for end in ("", "/a", "/b")]
    assert found == [*expected, f"{state}/evaluate/{cell}/convnet/{FINISHED}"]
    checkpoint = Path(state, "evaluate", cell, "convnet", "checkpoint")
    checkpoint.write_text("of a job that still runs")
    forget_results(workflow)
    assert [each for each in Path(state).rglob("*") if not each.is_dir()] == [checkpoint]
    assert not Path(state, "distill").exists()


def test_the_jobs_that_are_resumed_have_rules() -> None:
    rules = "".join(path.read_text() for path in Path(__file__).parent.parent.glob("workflow/rules/*.smk"))
    assert all(f"rule {rule}:" in rules for rule in KEPT)


def test_what_a_killed_snakemake_did_not_see_is_not_made_again(tmp_path: Path) -> None:
    folder = make_checkout(tmp_path / "checkout")
    (folder / "config" / "it.yaml").write_text("{}")
    layout = Layout("results/it")
    result = folder / layout.distilled("digits", 1, "random", 0)
    printed = folder / "printed"

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "snakemake", "--profile", "local", "--", str(result.relative_to(folder))]
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        with printed.open("w") as told:
            return subprocess.Popen(command, cwd=folder, env=environment, stdout=told, stderr=told)

    run = start()
    until = time.monotonic() + 120
    while "rule distill" not in printed.read_text():
        assert run.poll() is None and time.monotonic() < until, printed.read_text()
        time.sleep(0.1)
    run.send_signal(signal.SIGKILL)
    run.wait()
    while not result.is_file():
        assert time.monotonic() < until, "the job did not go on"
        time.sleep(0.1)
    files = [result, result.with_name("metrics.parquet")]
    before = [path.stat().st_ino for path in files]
    for lock in (folder / ".snakemake" / "locks").iterdir():  # as `snakemake --unlock`
        lock.unlink()
    assert start().wait(120) == 0, printed.read_text()
    assert "Forced execution" in printed.read_text()
    log = (folder / layout.log("distill", "digits", "ipc-1", "random", "seed-0")).read_text()
    assert "was made by another process" in log
    assert [path.stat().st_ino for path in files] == before
    assert not [path for path in (folder / layout.state()).rglob("*") if path.is_file()]
