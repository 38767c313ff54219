"""The choice of operations: measured once, read by later processes, kept by a resumed run."""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from drawing import torch_generator
from torch import Tensor, nn

from satm.data import Augmentation
from satm.errors import UsageError
from satm.experts import Snapshot
from satm.networks.training import TrainingImages, train_epoch
from satm.ops import choice, fastest, fused, own
from satm.ops.fuse import is_fused
from satm.stages.checkpoint import ExpertState, Generations
from satm.unroll import hypergradient

IMAGES = torch.zeros(3, 3, 8, 8)


@pytest.fixture(autouse=True)
def _measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(choice.OPERATIONS, "measured")
    monkeypatch.setenv("SATM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(choice, "_choices", {})


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))


def slow(when: Callable[[nn.Module], bool], calls: list[bool]) -> Callable[[nn.Module], None]:
    """Work that takes longer with some networks."""

    def work(module: nn.Module) -> None:
        calls.append(is_fused(module))
        time.sleep(0.02 if when(module) else 0.001)

    return work


@pytest.mark.parametrize("ours", [True, False])
def test_the_faster_operations_are_chosen_and_told_once(ours: bool, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[bool] = []
    work = slow(lambda module: is_fused(module) != ours, calls)
    module = network()
    with caplog.at_level(logging.INFO, "satm"):
        first = fastest(module, ("trials", 4), IMAGES, work)
        assert calls == [True, False] * (1 + choice.ROUNDS)
        assert first is (fused(module) if ours else module)
        assert fastest(module, ("trials", 4), IMAGES, work) is first and len(calls) == 2 * (1 + choice.ROUNDS)
        choice._choices.clear()  # as in another process
        assert is_fused(fastest(network(), ("trials", 4), IMAGES, work)) == ours
        assert len(calls) == 2 * (1 + choice.ROUNDS)
    (told,) = (text for text in caplog.messages if text.startswith("trials"))
    names = ["the operations of satm", "PyTorch's operations"]
    assert told.startswith(f"trials: {names[not ours]}, ") and f" times as fast as {names[ours]} (measured" in told


@pytest.mark.parametrize("change", ["size", "network", "weights", "threads", "version"])
def test_what_changes_the_time_is_measured_again(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    work = slow(lambda module: False, calls)
    fastest(network(), ("trials", 4), IMAGES, work)
    before, threads = len(calls), torch.get_num_threads()
    module, size = network(), 4
    if change == "size":
        size = 5
    elif change == "network":
        module[2] = nn.LeakyReLU()
    elif change == "weights":
        module = module.double()
    elif change == "threads":
        torch.set_num_threads(3 - threads)
    else:
        monkeypatch.setattr(choice, "_version", lambda: "another")
    try:
        fastest(module, ("trials", size), IMAGES, work)
    finally:
        torch.set_num_threads(threads)
    assert len(calls) == 2 * before


def test_measuring_changes_neither_networks_nor_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout and running statistics, training ends as without measuring."""
    monkeypatch.setattr(choice, "_write", lambda key, way: choice.OWN)
    images, state = torch.randn(6, 3, 8, 8, generator=torch_generator()), torch.get_rng_state()
    data, ends = TrainingImages(images, torch.arange(6) % 3), []
    for asked in ("measured", "own"):
        monkeypatch.setenv(choice.OPERATIONS, asked)
        torch.set_rng_state(state)
        layers = [*network()[:3], nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(256, 3)]
        module = nn.Sequential(*layers)
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        train_epoch(module, optimiser, data, 4, Augmentation("", "image"), torch_generator(1))
        ends.append([*module.state_dict().values()])
    assert len(choice.made()) == 1
    assert all(map(torch.equal, *ends))


def solve(module: nn.Module) -> Tensor:
    images, labels = torch.randn(3, 3, 8, 8, generator=torch_generator()), torch.arange(3)
    return hypergradient(module, images, labels, 0.1, lambda weights: weights.square().sum(), steps=2).images


@pytest.mark.parametrize("way", [choice.OWN, choice.PLAIN])
def test_a_hypergradient_follows_the_choice(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = network()
    monkeypatch.setattr(choice, "_measure", lambda *arguments: way)
    found = solve(module)
    monkeypatch.setenv(choice.OPERATIONS, way)
    assert torch.equal(found, solve(module))
    monkeypatch.setenv(choice.OPERATIONS, {"own": "plain", "plain": "own"}[way])
    assert not torch.equal(found, solve(module))


def test_all_operations_can_be_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.OPERATIONS, "plain")
    monkeypatch.setattr(choice, "fused", None)
    module = network()
    assert own(module, IMAGES) is module
    assert float(solve(module).norm()) > 0


def test_an_unknown_wish_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.OPERATIONS, "fast")
    with pytest.raises(UsageError, match=r"unknown value of SATM_OPERATIONS 'fast'; known: measured, own, plain"):
        solve(network())


def test_a_stored_state_keeps_the_choices(tmp_path: Path) -> None:
    choice.keep({"key": "plain"})
    Generations(tmp_path, "run", {"a": 1}).save({}, {})
    ExpertState(tmp_path / "expert", {"a": 1}).save(Snapshot(0, torch.zeros(2), None, 0.0, {}))
    for load in (Generations(tmp_path, "run", {"a": 1}).load, ExpertState(tmp_path / "expert", {"a": 1}).load):
        choice._choices.clear()
        assert load() is not None
        assert choice.made() == {"key": "plain"}


def test_the_first_of_two_processes_decides(tmp_path: Path) -> None:
    assert choice._write("key", "own") == "own"
    assert choice._write("key", "plain") == "own"
    (path,) = tmp_path.rglob("choices/key")
    path.write_text("")  # damaged, so it is measured again
    assert choice._read("key") is None and choice._write("key", "plain") == "plain"
    assert choice._read("key") == "plain"


def test_where_nothing_can_be_written_each_process_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "cache_folders", lambda: iter(()))
    assert isinstance(fastest(network(), ("trials",), IMAGES, slow(lambda module: False, [])), nn.Module)
    assert len(choice.made()) == 1


def test_two_processes_compute_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "import torch, hashlib; torch.set_num_threads(1); torch.manual_seed(0)\n"
        "from satm.networks import build; from satm.unroll import hypergradient\n"
        "module = build({'network': 'convnet', 'width': 8, 'depth': 1, 'norm': 'group'}, 3, 3, 8, 0)\n"
        "images = torch.randn(3, 3, 8, 8)\n"
        "found = hypergradient(module, images, torch.arange(3), 0.1, torch.sum, steps=3).images\n"
        "print(hashlib.sha256(found.numpy().tobytes()).hexdigest())"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert len({process.communicate(timeout=120)[0] for process in running}) == 1
    assert {json.loads(path.read_text()) for path in tmp_path.rglob("choices/*")} <= {"own", "plain"}
