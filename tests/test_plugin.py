"""The repairs of Snakemake's plugin for SLURM; SLURM and the plugin's executor are played."""

import asyncio
import hashlib
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from satm.workflow import plugin as repairs
from satm.workflow.plugin import NUMBER, Submission, repair

original = pytest.importorskip("snakemake_executor_plugin_slurm")

LATE = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
CALL = "sbatch --parsable --job-name run-1 --comment 'rule_distill satm-submission-0123abcd' --wrap='true'"


class Programs:
    """Programs of SLURM, as shell code by name, that write down their calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("sbatch", "squeue", "scancel", "scontrol", "sacctmgr", "sshare"):
            self.say(name, "")

    def say(self, name: str, code: str) -> None:
        """Let a program run this code; `$n` is the number of the call."""
        calls = self.folder / f"calls-{name}"
        path = self.folder / name
        path.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nn=$(wc -l < {calls})\n{code}\n')
        path.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        """Return the arguments of each call."""
        path = self.folder / f"calls-{name}"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(repairs, "PAUSES", (0.01,))
    return Programs(folder)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(repairs, "_say", lines.append)
    return lines


@pytest.fixture
def plugin() -> Iterator[Any]:
    """The installed plugin, repaired for one test."""
    before, methods = dict(vars(original)), dict(vars(original.Executor))
    repair(original)
    yield original
    vars(original).update(before)
    for name in ("check_active_jobs", "report_job_error", "cancel_jobs"):
        if name in methods:
            setattr(original.Executor, name, methods[name])
        else:
            delattr(original.Executor, name)


REPLACED = (
    *(
        "get_submit_command",
        "query_job_status",
        "validate_account",
        "get_default_partition",
        "get_min_job_age",
        "get_account",
    ),
    *("Executor.check_active_jobs", "Executor.cancel_jobs"),
)
CALLERS = ("Executor.run_job", "Executor.run_array_jobs", "Executor.shutdown")
KNOWN = {"2.8.0": "2c7231a60420ad5d"}
"""Hash of the code of these functions by version of the plugin."""


def test_the_repaired_code_is_that_of_a_known_version() -> None:
    """After an update of the plugin: read what changed in these functions, mend `repair`, add the version."""
    text = ""
    for name in (*REPLACED, *CALLERS):
        part: Any = original
        for step in name.split("."):
            part = getattr(part, step)
        text += inspect.getsource(part)
    installed = repairs_version()
    assert KNOWN.get(installed) == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert all(SpecifierSet(repairs.VERSIONS).contains(version) for version in KNOWN)
    # Inherited from another package: what an interrupt calls, and how a failure is reported.
    assert "self.cancel_jobs(active_jobs)\n        self.shutdown()" in inspect.getsource(original.Executor.cancel)
    parameters = list(inspect.signature(original.Executor.report_job_error).parameters)
    assert parameters == ["self", "job_info", "msg", "kwargs"]


def repairs_version() -> str:
    from importlib.metadata import version

    return version(repairs.NAME)


def test_the_versions_are_those_that_are_installed_by_name() -> None:
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert f'"{repairs.NAME}{repairs.VERSIONS}",' in project


class Logger:
    """A logger of Snakemake that keeps errors."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.debug = self.info = self.warning = lambda *_, **__: None
        self.error = lambda text, **_: self.errors.append(text)


def test_a_query_without_an_answer_keeps_the_jobs(programs: Programs, plugin: Any, said: list[str]) -> None:
    programs.say("squeue", 'test $n -le 2 && { echo away >&2; exit 1; }; echo "7|RUNNING"')
    answers = [asyncio.run(plugin.query_job_status("squeue --noheader", Logger())) for _ in range(3)]
    assert answers[:2] == [({}, 0.0)] * 2 and answers[2][0] == {"7": "RUNNING"}
    assert [line.split(";")[0] for line in said] == ["squeue does not answer"] * 2 + ["squeue answers again"]


def active(*numbers: str) -> list[Any]:
    return [SimpleNamespace(external_jobid=number, aux={}) for number in numbers]


@pytest.mark.parametrize(
    ("known", "lost"),
    [
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", ["8", "9_2"]),
        ("exit 0", []),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1", []),
    ],
    ids=["forgotten", "known", "away"],
)
def test_a_job_that_slurm_has_forgotten_has_failed(
    programs: Programs, plugin: Any, said: list[str], known: str, lost: list[str]
) -> None:
    """After several answers without it, and only if the controller says so; without an answer nothing is counted."""
    programs.say("scontrol", known)
    programs.say("squeue", 'case $n in 2) exit 1;; esac; echo "7|RUNNING"; echo "9_1|PENDING"')
    failed: list[str] = []
    executor = SimpleNamespace(report_job_error=lambda job, msg: failed.append(job.external_jobid))

    async def every(executor: Any, jobs: list[Any]) -> AsyncIterator[Any]:
        await plugin.query_job_status("squeue", Logger())
        for job in jobs:
            yield job

    check, jobs = repairs._without_forgotten(every, plugin), active("7", "8", "9_1", "9_2")

    async def look() -> list[Any]:
        return [job async for job in check(executor, jobs)]

    for _ in range(3):
        assert [job.external_jobid for job in asyncio.run(look())] == ["7", "8", "9_1", "9_2"] and not failed
    left = [job.external_jobid for job in asyncio.run(look())]
    assert failed == lost and left == [number for number in ("7", "8", "9_1", "9_2") if number not in lost]


def submit(stopped: threading.Event | None = None, **options: Any) -> tuple[int, str, str]:
    streams = {"shell": True, "text": True, **dict.fromkeys(("stdin", "stdout", "stderr"), -1), **options}
    submission = Submission(CALL, streams, stopped or threading.Event())
    out, error = submission.communicate()
    return submission.returncode, out, error


def test_a_passing_failure_is_tried_again(programs: Programs, said: list[str]) -> None:
    programs.say("sbatch", f"test $n -le 2 && {{ echo '{LATE}' >&2; exit 1; }}; echo 101")
    assert submit() == (0, "101", "")
    assert len(programs.calls("sbatch")) == 3 and len(programs.calls("squeue")) == 2
    assert all("Socket timed out on send/recv operation); in 0.01 seconds it is tried again" in line for line in said)


def test_a_job_that_got_in_is_not_submitted_again(programs: Programs, said: list[str]) -> None:
    """The queue is searched for its mark, for as long as SLURM does not answer."""
    programs.say("sbatch", f"echo '{LATE}' >&2; exit 1")
    lines = "echo '102|rule_distill satm-submission-ffff'; echo '103|rule_distill satm-submission-0123abcd'"
    programs.say("squeue", f"test $n = 1 && {{ echo away >&2; exit 1; }}; {lines}")
    assert submit() == (0, "103", "") and len(programs.calls("sbatch")) == 1
    assert programs.calls("squeue")[1] == "--noheader --states=all --name=run-1 --format=%F|%k"
    assert any("SLURM does not answer whether a job was submitted (away)" in line for line in said)


def test_parts_of_a_long_array_are_not_taken_for_one_another(programs: Programs, said: list[str]) -> None:
    """They share a mark: the number of the part before is known."""
    programs.say("sbatch", f"test $n = 2 && {{ echo '{LATE}' >&2; exit 1; }}; echo 20$n")
    programs.say("squeue", "echo '201|rule_distill satm-submission-0123abcd'")
    assert [submit()[1], submit()[1]] == ["201", "203"]


@pytest.mark.parametrize(
    "words",
    [
        "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
        "sbatch: error: Batch job submission failed: Requested node configuration is not available",
        "sbatch: error: Memory specification can not be satisfied",
    ],
)
def test_a_refusal_is_not_tried_again(programs: Programs, said: list[str], words: str) -> None:
    programs.say("sbatch", f"echo '{words}' >&2; exit 1")
    code, out, error = submit()
    assert (code, out, error.strip()) == (1, "", words) and len(programs.calls("sbatch")) == 1 and not said


@pytest.mark.parametrize(
    "words",
    [
        "Unable to contact slurm controller (connect failure)",
        "Slurm backup controller in standby mode",
        "Zero Bytes were transmitted or received",
        "Resource temporarily unavailable",
        "Transport endpoint is not connected",
        "Protocol authentication error",
        "If munged is up, restart with --num-threads=10",
        "QOSMaxSubmitJobPerUserLimit",
    ],
)
def test_what_passes_is_known(programs: Programs, said: list[str], words: str) -> None:
    programs.say("sbatch", f"test $n = 1 && {{ echo 'sbatch: error: {words}' >&2; exit 1; }}; echo 301")
    assert submit()[:2] == (0, "301")


@pytest.mark.parametrize(
    ("printed", "numbers"),
    [
        ("17\n", ["17"]),
        ("17;mycluster\n", ["17"]),
        ("HPC 2026, quota 45%\n17\n", ["17"]),
        ("17\nYou have used 12 of 100 hours.\n", ["17"]),
        ("  17 \r\n", ["17"]),
        ("2026\n17", ["2026", "17"]),
        ("Submitted batch job 17", []),
        ("", []),
    ],
)
def test_the_number_of_a_job_is_a_line_of_its_own(printed: str, numbers: list[str]) -> None:
    assert NUMBER.findall(printed) == numbers


def test_where_the_number_is_not_clear_the_queue_is_asked(programs: Programs, said: list[str]) -> None:
    programs.say("sbatch", "echo 402; echo 2026")
    programs.say("squeue", "echo '402|rule_distill satm-submission-0123abcd'")
    assert submit() == (0, "402", "")
    programs.say("squeue", "")
    assert submit() == (0, "2026", "")
    programs.say("sbatch", "echo 'Submitted batch job 403'")
    assert submit() == (0, "Submitted batch job 403\n", "")  # the plugin finds it


def test_nothing_is_submitted_after_a_stop(programs: Programs, said: list[str]) -> None:
    stopped = threading.Event()
    stopped.set()
    assert submit(stopped)[0] == 1 and not programs.calls("sbatch")


def test_a_job_that_got_in_during_a_stop_is_cancelled(programs: Programs, said: list[str], tmp_path: Path) -> None:
    stopped, begun = threading.Event(), tmp_path / "begun"
    programs.say("sbatch", f"touch {begun}; while [ -e {begun} ]; do sleep 0.05; done; echo 501")

    def stop() -> None:
        while not begun.exists():
            threading.Event().wait(0.02)
        stopped.set()
        begun.unlink()

    thread = threading.Thread(target=stop)
    thread.start()
    assert submit(stopped)[1] == "501" and programs.calls("scancel") == ["501"]
    thread.join()


def played(pool: ThreadPoolExecutor) -> Any:
    return SimpleNamespace(
        run_uuid="run-1", _submitted_job_clusters=set(), _job_submission_executor=pool, logger=Logger(), run_job=None
    )


def test_an_interrupt_cancels_by_the_name_of_the_run(programs: Programs, plugin: Any, said: list[str]) -> None:
    """Until the queue is empty; submissions that have not begun are dropped."""
    programs.say("squeue", "test $n -le 2 && echo 7; exit 0")
    release, done = threading.Event(), []
    pool = ThreadPoolExecutor(1)
    pool.submit(release.wait)
    pool.submit(done.append, 1)
    threading.Timer(0.2, release.set).start()
    plugin.Executor.cancel_jobs(played(pool), active("7"))
    assert not done and len(programs.calls("squeue")) == 3
    assert len(programs.calls("scancel")) == 4 and all(
        line.endswith("--name=run-1") for line in programs.calls("scancel")
    )
    assert not said


def test_what_could_not_be_cancelled_is_said(
    programs: Programs, plugin: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repairs, "LAST_TRIES", (0.0, 0.0))
    programs.say("scancel", "exit 1")
    programs.say("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    plugin.Executor.cancel_jobs(played(ThreadPoolExecutor(1)), active("7"))
    assert len(said) == 1 and said[0].endswith("--name=run-1") and "run this later: scancel --user=" in said[0]


@pytest.mark.parametrize(
    ("log", "message", "reason"),
    [
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=5.0.", "'FAILED'", "killed for lack of memory"),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=5.0.", "'FAILED'", "killed for lack of memory"),
        ("slurmstepd: error: Step 5.0 exceeded memory limit (9 > 8), being killed", "'FAILED'", "killed for lack of"),
        ("slurmstepd: error: Exceeded job memory limit", "'CANCELLED'", "killed for lack of memory"),
        ("srun: error: node1: task 0: Out Of Memory", "'FAILED'", "killed for lack of memory"),
        ("", "SLURM status is: 'OUT_OF_MEMORY'", "killed for lack of memory"),
        ("/usr/bin/bash: line 1: 99 Killed   python -m satm", "'FAILED'", "one of its processes was killed (signal 9)"),
        ("line\nsatm: error: cannot write the log a.log: Permission denied\n", "'FAILED'", "satm: error: cannot write"),
    ],
)
def test_the_reason_of_a_failure_is_on_the_screen(
    plugin: Any, tmp_path: Path, log: str, message: str, reason: str
) -> None:
    path = tmp_path / "slurm.log"
    path.write_text(log)
    assert reason in reported(plugin, path, message)[0]


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("slurmstepd: error: *** JOB 5 ON node1 CANCELLED AT 2026 DUE TO TIME LIMIT ***\nKilled", "'TIMEOUT'"),
        ("srun: error: node1: task 0: Killed", "'CANCELLED'"),
        ("ValueError: nothing of this kind", "'FAILED'"),
        ("", "'FAILED'"),
    ],
)
def test_no_reason_is_made_up(plugin: Any, tmp_path: Path, log: str, message: str) -> None:
    path = tmp_path / "slurm.log"
    path.write_text(log)
    assert reported(plugin, path, message) == []


def reported(plugin: Any, log: Path, message: str, *rule_logs: str) -> list[str]:
    """Return the errors that are logged beside Snakemake's."""
    executor, seen = played(ThreadPoolExecutor(1)), []
    report = repairs._explained(lambda *_, **options: seen.append(options), threading.Event())
    job = SimpleNamespace(name="distill", resources={"mem_mb": 600}, log=rule_logs)
    report(executor, SimpleNamespace(job=job, external_jobid="5", aux={"slurm_logfile": log}), msg=message)
    assert len(seen) == 1
    return list(executor.logger.errors)


def test_a_log_that_cannot_be_written_is_named(plugin: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    rule_log = tmp_path / "file" / "distill.log"
    told = reported(plugin, tmp_path / "none.log", "'FAILED'", str(rule_log))
    assert told == [f"SLURM job 5 of distill: its log {rule_log} cannot be written: File exists"]
    assert reported(plugin, tmp_path / "none.log", "'FAILED'", str(tmp_path / "new" / "distill.log")) == []


def test_the_log_of_an_array_is_found(tmp_path: Path, plugin: Any) -> None:
    (tmp_path / "5_1.log").write_text("oom-kill")
    assert "lack of memory" in reported(plugin, tmp_path / "wildcards" / "5_1.log", "'FAILED'")[0]


def test_a_job_whose_step_could_not_start_is_submitted_again(plugin: Any, tmp_path: Path, said: list[str]) -> None:
    """In the same attempt, and not without end."""
    log, again, failed = tmp_path / "5.log", [], []
    away = "Unable to contact slurm controller (connect failure)"
    log.write_text(f"srun: error: Unable to confirm allocation for job 5: {away}\nsrun: Check SLURM_JOB_ID\n")
    report = repairs._explained(lambda *_, **__: failed.append(1), threading.Event())
    executor = played(ThreadPoolExecutor(1))
    executor.run_job = again.append
    job = type("Job", (), {"name": "distill", "resources": {}, "log": ()})()
    info = SimpleNamespace(job=job, external_jobid="5", aux={"slurm_logfile": log})
    for _ in range(repairs.TRIES + 1):
        report(executor, info, msg="SLURM status is: 'FAILED'")
    executor._job_submission_executor.shutdown()
    assert again == [info.job] * repairs.TRIES and failed == [1]
    log.write_text("srun: error: Timed out waiting for job step to complete\n")
    info.job = type("Job", (), {"name": "distill", "resources": {}, "log": ()})()
    report(executor, info, msg="SLURM status is: 'FAILED'")
    assert failed == [1, 1]
    assert said[0] == f"SLURM job 5 of distill: Unable to confirm allocation for job 5: {away}; it is submitted again"


def test_an_account_is_not_asked_for_at_each_submission(programs: Programs, plugin: Any) -> None:
    programs.say("sacctmgr", "exit 1")
    programs.say("sshare", "exit 1")
    assert plugin.validate_account("project", Logger()) == "project" and not programs.calls("sacctmgr")


def test_a_lost_node_excludes_no_node_and_each_submission_is_marked(plugin: Any) -> None:
    job = SimpleNamespace(resources=SimpleNamespace(get=lambda *_: None), threads=1, is_group=lambda: False)
    params = {"run_uuid": "run", "slurm_logfile": "log", "comment_str": "rule_distill", "account": "", "partition": ""}
    marks = set()
    for named, flags in ((None, ""), ("n7, n8", "--exclude=n7,n8")):
        settings = SimpleNamespace(
            exclude_failed_nodes=named, requeue=True, no_requeue=False, qos=None, reservation=None
        )
        job.resources = {"gpu": 0}
        call = plugin.get_submit_command(job, {**params, "workdir": ""}, settings=settings, failed_nodes={"n9"})
        assert "n9" not in call and all(node in call for node in flags.removeprefix("--exclude=").split(",") if node)
        marks.add(Submission(call, {}, threading.Event()).mark)
        assert Submission(call, {}, threading.Event()).name == "run"
    assert len(marks) == 2 and all(mark.startswith("satm-submission-") for mark in marks)
