"""Repairs of Snakemake's plugin for SLURM, for clusters that stutter. Nothing here imports torch.

A controller that is away for a minute makes the plugin (2.8) forget its jobs or take a submission for failed; Ctrl-C
misses jobs that are being submitted or asked about. `repair` replaces the few functions behind that. It is made for the
versions in `VERSIONS`, and a test compares the code around the replaced functions with that of these versions.
"""

import contextlib
import getpass
import re
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from satm.run.disk import why_unwritable
from satm.run.slurm import PASSING, run

NAME, VERSIONS = "snakemake-executor-plugin-slurm", ">=2.8,<2.9"
"""The plugin, and the versions that `repair` is made for; earlier ones also lack options of the profile."""

PAUSES = (5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds before SLURM is asked again; the last one is repeated."""

LAST_TRIES = (1.0, 2.0, 5.0, 10.0, 20.0, 0.0)
"""Seconds after each attempt to cancel what is left at the end."""

MISSES = 3
"""Answers without a job after which the controller is asked whether it knows the job."""

NUMBER = re.compile(r"(?:^|\n)[ \t]*(\d+)(?:;\S*)?[ \t\r]*(?=\n|$)")
"""A line of `sbatch --parsable` that is the number of a job, with or without the name of a cluster."""

MARK = "satm-submission-"
"""Begins the word in a job's comment by which a submission is found in the queue."""

MEMORY = re.compile(
    r"oom.?kill|out of memory|out_of_memory|exceeded (job |step )?memory limit|memory cgroup", re.IGNORECASE
)
"""Words of SLURM and its nodes for a job that had too little memory."""

KILLED = re.compile(r"\bKilled\b|signal 9\b|SIGKILL")
"""A shell's words for a process that was killed without notice."""

STEP, TRIES = re.compile(r"^srun: error: Unable to (?:confirm allocation|create step) .*", re.MULTILINE), 5
"""Lines of `srun` about a step that did not start, and how often a job is submitted again because of them."""

OWN = re.compile(r"^satm: error: .*", re.MULTILINE)
"""A line of satm that its log could not take."""


def repair(plugin: ModuleType | None = None) -> None:
    """Replace parts of the plugin (None: the installed one), for the profile."""
    if plugin is None:
        import snakemake_executor_plugin_slurm as plugin  # type: ignore[import-untyped,no-redef]  # optional
    assert plugin is not None
    executor, stopped = plugin.Executor, threading.Event()
    names: Mapping[str, Any] = vars(plugin)
    plugin.subprocess = SimpleNamespace(  # type: ignore[attr-defined]
        **{**vars(subprocess), "Popen": lambda call, **options: Submission(call, options, stopped)}
    )
    plugin.get_submit_command = _marked(names["get_submit_command"])  # type: ignore[attr-defined]
    plugin.query_job_status = _asked_again(names["query_job_status"])  # type: ignore[attr-defined]
    # Checked before submission, or left to SLURM; such a question may fail at each submission, and the job with it.
    plugin.get_account = lambda _logger: None  # type: ignore[attr-defined]
    plugin.validate_account = lambda account, _logger: account  # type: ignore[attr-defined]
    plugin.get_default_partition = lambda _job, _logger: ""  # type: ignore[attr-defined]
    plugin.get_min_job_age = _remembered(names["get_min_job_age"])  # type: ignore[attr-defined]
    executor.check_active_jobs = _without_forgotten(executor.check_active_jobs, plugin)
    executor.report_job_error = _explained(executor.report_job_error, stopped)
    executor.cancel_jobs = _cancelling(stopped)


def _marked(original: Any) -> Any:
    """Mark a submission in its comment, and exclude only the nodes that the user names.

    After a lost node, the plugin excludes the nodes that `sacct` reports for its job. The job is in the queue again by
    then, so this is "None assigned", with which `sbatch` refuses every later job, or the job's new, good node. SLURM
    gives a lost node no jobs anyway.
    """

    def command(job: Any, params: Mapping[str, Any], **options: Any) -> str:
        nodes = (options["settings"].exclude_failed_nodes or "").split(",")
        marked = {**params, "comment_str": f"{params['comment_str']} {MARK}{uuid.uuid4().hex[:12]}"}
        named = {node.strip() for node in nodes if node.strip()}
        return str(original(job, marked, **{**options, "failed_nodes": named}))

    return command


class Submission:
    """A call of `sbatch` in the place of `subprocess.Popen`; it is repeated while SLURM's failure is a passing one.

    Before that, the queue is searched for the job, because sbatch may fail after the controller has taken it. The
    output is only the number of the job, whatever else a site lets sbatch print.
    """

    taken: set[str] = set()
    """Numbers of jobs that were returned before; the parts of a long array share a mark."""

    def __init__(self, call: str, options: Mapping[str, Any], stopped: threading.Event) -> None:
        self.call, self.options, self.stopped, self.returncode = call, options, stopped, 1
        name, mark = re.search(r"--job-name (\S+)", call), re.search(rf"{MARK}[0-9a-f]+", call)
        self.name, self.mark = name[1] if name else "", mark[0] if mark else ""

    def communicate(self, input: str | None = None) -> tuple[str, str]:
        """Return the number of the job and the errors of sbatch."""
        for pause in _pauses():
            if self.stopped.is_set():
                return "", "stopped before it was submitted"
            process = subprocess.Popen(self.call, **self.options)
            out, error = process.communicate(input)
            self.returncode, numbers = process.returncode, NUMBER.findall(out)
            if self.returncode and not PASSING.search(error):
                return out, error
            if self.returncode:
                _say(f"sbatch failed ({_last(error)}); in {pause:g} seconds it is tried again unless the job got in")
                self.stopped.wait(pause)
            if self.returncode or len(numbers) != 1:
                numbers = self._queued() or numbers[-1:]
            if numbers:
                self.returncode = 0
                self.taken.add(numbers[0])
                if self.stopped.is_set():
                    run("scancel", numbers[0])
                return numbers[0], ""
            if not self.returncode:
                return out, error
        raise AssertionError

    def _queued(self) -> list[str]:
        """Return the number of this submission's job if SLURM knows it; wait until SLURM answers."""
        for pause in _pauses():
            answer = run("squeue", "--noheader", "--states=all", f"--name={self.name}", "--format=%F|%k")
            if not answer.returncode or self.stopped.is_set():
                break
            _say(f"SLURM does not answer whether a job was submitted ({_last(answer.stderr)}); asking again")
            self.stopped.wait(pause)
        lines = [line.split("|", 1) for line in answer.stdout.splitlines() if self.mark and line.endswith(self.mark)]
        return [number for number, _ in lines if number not in self.taken][:1]


def _asked_again(original: Any) -> Any:
    """Answer with no states when SLURM does not answer: the plugin keeps the jobs, and asks again after its pause."""
    silent = False

    async def query(command: str, logger: Any) -> tuple[dict[str, str], float]:
        nonlocal silent
        states, seconds = await original(command, logger)
        before, silent = silent, states is None
        if silent:
            _say(f"{command.split()[0]} does not answer; the jobs continue, and it is asked again after a pause")
        elif before:
            _say(f"{command.split()[0]} answers again")
        query.states = states  # type: ignore[attr-defined]
        return (states or {}), (seconds or 0.0)

    query.states = None  # type: ignore[attr-defined]
    return query


def _remembered(original: Any) -> Any:
    """Return the last known age at which SLURM forgets a job; without one the plugin asks `sacct` instead."""
    known = None

    def age() -> int | None:
        nonlocal known
        known = original() or known
        return known

    return age


def _without_forgotten(original: Any, plugin: ModuleType) -> Any:
    """Report a job as failed when SLURM has forgotten it, which would otherwise be waited for without end.

    The controller forgets jobs some minutes after their end, and all of them if it loses its state.
    """

    async def check(executor: Any, active: list[Any]) -> AsyncIterator[Any]:
        plugin.query_job_status.states = None
        async for job in original(executor, active):
            states, number = plugin.query_job_status.states, job.external_jobid
            missing = states is not None and number not in states and number.split("_")[0] not in states
            job.aux["missed"] = job.aux.get("missed", 0) + missing if states is None or missing else 0
            if missing and job.aux["missed"] >= MISSES and _forgotten(number):
                why = "SLURM does not know it any more; whatever it had finished is used"
                executor.report_job_error(job, msg=f"SLURM job {number}: {why}. ")
            else:
                yield job

    return check


def _forgotten(number: str) -> bool:
    return "invalid job id" in run("scontrol", "show", "job", number).stderr.lower()


def _explained(original: Any, stopped: threading.Event) -> Any:
    """Say on the screen why a job failed, where only SLURM's log or the disk knows.

    A job whose `srun` did not reach the controller has not begun; it is submitted again as the same attempt.
    """
    tries: Counter[Any] = Counter()

    def report(executor: Any, info: Any, msg: str | None = None, **options: Any) -> None:
        log = (info.aux or {}).get("slurm_logfile")
        if log is not None and not log.is_file():  # an array's logs lie in the folder of the rule
            log = log.parent.parent / log.name
            options |= {"aux_logs": [str(log)]} if options.get("aux_logs") else {}
        number = f"SLURM job {info.external_jobid}" if info.external_jobid else "a job"
        who, text = f"{number} of {info.job.name}", _end_of(log) if log else ""
        step = [line for line in STEP.findall(text) if PASSING.search(line)]
        if step and "'FAILED'" in (msg or "") and tries[info.job] < TRIES and not stopped.is_set():
            tries[info.job] += 1
            _say(f"{who}: {_last(step[-1])}; it is submitted again")
            executor._job_submission_executor.submit(executor.run_job, info.job)
            return
        for reason in _reasons(text, msg or "", info.job):
            executor.logger.error(f"{who}: {reason}")
        original(executor, info, msg, **options)

    return report


def _end_of(log: Path) -> str:
    """Return the last 100 kB of a log; empty if it cannot be read."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 100_000))
        return file.read().decode(errors="replace")
    return ""


def _reasons(text: str, message: str, job: Any) -> Iterator[str]:
    """Yield why a job failed, as far as SLURM's log and message and the job's own log say."""
    asked = f"it had asked for {job.resources.get('mem_mb')} MB; an attempt that follows asks for more"
    if MEMORY.search(text) or MEMORY.search(message):
        yield f"killed for lack of memory, {asked}"
    elif "'FAILED'" in message and KILLED.search(text):
        yield f"one of its processes was killed (signal 9), often for lack of memory, {asked}"
    yield from OWN.findall(text)[-1:]
    for path in map(Path, map(str, job.log)):
        if not (path.is_file() and path.stat().st_size) and (reason := why_unwritable(path)):
            yield f"its log {path} cannot be written: {reason}"


def _cancelling(stopped: threading.Event) -> Any:
    """Cancel every job of the run, also those that are just being submitted or asked about."""

    def cancel_jobs(executor: Any, _active: list[Any]) -> None:
        stopped.set()
        names = [f"--user={getpass.getuser()}", f"--name={executor.run_uuid}"]
        names += ["--clusters=all"] if executor._submitted_job_clusters else []
        left = ["squeue", "--noheader", *names, "--states=PENDING,RUNNING,SUSPENDED"]
        try:
            run("scancel", *names)
            executor._job_submission_executor.shutdown(wait=True, cancel_futures=True)
            for pause in LAST_TRIES:
                cancelled, answer = run("scancel", *names), run(*left)
                if not cancelled.returncode and not answer.returncode and not answer.stdout.strip():
                    return
                time.sleep(pause)
            words = f" ({_last(answer.stderr)})" if answer.returncode else ""
            _say(f"SLURM has not cancelled all jobs of this run{words}; run this later: scancel {' '.join(names)}")
        except KeyboardInterrupt:
            run("scancel", *names)
            raise

    return cancel_jobs


def _pauses() -> Iterator[float]:
    yield from PAUSES
    while True:
        yield PAUSES[-1]


def _last(text: str) -> str:
    """Return the last line of a text, without the name of the program."""
    lines = text.strip().splitlines() or ["no reason given"]
    return re.sub(r"^(\w+: )?(error: )?", "", lines[-1]).strip()


def _say(text: str) -> None:
    from snakemake.logging import logger  # type: ignore[import-untyped]  # optional

    logger.warning(text)
