"""Machines as they are: locales, folders, terminals, closed streams, clocks; results are those of any other machine."""

import errno
import fcntl
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy
import pandas
import pytest
import torch
from drawing import numpy_generator
from PIL import Image

import satm
from satm.cli import main
from satm.errors import RunError
from satm.results.columns import EVALUATION
from satm.results.distilled import load_distilled
from satm.results.rows import read_rows
from satm.run.lock import process_start
from satm.storage.files import explain_disk

PACKAGE = str(Path(satm.__file__).parent.parent)
RUN = Path("results/tiny")
DISTILLED = RUN / "distilled/digits/ipc-1/satm/seed-0/distilled.safetensors"
EVALUATED = RUN / "evaluation/digits/ipc-1/satm/seed-0/convnet.parquet"
CELL = "--config tiny.yaml --dataset digits --ipc 1 --method satm"

COMMANDS = f"""
data --config tiny.yaml --dataset digits
data --config tiny.yaml --dataset fruit
data --config tiny.yaml --dataset rows
experts --config tiny.yaml --dataset digits
distill {CELL}
evaluate {CELL}
table --config tiny.yaml --name table2 --partial
table --config tiny.yaml --name accounting
figure --config tiny.yaml --name synthetic-digits-ipc-1 --partial
bench pace --config tiny.yaml --out mü.parquet --seconds 0.1 --device cpu
cost --config tiny.yaml --pace mü.parquet
"""

ODD = """
import os, shlex, sys, warnings
warnings.filterwarnings("error", category=EncodingWarning, module=r"satm(\\.|$)")
from satm.cli import main
assert sys.getfilesystemencoding() == "ascii" and sys.stdout.encoding == "ascii"
os.umask(0o077)
for line in os.fsdecode(sys.stdin.buffer.read()).strip().splitlines():
    assert main(shlex.split(line)) == 0, ascii(line)
from pathlib import Path
from satm.data import load_images
assert load_images(Path("results/tiny/data/fruit/images.safetensors")).class_names == ("B\\xe4ume", "\\xc4pfel")
"""


def pictures(folder: Path, count: int) -> list[bytes]:
    """Write random pictures and return their files' contents."""
    folder.mkdir(parents=True)
    drawn = numpy_generator(sum(str(folder).encode())).integers(0, 256, (count, 8, 8, 3), dtype=numpy.uint8)
    for index, one in enumerate(drawn):
        Image.fromarray(one).save(folder / f"ö {index}.png")
    return [(folder / f"ö {index}.png").read_bytes() for index in range(count)]


def test_a_locale_without_the_letters_of_its_paths_changes_nothing(finished: Path, tmp_path: Path) -> None:
    """Nor do odd settings of terminal, umask, home, temporary folder, search path and matplotlib at the same time."""
    folder = tmp_path / "Übung größe x"
    folder.mkdir()
    for split, name in ((split, name) for split in ("train", "test") for name in ("Äpfel", "Bäume")):
        contents = pictures(folder / "Bilder ü" / split / name, 3)
        rows = {"image": [{"bytes": each, "path": None} for each in contents], "label": [0, 1, 0]}
        pandas.DataFrame(rows).to_parquet(folder / f"{split} ü.parquet")
    more = "  fruit: {source: folder, path: Bilder ü}\n"
    more += "  rows: {source: parquet, path: $WHERE, train: 'train*', test: 'test*'}\n"
    text = (finished / "tiny.yaml").read_text(encoding="utf-8").replace("datasets:\n", f"datasets:\n{more}", 1)
    (folder / "tiny.yaml").write_text(text, encoding="utf-8")
    odd = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "NO_COLOR": "1",
        "COLUMNS": "20",
        "TERM": "dumb",
    }
    odd |= {"TMPDIR": "/nonexistent", "PATH": "/nowhere", "MPLBACKEND": "TkAgg", "WHERE": str(folder)}
    # As in this process, so that the numbers are rounded alike.
    odd |= {"PYTHONPATH": PACKAGE, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    odd |= {name: value for name, value in os.environ.items() if name in ("ATEN_CPU_CAPABILITY", "SATM_OPERATIONS")}
    command = [sys.executable, "-P", "-X", "warn_default_encoding", "-W", "ignore", "-c", ODD]
    done = subprocess.run(command, cwd=folder, env=odd, input=COMMANDS.encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    assert rb"\xb1" in done.stdout and "±" in (folder / RUN / "table2.md").read_text(encoding="utf-8")
    one, other = (load_distilled(place / DISTILLED) for place in (finished, folder))
    assert one.images.equal(other.images)
    accuracies = [read_rows(place / EVALUATED, EVALUATION)["accuracy"].tolist() for place in (finished, folder)]
    assert accuracies[0] == accuracies[1]
    assert (folder / EVALUATED).stat().st_mode & 0o777 == 0o600


def run(*command: str, folder: Path, **options: object) -> "subprocess.CompletedProcess[bytes]":
    environment = {**os.environ, "PYTHONPATH": PACKAGE, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run(command, cwd=folder, env=environment, check=False, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_error(campaign: Path, closed: str) -> None:
    (campaign / EVALUATED).unlink()
    script = f'exec "$0" -P -m satm evaluate {CELL} {closed}'
    assert run("sh", "-c", script, sys.executable, folder=campaign).returncode == 0
    assert (campaign / EVALUATED).exists()


def test_a_table_is_legible_in_a_narrow_terminal(campaign: Path) -> None:
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 20, 0, 0))
    command = [sys.executable, "-P", "-m", "satm", "table", "--config", "tiny.yaml", "--name", "accounting"]
    child = subprocess.Popen(command, cwd=campaign, env={**os.environ, "PYTHONPATH": PACKAGE}, stdout=inner)
    os.close(inner)
    told = b""
    while part := _read(outer):
        told += part
    assert child.wait() == 0
    assert b"experts_part" in told and b"2 of 2" in told


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # its other end is closed
        return b""


@pytest.mark.skipif(shutil.which("faketime") is None, reason="needs faketime")
@pytest.mark.parametrize("time", ["1970-01-01 12:00:00", "2038-01-19 03:14:00"])
def test_the_clock_changes_no_number(campaign: Path, time: str) -> None:
    before = read_rows(campaign / EVALUATED, EVALUATION)
    (campaign / EVALUATED).unlink()
    command = ["faketime", time, sys.executable, "-P", "-m", "satm"]
    assert run(*command, "evaluate", *CELL.split(), folder=campaign).returncode == 0
    after = read_rows(campaign / EVALUATED, EVALUATION)
    assert before[["accuracy", "loss"]].equals(after[["accuracy", "loss"]])
    assert run(*command, "table", "--config", "tiny.yaml", "--name", "accounting", folder=campaign).returncode == 0


@pytest.mark.parametrize("kind", ["long", "linked"])
def test_results_in_a_long_path_and_behind_a_link(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    here = tmp_path / "/".join(["d" * 60] * 4) if kind == "long" else tmp_path / "linked"
    shutil.copytree(finished, here)
    if kind == "linked":
        (here / "results").rename(tmp_path / "elsewhere")
        (here / "results").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(here)
    before = read_rows(EVALUATED, EVALUATION)
    EVALUATED.unlink()
    assert main(["evaluate", *CELL.split()]) == 0
    after = read_rows(EVALUATED, EVALUATION)
    assert before["accuracy"].equals(after["accuracy"])
    assert main(["table", "--config", "tiny.yaml", "--name", "table2", "--partial"]) == 0
    assert main(["figure", "--config", "tiny.yaml", "--name", "synthetic-digits-ipc-1", "--partial"]) == 0


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_in_the_way_of_results_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "file":
        Path("results").touch()
    else:
        Path("results").symlink_to("nowhere")
    assert main(["data", "--dataset", "digits"]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "results is no folder, nor a link to one; remove it, or make the folder" in told


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_may_not_be_written_to_is_said_to_be_the_wrong_one(tmp_path: Path, number: int) -> None:
    with (
        pytest.raises(RunError, match=r"cannot write .*it: .*; name a folder that you may write to; results go below"),
        explain_disk(tmp_path / "it"),
    ):
        raise OSError(number, os.strerror(number))


def test_a_process_of_any_name_is_recognised() -> None:
    rename = "import ctypes, sys; ctypes.CDLL(None).prctl(15, bytes([255, 254]), 0, 0, 0)"
    command = [sys.executable, "-c", f"{rename}; print(1, flush=True); sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"1\n"
        assert process_start(child.pid) not in (None, "unknown")
        child.communicate()
