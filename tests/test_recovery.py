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
from resuming import audited, no_links

from satm.config import Campaign, Cell, Layout, Resolver, place_of
from satm.results.circumstances import run_metadata
from satm.results.columns import EVALUATION
from satm.results.rows import write_rows
from satm.run.lock import IN_WORKFLOW, KEPT, link
from satm.stages.job import Job
from satm.workflow.recovery import follow_up, forget_results

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


NAMES = {"dataset": "digits", "recipe": "strong", "network": "convnet"}


def job_of(folder: Path, identity: dict[str, Any]) -> Job:
    return Job(Resolver(Campaign(), (), str(folder)), "full", NAMES, identity, EVALUATION)


def test_a_job_of_the_workflow_keeps_its_results_and_puts_them_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = Path(Layout(str(tmp_path)).state(*place_of("full", **NAMES)))
    result = outcome(Path(Layout(str(tmp_path)).full(*NAMES.values())), {"a": 1})
    monkeypatch.delenv(IN_WORKFLOW, raising=False)
    with job_of(tmp_path, {"a": 1}) as job:
        assert job.done
    assert not state.exists()
    monkeypatch.setenv(IN_WORKFLOW, "yes")
    for _ in range(2):
        with job_of(tmp_path, {"a": 1}) as job:
            (state / "checkpoint").write_text("")
        assert [each.name for each in state.rglob("*")] == [KEPT, result.name]
    result.unlink()  # by Snakemake, before the next job begins
    with pytest.raises(KeyboardInterrupt), job_of(tmp_path, {"a": 2}) as job:
        assert not job.done and not result.exists()
        raise KeyboardInterrupt
    with job_of(tmp_path, {"a": 1}) as job:
        assert job.done
    assert result.stat().st_ino == (state / KEPT / result.name).stat().st_ino
    with (state / KEPT / result.name).open("r+b") as file:
        file.write(b"damaged")
    result.unlink()
    with job_of(tmp_path, {"a": 1}) as job:
        assert not job.done


def test_without_space_for_a_second_name_the_result_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = outcome(Path(Layout(str(tmp_path)).full(*NAMES.values())), {})
    monkeypatch.setenv(IN_WORKFLOW, "yes")
    with job_of(tmp_path, {}) as job:
        (job.folder / KEPT).write_text("no folder can be made here")
    assert result.is_file()
    result.unlink()
    with job_of(tmp_path, {}) as job:
        assert not job.done


def test_a_file_is_copied_where_it_cannot_have_two_names(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    with audited(no_links):
        link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "new" and len(list(tmp_path.iterdir())) == 2
    for _ in range(2):  # then they are one file
        link(tmp_path / "a", tmp_path / "b")
        assert len(list(tmp_path.iterdir())) == 2 and (tmp_path / "a").samefile(tmp_path / "b")


def job(rule: str, seed: int) -> SimpleNamespace:
    """Return a job as Snakemake has it."""
    names = {"dataset": "digits", "ipc": "1", "method": "mtt", "seed": str(seed), "network": "convnet", "table": "t"}
    return SimpleNamespace(rule=SimpleNamespace(name=rule), wildcards_dict={"root": "results/it", **names})


def test_jobs_that_wait_are_cancelled_and_forced_ones_keep_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    queue = f"12_3|{tmp_path}\n12_4|{tmp_path}\n9|/another/folder"
    for name, says in (("scancel", "$@"), ("squeue", queue)):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\necho "{says}" | tee -a {tmp_path}/{name}\n')
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    made, done = job("distill", 0), job("distill", 1)
    jobs = [made, job("evaluate", 0), job("table", 0)]
    numbers = {"evaluate": ["12_3"], "table": ["9"]}
    settings = SimpleNamespace(forceall=False, forcetargets=False, forcerun=set())
    workflow = SimpleNamespace(
        dag_settings=settings,
        persistence=SimpleNamespace(external_jobids=lambda each: numbers.get(each.rule.name, [])),
        dag=SimpleNamespace(jobs=[*jobs, done], needrun_jobs=lambda: jobs),
    )
    kept = [Path("results/it/state/distill/digits/ipc-1/mtt", f"seed-{seed}", KEPT) for seed in (0, 1)]
    for folder in kept:
        folder.mkdir(parents=True)
        (folder / "metrics.parquet").write_text("")
    checkpoint = kept[1].parent / "checkpoint"
    checkpoint.write_text("of a job that still runs")
    follow_up(workflow)
    assert Path("scancel").read_text().splitlines() == ["--state=PENDING 12_3"]
    assert all(folder.is_dir() for folder in kept)
    settings.forcerun = {"distill"}
    follow_up(workflow)
    assert [folder.is_dir() for folder in kept] == [False, True]
    forget_results(workflow)
    assert [each for each in Path("results/it/state").rglob("*") if not each.is_dir()] == [checkpoint]
    assert not kept[0].parent.exists()


@pytest.mark.parametrize("alone", [True, False])
def test_results_that_a_killed_snakemake_missed_are_kept(tmp_path: Path, alone: bool) -> None:
    """It is killed alone, and its job goes on; or with the job, between its result and the end of its own Snakemake."""
    folder = make_checkout(tmp_path / "checkout")
    (folder / "config" / "it.yaml").write_text("{}")
    layout = Layout("results/it")
    result = folder / layout.distilled(Cell("digits", 1, "random", 0))
    printed = folder / "printed"

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "snakemake", "--profile", "local", "--", str(result.relative_to(folder))]
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        with printed.open("w") as told:
            given: dict[str, Any] = {"cwd": folder, "env": environment, "stdout": told, "stderr": told}
            return subprocess.Popen(command, **given, start_new_session=True)

    run = start()
    until = time.monotonic() + 120
    while "rule distill" not in printed.read_text():
        assert run.poll() is None and time.monotonic() < until, printed.read_text()
        time.sleep(0.1)
    if alone:
        run.send_signal(signal.SIGKILL)
        run.wait()
    state = folder / layout.state(*place_of("distill", dataset="digits", ipc=1, method="random", seed=0))
    while not (state / KEPT / result.name).is_file():
        assert time.monotonic() < until, "the job did not go on"
        time.sleep(0.001)
    if not alone:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    files = [result, result.with_name("metrics.parquet")]
    before = [path.stat().st_ino for path in files]
    for lock in (folder / ".snakemake" / "locks").iterdir():  # as `snakemake --unlock`
        lock.unlink()
    assert start().wait(120) == 0, printed.read_text()
    assert [path.stat().st_ino for path in files] == before
    if alone and "Nothing to be done" in printed.read_text():
        return  # on a busy machine the job ended and was recorded before the second start looked
    assert "Forced execution" in printed.read_text()
    log = (folder / layout.log(*place_of("distill", dataset="digits", ipc=1, method="random", seed=0))).read_text()
    assert "was made by another process" in log
    assert not [path for path in (folder / layout.state()).rglob("*") if path.is_file()]
