"""Memory: what is predicted, what fits, and the same bytes for any number of stored inner steps."""

import logging
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from satm.benchmarks.cases import Matching
from satm.benchmarks.measure import Setting, in_own_process
from satm.benchmarks.ways import matching_problems
from satm.errors import RunError, UsageError
from satm.ops import fused
from satm.run import memory
from satm.run.machine import peak_inside, peak_memory, peak_of_process
from satm.unroll import Adam, Hypergradient, InnerLoop, Momentum, Point, Rule, Sgd, hypergradient, planning
from satm.unroll.engines import ENGINES, Unroll
from satm.unroll.planning import SOME, graph_bytes, stored_steps

CPU = torch.device("cpu")
RULES: dict[str, Rule] = {
    "sgd": Sgd(),
    "decay": Sgd(0.01),
    "momentum": Momentum(0.9, weight_decay=0.01),
    "adam": Adam(),
}
CASES = {
    "all images": Matching(width=16, depth=2, size=12, classes=4, steps=6),
    "batches": Matching(width=16, depth=2, size=12, classes=4, ipc=3, batch=5, steps=6),
    "plain images": Matching(width=16, depth=2, size=12, classes=4, steps=5, augment=False),
}


def solve(case: Matching, **options: Any) -> Hypergradient:
    (problem,) = matching_problems(case, torch.float32, CPU)
    labels = options.pop("labels", problem.labels)
    return hypergradient(
        problem.module,
        problem.images,
        labels,
        0.01,
        lambda weights: (weights - problem.target).square().sum(),
        steps=case.steps,
        start=problem.start,
        batches=None if case.batch is None else problem.batches,
        augment=problem.augment if case.augment else None,
        **options,
    )


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CASES)
def test_any_number_of_stored_steps_gives_the_same_bytes(name: str, rule: str, soft: bool) -> None:
    case = CASES[name]
    labels = (
        {"labels": functional.one_hot(matching_problems(case, torch.float32, CPU)[0].labels, 4).float()} if soft else {}
    )
    first = solve(case, rule=RULES[rule], stored=0, **labels)
    for engine, stored in (("mixed", 2), ("mixed", 99), ("reverse", None)):
        other = solve(case, rule=RULES[rule], engine=engine, stored=stored, **labels)
        for part in ("loss", "images", "labels", "step_size", "start", "end"):
            one, two = getattr(first, part), getattr(other, part)
            assert (one is None and two is None) or torch.equal(one, two), (engine, stored, part)


def unroll_of(case: Matching, engine: str = "mixed", first: int = 0) -> Unroll:
    (problem,) = matching_problems(case, torch.float32, CPU)
    batches = None if case.batch is None else problem.batches
    augment = problem.augment if case.augment else None
    loop = InnerLoop(fused(problem.module), functional.cross_entropy, Sgd(), case.steps, batches, augment)
    tensors = problem.images, problem.labels, torch.tensor(0.01)
    point = Point(problem.start, {})
    return Unroll(engine, loop, point, *tensors, lambda weights: weights.square().sum(), first)


def stored_at(monkeypatch: pytest.MonkeyPatch, budget: str) -> int:
    """Return the number of stored steps that the engine is called with."""
    numbers, mixed = [], ENGINES["mixed"]

    def watched(unroll: Unroll) -> Any:
        numbers.append(unroll.stored)
        return mixed(unroll)

    monkeypatch.setitem(ENGINES, "mixed", watched)
    monkeypatch.setenv(memory.BUDGET, budget)
    solve(CASES["all images"])
    assert len(numbers) == 2  # the first is a rehearsal
    return numbers[-1]


def test_as_many_steps_are_stored_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["all images"]
    unroll = unroll_of(case)
    each = graph_bytes(unroll, 0)
    # The maps before and behind both blocks alone: 16 channels, 12 x 12 and 6 x 6 pixels, of 4 images.
    assert 4 * 16 * (144 + 36) * 4 < each < 4 * 4 * 16 * (144 + 36) * 4 + 20 * unroll.point_bytes
    for budget, stored in (("0", 0), (str(each), 1), (str(3 * each + 1), 3), ("1G", case.steps)):
        assert stored_at(monkeypatch, budget) == stored, budget


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1024", 1024), ("2k", 2048), ("1.5G", 3 * 2**29), ("500 MiB", 500 * 2**20), ("1TB", 2**40)],
)
def test_a_budget_is_a_size(text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(memory.BUDGET, text)
    assert memory.memory_budget(CPU) == size


@pytest.mark.parametrize("text", ["much", "-1", "5X", "G"])
def test_another_budget_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(memory.BUDGET, text)
    with pytest.raises(UsageError, match=f"SATM_MEMORY must be a size such as 500M or 4G, got '{text}'"):
        memory.memory_budget(CPU)


def test_without_a_budget_a_part_of_the_free_memory_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(memory.BUDGET, raising=False)
    monkeypatch.setattr(memory, "_free_of_machine", lambda: 1000)
    for limit, free, budget in ((None, 1000, 250), (100, 100, 50), (10_000, 1000, 500)):
        monkeypatch.setattr(memory, "_free_below_limit", lambda limit=limit: limit)
        assert (memory.free_memory(CPU), memory.memory_budget(CPU)) == (free, budget)


def group(folder: Path, version: int, limit: str, used: int, inactive: int = 0, active: int = 0) -> None:
    """Write the files of a control group."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    total = "" if version == 2 else "total_"
    for name, text in zip(names, (limit, str(used)), strict=True):
        (folder / name).write_text(f"{text}\n")
    (folder / "memory.stat").write_text(f"anon 7\n{total}inactive_file {inactive}\n{total}active_file {active}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_the_narrowest_limit_around_a_job_counts(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = tmp_path / ("memory" if version == 1 else "")
    own = "5:cpu,memory:/slurm/job_3/step_0" if version == 1 else "0::/slurm/job_3/step_0"
    (tmp_path / "own").write_text(f"9:name=systemd:/else\n{own}\n")
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
    none = "max" if version == 2 else str(2**63 - 4096)
    assert memory._free_below_limit() is None
    group(top, version, none, 10**6)
    group(top / "slurm", version, none, 10**6)
    group(top / "slurm/job_3/step_0", version, none, 400)
    assert memory._free_below_limit() is None
    group(top / "slurm/job_3", version, "1000", 500)
    assert memory._free_below_limit() == 500
    group(top / "slurm/job_3", version, "1000", 500, inactive=100, active=50)  # files that the system has cached
    assert memory._free_below_limit() == 650
    group(top / "slurm", version, "1200", 1000)
    assert memory._free_below_limit() == 200
    group(top / "slurm", version, "1200", 1300)
    assert memory._free_below_limit() == 0


def test_a_container_sees_its_own_group_at_the_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").write_text("0::/docker/4f2a\n")
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
    group(tmp_path, 2, "1000", 300)
    assert memory._free_below_limit() == 700
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "missing")
    assert memory._free_below_limit() is None


@pytest.mark.parametrize("way", ["mixed", "reverse", "tesla"])
@pytest.mark.parametrize("budget", ["0", "1G"])
def test_a_predicted_peak_is_right(way: str, budget: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 15 % of what the run adds, measured in a process of its own."""
    if way != "mixed" and budget == "0":
        pytest.skip("it stores nothing")
    monkeypatch.setenv(memory.BUDGET, budget)
    setting = Setting("hypergradient", Matching(width=64, ipc=10, batch=60, steps=8), "float32", CPU)
    found = in_own_process(setting, way, 0)
    assert found["peak"] > 50 * 2**20
    assert found["predicted"] == pytest.approx(found["peak"], rel=0.15), found


def test_a_plan_is_made_and_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(memory.BUDGET, "1G")
    unroll, calls, mixed = unroll_of(CASES["all images"], first=2), [], ENGINES["mixed"]

    def watched(unroll: Unroll) -> Any:
        calls.append((unroll.first, unroll.stored))
        return mixed(unroll)

    monkeypatch.setitem(ENGINES, "mixed", watched)
    with caplog.at_level(logging.INFO, "satm"):
        assert stored_steps(unroll) == stored_steps(unroll) == 4
        assert calls == [(2, 4)]
        stored_steps(replace(unroll, images=unroll.images.double(), point=Point(unroll.point.weights.double(), {})))
    assert len(caplog.messages) == len(calls) == 2
    told = (
        r"memory: about \d.* at the peak of a hypergradient, \d.* were free; the graphs of 4 of 4 inner steps are kept"
    )
    assert re.fullmatch(told, caplog.messages[0])


@pytest.mark.parametrize(
    ("engine", "free", "advice"),
    [
        ("reverse", 40, r"engine mixed takes about \d+ MiB"),
        ("mixed", 10, r"at most about (\d+) images in a step \(batch_size\) would fit"),
        ("tesla", 10, r"at most about (\d+) images in a step \(batch_size\) would fit"),
        ("mixed", 0.05, "use fewer inner steps, a smaller network or a machine with more memory"),
        ("reverse", 1, "use fewer inner steps, a smaller network or a machine with more memory"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(
    engine: str, free: float, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Matching(width=16, depth=2, size=32, classes=10, ipc=5, steps=6)
    unroll = unroll_of(case, engine)
    monkeypatch.setitem(ENGINES, engine, None)  # it must not be called
    monkeypatch.setattr(planning, "free_memory", lambda device: int(free * 2**20))
    with pytest.raises(
        RunError, match=f"6 inner steps with 50 images each takes about .* {engine}, and .* are free; "
    ) as told:
        stored_steps(unroll)
    found = re.search(advice, str(told.value))
    assert found is not None, told.value
    if found.groups():
        fewer = int(found[1])
        assert 1 <= fewer < 50
        for batch, fits in ((fewer, True), (fewer + 2, False)):
            batches = [torch.arange(batch)] * 6
            smaller = replace(unroll, loop=replace(unroll.loop, batches=batches))
            assert (planning.shortage(smaller) is None) == fits


def test_the_estimate_of_many_images_is_that_of_a_whole_step() -> None:
    case = Matching(width=16, depth=2, size=32, classes=10, ipc=5, steps=1, augment=False)
    unroll = unroll_of(case)
    few, more = (graph_bytes(unroll, 0, images) for images in SOME)
    each = (more - few) / (SOME[1] - SOME[0])
    assert few + (50 - SOME[0]) * each == pytest.approx(graph_bytes(unroll, 0), rel=0.01)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system keeps one peak of a process only")
def test_a_part_has_a_peak_of_its_own_and_the_job_keeps_the_largest() -> None:
    large = torch.ones(50 * 2**20)
    del large
    whole = peak_of_process()
    with peak_inside(CPU) as peak:
        small = torch.ones(10 * 2**20)
        assert peak() < whole
        assert peak() >= small.nbytes
    assert peak_of_process() >= whole
    assert peak_memory(CPU) >= whole


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_when_memory_runs_out_fewer_steps_are_stored(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mixed, numbers = ENGINES["mixed"], []

    def failing(unroll: Unroll) -> Any:
        numbers.append(unroll.stored)
        if unroll.stored > 1:
            raise error
        return mixed(unroll)

    expected = solve(CASES["all images"])
    monkeypatch.setitem(ENGINES, "mixed", failing)
    (problem,) = matching_problems(CASES["all images"], torch.float32, CPU)

    def again() -> Tensor:
        return hypergradient(
            problem.module,
            problem.images,
            problem.labels,
            0.01,
            lambda weights: (weights - problem.target).square().sum(),
            steps=6,
            start=problem.start,
            augment=problem.augment,
            stored=6,
        ).images

    with caplog.at_level(logging.WARNING, "satm"):
        assert torch.equal(again(), expected.images) and numbers == [6, 3, 1]
        assert torch.equal(again(), expected.images) and numbers == [6, 3, 1, 1]  # what fits is remembered
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "memory ran out with the graphs of 6 inner steps; going on with 3",
        "memory ran out with the graphs of 3 inner steps; going on with 1",
    ]


def test_other_errors_and_the_last_one_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, stored in ((ValueError("no"), 3), (RuntimeError("a shape"), 3), (MemoryError(), 0)):

        def failing(unroll: Unroll, error: Exception = error) -> Any:
            raise error

        monkeypatch.setitem(ENGINES, "mixed", failing)
        with pytest.raises(type(error)):
            solve(CASES["all images"], stored=stored)


def test_networks_with_norms_of_pytorch_give_the_same_bytes_too() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LayerNorm(4 * 36), nn.ReLU(), nn.Linear(4 * 36, 3))
    images, labels = torch.randn(3, 3, 8, 8), torch.arange(3)
    found = [
        hypergradient(
            module, images, labels, 0.1, lambda weights: weights.square().sum(), steps=4, stored=stored
        ).images
        for stored in (0, 2, 4)
    ]
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it() -> None:
    large = torch.ones(100 * 2**20)
    code = "from satm.run.machine import peak_of_process; print(peak_of_process())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2**20 < int(done.stdout) < large.nbytes / 2
