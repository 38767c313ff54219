"""Stopping: when a signal is raised, what is saved before, and how a time limit is known."""

import contextlib
import os
import signal
import stat
import threading
import time
from pathlib import Path

import pytest

from satm.errors import RunError, UsageError
from satm.run import stopping
from satm.run.stopping import LIMIT, Stop, at_once, limit, on_signals, requeue, slurm_seconds_left, unwrapped, whole
from satm.storage.files import atomic_path


@pytest.fixture(autouse=True)
def _outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_JOB_END_TIME", LIMIT):
        monkeypatch.delenv(name, raising=False)


def term() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_is_raised_at_once_and_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stop, match="the signal SIGTERM"), on_signals():
        try:
            term()
        except Stop:
            term()  # it is being saved
            os.kill(os.getpid(), signal.SIGINT)
            with whole(lambda: pytest.fail("what is saved is saved once")):
                pass
            raise
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_whole_ends_first_and_is_saved() -> None:
    told = []
    with on_signals(), pytest.raises(Stop):
        with whole(lambda: told.append("outer")):
            with whole(lambda: told.append("inner")):
                term()
                told.append("done")
            told.append("after")
        told.append("never")
    assert told == ["done", "inner", "after", "outer"]


def test_inside_what_is_whole_it_may_be_raised_at_once() -> None:
    told = []
    with on_signals(), pytest.raises(Stop), whole(lambda: told.append("saved")), at_once():
        term()
        told.append("never")
    assert told == []


def test_a_signal_before_at_once_is_raised_there() -> None:
    with on_signals(), pytest.raises(Stop), whole():
        term()
        with at_once():
            pytest.fail("it was asked to stop before")


def test_a_stop_that_was_lost_is_raised_again_before_anything_is_saved(tmp_path: Path) -> None:
    """As Python loses what is raised in a `__del__`: what was computed meanwhile may be spoilt."""
    told = []
    with on_signals(), pytest.raises(Stop):
        with contextlib.suppress(Stop):
            term()
        told.append("lost")
        with whole(lambda: told.append("saved")):
            told.append("never")
    with on_signals(), pytest.raises(Stop), whole(lambda: told.append("saved")):
        with at_once():
            with contextlib.suppress(Stop):
                term()
            told.append("lost")
        told.append("never")
    assert told == ["lost", "lost"]
    with on_signals(), pytest.raises(Stop):
        with contextlib.suppress(Stop):
            term()
        with atomic_path(tmp_path / "result"):
            told.append("never")
    assert told == ["lost", "lost"] and not list(tmp_path.iterdir())


class Asks:
    """Stops the run while the class is made that it stands in."""

    def __set_name__(self, owner: type, name: str) -> None:
        term()


def test_a_stop_that_something_made_a_failure_of_is_one_again() -> None:
    with pytest.raises(Stop), on_signals(), unwrapped():
        type("Owner", (), {"part": Asks()})
    with pytest.raises(Stop, match="SIGTERM"), on_signals(), unwrapped():
        with contextlib.suppress(Stop):
            term()
        raise UsageError("a file that cannot be read, for the stop came while it was")
    with pytest.raises(RunError, match="no space"), on_signals(), unwrapped():
        try:
            term()
        except Stop:
            raise RunError("no space") from None
    with pytest.raises(ValueError, match="a failure"), on_signals(), unwrapped():
        raise ValueError("a failure")


def test_without_a_signal_nothing_is_saved() -> None:
    with on_signals(), whole(lambda: pytest.fail("nothing was asked")):
        pass


def test_in_another_thread_nothing_is_watched() -> None:
    def work() -> None:
        with on_signals():
            assert limit(5) == 300

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_limit_stops_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with on_signals():
        assert limit(None) is None and signal.getitimer(signal.ITIMER_REAL)[0] == 0
        assert limit(60) == 3600
        assert 3600 - 120 - 5 < signal.getitimer(signal.ITIMER_REAL)[0] <= 3600 - 120
        monkeypatch.setenv(LIMIT, "10")
        assert limit(None) == 600 and limit(2) == 120
        assert signal.getitimer(signal.ITIMER_REAL)[0] <= 108
        limit(0.001)
        with pytest.raises(Stop, match="its time limit") as caught:
            time.sleep(10)
    assert caught.value.at_limit and not caught.value.saved
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.parametrize("text", ["soon", "-1", "0", "nan", "inf"])
def test_a_limit_that_is_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(LIMIT, text)
    with pytest.raises(UsageError, match="a time limit is a number of minutes above 0, got"):
        limit(None)


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("59", 59),
        ("1:05", 65),
        ("2:01:05", 7265),
        ("3-02:01:05", 3 * 86400 + 7265),
        ("UNLIMITED", None),
        ("NOT_SET", None),
        ("INVALID", None),
        ("", None),
    ],
)
def test_the_time_that_slurm_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, seconds: float | None
) -> None:
    program(tmp_path, "squeue", f"test \"$3\" = 17 && echo '{told}'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert slurm_seconds_left() is None
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert slurm_seconds_left() == seconds
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 500))
    assert 490 < (slurm_seconds_left() or 0) <= 500
    assert limit(5) == 300


def test_slurm_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm_seconds_left() is None and not requeue()
    program(tmp_path, "scontrol", "exit 1")
    assert not requeue()
    program(tmp_path, "scontrol", 'test "$1 $2" = "requeue 17"')
    assert requeue()
    monkeypatch.delenv("SLURM_JOB_ID")
    assert not requeue()


def test_a_state_that_was_saved_is_known() -> None:
    with on_signals():
        stopping.saved()
        with pytest.raises(Stop) as caught:
            term()
    assert caught.value.saved
    with on_signals(), pytest.raises(Stop) as caught:
        term()
    assert not caught.value.saved
