"""Stopping: where a signal is heard, what is saved before, and how a time limit is known."""

import contextlib
import errno
import os
import signal
import stat
import threading
import time
from pathlib import Path

import pytest

from satm.errors import UsageError
from satm.run.disk import patiently
from satm.run.slurm import duration, requeue, seconds_left
from satm.run.stopping import (
    LIMIT,
    Stop,
    check_stop,
    interruptible,
    limit,
    on_signals,
    saved,
    stop_requested,
    uninterruptible,
)
from satm.storage.files import explain_disk


@pytest.fixture(autouse=True)
def _outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_JOB_START_TIME", "SLURM_JOB_END_TIME", "SLURM_ARRAY_JOB_ID", LIMIT):
        monkeypatch.delenv(name, raising=False)


def term() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_is_heard_where_it_is_checked() -> None:
    before = signal.getsignal(signal.SIGTERM)
    told = []
    with pytest.raises(Stop, match="the signal SIGTERM"), on_signals():
        check_stop()
        term()
        term()  # as batch systems do
        told.append("goes on")
        assert stop_requested()
        check_stop()
        told.append("never")
    assert signal.getsignal(signal.SIGTERM) is before and told == ["goes on"]
    check_stop()
    assert not stop_requested()


def test_an_uninterruptible_section_ends_first() -> None:
    told = []
    with on_signals(), pytest.raises(Stop):
        with uninterruptible():
            with uninterruptible():
                term()
                check_stop()
            check_stop()
            told.append("done")
        told.append("saved")
        check_stop()
        told.append("never")
    assert told == ["done", "saved"]


def test_a_second_interrupt_ends_the_process_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_interruptible_work_is_cut_off() -> None:
    told = []
    with on_signals(), pytest.raises(Stop), interruptible():
        term()
        told.append("never")
    with on_signals(), pytest.raises(Stop):
        term()
        with interruptible():
            told.append("never")
    assert told == []


class Asks:
    """Stops the run while the class is made that it stands in, which Python makes a RuntimeError of."""

    def __set_name__(self, owner: type, name: str) -> None:
        term()


def test_what_a_stop_breaks_is_a_stop() -> None:
    with pytest.raises(Stop), on_signals(), interruptible():
        type("Owner", (), {"part": Asks()})
    with pytest.raises(Stop), on_signals(), interruptible(), contextlib.suppress(Stop):
        term()
    with pytest.raises(ValueError, match="a failure"), on_signals(), interruptible():
        raise ValueError("a failure")


def test_waiting_for_space_ends_with_a_stop() -> None:
    def write() -> None:
        term()
        with explain_disk(Path("there")):
            raise OSError(errno.ENOSPC, "No space left on device")

    with on_signals(), pytest.raises(Stop):
        patiently(write, 60.0)


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
            for _ in range(100):
                time.sleep(0.1)
                check_stop()
    assert caught.value.request.at_limit and not caught.value.request.saved
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


NOW = 1_800_000_000
"""The controller's clock; this machine's shows another time."""


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        (f"{NOW + 59},1:00", 59),
        (f"{NOW + 7265},3:00:00", 7265),
        (f"{NOW + 266465},UNLIMITED", None),
        (f"{NOW + 90},1:00", 60),  # no job has more than its limit
        ("N/A,NOT_SET", None),
        ("", None),
    ],
)
def test_the_time_that_slurm_leaves_is_counted_on_the_controllers_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, seconds: float | None
) -> None:
    program(tmp_path, "squeue", f"test \"$3\" = 17 && echo '{told}'")
    program(tmp_path, "scontrol", f'test "$SLURM_TIME_FORMAT" = %s && echo "Configuration data as of {NOW}"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert seconds_left() is None
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert seconds_left() == seconds
    assert limit(5) == min(300, seconds or 300)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("59", 59), ("1:05", 65), ("2:01:05", 7265), ("3-02:01:05", 266465), ("UNLIMITED", None), ("INVALID", None)],
)
def test_times_of_slurm(text: str, seconds: float | None) -> None:
    assert duration(text) == seconds


def test_without_squeue_the_end_in_the_environment_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "squeue", "exit 1")
    program(tmp_path, "scontrol", f"echo 'Configuration data as of {NOW}'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(NOW + 500))
    assert seconds_left() == 500
    program(tmp_path, "scontrol", "exit 1")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 740))  # this machine's clock is four minutes late
    monkeypatch.setenv("SLURM_JOB_START_TIME", str(int(time.time()) + 240))
    assert seconds_left() == 500


def test_the_controller_is_asked_again_while_it_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away = "echo 'scontrol: error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
    program(tmp_path, "scontrol", f"echo >> {tmp_path}/calls; test $(wc -l < {tmp_path}/calls) = 3 || {{ {away}; }}")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert not requeue(pauses=[0])
    assert requeue(pauses=[0])
    program(tmp_path, "scontrol", f"echo >> {tmp_path}/calls; echo 'Requested operation is disabled' >&2; exit 1")
    assert not requeue(pauses=[0, 0])
    assert (tmp_path / "calls").read_text().count("\n") == 4


def test_slurm_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert seconds_left() is None and not requeue()
    program(tmp_path, "scontrol", "exit 1")
    assert not requeue()
    program(tmp_path, "scontrol", 'test "$1 $2" = "requeue 17"')
    assert requeue()
    monkeypatch.delenv("SLURM_JOB_ID")
    assert not requeue()


def test_a_state_that_was_saved_is_known() -> None:
    for saves in (True, False):
        with on_signals():
            term()
            if saves:
                saved()
            with pytest.raises(Stop) as caught:
                check_stop()
        assert caught.value.request.saved == saves
