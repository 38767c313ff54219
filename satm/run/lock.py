"""A lock on a folder that keeps two processes off one run, on one machine or on several that share a file system.

The owner writes a file and changes it every few seconds, its heartbeat. A process that finds a lock checks whether its
owner is alive: on the same machine by the process, elsewhere by the heartbeat, watched on its own clock, so that clocks
may disagree. The file of a dead owner is not removed but outbid: files are numbered, the highest holds, and only one
process succeeds in making the next one. An owner that was taken for dead because it stood still sees the higher number
and stops before it writes. This needs hard links, or exclusive creation of files, and no locks of the file system
(flock). Where both fail there is a warning, and a new owner waits whether another process takes the same file.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from satm.errors import RunError, UsageError
from satm.run import stopping
from satm.storage.files import explain_disk

LOG = logging.getLogger("satm")


class Times(NamedTuple):
    """Seconds."""

    beat: float = 10.0
    """From one heartbeat to the next."""
    dead_after: float = 60.0
    """Without a heartbeat, after which an owner on another machine counts as dead. Network file systems may show a
    change that late."""
    settling: float = 5.0
    """In which another process may write into the same file, where a file system creates nothing exclusively."""
    look: float = 1.0
    """Between two looks at a living owner."""


TIMES = Times()


IN_WORKFLOW = "SATM_IN_WORKFLOW"
"""Environment variable that the workflow sets for its jobs. They wait for a living owner to end instead of refusing, as
jobs outlive a Snakemake that was killed and meet those of the next one; and they keep their results (`KEPT`)."""

KEPT = "finished"
"""Folder, in a locked one, with second names of the results of a job of the workflow. Of a job that it did not see end,
Snakemake deletes the results before it runs the job again."""

LENGTH = 512
"""Bytes of a lock's file, always as many, so that a heartbeat needs no space on a full disk."""


class Lock:
    """A folder held by this process, to make something there; `waited` if another process held it first and ended."""

    def __init__(self, folder: Path, what: str, number: int, waited: bool, times: Times) -> None:
        self.folder, self.what, self.waited, self._times = folder, what, waited, times
        self.path = _file(folder, number)
        self.number = number
        self._mine = _describe()
        self._ended = threading.Event()
        self._clear = False
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def check(self) -> None:
        """Make sure that the folder is still held; to be called before anything is written.

        Raises:
            RunError: another process has taken this one for dead and holds it now.
        """
        # A process that makes the next number by mistake takes it back at once.
        for pause in (0.0, 1.0, 2.0):
            time.sleep(pause)
            if (
                _numbers(self.folder)[-1:] == [self.number]
                and (_read(self.path) or {}).get("token") == self._mine["token"]
            ):
                return
        raise RunError(
            f"{self.what} in {self.folder} was taken over by another process while this one stood still; nothing more "
            "is written here"
        )

    def finished(self, *results: Path) -> None:
        """Let the folder be removed with the lock; a job of the workflow keeps second names of its results there."""
        self._clear = True
        if results and os.environ.get(IN_WORKFLOW):
            with contextlib.suppress(OSError):  # a disk without space for them: the results themselves are there
                (self.folder / KEPT).mkdir(exist_ok=True)
                for path in results:
                    link(path, self.folder / KEPT / path.name)

    def kept(self, *results: Path) -> list[Path] | None:
        """Return where second names of results are; None: not all of them were kept."""
        found = [self.folder / KEPT / path.name for path in results]
        return found if all(path.is_file() for path in found) else None

    def _take(self, number: int, held: dict[str, Any] | None) -> bool:
        """Make the lock's file and return whether it holds, after one with a dead owner; number 0: there was none."""
        try:
            with explain_disk(self.path):
                exclusive = _create(self.path, self._text(0))
        except RunError as error:
            if isinstance(error.__cause__, FileExistsError | FileNotFoundError):
                return False
            raise
        # What was judged dead must still be what is there.
        there = _read(_file(self.folder, number)) if number else None
        higher = any(each > self.number for each in _numbers(self.folder))
        if (there or {}).get("token") != (held or {}).get("token") or higher:
            self.path.unlink(missing_ok=True)
            return False
        if not exclusive and not self._settles():
            return False
        self._thread.start()
        return True

    def _settles(self) -> bool:
        """Say whether the file is still this process's after a while, where two could have made it."""
        LOG.warning(
            "the file system of %s lets two processes create one file, so locks are weak there; %s begins after %g s. "
            "Keep one run of a campaign at a time, or put its results elsewhere",
            self.folder,
            self.what,
            self._times.settling,
        )
        time.sleep(self._times.settling)
        return self._is_mine()

    def _beat(self) -> None:
        count = 0
        while not self._ended.wait(self._times.beat):
            count += 1
            if not self._is_mine():
                continue  # outbid, or the file system is away
            with contextlib.suppress(OSError):  # a file system that is away for a while
                handle = os.open(self.path, os.O_WRONLY)
                try:
                    os.pwrite(handle, self._text(count).encode(), 0)
                    os.fsync(handle)
                finally:
                    os.close(handle)

    def _is_mine(self) -> bool:
        return bool((_read(self.path) or {}).get("token") == self._mine["token"])

    def _text(self, count: int) -> str:
        return json.dumps({**self._mine, "beat": count}).ljust(LENGTH - 1) + "\n"

    def _end(self) -> None:
        self._ended.set()
        self._thread.join()
        if not self._is_mine():
            return
        if self._clear:
            stays = KEPT if os.environ.get(IN_WORKFLOW) else None
            for entry in self.folder.iterdir():
                if entry.name.startswith(PREFIX) or entry.name == stays:
                    continue
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        if self._clear:
            with contextlib.suppress(OSError):  # who waits may hold it already
                self.folder.rmdir()


@contextlib.contextmanager
def exclusive(folder: Path, what: str, times: Times = TIMES) -> Iterator[Lock]:
    """Hold a folder, made if it is missing, until the process ends, however it ends; `what` is for messages.

    Raises:
        UsageError: another living process holds it, and the environment does not say to wait (`IN_WORKFLOW`).
        RunError: the folder cannot be written.
    """
    lock = _acquire(folder, what, times)
    try:
        yield lock
    finally:
        lock._end()


PREFIX = ".lock-"


def _acquire(folder: Path, what: str, times: Times) -> Lock:
    waited, told = False, 0.0
    while True:
        with explain_disk(folder):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                # One look: an owner that is done may remove it, and the next one make it anew, between two.
                if _is_other(folder):
                    raise
                continue
            numbers = _numbers(folder)
        number = numbers[-1] if numbers else 0
        held = _read(_file(folder, number)) if numbers else None
        if held is not None and _alive(_file(folder, number), held, times.dead_after):
            if not os.environ.get(IN_WORKFLOW):
                raise UsageError(
                    f"{what} in {folder} is being made by another process (pid {held.get('pid', 'unknown')} on "
                    f"{held.get('host', 'unknown')}); wait for it, or stop it and start again"
                )
            waited = True
            stopping.saved()  # a run that a time limit stops here loses nothing: the other process goes on
            stopping.check_stop()
            if time.monotonic() - told > 600:
                told = time.monotonic()
                LOG.info("waiting for pid %s on %s, which makes %s", held.get("pid"), held.get("host"), what)
            time.sleep(times.look)
            continue
        lock = Lock(folder, what, number + 1, waited, times)
        if lock._take(number, held):
            for lower in numbers:
                _file(folder, lower).unlink(missing_ok=True)
            return lock


def link(source: Path, target: Path) -> None:
    """Give a file a second name, in place of what is there; a copy where the file system has no hard links."""
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        os.link(source, part)
    except OSError:
        shutil.copy2(source, part)
    part.replace(target)
    part.unlink(missing_ok=True)  # of two names of one file neither replaces the other


def _is_other(folder: Path) -> bool:
    """Say whether something that is no folder has the place of one."""
    try:
        return not stat.S_ISDIR(folder.stat().st_mode)
    except FileNotFoundError:
        return False


def _create(path: Path, text: str) -> bool:
    """Create a file with its content in one step; return whether no other process can have done the same.

    Raises:
        FileExistsError: there is such a file.
        OSError: it cannot be written.
    """
    bid = path.with_name(f".bid-{uuid.uuid4().hex}")
    try:
        bid.write_text(text)
        try:
            os.link(bid, path)
        except (FileExistsError, FileNotFoundError):
            # Over a network the answer can be lost, and the second try finds what the first one made.
            if not bid.exists() or bid.stat().st_nlink != 2:
                raise
        except OSError:  # a file system without hard links
            _open_new(path, text)
            return _excludes(path)
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


def _excludes(path: Path) -> bool:
    """Say whether a file that is there cannot be created once more."""
    try:
        _open_new(path)
    except OSError:  # that it exists; where it is another one, `Lock.check` finds out
        return True
    return False


def _alive(path: Path, held: dict[str, Any], dead_after: float) -> bool:
    """Return whether the owner of a lock is alive."""
    mine = _describe()
    if held.get("pid") and all(held.get(name) == mine[name] for name in ("host", "boot", "space")):
        return _began(int(held["pid"])) == held.get("began")
    until = time.monotonic() + dead_after
    first = True
    while time.monotonic() < until:
        now = _read(path)
        if now is None or now.get("token") != held.get("token"):
            return True  # released, or another's: to be judged anew
        if now.get("beat") != held.get("beat"):
            return True
        if first:
            LOG.info("watching the lock of pid %s on %s for %g s", held.get("pid"), held.get("host"), dead_after)
            first = False
        stopping.check_stop()
        time.sleep(min(1.0, dead_after / 10))
    LOG.warning("pid %s on %s gave no sign for %g s and counts as dead", held.get("pid"), held.get("host"), dead_after)
    return False


def _describe() -> dict[str, Any]:
    """Return what says which process this is, and a token that no other lock has."""
    return {
        "token": uuid.uuid4().hex,
        "host": os.uname().nodename,
        "boot": _text_of("/proc/sys/kernel/random/boot_id"),
        "space": _link_of("/proc/self/ns/pid"),  # containers of one machine number their processes anew
        "pid": os.getpid(),
        "began": _began(os.getpid()),
    }


def _began(pid: int) -> str | None:
    """Return when a process began, in a form to compare; None where it does not live."""
    stat = _text_of(f"/proc/{pid}/stat")
    if stat:
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except OSError:
        return None
    return "unknown"


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _link_of(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""


def _file(folder: Path, number: int) -> Path:
    return folder / f"{PREFIX}{number:06d}"


def _numbers(folder: Path) -> list[int]:
    """Return the numbers of the files there, ascending."""
    try:
        names = [entry.name.removeprefix(PREFIX) for entry in folder.iterdir() if entry.name.startswith(PREFIX)]
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if name.isdigit())


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a file says; empty where it is just being written; None where there is none."""
    try:
        content = json.loads(path.read_text() or "{}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
