"""The published loops against the engines, and the benchmarks as commands."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from drawing import torch_generator
from tolerances import DISTINCT, LOOPS, SINGLE

from satm.benchmarks import commands, reference
from satm.benchmarks.cases import Experts, Matching
from satm.benchmarks.commands import BENCHMARKS
from satm.benchmarks.measure import apart
from satm.benchmarks.ways import matching_problems, matching_way
from satm.cli import STAGES, main
from satm.data import Augmentation
from satm.networks import build
from satm.networks.training import TrainingImages, train_epoch
from satm.params import flatten
from satm.results.columns import BENCH
from satm.results.rows import read_rows, read_rows_metadata

CPU = torch.device("cpu")
CASES = {
    "plain": Matching(width=4, depth=2, size=8, classes=3, steps=4, augment=False),
    "augmented": Matching(width=4, depth=2, size=12, classes=3, steps=5),
    "batches": Matching(width=4, depth=2, size=8, classes=3, ipc=2, batch=4, steps=5),
    "segments": Matching(width=4, depth=1, size=8, classes=3, steps=3, concurrent=2),
}


@pytest.mark.parametrize("engine", ["reverse", "mixed", "mixed:2", "mixed:100"])
@pytest.mark.parametrize("name", CASES)
def test_engines_equal_the_published_loop_of_mtt(name: str, engine: str) -> None:
    ours, theirs = (matching_way(CASES[name], torch.float64, CPU, way)() for way in (engine, "mtt-loop"))
    assert apart(ours, theirs) < LOOPS
    for place in (0, 2):
        torch.testing.assert_close(ours[place], theirs[place], rtol=LOOPS, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_the_engine_tesla_equals_its_published_loop(name: str) -> None:
    ours, theirs, exact = (
        matching_way(CASES[name], torch.float64, CPU, way)() for way in ("tesla", "tesla-loop", "mtt-loop")
    )
    assert apart(ours, theirs) < LOOPS < DISTINCT < apart(theirs, exact)
    for place in (0, 2):
        torch.testing.assert_close(ours[place], theirs[place], rtol=LOOPS, atol=0)


def test_a_case_is_the_same_in_every_precision() -> None:
    one, other = (matching_problems(CASES["augmented"], dtype, CPU)[0] for dtype in (torch.float32, torch.float64))
    torch.testing.assert_close(one.images.double(), other.images, rtol=SINGLE, atol=SINGLE)
    torch.testing.assert_close(one.target.double(), other.target, rtol=SINGLE, atol=SINGLE)


def test_the_published_training_equals_ours() -> None:
    images = torch.randn(7, 3, 8, 8, generator=torch_generator(), dtype=torch.float64)
    labels, plain = torch.arange(7) % 3, Augmentation("", "image")
    one, other = (build({"network": "convnet", "width": 4, "depth": 1}, 3, 3, 8, 0).double() for _ in range(2))
    optimiser = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.5, weight_decay=0.01)
    for network in (one, other):
        network.double()
    # The published loop asks for float32 images; with all images in each step the order does not matter.
    loss = reference.train_epochs(
        one.float(), images.float(), labels, 3, plain, torch_generator(), lr=0.1, momentum=0.5, weight_decay=0.01
    )
    for _ in range(3):
        ours = train_epoch(other, optimiser, TrainingImages(images, labels), 256, plain, torch_generator())
    torch.testing.assert_close(flatten(one), flatten(other).float(), rtol=1e-3, atol=1e-5)  # float32 against float64
    assert loss == pytest.approx(ours, rel=1e-4)


SMALL = ["--width", "4", "--depth", "1", "--size", "8", "--device", "cpu"]


@pytest.mark.parametrize(
    ("name", "flags", "ways"),
    [
        ("hypergradient", [*SMALL, "--steps", "3"], ["mtt-loop", "tesla-loop", "reverse", "mixed", "mixed:0", "tesla"]),
        ("distill", [*SMALL, "--steps", "3"], ["mtt-loop", "tesla-loop", "mtt", "satm", "tesla"]),
        ("experts", [*SMALL, "--images", "20"], ["published", "ours"]),
        (
            "evaluate",
            ["--options", "width=4", "--size", "8", "--epochs", "2", "--networks", "2", "--device", "cpu"],
            [],
        ),
    ],
)
def test_a_benchmark_shows_and_writes_its_measurements(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, flags: list[str], ways: list[str]
) -> None:
    out = tmp_path / "deep" / "out.parquet"
    assert main(["bench", name, *flags, "--rounds", "1", "--no-memory", "--out", str(out)]) == 0
    told = capfd.readouterr().out
    rows = read_rows(out, BENCH)
    assert list(rows["way"]) == (ways or ["published", "one by one", "at once"])
    for row in rows.itertuples():
        assert row.kind == name and row.seconds > 0 and str(row.way) in told
    assert rows["times_as_fast"][0] == 1 and "times as fast" in told
    assert "of the memory" not in told
    metadata = read_rows_metadata(out, BENCH)
    assert metadata["options"]["threads"] == torch.get_num_threads() and metadata["versions"]["torch"] in told
    if name == "hypergradient":
        (equal,) = (line for line in told.splitlines() if line.startswith("mixed against mtt-loop, float64: "))
        assert float(equal.rpartition(" ")[2]) < LOOPS


@pytest.mark.parametrize("of", ["steps", "concurrent"])
def test_scaling_shows_slopes(tmp_path: Path, capfd: pytest.CaptureFixture[str], of: str) -> None:
    out = tmp_path / "out.parquet"
    flags = ["--of", of, "--values", "1", "2", "--ways", "mixed", "--rounds", "1", "--out", str(out)]
    assert main(["bench", "scaling", *SMALL, "--steps", "2", *flags]) == 0
    rows = read_rows(out, BENCH)
    assert list(rows["value"]) == [1, 2] and set(rows["of"]) == {of} and all(rows["seconds"] > 0)
    assert f"seconds for one more of {of}" in " ".join(capfd.readouterr().out.split())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["hypergradient", "--ways", "mixt"], "unknown way 'mixt'"),
        (["distill", "--ways", "mttt"], "unknown method 'mttt'"),
        (["experts", "--ways", "our"], "unknown way 'our'"),
        (["evaluate", "--ways", "one"], "unknown way 'one'"),
        (["hypergradient", "--rounds", "0"], "expected --ways and --rounds of at least 1, got 6 ways and 0 rounds"),
        (["scaling", "--values", "3"], "a slope needs two sizes at least, got [3]"),
    ],
)
def test_a_benchmark_says_what_it_cannot_do(
    capfd: pytest.CaptureFixture[str], flags: list[str], said: str, tmp_path: Path
) -> None:
    assert main(["bench", *flags, "--device", "cpu", "--out", str(tmp_path / "x.parquet")]) == 2
    assert said in capfd.readouterr().err


def test_all_settings_are_measured_once_and_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Matching(width=4, depth=1, size=8, classes=2, steps=3)
    tiny = Experts(width=4, depth=1, size=8, images=8, batch=4)
    settings = {"one": ("hypergradient", small, ("mtt-loop", "mixed")), "two": ("experts", tiny, ("published", "ours"))}
    monkeypatch.setattr(commands, "SETTINGS", settings)
    command = ["bench", "all", "--only", "one", "two", "--rounds", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert main(command) == 0
    folder = tmp_path / "cpu"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    capfd.readouterr()
    assert main(command) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert sorted(first) == ["one.parquet", "two.parquet"]
    for path in folder.iterdir():
        assert (read_rows(path, BENCH)["peak_memory_bytes"] >= 0).all()
    told = capfd.readouterr().out
    assert all(
        each in told for each in ("one", "two", "mtt-loop", "mixed", "published", "ours", "of the memory", "predicted")
    )
    assert main(["bench", "all", "--only", "one", "three", "--out", str(tmp_path)]) == 2
    assert "unknown setting 'three'; known: one, two" in capfd.readouterr().err


HELPS = """
import sys
from satm.cli import main
wrong = [stage for stage in sys.argv[1:] if main([*stage.split(), "--help"]) != 0]
refused = main(["distill", "--methd", "mtt"]), main(["distill", "--dataset", "digits", "--ipc", "0", "--method", "mtt"])
print([*wrong, refused, sorted({"torch", "matplotlib", "scipy", "sklearn"} & set(sys.modules))])
"""


def test_help_and_refusals_import_no_torch(tmp_path: Path) -> None:
    stages = [*(stage for stage in STAGES if stage != "bench"), "bench", *(f"bench {name}" for name in BENCHMARKS)]
    done = subprocess.run(
        [sys.executable, "-c", HELPS, *stages], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[(2, 2), []]", done.stdout
