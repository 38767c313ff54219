"""A lock on a folder that keeps two processes off one run, on one machine or on several that share a file system.

The owner writes a file and changes it every few seconds: its heartbeat. A process that finds a lock checks whether its
owner is alive: on the same machine by the process, elsewhere by the heartbeat, timed with its own clock, so that clocks
may disagree. The file of a dead owner is not removed but outbid: files are numbered, the highest number is valid, and
only one process can create the next one. An owner that was suspended and taken for dead sees the higher number and
stops before it writes. This needs hard links or exclusive creation of files, but no locks of the file system (flock).
If both are missing, there is a warning, and a new owner waits in case another process takes the same file.
"""

import contextlib
import json
import logging
import os
import shutil
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from satm.errors import RunError, UsageError
from satm.run import stopping
from satm.storage.files import explain_disk

LOG = logging.getLogger("satm")


class Times(NamedTuple):
    """Times in seconds."""

    beat: float = 10.0
    """Time between two heartbeats."""
    dead_after: float = 60.0
    """Time without a heartbeat after which an owner on another machine counts as dead. Network file systems may show a
    change that late."""
    settling: float = 5.0
    """Time for another process to write the same file, if the file system cannot create files exclusively."""
    look: float = 1.0
    """Time between two looks at a living owner."""


TIMES = Times()


IN_WORKFLOW = "SATM_IN_WORKFLOW"
"""Environment variable that the workflow sets for its jobs. They wait for a living owner to end instead of refusing, as
jobs outlive a Snakemake that was killed and meet those of the next one; and they keep their results (`KEPT`)."""

KEPT = "finished"
"""Folder, inside a locked one, with hard links to the results of a workflow's job. If Snakemake did not see a job end,
it deletes the results before it runs the job again."""

LENGTH = 512
"""Constant size of a lock's file in bytes, so that a heartbeat needs no space on a full disk."""


def in_workflow() -> bool:
    """Return whether this process is a job of the workflow."""
    return bool(os.environ.get(IN_WORKFLOW))


class Lock:
    """This process's lock on a folder.

    Args:
        folder: the folder.
        what: what the process does there, for messages.
        number: number of the lock; that of a dead owner is lower.
        waited: whether it waited for another process to end.
        inherited: whether an earlier owner died.
        times: waiting times.
    """

    def __init__(self, folder: Path, what: str, number: int, waited: bool, inherited: bool, times: Times) -> None:
        self.folder, self.what, self.waited, self.inherited, self._times = folder, what, waited, inherited, times
        self.path, self.number, self._owner = _path(folder, number), number, _describe()
        self._ended = threading.Event()
        self._clear = False
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def check(self) -> None:
        """Check that the lock is still valid; call it before writing anything.

        Raises:
            RunError: another process has taken this one for dead and owns the lock now.
        """
        # A process that creates the next number by mistake removes it at once.
        for pause in (0.0, 1.0, 2.0):
            time.sleep(pause)
            if _numbers(self.folder)[-1:] == [self.number] and self._is_own():
                return
        raise RunError(
            f"{self.what} in {self.folder} was taken over by another process while this one was suspended; this one "
            "writes nothing more"
        )

    def finished(self, *results: Path) -> None:
        """Remove the folder with the lock, except a workflow job's hard links to its results."""
        self._clear = True
        if results and in_workflow():
            with contextlib.suppress(OSError):  # no space for the links: the results themselves exist
                (self.folder / KEPT).mkdir(exist_ok=True)
                for path in results:
                    link(path, self.folder / KEPT / path.name)

    def kept(self, *results: Path) -> list[Path] | None:
        """Return the paths of the kept results; None unless all were kept."""
        names = [self.folder / KEPT / path.name for path in results]
        return names if all(path.is_file() for path in names) else None

    def _take(self, number: int, dead: dict[str, Any] | None) -> bool:
        """Create the lock's file, after a dead owner's with `number` (0: none); return whether it is valid."""
        try:
            with explain_disk(self.path):
                exclusive = _create(self.path, self._text(0))
        except RunError as error:
            if isinstance(error.__cause__, FileExistsError | FileNotFoundError):
                return False
            raise
        # The lock that was judged dead must still be the current one.
        there = _read(_path(self.folder, number)) if number else None
        higher = any(each > self.number for each in _numbers(self.folder))
        if (there or {}).get("token") != (dead or {}).get("token") or higher:
            self.path.unlink(missing_ok=True)
            return False
        if not exclusive:
            LOG.warning(
                "the file system of %s lets two processes create one file, so locks are unreliable there; %s begins "
                "after %g s. Run a campaign only once at a time, or put its results elsewhere",
                *(self.folder, self.what, self._times.settling),
            )
            time.sleep(self._times.settling)
            if not self._is_own():
                return False
        self._thread.start()
        return True

    def _beat(self) -> None:
        count = 0
        while not self._ended.wait(self._times.beat):
            count += 1
            if not self._is_own():
                continue  # outbid, or the file system is unavailable
            with contextlib.suppress(OSError), self.path.open("r+") as file:  # it may be unavailable for a while
                file.write(self._text(count))
                file.flush()
                os.fsync(file)

    def _is_own(self) -> bool:
        return bool((_read(self.path) or {}).get("token") == self._owner["token"])

    def _text(self, count: int) -> str:
        return json.dumps({**self._owner, "beat": count}).ljust(LENGTH - 1) + "\n"

    def _end(self) -> None:
        self._ended.set()
        self._thread.join()
        if not self._is_own():
            return
        if self._clear:
            stays = KEPT if in_workflow() else None
            for entry in self.folder.iterdir():
                if entry.name.startswith(PREFIX) or entry.name == stays:
                    continue
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        if self._clear:
            with contextlib.suppress(OSError):  # the next owner may have created its file already
                self.folder.rmdir()


@contextlib.contextmanager
def exclusive(folder: Path, what: str, times: Times = TIMES) -> Iterator[Lock]:
    """Lock a folder, created if it is missing, until the block or the process ends; `what` is for messages.

    Raises:
        UsageError: another living process owns the lock, and the environment does not say to wait (`IN_WORKFLOW`).
        RunError: the folder cannot be written.
    """
    lock = _acquire(folder, what, times)
    try:
        yield lock
    finally:
        lock._end()


PREFIX = ".lock-"


def _path(folder: Path, number: int) -> Path:
    return folder / f"{PREFIX}{number:06d}"


def _acquire(folder: Path, what: str, times: Times) -> Lock:
    waited, logged = False, 0.0
    while True:
        with explain_disk(folder):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                # Look once: between two looks, one owner may remove the folder and the next one create it again.
                with contextlib.suppress(FileNotFoundError):
                    if not stat.S_ISDIR(folder.stat().st_mode):
                        raise
                continue
            numbers = _numbers(folder)
        number = numbers[-1] if numbers else 0
        owner = _read(_path(folder, number)) if numbers else None
        if owner is not None and _alive(_path(folder, number), owner, times.dead_after):
            if not in_workflow():
                raise UsageError(
                    f"{what} in {folder} is being run by another process (pid {owner.get('pid', 'unknown')} on "
                    f"{owner.get('host', 'unknown')}); wait for it, or stop it and start again"
                )
            waited = True
            stopping.saved()  # a run that a time limit stops here loses nothing: the other process continues
            stopping.check_stop()
            if time.monotonic() - logged > 600:
                logged = time.monotonic()
                LOG.info("waiting for pid %s on %s, which runs %s", owner.get("pid"), owner.get("host"), what)
            time.sleep(times.look)
            continue
        lock = Lock(folder, what, number + 1, waited, owner is not None, times)
        if lock._take(number, owner):
            for lower in numbers:
                _path(folder, lower).unlink(missing_ok=True)
            return lock


def link(source: Path, target: Path) -> None:
    """Hard-link `source` as `target`, replacing an existing file; copy it if the file system has no hard links."""
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        os.link(source, part)
    except OSError:
        shutil.copy2(source, part)
    part.replace(target)
    part.unlink(missing_ok=True)  # `replace` does nothing between two links to the same file


def _create(path: Path, text: str) -> bool:
    """Create a file with its content in one step; return whether no other process can have done the same.

    Raises:
        FileExistsError: the file exists.
        OSError: it cannot be written.
    """
    bid = path.with_name(f".bid-{uuid.uuid4().hex}")
    try:
        bid.write_text(text, encoding="utf-8")
        try:
            os.link(bid, path)
        except (FileExistsError, FileNotFoundError):
            # Over a network the answer can be lost, and the second attempt finds the link of the first.
            if not bid.exists() or bid.stat().st_nlink != 2:
                raise
        except OSError:  # a file system without hard links
            _open_new(path, text)
            try:
                _open_new(path)
            except OSError:  # the file exists, as it should; any other error shows in `Lock.check`
                return True
            return False
        return True
    finally:
        bid.unlink(missing_ok=True)


def _open_new(path: Path, text: str = "") -> None:
    """Create a file exclusively, as far as the file system can."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def _alive(path: Path, owner: dict[str, Any], dead_after: float) -> bool:
    """Return whether the owner of a lock is alive."""
    here = _describe()
    if owner.get("pid") and all(owner.get(name) == here[name] for name in ("host", "boot", "space")):
        return process_start(int(owner["pid"])) == owner.get("began")
    which = (owner.get("pid"), owner.get("host"), dead_after)
    LOG.info("watching the lock of pid %s on %s for %g s", *which)
    until = time.monotonic() + dead_after
    while time.monotonic() < until:
        now = _read(path)
        # Without a file, or with another token, the lock was released or taken and must be judged again.
        if now is None or any(now.get(name) != owner.get(name) for name in ("token", "beat")):
            return True
        stopping.check_stop()
        time.sleep(min(1.0, dead_after / 10))
    LOG.warning("pid %s on %s gave no sign for %g s and counts as dead", *which)
    return False


def _describe() -> dict[str, Any]:
    """Return the identity of this process, and a token that no other lock has."""
    return {
        "token": uuid.uuid4().hex,
        "host": os.uname().nodename,
        "boot": _proc("sys/kernel/random/boot_id"),
        "space": _proc("self/ns/pid", Path.readlink),  # each container numbers its own processes
        "pid": os.getpid(),
        "began": process_start(os.getpid()),
    }


def process_start(pid: int) -> str | None:
    """Return the start time of a process, on Linux in clock ticks since the boot; None if it is not alive."""
    if text := _proc(f"{pid}/stat"):
        fields = text.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except OSError:
        return None
    return "unknown"


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="replace")  # a process may have any bytes as its name


def _proc(name: str, read: Callable[[Path], object] = _text) -> str:
    try:
        return str(read(Path("/proc") / name)).strip()
    except OSError:
        return ""


def _numbers(folder: Path) -> list[int]:
    """Return the numbers of the lock files in a folder, ascending."""
    try:
        names = [entry.name.removeprefix(PREFIX) for entry in folder.iterdir() if entry.name.startswith(PREFIX)]
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if name.isdigit())


def _read(path: Path) -> dict[str, Any] | None:
    """Return the content of a lock; empty while it is being written; None if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8") or "{}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
