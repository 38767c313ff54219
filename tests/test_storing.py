"""Stored inner steps: as many as fit, and the same bytes for any number."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from satm.benchmarks.cases import Matching
from satm.benchmarks.ways import matching_problems
from satm.errors import UsageError
from satm.ops import fused
from satm.run import memory
from satm.unroll import Adam, Hypergradient, InnerLoop, Momentum, Point, Rule, Sgd, hypergradient
from satm.unroll.engines import ENGINES
from satm.unroll.storing import graph_bytes

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


def stored_at(monkeypatch: pytest.MonkeyPatch, budget: str | None) -> list[int]:
    """Return the numbers of stored steps that the engine is called with."""
    numbers, mixed = [], ENGINES["mixed"]

    def watched(*arguments: Any) -> Any:
        numbers.append(arguments[-1])
        return mixed(*arguments)

    monkeypatch.setitem(ENGINES, "mixed", watched)
    if budget is None:
        monkeypatch.delenv(memory.BUDGET, raising=False)
    else:
        monkeypatch.setenv(memory.BUDGET, budget)
    solve(CASES["all images"])
    return numbers


def test_as_many_steps_are_stored_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["all images"]
    (problem,) = matching_problems(case, torch.float32, CPU)
    loop = InnerLoop(fused(problem.module), functional.cross_entropy, Sgd(), case.steps, None, problem.augment)
    each = graph_bytes(loop, Point(problem.start, {}), problem.images, problem.labels, 0)
    # The maps before and behind both blocks alone: 16 channels, 12 x 12 and 6 x 6 pixels, of 4 images.
    assert 4 * 16 * (144 + 36) * 4 < each < 4 * 4 * 16 * (144 + 36) * 4 + 20 * 4 * len(problem.start)
    for budget, stored in (("0", 0), (str(each), 1), (str(3 * each + 1), 3), ("1G", case.steps)):
        assert stored_at(monkeypatch, budget) == [stored], budget


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
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    for limit, budget in ((None, 250), (100, 50), (10_000, 1000)):
        monkeypatch.setattr(memory, "_free_below_limit", lambda limit=limit: limit)
        assert memory.memory_budget(CPU) == budget


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_when_memory_runs_out_fewer_steps_are_stored(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mixed, numbers = ENGINES["mixed"], []

    def failing(*arguments: Any) -> Any:
        numbers.append(arguments[-1])
        if arguments[-1] > 1:
            raise error
        return mixed(*arguments)

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
    assert caplog.messages == [
        "memory ran out with the graphs of 6 inner steps; going on with 3",
        "memory ran out with the graphs of 3 inner steps; going on with 1",
    ]


def test_other_errors_and_the_last_one_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, stored in ((ValueError("no"), 3), (RuntimeError("a shape"), 3), (MemoryError(), 0)):

        def failing(*arguments: Any, error: Exception = error) -> Any:
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
