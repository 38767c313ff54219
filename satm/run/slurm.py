"""The SLURM job around this process: its submission, the time left, and requeueing."""

import os
import re
import subprocess
import time
from datetime import UTC, datetime


def submission() -> dict[str, str | None] | None:
    """Return number (`job`), submission (`submitted`) and start (`started`) of the SLURM job; None outside of one.

    Times are UTC in ISO format; None if SLURM does not report them.
    """
    if not (job := _job()):
        return None
    array = [os.environ.get(name, "") for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")]
    answer = _ask("squeue", "-h", "-j", "_".join(array) if all(array) else job, "-o", "%V,%S", seconds=10) or ""
    submitted, _, started = answer.partition("\n")[0].partition(",")
    begun = os.environ.get("SLURM_JOB_START_TIME", "")
    since = datetime.fromtimestamp(float(begun), UTC).isoformat() if begun.isdigit() else started
    return {"job": job, "submitted": _utc(submitted), "started": _utc(since)}


def seconds_left() -> float | None:
    """Return the seconds that the SLURM job may still run; None outside of one, and without a limit."""
    if not (job := _job()):
        return None
    if (end := os.environ.get("SLURM_JOB_END_TIME", "")).isdigit():
        return float(end) - time.time()
    return duration(_ask("squeue", "-h", "-j", job, "-o", "%L", seconds=30) or "")


def duration(text: str) -> float | None:
    """Convert a time of SLURM, `[days-][[hours:]minutes:]seconds`, to seconds; None for a word, such as UNLIMITED."""
    if (match := re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text)) is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((24 * days + hours) * 60 + minutes) * 60 + seconds)


def requeue() -> bool:
    """Ask SLURM to put the job around this process back into its queue; return whether it will."""
    job = _job()
    return job is not None and _ask("scontrol", "requeue", job, seconds=60) is not None


def _job() -> str | None:
    return os.environ.get("SLURM_JOB_ID") or None


def _ask(*command: str, seconds: float) -> str | None:
    """Return the answer of a SLURM program; None if it fails or takes longer than this."""
    zone = {**os.environ, "SLURM_TIME_FORMAT": "standard"}
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds, check=True, env=zone
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _utc(local: str) -> str | None:
    """Convert a time of SLURM, in the machine's zone, to UTC; None if SLURM writes a word."""
    try:
        return datetime.fromisoformat(local).astimezone(UTC).isoformat(timespec="seconds")
    except ValueError:
        return None
