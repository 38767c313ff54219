"""The record of a job, written while it runs: time, processors, memory, device and queue of each of its attempts.

The record lies beside the job's log and not in its results, whose bytes do not differ between runs. Files with
circumstances (`satm.results.run_metadata`) contain a copy. A killed attempt is known up to its last heartbeat; the next
attempt at the same job adds itself to the record.
"""

import contextlib
import json
import platform
import resource
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, TypeAdapter

from satm.errors import RunError, UsageError
from satm.run import slurm
from satm.run.machine import device_name, highest_memory, peak_of_process
from satm.storage.files import atomic_path

if TYPE_CHECKING:
    import torch

BEAT = 30.0
"""Seconds from one heartbeat to the next."""

Amount = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(lt=2**63)]


@dataclass
class Attempt:
    """One process that worked on a job. Times are UTC in ISO format; unknown values are None."""

    id: str = ""
    """Unique among all attempts."""
    began: str = ""
    ended: str = ""
    """End of the process, or its last heartbeat."""
    seconds: Amount | None = None
    """Time from the start of the process to `ended`."""
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
    error: str | None = None
    """Why it failed, if the run itself found out."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Attempt":
        """Return the attempt that a file describes; fields added by other versions are ignored.

        Raises:
            ValueError: a value is of another type, or not a finite number of 64 bits.
        """
        return TypeAdapter(cls).validate_python(values)


@dataclass
class Record:
    """The attempts at a job since its files were last made, and whether the job is done."""

    attempts: list[Attempt]
    done: bool

    def text(self) -> str:
        """Return the content of the record's file."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


def find_record(path: Path) -> Record | None:
    """Return the record of a job; None if there is none or it is broken, since it is not a result."""
    try:
        return TypeAdapter(Record).validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def failure(path: Path) -> str | None:
    """Return why the last attempt at the job whose record is at `path` failed; None: unknown, or it did not."""
    record = find_record(path)
    return record.attempts[-1].error if record and not record.done and record.attempts else None


class Account:
    """A running attempt at the job whose record is at `path`, begun `age` seconds ago.

    `around` is the account of the command that the job is a part of; None: the job is the command.
    """

    def __init__(self, path: Path, age: float, around: "Account | None", beat: float = BEAT) -> None:
        self.path, self._beats = path, beat
        self._before: bytes | None = None
        with contextlib.suppress(OSError):
            self._before = path.read_bytes()
        record = find_record(path)
        self._fresh = record is None or record.done
        self._earlier = [] if record is None or record.done else record.attempts
        self.idle = False
        self._started = time.monotonic() - age
        self._processors = 0.0 if age else _processor_seconds()
        self.device: torch.device | None = around.device if around else None  # None: the CPU
        job = around._attempt.slurm if around else slurm.submission()
        began, host = _utc(time.time() - age), platform.node()
        self._attempt: Attempt = Attempt(id=uuid.uuid4().hex, began=began, host=host, slurm=job)
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._write(done=False)
        self._beating.start()

    def attempts(self) -> list[Attempt]:
        """Return all attempts at this job until now, this one last."""
        return [*self._others(find_record(self.path)), self._now()]

    def close(self, done: bool) -> None:
        """Write the last state of the attempt."""
        if done and self.idle and self._fresh and self._before is not None:
            self.withdraw()
            return
        self._stop()
        self._write(done)

    def fail(self, error: str) -> None:
        """Write the last state of the attempt, with the reason why it failed."""
        self._attempt.error = error
        self.close(done=False)

    def withdraw(self) -> None:
        """Remove the attempt from the record, because it did no work."""
        self._stop()
        record = find_record(self.path)
        if not self._fresh and (others := self._others(record)):
            self._put(Record(others, bool(record and record.done)).text().encode())
        elif self._before is not None:
            self._put(self._before)
        else:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def _others(self, record: Record | None) -> list[Attempt]:
        """Return the other attempts of a record; without a record, those at the start of this attempt."""
        return self._earlier if record is None else [each for each in record.attempts if each.id != self._attempt.id]

    def _stop(self) -> None:
        self._ended.set()
        self._beating.join()

    def _beat(self) -> None:
        while not self._ended.wait(self._beats):
            self._write(done=False)

    def _now(self) -> Attempt:
        attempt = self._attempt
        attempt.ended, attempt.seconds = _utc(time.time()), round(time.monotonic() - self._started, 3)
        attempt.cpu_seconds = round(_processor_seconds() - self._processors, 3)
        attempt.device, attempt.gpus, attempt.peak_host_bytes = "cpu", 0, peak_of_process()
        if self.device is not None:
            attempt.device, attempt.gpus = device_name(self.device), int(self.device.type == "cuda")
            attempt.peak_device_bytes = highest_memory(self.device)
        return attempt

    def _write(self, done: bool) -> None:
        """Write the record with this attempt so far and the other attempts in the file."""
        record = find_record(self.path) if self._attempt.ended else None  # at first it may be from an earlier result
        finished = done or bool(record and record.done)
        self._put(Record([*self._others(record), self._now()], finished).text().encode())

    def _put(self, content: bytes) -> None:
        """Write the file atomically; a full disk does not end a run because of its record."""
        with contextlib.suppress(RunError), atomic_path(self.path) as part:
            part.write_bytes(content)


_open: list[Account] = []
"""Accounts of the current work, the innermost last."""

_age = 0.0


def begun_before(seconds: float) -> None:
    """Set the seconds that this process has already run; the next account includes them."""
    global _age
    _age = seconds


@contextlib.contextmanager
def account(path: Path, beat: float = BEAT) -> Iterator[None]:
    """Record the cost of the work inside, as an attempt at the job whose record is at `path`.

    A nested account of the same job is part of it. A command that is refused (`UsageError`) is not recorded.
    """
    global _age
    if any(each.path == path for each in _open):
        yield
        return
    current, _age = Account(path, _age, _open[-1] if _open else None, beat), 0.0
    _open.append(current)
    end = partial(current.close, done=False)
    try:
        yield
        end = partial(current.close, done=True)
    except UsageError:
        end = partial(current.withdraw)
        raise
    except RunError as error:
        end = partial(current.fail, str(error))
        raise
    finally:
        _open.remove(current)
        end()


def computes_on(device: "torch.device") -> None:
    """Set the device of the open accounts."""
    for each in _open:
        each.device = device


def mark_complete() -> None:
    """Mark the current job as already complete; its record stays that of the processes that did the work."""
    if _open:
        _open[-1].idle = True


def attempts() -> list[dict[str, Any]] | None:
    """Return the attempts at the innermost job until now, as JSON values; None without an account."""
    return [asdict(each) for each in _open[-1].attempts()] if _open else None


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _processor_seconds() -> float:
    """Return processor time of this process and of its ended children, in seconds."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
