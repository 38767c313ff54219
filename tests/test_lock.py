"""The lock on a folder: one owner, living or dead, here or on another machine."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from resuming import audited, no_links

from satm.errors import RunError, UsageError
from satm.run import lock as locking
from satm.run.lock import IN_WORKFLOW, Times

exclusive = partial(locking.exclusive, times=Times(beat=0.05, dead_after=0.6, settling=0.5, look=0.1))


@pytest.fixture(autouse=True)
def _by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(IN_WORKFLOW, raising=False)


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    with exclusive(tmp_path / "state", "the run") as lock:
        assert not lock.waited
        text = rf"the run in .*state is being run by another process \(pid {os.getpid()} on .*\); wait for it"
        with pytest.raises(UsageError, match=text) as caught, exclusive(tmp_path / "state", "the run"):
            pass
        assert "\n" not in str(caught.value)
        with exclusive(tmp_path / "other", "the run"):
            pass
        lock.check()
    with exclusive(tmp_path / "state", "the run"):
        pass
    assert not list((tmp_path / "state").iterdir())


def test_a_finished_folder_is_gone_and_an_unfinished_one_is_kept(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with exclusive(state, "it") as lock:
        (state / "below").mkdir()
        (state / "below" / "file").write_text("kept")
    assert (state / "below" / "file").read_text() == "kept"
    with exclusive(state, "it") as lock:
        lock.finished()
    assert not state.exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"), exclusive(tmp_path / "file" / "below", "it"):
        pass


HOLD = """
import sys, time
from pathlib import Path
from satm.run.lock import exclusive
with exclusive(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"held\n"
            with pytest.raises(UsageError, match=f"pid {process.pid} "), exclusive(tmp_path, "it"):
                pass
        finally:
            process.send_signal(signal.SIGKILL)
    with exclusive(tmp_path, "it"):
        pass
    assert not list(tmp_path.iterdir())


def elsewhere(folder: Path, beat: int = 0, number: int = 1, **changed: Any) -> Path:
    """Write the lock of a process on another machine."""
    folder.mkdir(exist_ok=True)
    path = folder / f".lock-{number:06d}"
    held = {"token": "theirs", "host": "other", "boot": "b", "space": "s", "pid": os.getpid(), "began": "1"}
    path.write_text(json.dumps({**held, "beat": beat, **changed}))
    return path


def test_an_owner_elsewhere_is_judged_by_its_heartbeat(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not by clocks: the file may be as old or as new as it likes."""
    state = tmp_path / "state"
    path = elsewhere(state)
    os.utime(path, (0, 0))
    stop = threading.Event()

    def beats() -> None:
        count = 0
        while not stop.wait(0.05):
            count += 1
            elsewhere(state, count)
            os.utime(path, (0, 0))

    thread = threading.Thread(target=beats)
    thread.start()
    try:
        with pytest.raises(UsageError, match=r"another process \(pid .* on other\)"), exclusive(state, "it"):
            pass
    finally:
        stop.set()
        thread.join()
    os.utime(path, (2**33, 2**33))
    with caplog.at_level(logging.WARNING, "satm"), exclusive(state, "it") as lock:
        assert [each.name for each in state.iterdir()] == [".lock-000002"]
        lock.check()
    assert "on other gave no sign for 0.6 s and counts as dead" in caplog.text


def test_a_number_of_a_process_that_is_another_one_by_now(tmp_path: Path) -> None:
    with exclusive(tmp_path, "it"):
        mine = json.loads(next(tmp_path.iterdir()).read_text())
    (tmp_path / ".lock-000001").write_text(json.dumps({**mine, "began": "another time"}))
    with exclusive(tmp_path, "it"):
        pass


def test_a_lock_cut_off_while_it_was_written_holds_for_a_while_only(tmp_path: Path) -> None:
    (tmp_path / ".lock-000003").write_text("")
    with exclusive(tmp_path, "it"):
        assert [each.name for each in tmp_path.iterdir()] == [".lock-000004"]


def test_an_owner_that_was_outbid_writes_no_more(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with exclusive(state, "the run") as lock:
        (state / "kept").write_text("theirs now")
        lock.check()
        elsewhere(state, number=2)
        with pytest.raises(RunError, match=r"the run in .* was taken over by another process while this one was"):
            lock.check()
        (state / ".lock-000001").unlink()
        lock.finished()
    assert (state / "kept").exists() and (state / ".lock-000002").exists()


def test_of_many_that_want_it_one_has_it_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a dead owner to begin with, whom all judge at once."""
    monkeypatch.setenv(IN_WORKFLOW, "yes")
    state = tmp_path / "state"
    elsewhere(state)
    inside, most, done, waited = [0], [0], [0], []

    def work() -> None:
        with exclusive(state, "it") as lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.01)
            lock.check()
            inside[0] -= 1
            done[0] += 1
            waited.append(lock.waited)
            lock.finished()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (done[0], most[0]) == (8, 1) and waited.count(True) >= 6
    assert not state.exists()


def test_a_lock_is_never_without_its_owner(tmp_path: Path) -> None:
    """A process that dies while it makes one leaves none: whoever comes next need not watch it."""
    seen = []

    def dies(event: str, arguments: Any) -> None:
        if event == "os.link":
            seen.append(json.loads(Path(arguments[0]).read_text())["pid"])
            raise KeyboardInterrupt

    with audited(dies), pytest.raises(KeyboardInterrupt), exclusive(tmp_path / "state", "the run"):
        pass
    assert seen == [os.getpid()] and not list((tmp_path / "state").iterdir())


def test_file_systems_without_hard_links_will_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with audited(no_links), exclusive(tmp_path / "state", "the run") as lock:
        lock.check()
        with pytest.raises(UsageError, match="is being run by another"), exclusive(tmp_path / "state", "the run"):
            pass
    assert not list((tmp_path / "state").iterdir()) and not caplog.text


def test_where_nothing_is_created_exclusively_the_last_one_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All find the folder free and take the same file; the file system lets them."""
    monkeypatch.setenv(IN_WORKFLOW, "yes")
    monkeypatch.setattr(os, "open", lambda path, flags, *more, real=os.open: real(path, flags & ~os.O_EXCL, *more))
    together, calls = threading.Barrier(4), iter(range(4))

    def at_once(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.link" and next(calls, None) is not None:  # the first of each
            together.wait(10)
        no_links(event, arguments)

    inside, most, done = [0], [0], [0]

    def work() -> None:
        with exclusive(tmp_path / "state", "the run") as lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            lock.check()
            time.sleep(0.05)
            inside[0] -= 1
            done[0] += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    with audited(at_once):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (done[0], most[0]) == (4, 1)
    assert (
        "lets two processes create one file, so locks are unreliable there; the run begins after 0.5 s" in caplog.text
    )
