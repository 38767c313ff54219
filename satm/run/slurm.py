"""The SLURM job around this process: its submission, the time left, and requeueing."""

import os
import re
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime

PASSING = re.compile(
    r"timed out|contact slurm controller|connection (refused|reset|failure)|zero bytes were transmitted|standby mode"
    r"|resource temporarily unavailable|transport endpoint|(send|receive) failure|unexpected message"
    r"|munge|authentication (error|credential)|slurmctld.*(not respond|unavailable)|maxsubmitjob|gave no answer",
    re.IGNORECASE,
)
"""SLURM's words for a failure that passes: a controller that is away or busy, or a queue that is full for this user."""


def submission() -> dict[str, str | None] | None:
    """Return number (`job`), submission (`submitted`) and start (`started`) of the SLURM job; None outside of one.

    Times are UTC in ISO format; None if SLURM does not report them.
    """
    if not (job := _job()):
        return None
    answer = _ask("squeue", "-h", "-j", job, "-o", "%V,%S", seconds=10) or ""
    submitted, _, started = answer.partition("\n")[0].partition(",")
    begun = os.environ.get("SLURM_JOB_START_TIME", "")
    since = begun if begun.isdigit() else started
    return {"job": os.environ.get("SLURM_JOB_ID", job), "submitted": _utc(submitted), "started": _utc(since)}


def seconds_left() -> float | None:
    """Return the seconds that the SLURM job may still run; None outside of one, and without a limit.

    The end is a time on the controller's clock. It is compared with that clock, because the node's may differ; `squeue`
    computes its own time left (`%L`) with the node's. If SLURM does not answer, the node's clock has to do.
    """
    if not (job := _job()):
        return None
    end, limit = (_ask("squeue", "-h", "-j", job, "-o", "%e,%l", seconds=30, pauses=(5, 15)) or ",").split(",")[:2]
    start = os.environ.get("SLURM_JOB_START_TIME", "")
    if not end.isdigit() and limit != "UNLIMITED":
        end = os.environ.get("SLURM_JOB_END_TIME", "")
    if not end.isdigit() or limit == "UNLIMITED":
        return None
    clock = re.search(r"Configuration data as of (\d+)", _ask("scontrol", "show", "config", seconds=30) or "")
    left = float(end) - (float(clock[1]) if clock else time.time())
    whole = duration(limit) or (float(end) - float(start) if start.isdigit() else None)
    return left if whole is None else min(left, whole)


def duration(text: str) -> float | None:
    """Convert a time of SLURM, `[days-][[hours:]minutes:]seconds`, to seconds; None for a word, such as UNLIMITED."""
    if (match := re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text)) is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((24 * days + hours) * 60 + minutes) * 60 + seconds)


def requeue(pauses: Sequence[float] = (2, 5, 10, 20, 40)) -> bool:
    """Ask SLURM to put the job around this process back into its queue; return whether it will."""
    job = os.environ.get("SLURM_JOB_ID")
    return bool(job) and not run("scontrol", "requeue", str(job), seconds=30, pauses=pauses).returncode


def run(*command: str, seconds: float = 60, pauses: Sequence[float] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command of SLURM; a missing or silent command counts as failed, with a text that says why.

    After each of the pauses (seconds) it is run again, while it fails as it does when the controller is away.
    """
    for pause in (*pauses, None):
        answer = _run(command, seconds)
        if pause is None or not answer.returncode or not PASSING.search(answer.stderr):
            break
        time.sleep(pause)
    return answer


def _run(command: tuple[str, ...], seconds: float) -> subprocess.CompletedProcess[str]:
    seconds_since_1970 = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
    try:
        return subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=seconds,
            env=seconds_since_1970,
        )
    except OSError as error:
        reason = "is not on PATH" if isinstance(error, FileNotFoundError) else f"cannot be run: {error.strerror}"
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]} {reason}")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]} gave no answer for {seconds:g} seconds")


def _job() -> str | None:
    """Return the number of the SLURM job around this process as `squeue` shows it; None outside of one."""
    array = [os.environ.get(name, "") for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")]
    return "_".join(array) if all(array) else os.environ.get("SLURM_JOB_ID") or None


def _ask(*command: str, seconds: float, pauses: Sequence[float] = ()) -> str | None:
    """Return the answer of a SLURM program; None if it fails or takes longer than this."""
    answer = run(*command, seconds=seconds, pauses=pauses)
    return None if answer.returncode else answer.stdout.strip()


def _utc(seconds: str) -> str | None:
    """Convert seconds since 1970 to UTC in ISO format; None if SLURM writes a word."""
    return datetime.fromtimestamp(int(seconds), UTC).isoformat(timespec="seconds") if seconds.isdigit() else None
