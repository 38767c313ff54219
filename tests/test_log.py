"""The log of a job of the workflow: one file for each start, and what happens where it cannot be written."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from satm.run.disk import why_unwritable
from satm.run.log import FILE, _new_log


def satm(log: Path | str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command, around = [sys.executable, "-m", "satm", *arguments], {**os.environ, FILE: str(log)}
    around.pop("PYTHONUNBUFFERED", None)
    return subprocess.run(command, env=around, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_output_goes_into_the_log_and_an_earlier_one_is_kept(tmp_path: Path) -> None:
    """Whoever writes into the earlier one still does."""
    path = tmp_path / "logs" / "run.log"
    done = satm(path, "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and path.read_text().startswith("satm ")
    with path.open("a") as earlier:
        assert satm(path, "nothing", cwd=tmp_path).returncode == 2
        earlier.write("the earlier run\n")
    assert "unknown stage" in path.read_text() and "earlier" not in path.read_text()
    assert Path(f"{path}.1").read_text().endswith("the earlier run\n")


def test_starts_at_the_same_time_have_a_file_each(tmp_path: Path) -> None:
    """All but the last two are unlinked while their processes write."""
    path, ready = tmp_path / "run.log", threading.Barrier(8)
    files = []

    def start() -> None:
        ready.wait()
        files.append(_new_log(path))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({os.fstat(file).st_ino for file in files}) == 8
    for file in files:
        os.close(file)


def test_a_log_that_cannot_be_opened_ends_the_job_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = satm("file/run.log", "--version", cwd=tmp_path)
    told = "satm: error: cannot write the log file/run.log: File exists; check the disk and start again\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", told)
    (tmp_path / "link.log").symlink_to("nowhere/run.log")
    assert (
        "cannot write the log link.log: No such file or directory" in satm("link.log", "--version", cwd=tmp_path).stderr
    )
    (tmp_path / "folder.log").mkdir()
    assert "cannot write the log folder.log: Is a directory" in satm("folder.log", "--version", cwd=tmp_path).stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_hides_no_error_and_fails_no_complete_run(tmp_path: Path) -> None:
    done = satm("/dev/full", "nothing", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("satm: error: unknown stage 'nothing'")
    assert done.stderr.endswith("(its log /dev/full: No space left on device)\n")
    done = satm("/dev/full", "--version", cwd=tmp_path)
    told = "satm: warning: the log /dev/full is incomplete: No space left on device\n"
    assert (done.returncode, done.stderr) == (0, told)


def test_why_a_file_cannot_be_written(tmp_path: Path) -> None:
    assert why_unwritable(tmp_path / "new" / "file") is None and list(tmp_path.rglob("*")) == [tmp_path / "new"]
    (tmp_path / "file").touch()
    assert why_unwritable(tmp_path / "file") is None
    assert why_unwritable(tmp_path / "file" / "below") == "File exists"
    assert why_unwritable(tmp_path) == "Is a directory"
