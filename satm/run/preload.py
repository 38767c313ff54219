"""Short jobs on one machine share a start: they fork from a process that has imported torch, which takes two seconds.

A job that finds `$SATM_PRELOAD` starts that process if no other job has, passes its own output, arguments and
environment, waits, and exits the way its fork does; signals that it receives are passed on. The fork is a process like
any other, with a log, account, state and memory of its own. Only jobs with the same folder, environment and limits
share a process. Where none can be forked, the job runs by itself. Nothing here imports torch before a job asks for it.
"""

import contextlib
import fcntl
import gc
import hashlib
import json
import math
import os
import resource
import select
import selectors
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

PRELOAD = "SATM_PRELOAD"
"""Environment variable: number of the process whose jobs share a start; `no`: each job starts alone."""

PASSED_ON = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGTSTP, signal.SIGCONT),
)
"""Signals that a job passes on to its fork."""

OWN = frozenset({"SATM_LOG", "_", "SHLVL", "OLDPWD"})
"""Environment variables in which jobs that share a start may differ."""

LIMITS = [getattr(resource, name) for name in sorted(dir(resource)) if name.startswith("RLIMIT_")]

SECONDS = 1.0
"""Time for a job to send its request, during which the others wait."""

PATIENCE = 1.0
"""Seconds that a job which is to stop waits for its fork to begin."""

WIDTH = 4
"""Bytes of the length before a request."""


def share_starts(owner: int) -> None:
    """Let the jobs that this process runs share a start as long as the process `owner` lives; for the workflow."""
    if os.environ.get(PRELOAD) != "no" and hasattr(os, "pidfd_open"):  # it needs Linux
        os.environ[PRELOAD] = str(owner)


def run_in_fork(server: Sequence[str]) -> int | None:
    """Run this process's command in a fork of a process that has imported what it needs.

    Args:
        server: command of that process, which calls `serve` with the arguments that are appended.

    Returns:
        The exit code; None: nothing was run.
    """
    if not (owner := os.environ.get(PRELOAD, "")).isdecimal() or not _as_usual():
        return None
    fork, pending = 0, list[int]()

    def pass_on(signum: int, _frame: FrameType | None) -> None:
        if not fork:
            return pending.append(signum)
        with contextlib.suppress(ProcessLookupError):
            os.kill(fork, signal.SIGSTOP if signum == signal.SIGTSTP else signum)
        if signum == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)

    heard = [signum for signum in PASSED_ON if signal.getsignal(signum) != signal.SIG_IGN]  # others stay ignored
    before = {signum: signal.signal(signum, pass_on) for signum in heard}
    try:
        try:
            connection = _connect(int(owner), server)
            request = json.dumps([sys.argv, dict(os.environ)]).encode("ascii")
            socket.send_fds(connection, [len(request).to_bytes(WIDTH)], [0, 1, 2])
            connection.sendall(request)
            answers = connection.makefile("r", encoding="ascii")
            _await(connection, pending)
            fork = int(answers.readline())
        except (OSError, ValueError):  # the process has ended, before it forked
            return None
        for signum in pending:
            pass_on(signum, None)
        if answer := answers.readline():
            return _end_as(os.waitstatus_to_exitcode(int(answer)))
        with contextlib.suppress(ProcessLookupError):
            os.kill(fork, signal.SIGKILL)
        print("satm: error: the process that this one was forked from was killed; start again", file=sys.stderr)
        return 1
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        for signum in () if fork else pending:
            os.kill(os.getpid(), signum)


def _await(connection: socket.socket, pending: Sequence[int]) -> None:
    """Wait for an answer; end this process by a signal that arrives meanwhile, if none comes soon."""
    until = math.inf
    while not select.select([connection], [], [], PATIENCE / 10)[0]:
        if pending:
            until = min(until, time.monotonic() + PATIENCE)
            if time.monotonic() >= until:  # a fork that begins later finds that its job has ended
                signal.signal(pending[0], signal.SIG_DFL)
                os.kill(os.getpid(), pending[0])


def _as_usual() -> bool:
    """Return whether this process was started as jobs are: its forks could not have what is unusual."""
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN or sys.orig_argv[1:2] not in (sys.argv[:1], ["-m"]):
        return False  # flags of the interpreter
    try:
        return all(os.fstat(descriptor) for descriptor in range(3))
    except OSError:  # a closed stream
        return False


def _end_as(code: int) -> int:
    """Return an exit code; if it is negative, end this process by that signal."""
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL takes no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _connect(owner: int, server: Sequence[str]) -> socket.socket:
    """Connect to the process from which starts like this one fork, and start it if there is none.

    Raises:
        OSError: this is not possible.
    """
    os.close(os.pidfd_open(owner))  # or it has ended
    folder = Path(tempfile.gettempdir(), f"satm-{os.getuid()}-{owner}")
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise OSError(f"{folder} is not private")
    address = folder / _circumstances(server)
    connection = socket.socket(socket.AF_UNIX)
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            connection.connect(str(address))
        except (FileNotFoundError, ConnectionRefusedError):
            address.unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(address))
                listener.listen(128)
                _start(listener, [*server, str(listener.fileno()), str(address), str(owner)])
            connection.connect(str(address))
    return connection


def _circumstances(server: Sequence[str]) -> str:
    """Return a name for everything that a process takes over from the one that it is forked from."""
    umask = os.umask(0o077)
    os.umask(umask)
    environment = sorted((name, value) for name, value in os.environ.items() if name not in OWN)
    limits = [resource.getrlimit(limit) for limit in LIMITS]
    cores, cgroup = sorted(os.sched_getaffinity(0)), Path("/proc/self/cgroup").read_text("utf-8", "replace")
    ignored = [signum for signum in sorted(signal.valid_signals()) if signal.getsignal(signum) == signal.SIG_IGN]
    here = Path.cwd().stat()
    start = [
        *server,
        sys.path,
        Path.cwd(),
        here.st_dev,
        here.st_ino,
        umask,
        limits,
        cores,
        os.nice(0),
        cgroup,
        ignored,
    ]
    return hashlib.sha256(repr([start, environment]).encode()).hexdigest()[:16]


def _start(listener: socket.socket, command: Sequence[str]) -> None:
    """Start the process that accepts the connections of a listener."""
    subprocess.Popen(
        command,
        env={name: value for name, value in os.environ.items() if name not in OWN},
        pass_fds=[listener.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def serve(number: int, address: Path, owner: int) -> bool:
    """Fork for each job that connects, until the process `owner` has ended; call it in the only thread.

    Args:
        number: file descriptor of the socket on which jobs connect.
        address: path of the socket; its folder is removed at the end.
        owner: process whose jobs these are.

    Returns:
        True in a fork, which has taken over output, arguments and environment of its job; False at the end.
    """
    gc.collect()
    gc.freeze()  # a later collection would write into every object, and memory that is written is no longer shared
    with socket.socket(fileno=number) as listener, contextlib.suppress(ProcessLookupError):
        if job := _Server(listener, address, os.pidfd_open(owner)).next():
            job.take_over()
            return True
    return False


class _Job:
    """What a job sends, and the connection on which it waits."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.settimeout(SECONDS)
        length, self._output, _, _ = socket.recv_fds(connection, WIDTH, 3)
        try:
            if len(self._output) < 3:
                raise ValueError("too many files are open")
            with connection.makefile("rb") as content:
                self._arguments, self._environment = json.loads(content.read(int.from_bytes(length)))
        except (OSError, ValueError):
            self.close_output()
            raise
        connection.settimeout(None)

    def close_output(self) -> None:
        for descriptor in self._output:
            os.close(descriptor)

    def take_over(self) -> None:
        """Make this process look as if it had been started as the job was."""
        for target, descriptor in enumerate(self._output):
            os.dup2(descriptor, target)
        self.close_output()
        sys.argv = self._arguments
        os.environ.clear()
        os.environ.update(self._environment)
        try:
            self.connection.sendall(b"%d\n" % os.getpid())
        except OSError:  # the job has ended
            os._exit(1)
        self.connection.close()


class _Server:
    """Waits for jobs, for the ends of their forks, and for the end of the owner.

    Args:
        listener: socket on which jobs connect.
        address: its path.
        owner: file descriptor of the owner's process.
    """

    def __init__(self, listener: socket.socket, address: Path, owner: int) -> None:
        self._listener, self._address, self._owner = listener, address, owner
        self._selector, self._forks, self._spare = selectors.DefaultSelector(), 0, -1
        self._reserve()
        self._watch(listener, self._accept)
        self._watch(owner, self._end)

    def next(self) -> _Job | None:
        """Return, in a fork, its job; None when the owner and all forks have ended."""
        while self._forks or self._owner >= 0:
            for key, _ in self._selector.select():
                then: Callable[[], _Job | None] = key.data
                known = self._selector.get_map().get(key.fd)  # an event before this one may have ended what it is about
                if known is key and (job := then()):
                    self._close()
                    return job
        return None

    def _close(self) -> None:
        """Close, in a fork, what only the server may hold open: others would wait for it when the server is dead."""
        for key in [*self._selector.get_map().values()]:
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
            else:
                os.close(key.fd)
        self._selector.close()

    def _watch(self, source: socket.socket | int, then: Callable[[], _Job | None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, then)

    def _accept(self) -> _Job | None:
        """Fork for a job; one that cannot be served finds its connection closed and runs by itself."""
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it was killed, or too many files are open
            self._release()
            with contextlib.suppress(OSError):
                self._listener.accept()[0].close()
            self._reserve()
            return None
        try:
            job = _Job(connection)
        except (OSError, ValueError):
            connection.close()
            return None
        self._release()
        number = -1
        try:
            if not (number := os.fork()):
                return job
            process = os.pidfd_open(number)
        except OSError:
            connection.close()
            return None
        finally:
            if number:  # it is not the fork
                job.close_output()
                self._reserve()
        self._forks += 1
        self._watch(process, partial(self._finish, number, process, connection))
        self._watch(connection, partial(self._kill, process, connection))
        return None

    def _reserve(self) -> None:
        """Keep a file descriptor for what is needed when too many files are open."""
        with contextlib.suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY)

    def _release(self) -> None:
        if self._spare >= 0:
            os.close(self._spare)
        self._spare = -1

    def _finish(self, number: int, process: int, connection: socket.socket) -> None:
        """A fork has ended: tell its job how."""
        _, status = os.waitpid(number, 0)
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection)
        with contextlib.suppress(OSError):
            connection.sendall(b"%d\n" % status)
        connection.close()
        self._selector.unregister(process)
        os.close(process)
        self._forks -= 1

    def _kill(self, process: int, connection: socket.socket) -> None:
        """A job was killed: kill its fork."""
        self._selector.unregister(connection)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)

    def _end(self) -> None:
        """The owner has ended: no further jobs come, but running ones go on, as those of a killed workflow do."""
        shutil.rmtree(self._address.parent, ignore_errors=True)
        self._selector.unregister(self._listener)
        self._listener.close()
        self._selector.unregister(self._owner)
        self._owner = -1
