"""Fixtures of several test files: one seed, one thread, a store of random paths, a finished tiny campaign on disk."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hypothesis
import pytest
import torch
from drawing import SEED, THREADS, seed_everything, torch_generator
from hypothesis.configuration import set_hypothesis_home_dir
from torch import Tensor

from satm.cli import main
from satm.config import Cell
from satm.data import Augmentation, ImageData, Preprocessor, Split
from satm.data.images import hash_images
from satm.experts import TrajectoryStore, describe_shard, write_manifest, write_shard
from satm.methods.parts.problem import Problem
from satm.networks import build
from satm.params import flatten
from satm.results.distilled import DistilledDataset
from satm.run import disk

os.environ["SATM_OPERATIONS"] = "own"  # also where PyTorch's are faster, as for many tiny networks
# What torch compiles for one instruction set is wrong under another, and it does not look.
COMPILED = f"torch-{os.getuid()}-{torch.backends.cpu.get_cpu_capability().lower()}"
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(tempfile.gettempdir(), COMPILED))

set_hypothesis_home_dir(Path(tempfile.gettempdir(), f"hypothesis-{os.getuid()}"))  # nothing in the current folder
hypothesis.settings.register_profile("same", deadline=None, print_blob=True, database=None, max_examples=50)
hypothesis.settings.load_profile("same")

TINY = """
datasets:
  digits: {source: digits, augment: crop_scale_rotate}
  held: {source: digits, validation: 5}
  white: {source: digits, zca: true, augment: crop_scale_rotate}
experts:
  sgd: {count: 2, epochs: 3, lr: 0.05, batch_size: 256, per_job: 1}
  other: {count: 1, epochs: 1}
networks:
  small: {network: convnet, depth: 1, width: 4}
settings:
  - {stage: network, network: convnet, options: {depth: 1, width: 4}}
  - {stage: evaluate, options: {repeats: 2, epochs: 3, decay_epoch: 2}}
  - method: [mtt, satm]
    options: {iterations: 3, inner_steps: 4, expert_epochs: 1, max_start_epoch: 2, lr_images: 1, step_size: 0.05}
  - {method: satm, options: {rho: 0.05, gamma: 0.001, keep_divisor: 2}}
tables:
  table2: {datasets: {digits: [1]}, methods: [random, mtt, satm]}
"""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what repeats the random numbers and the rounding of this run; `-q` leaves out the header of pytest."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    values = f"SATM_TEST_SEED={SEED} SATM_TEST_THREADS={THREADS} ATEN_CPU_CAPABILITY={capability}"
    terminalreporter.write_line(f"random numbers and rounding: {values}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Draw the examples of Hypothesis from the session's seed."""
    for item in items:
        if isinstance(item, pytest.Function) and hypothesis.is_hypothesis_test(item.function):
            hypothesis.seed(SEED)(item.function)


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """Make each test's random numbers and threads the same, whatever ran before it."""
    seed_everything()
    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk nothing is waited for."""
    monkeypatch.setattr(disk, "SPACE_WAIT", 0.0)


@pytest.fixture(autouse=True)
def _quiet_log() -> Iterator[None]:
    yield
    logging.getLogger("satm").handlers.clear()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny.yaml` and everything that its stages make of digits at one image per class."""
    folder = tmp_path_factory.mktemp("campaign")
    (folder / "tiny.yaml").write_text(TINY)
    before = Path.cwd()
    os.chdir(folder)
    try:
        cell = ["--config", "tiny.yaml", "--dataset", "digits", "--ipc", "1"]
        for stage in (
            ["data", "--config", "tiny.yaml", "--dataset", "digits"],
            ["experts", "--config", "tiny.yaml", "--dataset", "digits"],
            ["distill", *cell, "--method", "satm"],
            ["evaluate", *cell, "--method", "satm"],
        ):
            assert main(stage) == 0, stage
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def campaign(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished campaign as the current folder, free to be broken."""
    shutil.copytree(finished, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


Refuse = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Run a command in this process; it must end with the exit code and one line on the standard error.

    Several problems are listed below it, one per indented line.
    """

    def run(*arguments: str, code: int = 2) -> str:
        capsys.readouterr()
        found = main(list(arguments))
        told = capsys.readouterr().err
        assert found == code, (found, told)
        assert told.startswith("satm: error: ") and told.endswith("\n"), told
        assert all(line.startswith("  ") for line in told.splitlines()[1:]), told
        assert "Traceback" not in told
        return told

    return run


def image_data(classes: int = 3, each: int = 4, size: int = 8, channels: int = 1) -> ImageData:
    """Random images, the same each time."""
    generator = torch_generator(5)
    labels = torch.arange(classes).repeat_interleave(each)
    shape = (len(labels), channels, size, size)
    splits = [Split(torch.randint(256, shape, generator=generator, dtype=torch.uint8), labels) for _ in range(3)]
    names = tuple("abcdefghij"[:classes])
    return ImageData("noise", *splits, names, (0.5,) * channels, (0.25,) * channels, hash_images(*splits))


def grey_set(
    greys: Tensor, labels: Tensor, names: Sequence[str], ipc: int, size: int = 8, channels: int = 1
) -> DistilledDataset:
    """Return a synthetic set whose images are evenly these numbers `[n]`, in the space of training."""
    return DistilledDataset(
        images=greys.float()[:, None, None, None].expand(-1, channels, size, size).contiguous(),
        labels=labels,
        step_size=torch.tensor(0.1),
        preprocessing={
            "space": "normalised",
            "mean": [0.5] * channels,
            "std": [0.25] * channels,
            "whitening_hash": None,
        },
        class_names=tuple(names),
        dataset="greys",
        ipc=ipc,
        method="mtt",
        seed=0,
        options={},
        iteration=1,
        selection="last",
    )


def write_experts(folder: Path, paths: Sequence[Sequence[Tensor]]) -> TrajectoryStore:
    """Return a trajectory store in a folder, one expert per path of `[P]` weights."""
    records = []
    for index, path in enumerate(paths):
        write_shard(folder, index, [weights.clone() for weights in path], {"name": "paths"}, 0.5)
        records.append(describe_shard(folder, index))
    write_manifest(folder / "manifest.json", {"name": "paths"}, records)
    return TrajectoryStore(folder / "manifest.json")


SMOOTH = {"network": "convnet", "depth": 1, "width": 3, "activation": "sigmoid"}


@pytest.fixture
def problem(tmp_path: Path) -> Problem:
    """Three classes of random 8 x 8 images, two experts of four epochs on random paths, a smooth network in float64."""
    data = image_data()
    module = build(SMOOTH, 1, 3, 8, seed=1)
    generator = torch_generator(2)
    start = flatten(module)
    paths = []
    for _ in range(2):
        steps = 0.1 * torch.randn(5, len(start), generator=generator)
        paths.append([start + steps[: epoch + 1].sum(0) for epoch in range(5)])
    return Problem(
        data,
        Preprocessor(data.mean, data.std, None),
        Augmentation("color_crop_cutout_flip_scale_rotate", "image"),
        lambda seed: build(SMOOTH, 1, 3, 8, seed=seed).double(),
        2,
        torch.device("cpu"),
        Cell("noise", 2, "any"),
        write_experts(tmp_path / "experts", paths),
    )


@pytest.fixture
def foreign(problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of real images, the first two of each class in the space of training: what `$FOREIGN_IMAGES` names."""
    first = torch.tensor([0, 1, 4, 5, 8, 9])
    path = tmp_path / "foreign" / "images_best.pt"
    path.parent.mkdir()
    torch.save(problem.preprocessor.apply(problem.data.train.images[first]), path)
    monkeypatch.setenv("FOREIGN_IMAGES", str(path))
    return path
