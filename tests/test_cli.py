"""The command line: exit codes and one clear line for bad input and bad machines, and what a kill leaves behind."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
import torch
from resuming import audited, no_network, stopped_after, unwritable

import satm
from satm import cli
from satm.cli import STAGES, main
from satm.config import REVISIONS
from satm.results.columns import EVALUATION, METRICS
from satm.results.distilled import load_distilled
from satm.results.rows import read_rows, read_rows_metadata
from satm.run.lock import exclusive
from satm.storage.tensors import read_tensors

Refuse = Callable[..., str]
ROOT = Path(satm.__file__).parent.parent
CONFIG = ("--config", "tiny.yaml")
CELL = (*CONFIG, "--dataset", "digits", "--ipc", "1")
RUN = Path("results/tiny")
HAND = Path("results/hand/tiny")
"""Folder of runs with other options than the campaign's."""
DISTILLED = RUN / "distilled/digits/ipc-1/satm/seed-0/distilled.safetensors"
EVALUATED = RUN / "evaluation/digits/ipc-1/satm/seed-0/convnet.parquet"
SHARD = RUN / "experts/digits/sgd/expert-001.safetensors"


def python(folder: Path, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run Python as a user does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False, **options
    )


def edit(campaign: Path, old: str, new: str) -> None:
    path = campaign / "tiny.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_campaign_leaves_its_files(campaign: Path) -> None:
    held = load_distilled(DISTILLED)
    assert held.images.shape == (10, 1, 8, 8) and held.iteration == 3 and held.selection == "last"
    assert held.options["method"] == "satm" and held.options["inner_steps"] == 4
    rows = read_rows(EVALUATED, EVALUATION)
    assert list(rows.repeat) == [0, 1] and rows.accuracy.between(0, 1).all()
    assert rows.loss.nunique() == 2  # two networks
    metrics = read_rows(DISTILLED.with_name("metrics.parquet"), METRICS)
    assert list(metrics.iteration) == [1, 2, 3] and metrics.sharpness.notna().all()
    assert read_rows_metadata(EVALUATED, EVALUATION)["options"]["options"]["epochs"] == 3
    assert not list((RUN / "state").rglob("*.safetensors"))
    log = (RUN / "logs/distill/digits/ipc-1/satm/seed-0.log").read_text()
    assert "inner-steps: 4" in log and log.index("rho: ") < log.index("distill 3/3")


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (("distil",), ("unknown stage 'distil'", "Did you mean 'distill'?")),
        (("data", "--dataset", "mine"), ("'mine' in the built-in ones (those of a campaign need --config)",)),
        (("data", *CONFIG, "--dataset", "digit"), ("unknown dataset 'digit'", "Did you mean 'digits'?")),
        (("distill", *CELL[:-4], "--dataset", "digit", "--ipc", "1", "--method", "mtt"), ("Did you mean 'digits'?",)),
        (("distill", *CELL, "--method", "mt"), ("unknown method 'mt'", "Did you mean 'mtt'?")),
        (("distill", *CELL, "--method", "satm", "--roh", "0.1"), ("--roh", "rho")),
        (("distill", *CELL, "--method", "mtt", "--selection", "best"), ("selection", "best")),
        (
            ("distill", *CELL, "--method", "mtt", "--step-size", "0"),
            ("option --step-size: ", "greater than 0", "0.0"),
        ),
        (
            ("distill", *CELL, "--method", "random", "--step-size", "-1"),
            ("option --step-size: ", "greater than 0"),
        ),
        (
            ("distill", *CELL, "--method", "mtt", "--step-size", "nan"),
            ("option --step-size: ", "finite number (got nan)"),
        ),
        (("distill", *CELL, "--method", "mtt", "--seed", "x"), ("--seed", "'x'")),
        (("distill", *CELL[:-1], "x", "--method", "mtt"), ("--ipc", "'x'")),
        (("distill", *CELL[:-1], "0", "--method", "random"), ("ipc", "at least 1, got 0")),
        (("distill", *CELL[:-1], "-1", "--method", "random"), ("ipc", "at least 1, got -1")),
        (
            ("distill", *CELL[:-1], "500", "--method", "random"),
            ("ipc 500 is too large", "use a smaller ipc"),
        ),
        (
            ("distill", *CELL, "--method", "mtt", "--max-start-epoch", "9"),
            ("to epoch 9 goes beyond the 3 epochs",),
        ),
        (("distill", *CELL, "--method", "mtt", "--expert-epochs", "9"), ("goes beyond the 3 epochs of the experts",)),
        (("distill", *CELL, "--method", "mtt", "--min-start-epoch", "2"), ("raise max_start_epoch",)),
        (("distill", *CELL, "--method", "mtt", "--experts", "sdg"), ("unknown experts 'sdg'", "Did you mean 'sgd'?")),
        (("distill", *CELL, "--method", "mtt", "--selection", "validation"), ("held-out images; set validation",)),
        (("distill", *CELL, "--method", "mtt", "--device", "gpu"), ("unknown device 'gpu'; known: auto",)),
        (("distill", *CELL, "--method", "mtt", "--device", "cuda:99"), ("torch finds", "--device cpu")),
        (("distill", *CELL, "--method", "mtt", "--threads", "0"), ("threads must be at least 1, got 0",)),
        (("distill", *CELL), ("--method",)),
        (("experts", *CONFIG, "--dataset", "digits", "--experts", "sg"), ("Did you mean 'sgd'?",)),
        (("experts", *CONFIG, "--dataset", "digits", "--part", "0-7"), ("unknown part '0-7'", "known: 0-0, 1-1")),
        (("experts", *CONFIG, "--dataset", "digits", "--lr", "0"), ("lr", "greater than 0")),
        (("evaluate", *CELL, "--method", "satm", "--network", "convnt"), ("unknown network 'convnt'", "'convnet'?")),
        (("evaluate", *CELL, "--method", "satm", "--split", "validation"), ("holds out no validation images",)),
        (("evaluate", *CELL, "--method", "satm", "--epochs", "0"), ("epochs", "greater than or equal to 1")),
        *(
            (
                (stage, *CONFIG, "--dataset", "digits", "--ipc", "0", "--method", "mtt", *more),
                ("--ipc must be at least 1",),
            )
            for stage, *more in (
                ["distill"],
                ["evaluate"],
                ["evaluate", "--what", "variants"],
                ["continual"],
                ["analyse"],
            )
        ),
        (("table", *CONFIG, "--name", "tabel2"), ("unknown table 'tabel2' in tiny.yaml", "Did you mean 'table2'?")),
        (("data", *CONFIG, "--dataset", "digits", "--make", "zca"), ("not whitened; set zca: true",)),
        (("data", "--config", "absent.yaml", "--dataset", "digits"), ("absent.yaml", "No such file")),
        (("bench", "hypergrad"), ("unknown benchmark 'hypergrad'", "Did you mean 'hypergradient'?")),
    ],
    ids=lambda value: " ".join(value[:1] + value[5:]) if isinstance(value, tuple) else None,
)
def test_unusable_input_is_one_line_and_exit_2(
    campaign: Path, refused: Refuse, arguments: tuple[str, ...], texts: tuple[str, ...]
) -> None:
    before = {path: path.read_bytes() for path in RUN.rglob("*.[sjp]*") if path.is_file()}
    told = refused(*arguments)
    for text in texts:
        assert text in told, told
    assert all(path.read_bytes() == content for path, content in before.items())  # nothing lost


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("datasets: [", "is not usable YAML"),
        ("datasets: {digits: {source: digit}}", "datasets.digits.source: "),
        ("dataset: {}", "unknown option 'dataset'; known: "),
        ("[]", "holds a list, expected a mapping"),
    ],
)
def test_an_unusable_campaign_is_one_line(tmp_path: Path, refused: Refuse, text: str, told: str) -> None:
    (tmp_path / "broken.yaml").write_text(text)
    assert told in refused("data", "--config", str(tmp_path / "broken.yaml"), "--dataset", "digits")


@pytest.mark.parametrize(
    ("gone", "arguments", "command"),
    [
        (
            "data",
            ("experts", *CONFIG, "--dataset", "digits"),
            "python -m satm data --config tiny.yaml --dataset digits",
        ),
        ("data", ("evaluate", *CELL, "--method", "satm"), "python -m satm data --config tiny.yaml --dataset digits"),
        (
            "experts",
            ("distill", *CELL, "--method", "mtt"),
            "python -m satm experts --config tiny.yaml --dataset digits --experts sgd",
        ),
        (
            "distilled",
            ("evaluate", *CELL, "--method", "satm"),
            "python -m satm distill --config tiny.yaml --dataset digits --ipc 1",
        ),
        (
            "distilled",
            ("analyse", *CELL, "--method", "satm"),
            "python -m satm distill --config tiny.yaml --dataset digits --ipc 1",
        ),
        (
            "none",
            ("distill", *CONFIG, "--dataset", "white", "--ipc", "1", "--method", "random"),
            "satm data",
        ),
    ],
)
def test_a_missing_file_names_the_command_that_makes_it(
    campaign: Path, refused: Refuse, gone: str, arguments: tuple[str, ...], command: str
) -> None:
    shutil.rmtree(RUN / gone, ignore_errors=True)
    told = refused(*arguments)
    assert "exist" in told and command in told


def test_a_missing_whitening_names_its_command(campaign: Path, refused: Refuse) -> None:
    assert main(["data", *CONFIG, "--dataset", "white", "--make", "images"]) == 0
    told = refused("distill", *CONFIG, "--dataset", "white", "--ipc", "1", "--method", "random")
    assert "zca.safetensors does not exist" in told and "satm data --config tiny.yaml --dataset white\n" in told


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "--dataset", "../../outside", "--ipc", "1", "--method", "mtt"),
        ("evaluate", "--dataset", "digits", "--ipc", "1", "--method", "../../../outside"),
        ("evaluate", "--dataset", "digits", "--ipc", "1", "--method", "mtt", "--network", "/tmp/outside"),
        ("continual", "--dataset", "digits", "--ipc", "1", "--method", "mtt", "--protocol", "../../../../../outside"),
        ("nas", "--dataset", "digits", "--real", "--search", "../../../../outside"),
        ("nas", "--dataset", "digits", "--real", "--search", "one", "--part", "../../../../../outside"),
        ("analyse", "--dataset", "digits", "--what", "expert-sharpness", "--experts", "../../outside"),
        ("table", "--name", "../outside"),
    ],
    ids=lambda value: " ".join(value[:1] + value[-1:]),
)
def test_no_name_leads_out_of_the_current_folder(
    tmp_path: Path, refused: Refuse, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert "outside' must have letters, digits and '-' only" in refused(*arguments)
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]


def test_images_and_sets_of_others_in_their_place_are_refused(campaign: Path, refused: Refuse) -> None:
    for name in ("held", "white"):
        assert main(["data", *CONFIG, "--dataset", name]) == 0
    images = RUN / "data/digits/images.safetensors"
    whole = images.read_bytes()
    shutil.copy(RUN / "data/held/images.safetensors", images)
    assert "images.safetensors are of dataset held; make them again" in refused("distill", *CELL, "--method", "random")
    images.write_bytes(whole)
    assert main(["distill", *CELL, "--method", "random"]) == 0
    shutil.copy(RUN / "distilled/digits/ipc-1/random/seed-0/distilled.safetensors", DISTILLED)
    told = refused("evaluate", *CELL, "--method", "satm")
    assert "is another synthetic set: method: expected 'satm', found 'random'" in told
    text = Path("tiny.yaml").read_text()
    Path("tiny.yaml").write_text(text.replace("white: {source: digits,", "white: {source: digits, validation: 5,"))
    assert main(["data", *CONFIG, "--dataset", "white", "--make", "images", "--overwrite"]) == 0
    told = refused("distill", *CONFIG, "--dataset", "white", "--ipc", "1", "--method", "random")
    assert "zca.safetensors was fitted on other images" in told


def test_a_part_in_the_place_of_another_is_refused(campaign: Path, refused: Refuse) -> None:
    folder = RUN / "experts/digits/sgd"
    shutil.copy(folder / "part-1-1.json", folder / "part-0-0.json")
    told = refused("experts", *CONFIG, "--dataset", "digits", "--collect")
    assert "part-0-0.json: it lists the experts [1], expected [0]" in told


def test_a_changed_shard_is_trained_again_to_the_same_bytes(campaign: Path) -> None:
    before = SHARD.read_bytes()
    SHARD.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert main(["experts", *CONFIG, "--dataset", "digits"]) == 0
    assert SHARD.read_bytes() == before


@pytest.mark.parametrize("length", [0, 6, 200, -3])
@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        (RUN / "data/digits/images.safetensors", ("experts", *CONFIG, "--dataset", "digits")),
        (RUN / "data/digits/images.safetensors", ("distill", *CELL, "--method", "mtt")),
        (RUN / "experts/digits/sgd/manifest.json", ("distill", *CELL, "--method", "mtt")),
        (RUN / "experts/digits/sgd/part-0-0.json", ("experts", *CONFIG, "--dataset", "digits", "--collect")),
        (SHARD, ("distill", *CELL, "--method", "mtt")),
        (DISTILLED, ("evaluate", *CELL, "--method", "satm")),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else value[0],
)
def test_a_half_written_file_is_refused(
    campaign: Path, refused: Refuse, path: Path, arguments: tuple[str, ...], length: int
) -> None:
    path.write_bytes(path.read_bytes()[:length])
    told = refused(*arguments)
    assert path.name in told and "again" in told


def test_a_half_written_evaluation_is_refused_by_the_table(campaign: Path, refused: Refuse) -> None:
    edit(campaign, "methods: [random, mtt, satm]", "methods: [satm]")
    for length in (0, 6, 200, -3):
        content = EVALUATED.read_bytes()
        EVALUATED.write_bytes(content[:length])
        told = refused("table", *CONFIG)
        assert "convnet.parquet is not a whole parquet file" in told and "make it again" in told
        EVALUATED.write_bytes(content)


def test_damaged_images_are_found_by_their_hash(campaign: Path, refused: Refuse) -> None:
    path = RUN / "data/digits/images.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    assert "images.safetensors was changed: its tensor" in refused("distill", *CELL, "--method", "random")


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (
            "augment: crop_scale_rotate}\n  held",
            "augment: flip}\n  held",
            "augmentation: expected ['flip', 'image']",
        ),
        ("width: 4}}\n  - {stage: evaluate", "width: 8}}\n  - {stage: evaluate", "network.width: expected 8, found 4"),
        ("epochs: 3, lr: 0.05", "epochs: 3, lr: 0.06", "recipe.lr: expected 0.06, found 0.05"),
        ("count: 2", "count: 3", "lists 2 experts, count is 3"),
    ],
)
def test_experts_of_another_recipe_are_refused(campaign: Path, refused: Refuse, old: str, new: str, text: str) -> None:
    edit(campaign, old, new)
    assert text in refused("distill", *CELL, "--method", "mtt")


def test_experts_of_another_dataset_or_whitening_are_refused(campaign: Path, refused: Refuse) -> None:
    assert main(["data", *CONFIG, "--dataset", "white"]) == 0
    (RUN / "experts/white").mkdir()
    shutil.copytree(RUN / "experts/digits/sgd", RUN / "experts/white/sgd")
    cell = (*CONFIG, "--dataset", "white", "--ipc", "1", "--method", "mtt")
    assert "dataset: expected 'white', found 'digits'" in refused("distill", *cell)
    edit(campaign, "{source: digits, augment", "{source: digits, zca: true, augment")
    assert main(["data", *CONFIG, "--dataset", "digits"]) == 0
    assert "preprocessing.space: expected 'whitened', found 'normalised'" in refused(
        "distill", *CELL, "--method", "mtt"
    )
    assert "preprocessing" in refused("experts", *CONFIG, "--dataset", "digits", "--collect")
    told = refused("evaluate", *CELL, "--method", "satm")
    assert "another preprocessing: space: expected 'whitened', found 'normalised'" in told


def test_experts_of_another_revision_are_others(
    campaign: Path, refused: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REVISIONS, "experts", 2)
    assert "revision: expected 2, found None" in refused("distill", *CELL, "--method", "mtt")


def test_other_images_are_other_experts(campaign: Path, refused: Refuse) -> None:
    edit(campaign, "{source: digits, augment", "{source: digits, validation: 3, augment")
    assert "are not those that are asked for: options.validation" in refused("distill", *CELL, "--method", "mtt")
    assert "add --overwrite to replace it" in refused("data", *CONFIG, "--dataset", "digits")
    assert main(["data", *CONFIG, "--dataset", "digits", "--overwrite"]) == 0
    assert "data: expected " in refused("distill", *CELL, "--method", "mtt")


def test_selection_by_validation_runs_and_is_named(campaign: Path) -> None:
    for stage in ("data", "experts"):
        assert main([stage, *CONFIG, "--dataset", "held"]) == 0
    cell = [*CONFIG, "--dataset", "held", "--ipc", "1", "--method", "mtt"]
    assert main(["distill", *cell, "--selection", "validation", "--evaluate-every", "1"]) == 0
    held = load_distilled(HAND / "distilled/held/ipc-1/mtt/seed-0/distilled.safetensors")
    metrics = read_rows(HAND / "distilled/held/ipc-1/mtt/seed-0/metrics.parquet", METRICS)
    assert held.selection == "validation"
    assert held.iteration == metrics.iteration[metrics.validation_accuracy.idxmax()]
    assert main(["evaluate", *cell, "--run", "tiny"]) == 0
    assert set(read_rows(HAND / "evaluation/held/ipc-1/mtt/seed-0/convnet.parquet", EVALUATION).selection) == {
        "validation"
    }


def test_the_network_of_a_campaign_is_known_by_its_name(campaign: Path) -> None:
    assert main(["evaluate", *CELL, "--method", "satm", "--network", "small"]) == 0
    assert len(read_rows(EVALUATED.with_name("small.parquet"), EVALUATION)) == 2


FULL = [
    ("data", *CONFIG, "--dataset", "digits"),
    ("experts", *CONFIG, "--dataset", "digits", "--lr", "0.04"),
    ("distill", *CELL, "--method", "satm", "--overwrite"),
    ("evaluate", *CELL, "--method", "satm", "--overwrite"),
]


@pytest.mark.parametrize("arguments", FULL, ids=[arguments[0] for arguments in FULL])
def test_a_full_disk_is_exit_1_and_loses_nothing(campaign: Path, refused: Refuse, arguments: tuple[str, ...]) -> None:
    kept = [RUN / "data/digits/images.safetensors", SHARD, DISTILLED, EVALUATED]
    before = [path.read_bytes() for path in kept]
    with audited(unwritable(errno.ENOSPC)):
        told = refused(*arguments, code=1)
    assert "No space left on device; free some space and start again" in told
    assert [path.read_bytes() for path in kept] == before
    assert not list(Path("results").rglob("*.part"))
    assert main(list(arguments)) == 0


def test_a_limit_of_the_disk_is_one_line_in_a_real_process(campaign: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    before = DISTILLED.read_bytes()
    done = python(campaign, "-m", "satm", "distill", *CELL, "--method", "random", preexec_fn=limit)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1 and "File too large" in done.stderr, done.stderr
    assert DISTILLED.read_bytes() == before


def test_a_log_that_cannot_be_written_is_no_traceback(campaign: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    done = python(campaign, "-m", "satm", "distill", *CELL, "--method", "random", preexec_fn=limit)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith("satm: error: ") and done.stderr.count("\n") == 1, done.stderr


STATES = [
    (("experts", *CONFIG, "--dataset", "digits"), "experts/digits/sgd/part-1-1", "experts/digits/sgd/all"),
    (("distill", *CELL, "--method", "satm"), "distill/digits/ipc-1/satm/seed-0", "distill/digits/ipc-1/satm/seed-0"),
    (
        ("evaluate", *CELL, "--method", "satm"),
        "evaluate/digits/ipc-1/satm/seed-0/convnet",
        "evaluate/digits/ipc-1/satm/seed-0/convnet",
    ),
]


@pytest.mark.parametrize(("arguments", "state", "log"), STATES, ids=["experts", "distill", "evaluate"])
def test_two_processes_on_one_directory(
    campaign: Path, refused: Refuse, arguments: tuple[str, ...], state: str, log: str
) -> None:
    path = RUN / "logs" / f"{log}.log"
    first = "what the first process has told so far\n"
    with exclusive(RUN / "state" / state, "it"):
        path.write_text(first)
        told = refused(*arguments)
        assert f"is being run by another process (pid {os.getpid()} on " in told
    assert first in path.read_text()  # its log is not lost either


@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
def test_no_network_for_a_download(
    tmp_path: Path, refused: Refuse, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SATM_DATA", raising=False)
    with audited(no_network):
        told = refused("data", "--dataset", source, code=1)
    assert "Network is unreachable" in told and "connect to the network" in told


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "out of memory"),
        (OSError(13, "Permission denied", "there"), "Permission denied (there)"),
    ],
)
def test_other_ends_are_one_line_too(
    refused: Refuse, monkeypatch: pytest.MonkeyPatch, error: BaseException, text: str
) -> None:
    def fail(arguments: object) -> None:
        raise error

    monkeypatch.setitem(cli.STAGES, "data", fail)
    assert text in refused("data", code=1)


def test_a_reader_that_ends_early_gets_no_error() -> None:
    command = f"{sys.executable} -m satm distill --help | head -c 1"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert len(run.stdout) == 1 and run.stderr == ""


def test_help_is_complete(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(stage in overview for stage in STAGES)
    flags = {"experts": "--weight-decay", "distill": "--keep-divisor", "evaluate": "--decay-epoch", "table": "--name"}
    for stage, flag in flags.items():
        assert main([stage, "--dataset", "digits", "--ipc", "1", "--method", "satm", "--help"][:99]) == 0
        told = capsys.readouterr().out
        assert flag in told and "options options" not in told
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"satm {satm.__version__}"
    assert main([]) == 2
    assert not list(tmp_path.iterdir())


def test_the_process_ends_as_main_does(tmp_path: Path) -> None:
    done = python(tmp_path, "-m", "satm", "evaluate", "--dataset", "digits", "--ipc", "1", "--method", "mtt")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(
        "satm: error: the image file results/hand/default/data/digits"
    )


def test_the_configuration_is_read_without_torch_and_the_stages_without_the_workflow() -> None:
    light = "import sys, satm, satm.config; print(sorted({'torch', 'snakemake'} & set(sys.modules)))"
    done = python(ROOT, "-c", light)
    assert done.stdout.strip() == "[]", done.stderr
    code = "import sys, satm.cli; print(sorted({'snakemake', 'pytest', 'matplotlib'} & set(sys.modules)))"
    done = python(ROOT, "-c", code)
    assert done.stdout.strip() == "[]", done.stderr


KILLED = """
import os, random, subprocess, sys, time
from satm.cli import main

wanted, replace, times = int(sys.argv[1]), os.replace, []

def counted(source, target):
    replace(source, target)
    if "/state/" in str(target):
        times.append(time.monotonic())
        if len(times) == wanted:
            wait = random.random() * (times[-1] - times[-2])
            subprocess.Popen(["sh", "-c", f"sleep {wait:.6f}; kill -9 {os.getpid()}"])

os.replace = counted
sys.exit(main(sys.argv[2:]))
"""
"""Runs a command; after so many writes of its state another process kills it at a random moment."""


def kill_at_random(folder: Path, arguments: tuple[str, ...], most: int) -> None:
    """Start a command and kill it at a random moment after it wrote its state two to `most` times."""
    done = python(folder, "-c", KILLED, str(random.randint(2, most)), *arguments)
    assert done.returncode == -signal.SIGKILL, "the command ended before it could be killed; give it more to do"


def columns(path: Path) -> pandas.DataFrame:
    return pandas.read_parquet(path).drop(columns=["seconds", "peak_memory_bytes"])


def same_files(one: Path, other: Path) -> None:
    """Compare two trees of results: bytes, and of parquet the columns that are no measurement of the machine."""
    names = [{str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} for folder in (one, other)]
    names = [{name for name in held if "logs/" not in name and not name.endswith(".part")} for held in names]
    assert names[0] == names[1]
    for name in sorted(names[0]):
        if name.endswith(".parquet"):
            pandas.testing.assert_frame_equal(columns(one / name), columns(other / name), check_exact=True)
        else:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


SOME = ("--epochs", "12", "--batch-size", "64", "--momentum", "0.9", "--per-job", "2")
WORK: dict[str, tuple[tuple[str, ...], int]] = {
    "experts": (("experts", *CONFIG, "--dataset", "digits", *SOME), 9),
    "distill": (("distill", *CELL, "--method", "satm", "--iterations", "120", "--checkpoint-seconds", "0"), 4),
    "evaluate": (("evaluate", *CELL, "--method", "satm", "--repeats", "8", "--epochs", "20"), 3),
}
"""A command by its stage, and how often it may write its state before a kill, so that it never ends."""


@pytest.mark.parametrize("stage", list(WORK))
def test_a_kill_at_any_moment_changes_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    arguments, most = WORK[stage]
    arguments = (*arguments, "--threads", "1")
    for name in ("whole", "killed"):
        shutil.copytree(finished, tmp_path / name)
        if stage == "experts":
            shutil.rmtree(tmp_path / name / "results/tiny/experts")
    monkeypatch.chdir(tmp_path / "whole")
    assert main(list(arguments)) == 0
    kill_at_random(tmp_path / "killed", arguments, most)
    monkeypatch.chdir(tmp_path / "killed")
    capsys.readouterr()
    assert main(list(arguments)) == 0
    if stage == "distill":
        assert "resuming after iteration" in capsys.readouterr().out
    same_files(tmp_path / "whole" / "results", tmp_path / "killed" / "results")


def test_a_checkpoint_of_other_options_is_not_gone_on_with(
    campaign: Path, capsys: pytest.CaptureFixture[str], refused: Refuse
) -> None:
    arguments = ["distill", *CELL, "--method", "mtt", "--iterations", "21", "--checkpoint-seconds", "0"]

    with stopped_after(2, "/checkpoint-"):
        assert main(arguments) == 75
    state = HAND / "state/distill/digits/ipc-1/mtt/seed-0/checkpoint-1.safetensors"
    assert read_tensors(state, "it")[1]["iterations"] == {"now": 20, "safe": 10, "recent": 20}
    content = state.read_bytes()
    capsys.readouterr()
    differs = "options.lr_images: expected 2.0, found 1.0"
    assert f"has the state of an unfinished run that differs ({differs})" in refused(*arguments, "--lr-images", "2")
    assert main([*arguments, "--lr-images", "2", "--overwrite"]) == 0
    told = capsys.readouterr().out
    assert f"belongs to another run ({differs}); starting from the beginning" in told
    state.parent.mkdir(parents=True, exist_ok=True)
    state.write_bytes(content)
    assert main([*arguments, "--overwrite"]) == 0
    assert "resuming after iteration 20" in capsys.readouterr().out
    path = HAND / "distilled/digits/ipc-1/mtt/seed-0/distilled.safetensors"
    one = load_distilled(path)
    assert main([*arguments, "--overwrite"]) == 0
    assert "resuming" not in capsys.readouterr().out
    assert torch.equal(load_distilled(path).images, one.images)


def test_parts_of_experts_are_joined_to_the_same_store(campaign: Path) -> None:
    folder = RUN / "experts/digits/sgd"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert main(["experts", *CONFIG, "--dataset", "digits"]) == 0  # whole experts of the recipe are kept
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")} == stamps
    shutil.rmtree(folder)
    for part in ("1-1", "0-0"):
        assert main(["experts", *CONFIG, "--dataset", "digits", "--part", part]) == 0
    assert not (folder / "manifest.json").exists()
    assert main(["experts", *CONFIG, "--dataset", "digits", "--collect"]) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert json.loads(before["manifest.json"])["identity"]["recipe"]["epochs"] == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--iteration 3", "unknown: --iteration, 3 (the nearest flag is --iterations); see --help"),
        ("--no-augmentt", "unknown: --no-augmentt (the nearest flag is --no-augment); see --help"),
        ("extra", "unknown: extra; see --help"),
        ("--iterations x", "--iterations: expected a whole number, got 'x'; see --help"),
        ("--momentum x", "--momentum: expected a number, got 'x'; see --help"),
        ("--ipc x", "--ipc: expected a whole number, got 'x'; see --help"),
        ("--engine exact", "--engine: expected one of 'mixed', 'reverse', 'tesla', got 'exact'; see --help"),
        ("--ema x", "--ema: expected "),
    ],
)
def test_a_mistake_in_a_flag_is_told_without_the_texts_of_other_flags(
    refused: Refuse, arguments: str, told: str
) -> None:
    found = refused("distill", "--dataset", "digits", "--ipc", "1", "--method", "mtt", *arguments.split())
    assert found.startswith(f"satm: error: {told}") and len(found) < 120, found


def test_a_missing_flag_is_told_beside_an_unknown_one(refused: Refuse) -> None:
    found = refused("distill", "--datset", "digits", "--ipc", "1", "--method", "mtt")
    assert (
        found
        == "satm: error: missing: --dataset; unknown: --datset digits (the nearest flag is --dataset); see --help\n"
    )
