"""The record of a job, kept while it runs: time, processors, memory, device and queue of each of its attempts.

The record lies beside the job's log and not in its results, whose bytes do not differ from run to run. Files that carry
circumstances (`satm.results.run_metadata`) have a copy. A killed attempt is known up to its last heartbeat; the next
attempt at the same job adds itself to the record.
"""

import contextlib
import json
import os
import platform
import resource
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter

from satm.errors import RunError, UsageError
from satm.run.machine import device_name, highest_memory, peak_memory
from satm.storage.files import atomic_path

BEAT = 30.0
"""Seconds from one heartbeat to the next."""

Amount = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(lt=2**63)]


@dataclass
class Attempt:
    """One process that worked at a job. Times are UTC in ISO format; unknown values are None."""

    id: str = ""
    """Unique among all attempts."""
    began: str = ""
    ended: str = ""
    """When it ended, or was last seen."""
    seconds: Amount | None = None
    """From the start of the process to then."""
    cpu_seconds: Amount | None = None
    """Sum over all processors."""
    host: str = ""
    device: str = ""
    """Name of the GPU, or `cpu`."""
    gpus: Count = 0
    peak_device_bytes: Count = 0
    """Largest memory of tensors on the GPU."""
    peak_host_bytes: Count | None = None
    """Largest main memory of the process."""
    slurm: dict[str, str | None] | None = None
    """`job`, `submitted` and `started` of the SLURM job around it."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Attempt":
        """Return the attempt that a file describes; fields that other versions add are left out.

        Raises:
            ValueError: a value is of another type, or not a finite number of 64 bits.
        """
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        return TypeAdapter(cls).validate_python(known)


@dataclass
class Record:
    """The attempts at a job since its files were last made, and whether they are made."""

    attempts: list[Attempt]
    done: bool = False

    def text(self) -> str:
        """Return it as it is written."""
        content = {"attempts": [asdict(each) for each in self.attempts], "done": self.done}
        return json.dumps(content, indent=2, sort_keys=True) + "\n"


def find_record(path: Path) -> Record | None:
    """Return the record of a job; None where there is none, or a broken one: it is no result."""
    try:
        content = json.loads(path.read_text())
        return Record([Attempt.of(each) for each in content["attempts"]], bool(content["done"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


class Account:
    """A running attempt at the job whose record is at `path`, begun `age` seconds ago.

    `around` is the account of the command that the job is a part of; None: the job is the command.
    """

    def __init__(self, path: Path, age: float, around: "Account | None", beat: float = BEAT) -> None:
        self.path, self._beats = path, beat
        self._before: bytes | None = None
        with contextlib.suppress(OSError):
            self._before = path.read_bytes()
        held = find_record(path)
        self._anew = held is None or held.done
        self.idle = False
        self._earlier = [] if held is None or held.done else held.attempts
        self._started = time.monotonic() - age
        self._processors = 0.0 if age else _processor_seconds()
        self.device: torch.device = around.device if around else torch.device("cpu")
        self._mine: Attempt = Attempt(
            id=uuid.uuid4().hex,
            began=_utc(time.time() - age),
            host=platform.node(),
            slurm=around._mine.slurm if around else ask_slurm(),
        )
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._write(done=False)
        self._beating.start()

    def attempts(self) -> list[Attempt]:
        """Return all attempts at this job until now, this one last."""
        held = find_record(self.path)
        others = self._earlier if held is None else held.attempts
        return [*(each for each in others if each.id != self._mine.id), self._now()]

    def close(self, done: bool) -> None:
        """Write the last of it."""
        if done and self.idle and self._anew and self._before is not None:
            self.withdraw()
            return
        self._stop()
        self._write(done)

    def withdraw(self) -> None:
        """Take the attempt back, for it did nothing."""
        self._stop()
        others = [each for each in self.attempts() if each.id != self._mine.id]
        if not self._anew and others:
            self._put(Record(others, bool((held := find_record(self.path)) and held.done)).text().encode())
        elif self._before is not None:
            self._put(self._before)
        else:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def _stop(self) -> None:
        self._ended.set()
        self._beating.join()

    def _beat(self) -> None:
        while not self._ended.wait(self._beats):
            self._write(done=False)

    def _now(self) -> Attempt:
        mine = self._mine
        mine.ended, mine.seconds = _utc(time.time()), round(time.monotonic() - self._started, 3)
        mine.cpu_seconds = round(_processor_seconds() - self._processors, 3)
        mine.device, mine.gpus = device_name(self.device), int(self.device.type == "cuda")
        mine.peak_device_bytes = highest_memory(self.device)
        mine.peak_host_bytes = peak_memory(torch.device("cpu"))
        return mine

    def _write(self, done: bool) -> None:
        """Write the record with this attempt as it is now, and the others as they are there by now."""
        held = find_record(self.path) if self._mine.ended else None  # the first time it may be that of an older series
        others = self._earlier if held is None else [each for each in held.attempts if each.id != self._mine.id]
        finished = done or (held is not None and held.done)
        self._put(Record([*others, self._now()], finished).text().encode())

    def _put(self, content: bytes) -> None:
        """Write the file whole or not at all; a full disk ends no run for the sake of a measurement."""
        with contextlib.suppress(RunError), atomic_path(self.path) as part:
            part.write_bytes(content)


_open: list[Account] = []
"""Accounts of the work that is done now, the innermost last."""

_age = 0.0


def begun_before(seconds: float) -> None:
    """Say how long this process has run already; the account that is opened next counts from there."""
    global _age
    _age = seconds


@contextlib.contextmanager
def account(path: Path, beat: float = BEAT) -> Iterator[None]:
    """Record what the work inside takes, as an attempt at the job whose record is at `path`.

    Work for the same job further inside is part of it. A command that is refused (`UsageError`) leaves no trace.
    """
    global _age
    if any(held.path == path for held in _open):
        yield
        return
    held, _age = Account(path, _age, _open[-1] if _open else None, beat), 0.0
    _open.append(held)
    done = False
    try:
        yield
        done = True
    except UsageError:
        _open.remove(held)
        held.withdraw()
        raise
    finally:
        if held in _open:
            _open.remove(held)
            held.close(done)


def computes_on(device: torch.device) -> None:
    """Say on which device the work of the open accounts is done."""
    for held in _open:
        held.device = device


def mark_complete() -> None:
    """Mark the current job as already complete; its record stays that of the processes that did the work."""
    if _open:
        _open[-1].idle = True


def attempts() -> list[dict[str, Any]] | None:
    """Return the attempts at the innermost job until now, as JSON values; None where nobody keeps an account."""
    return [asdict(each) for each in _open[-1].attempts()] if _open else None


def ask_slurm() -> dict[str, str | None] | None:
    """Return number, submission and start of the SLURM job around this process; None outside of one."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return None
    array = [os.environ.get(name, "") for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")]
    command = ["squeue", "-h", "-j", "_".join(array) if all(array) else job, "-o", "%V,%S"]
    try:
        told = {**os.environ, "SLURM_TIME_FORMAT": "standard"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=told)
    except (OSError, subprocess.SubprocessError):
        text = ""
    else:
        text = next(iter(done.stdout.split()), "")
    submitted, _, started = text.partition(",")
    begun = os.environ.get("SLURM_JOB_START_TIME", "")
    return {
        "job": job,
        "submitted": _local(submitted),
        "started": _utc(float(begun)) if begun.isdigit() else _local(started),
    }


def _local(text: str) -> str | None:
    """Return a time as SLURM writes it, in the machine's zone, in UTC; None where it writes a word."""
    try:
        return _utc(datetime.fromisoformat(text).timestamp())
    except ValueError:
        return None


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _processor_seconds() -> float:
    """Return what this process and those that it ended have used of processors."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
