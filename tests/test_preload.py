"""Shared starts: a job that is forked ends as one that is started, whatever happens to either side."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from satm.run.preload import PRELOAD
from satm.workflow.campaigns import share_starts

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="starts are shared on Linux only")

MARK = "IN_THE_SERVER"

JOB = f"""
import json, os, signal, sys, time
from pathlib import Path
from satm.run.preload import run_in_fork, serve

def preload():
    if os.environ.get("BROKEN"):
        sys.exit(1)
    number, address, owner = sys.argv[1:]
    os.environ["{MARK}"] = "yes"
    if serve(int(number), Path(address), int(owner)):
        sys.exit(command())

def command():
    what, *more = sys.argv[1:]
    if what == "tell":
        print(json.dumps(dict(
            parent=os.getppid(), more=more, environment=dict(os.environ), folder=os.getcwd(), stdin=sys.stdin.read(),
            descriptors=sorted(os.listdir("/proc/self/fd")),
            handlers=[str(signal.getsignal(one)) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)])))
        print("errors too", file=sys.stderr)
        return int(more[0])
    if what == "signal":
        os.kill(os.getpid(), int(more[0]))
    if what == "wait":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        print(os.getpid(), os.getppid(), flush=True)
        time.sleep(100)
    if what == "count":
        for line in range(20000):
            print(line)
        return 0

if __name__ == "__main__":
    code = run_in_fork((sys.executable, "-c", "from job import preload; preload()"))
    sys.exit(command() if code is None else code)
"""


class Jobs:
    """Starts jobs of one workflow, a process that does nothing."""

    def __init__(self, folder: Path) -> None:
        (folder / "job.py").write_text(JOB)
        self.folder = folder
        self.owner = subprocess.Popen(["sleep", "100"])
        self.environment = {**os.environ, PRELOAD: str(self.owner.pid), "TMPDIR": str(folder)}
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        job = subprocess.Popen(
            [sys.executable, str(self.folder / "job.py"), *arguments],
            env=self.environment | {"PYTHONPATH": f"{self.folder}:{Path.cwd()}"} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(job)
        return job

    def tell(self, *more: str, code: int = 0, **environment: str) -> dict[str, Any]:
        job = self.start("tell", str(code), *more, **environment)
        output, errors = job.communicate("input", timeout=60)
        assert (job.returncode, errors) == (code, "errors too\n")
        told: dict[str, Any] = json.loads(output)
        return told

    def wait(self) -> tuple[subprocess.Popen[str], int, int]:
        """Return a job that waits for a signal, its fork and the server."""
        job = self.start("wait")
        assert job.stdout
        fork, server = map(int, job.stdout.readline().split())
        return job, fork, server

    @property
    def shared(self) -> Path:
        return self.folder / f"satm-{os.getuid()}-{self.owner.pid}"


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    # The path of a socket must be short, that of `tmp_path` need not be.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        jobs = Jobs(Path(folder))
        try:
            yield jobs
        finally:
            jobs.owner.kill()
            jobs.owner.wait()
            for job in jobs.started:
                job.kill()
                job.communicate()


def until(condition: Any) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def lives(number: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{number}/stat").read_text()
    except FileNotFoundError:
        return False


def test_jobs_share_a_start_and_nothing_else(jobs: Jobs) -> None:
    first = jobs.tell("a", code=3, SATM_LOG="one")
    second = jobs.tell("b", "c", code=0, SATM_LOG="two")
    assert first["parent"] == second["parent"] != os.getpid()
    assert (first["more"], second["more"]) == (["3", "a"], ["0", "b", "c"])
    assert (first["environment"]["SATM_LOG"], second["environment"]["SATM_LOG"]) == ("one", "two")
    assert MARK not in first["environment"]
    assert first["stdin"] == second["stdin"] == "input"
    assert first["folder"] == str(Path.cwd())


def test_a_fork_looks_like_a_process_that_was_started(jobs: Jobs) -> None:
    alone, forked = jobs.tell(**{PRELOAD: "no"}), jobs.tell()
    assert alone["parent"] == os.getpid() != forked["parent"]
    for told in (alone, forked):
        for name in (PRELOAD, "_", "SHLVL"):
            told["environment"].pop(name, None)
        del told["parent"]
    assert alone == forked


@pytest.mark.parametrize("environment", [{"OMP_NUM_THREADS": "3"}, {"CUDA_VISIBLE_DEVICES": ""}, {"ANY": "thing"}])
def test_another_environment_is_another_start(jobs: Jobs, environment: dict[str, str]) -> None:
    assert jobs.tell()["parent"] != jobs.tell(**environment)["parent"]


def test_another_limit_or_mask_is_another_start(jobs: Jobs) -> None:
    servers = {jobs.tell()["parent"]}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        servers.add(jobs.tell()["parent"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    before = os.umask(0o027)
    try:
        servers.add(jobs.tell()["parent"])
    finally:
        os.umask(before)
    assert len(servers) == 3


def test_many_at_once_start_one_process(jobs: Jobs) -> None:
    running = [jobs.start("tell", "0") for _ in range(8)]
    told = [json.loads(job.communicate("input", timeout=60)[0]) for job in running]
    assert len({one["parent"] for one in told}) == 1


def test_all_output_arrives(jobs: Jobs) -> None:
    output, _ = jobs.start("count").communicate(timeout=60)
    assert output.splitlines() == [str(line) for line in range(20000)]


def test_a_signal_reaches_the_fork(jobs: Jobs) -> None:
    job, fork, _ = jobs.wait()
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 75
    assert not lives(fork)


@pytest.mark.parametrize("ignored", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_a_job_ignores_is_ignored(jobs: Jobs, ignored: signal.Signals) -> None:
    """As under `nohup`, or in the background of a shell."""
    before = signal.signal(ignored, signal.SIG_IGN)
    try:
        job, fork, _ = jobs.wait()
    finally:
        signal.signal(ignored, before)
    job.send_signal(ignored)
    job.send_signal(signal.SIGTERM)  # which is handled after the other one, if that is not ignored
    assert job.wait(60) == 75
    assert not lives(fork)


def test_a_job_that_is_suspended_suspends_its_fork(jobs: Jobs) -> None:
    job, fork, _ = jobs.wait()

    def state(number: int) -> str:
        return Path(f"/proc/{number}/stat").read_text().rpartition(") ")[2][0]

    job.send_signal(signal.SIGTSTP)
    until(lambda: state(job.pid) == "T" and state(fork) == "T")
    job.send_signal(signal.SIGCONT)
    until(lambda: state(job.pid) == "S" and state(fork) == "S")
    job.terminate()
    assert job.wait(60) == 75


def test_a_signal_before_the_fork_ends_the_job(jobs: Jobs) -> None:
    _, _, server = jobs.wait()
    os.kill(server, signal.SIGSTOP)
    try:
        job = jobs.start("wait")
        time.sleep(0.5)
        job.terminate()
        assert job.wait(60) == -signal.SIGTERM
    finally:
        os.kill(server, signal.SIGCONT)
    assert jobs.tell()["parent"] == server


def test_a_fork_and_its_job_may_end_at_once(jobs: Jobs) -> None:
    job, fork, server = jobs.wait()
    os.kill(server, signal.SIGSTOP)
    try:
        os.kill(fork, signal.SIGKILL)
        until(lambda: not lives(fork))
        job.kill()
        job.wait(60)
    finally:
        os.kill(server, signal.SIGCONT)
    until(lambda: not Path(f"/proc/{fork}").exists())  # the server has seen it
    assert jobs.tell()["parent"] == server


def test_a_signal_is_not_lost_with_the_server(jobs: Jobs) -> None:
    _, _, server = jobs.wait()
    os.kill(server, signal.SIGSTOP)
    job = jobs.start("count")
    time.sleep(0.5)
    job.terminate()
    time.sleep(0.2)
    os.kill(server, signal.SIGKILL)
    assert job.wait(60) == -signal.SIGTERM


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_job_with_a_closed_stream_runs_alone(jobs: Jobs, closed: int) -> None:
    command = [sys.executable, str(jobs.folder / "job.py"), "count"]
    around = jobs.environment | {"PYTHONPATH": f"{jobs.folder}:{Path.cwd()}"}
    sign = "<" if closed == 0 else f"{closed}>"
    done = subprocess.run(["sh", "-c", f'"$@" {sign}&-', "sh", *command], env=around, capture_output=True, text=True)
    assert not jobs.shared.exists() and (closed == 1 or done.stdout.endswith("19999\n"))


@pytest.mark.parametrize("flag", ["-O", "-X=dev", "-Wignore"])
def test_a_job_with_flags_of_the_interpreter_runs_alone(jobs: Jobs, flag: str) -> None:
    command = [sys.executable, *flag.split("="), str(jobs.folder / "job.py"), "count"]
    around = jobs.environment | {"PYTHONPATH": f"{jobs.folder}:{Path.cwd()}"}
    done = subprocess.run(command, env=around, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("19999\n") and not jobs.shared.exists()


def test_a_folder_made_anew_is_another_start(jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    here, servers = Path.cwd(), set()
    for _ in range(2):
        monkeypatch.chdir(tmp_path / "work")
        servers.add(jobs.tell(PYTHONPATH=f"{jobs.folder}:{here}")["parent"])
        monkeypatch.chdir(here)
        (tmp_path / "work").rename(tmp_path / f"old-{len(servers)}")
        (tmp_path / "work").mkdir()
    assert len(servers) == 2


def test_jobs_that_a_server_has_no_files_for_run_alone(jobs: Jobs) -> None:
    command = ["sh", "-c", 'ulimit -n 24; exec "$@"', "sh", sys.executable, str(jobs.folder / "job.py"), "wait"]
    around = jobs.environment | {"PYTHONPATH": f"{jobs.folder}:{Path.cwd()}"}
    running = [subprocess.Popen(command, env=around, stdout=subprocess.PIPE, text=True) for _ in range(16)]
    parents = []
    for job in running:
        assert job.stdout
        parents.append(int(job.stdout.readline().split()[1]))
    for job in running:
        job.terminate()
    assert [job.wait(60) for job in running] == [75] * 16
    assert parents.count(os.getpid()) >= 4 and len(set(parents)) == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_fork_that_a_signal_ends_ends_its_job_so(jobs: Jobs, number: int) -> None:
    assert jobs.start("signal", str(int(number))).wait(60) == -number


def test_a_killed_job_takes_its_fork_along(jobs: Jobs) -> None:
    job, fork, server = jobs.wait()
    job.kill()
    until(lambda: not lives(fork))
    assert jobs.tell()["parent"] == server


def test_a_job_whose_server_is_killed_fails_and_the_next_one_works(jobs: Jobs) -> None:
    job, fork, server = jobs.wait()
    other, *_ = jobs.wait()
    os.kill(server, signal.SIGKILL)
    for one in (job, other):
        _, errors = one.communicate(timeout=60)
        assert one.returncode == 1
        assert errors == "satm: error: the process that this one was forked from was killed; start again\n"
    until(lambda: not lives(fork))
    assert jobs.tell()["parent"] not in (server, os.getpid())


def test_running_jobs_outlive_the_workflow_and_nothing_stays(jobs: Jobs) -> None:
    job, fork, server = jobs.wait()
    assert jobs.shared.is_dir()
    jobs.owner.kill()
    jobs.owner.wait()
    until(lambda: not jobs.shared.exists())
    assert lives(fork) and lives(server)
    job.terminate()
    assert job.wait(60) == 75
    until(lambda: not lives(server))


def test_a_job_of_an_ended_workflow_runs_alone(jobs: Jobs) -> None:
    jobs.owner.kill()
    jobs.owner.wait()
    assert jobs.tell()["parent"] == os.getpid()
    assert not jobs.shared.exists()


@pytest.mark.parametrize("trouble", ["server", "file", "link", "open", "long", "name"])
def test_whatever_stands_in_the_way_the_job_runs_alone(jobs: Jobs, trouble: str, tmp_path: Path) -> None:
    environment = {}
    if trouble == "server":
        environment["BROKEN"] = "yes"
    elif trouble == "file":
        jobs.shared.touch()
    elif trouble == "link":
        (tmp_path / "other").mkdir(mode=0o700)
        jobs.shared.symlink_to(tmp_path / "other")
    elif trouble == "open":
        jobs.shared.mkdir()
        jobs.shared.chmod(0o777)
    elif trouble == "long":
        (long := jobs.folder / ("long" * 30)).mkdir()
        environment["TMPDIR"] = str(long)
    else:
        environment[PRELOAD] = "soon"
    assert jobs.tell(**environment)["parent"] == os.getpid()


def test_a_job_that_says_nothing_does_not_stop_the_others(jobs: Jobs) -> None:
    server = jobs.tell()["parent"]
    (address,) = (path for path in jobs.shared.iterdir() if path.is_socket())
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(address))
        silent.sendall(b"nonsense")
        silent.shutdown(socket.SHUT_WR)
        assert jobs.tell()["parent"] == server


@pytest.mark.parametrize(("local", "asked", "shared"), [(True, "", True), (False, "", False), (True, "no", False)])
def test_only_jobs_of_this_machine_share_a_start(
    local: bool, asked: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PRELOAD, asked)
    share_starts(SimpleNamespace(local_exec=local))
    assert os.environ[PRELOAD] == (str(os.getpid()) if shared else asked)
