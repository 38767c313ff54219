"""Experts: their training and its resumption, and the store that refuses what is not what was asked for."""

import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Refuse
from drawing import torch_generator
from resuming import check_resumes
from tolerances import SINGLE
from torch.nn import functional

from satm.cli import main
from satm.config import ExpertsOptions
from satm.data import Augmentation
from satm.errors import RunError, UsageError
from satm.experts import (
    Snapshot,
    TrajectoryStore,
    chance_level,
    describe_shard,
    shard_identity,
    train_expert,
    write_manifest,
    write_shard,
)
from satm.experts.store import shard_name
from satm.networks import build
from satm.networks.training import TrainingImages
from satm.params import flatten
from satm.seeds import make_generator
from satm.stages.checkpoint import ExpertState
from satm.storage.identity import differing_fields, hash_file

IDENTITY: dict[str, Any] = {
    "dataset": "digits",
    "data": "abc",
    "preprocessing": {"space": "normalised", "mean": [0.5], "std": [0.25], "whitening_hash": None},
    "augmentation": ["crop", "image"],
    "network": {"network": "convnet", "width": 4},
    "experts": "sgd",
    "recipe": {"epochs": 2, "lr": 0.1, "seed": 0},
}
AXES = ("experts", "noise", 0)


def images() -> TrainingImages:
    generator = torch_generator(0)
    return TrainingImages(torch.randn(20, 1, 8, 8, generator=generator), torch.arange(20) % 3)


def network() -> torch.nn.Module:
    return build({"network": "convnet", "depth": 1, "width": 2}, 1, 3, 8, seed=4)


def train(options: ExpertsOptions, after: Snapshot | None = None) -> Iterator[Snapshot]:
    augmentation = Augmentation("color_crop_flip", "image") if options.augment else Augmentation("", "image")
    return train_expert(network(), images(), options, augmentation, AXES, after)


RECIPES = [
    ExpertsOptions(epochs=5, lr=0.1, batch_size=8),
    ExpertsOptions(epochs=5, lr=0.05, batch_size=8, momentum=0.9, weight_decay=1e-3),
]


@pytest.mark.parametrize("options", RECIPES, ids=["plain", "momentum"])
def test_snapshots_own_their_memory(options: ExpertsOptions) -> None:
    kept, copies = [], []
    for snapshot in train(options):
        kept.append(snapshot)
        copies.append((snapshot.weights.clone(), None if snapshot.momentum is None else snapshot.momentum.clone()))
    assert [snapshot.epoch for snapshot in kept] == [0, 1, 2, 3, 4, 5]
    assert torch.equal(kept[0].weights, flatten(network()))
    for snapshot, (weights, momentum) in zip(kept, copies, strict=True):
        assert torch.equal(snapshot.weights, weights)
        assert (snapshot.momentum is None) == (momentum is None)
        assert momentum is None or torch.equal(snapshot.momentum, momentum)
    assert all(not torch.equal(one.weights, other.weights) for one, other in pairwise(kept))
    assert (kept[1].momentum is not None) == (options.momentum > 0)


@pytest.mark.parametrize("options", RECIPES, ids=["plain", "momentum"])
def test_going_on_from_any_epoch_is_not_stopping(options: ExpertsOptions, tmp_path: Path) -> None:
    check_resumes(partial(train, options), options.epochs, tmp_path)


def test_an_epoch_is_sgd_written_out() -> None:
    options = ExpertsOptions(epochs=1, lr=0.1, batch_size=8, weight_decay=0.01, augment=False)
    *_, last = train(options)
    module, data = network(), images()
    optimiser = torch.optim.SGD(module.parameters(), 0.1, weight_decay=0.01)
    losses = []
    for chosen in torch.randperm(20, generator=make_generator(*AXES, 1)).split(8):
        optimiser.zero_grad()
        loss = functional.cross_entropy(module(data.images[chosen]), data.labels[chosen])
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()) * len(chosen))
    torch.testing.assert_close(last.weights, flatten(module), rtol=SINGLE, atol=SINGLE)
    assert last.loss == pytest.approx(sum(losses) / 20, rel=SINGLE)


def test_the_state_of_another_expert_is_dropped_and_a_broken_epoch_is_trained_again(tmp_path: Path) -> None:
    options = RECIPES[1]
    state = ExpertState(tmp_path / "expert", {"name": "it"})
    for snapshot in islice(train(options), 4):
        state.save(snapshot)
    broken = tmp_path / "expert" / "epoch-0003.safetensors"
    broken.write_bytes(broken.read_bytes()[:100])
    after = state.load()
    assert after is not None and after.epoch == 2 and after.momentum is not None
    (tmp_path / "expert" / "epoch-0001.safetensors").unlink()  # the row is broken: only its start serves
    after = state.load()
    assert after is not None and after.epoch == 0
    assert ExpertState(tmp_path / "expert", {"name": "other"}).load() is None
    assert not (tmp_path / "expert").exists()
    assert state.load() is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two experts of three snapshots of five parameters."""
    records = []
    for index in (1, 0):
        snapshots = [torch.arange(5.0) + 10 * index + 100 * epoch for epoch in range(3)]
        write_shard(tmp_path, index, snapshots, IDENTITY, 0.25 + index / 2)
        records.append(describe_shard(tmp_path, index))
    write_manifest(tmp_path / "manifest.json", IDENTITY, records)
    return tmp_path


def test_the_store_gives_back_what_was_written(folder: Path) -> None:
    held = TrajectoryStore(folder / "manifest.json", IDENTITY)
    assert len(held) == 2 and held.epochs == 2
    assert held.snapshot(1, 2).tolist() == [210, 211, 212, 213, 214]
    assert held.snapshot(0, 0).tolist() == [0, 1, 2, 3, 4]
    assert [shard["test_accuracy"] for shard in held.shards] == [0.25, 0.75]
    assert held.shards[0]["sha256"] == hash_file(folder / "expert-000.safetensors")
    weights = held.snapshot(0, 1)
    (folder / "expert-000.safetensors").write_bytes(b"")
    assert weights.tolist() == [100, 101, 102, 103, 104]  # no view of the file


def test_the_epochs_are_those_that_every_expert_has(folder: Path) -> None:
    write_shard(folder, 0, [torch.zeros(5) for _ in range(2)], IDENTITY, 0.5)
    write_manifest(folder / "manifest.json", IDENTITY, [describe_shard(folder, index) for index in (0, 1)])
    held = TrajectoryStore(folder / "manifest.json")
    assert held.epochs == 1
    with pytest.raises(UsageError, match="has no snapshot 2; it has 2"):
        held.snapshot(0, 2)


def test_one_snapshot_is_read_without_the_others(folder: Path) -> None:
    """A change to one is not noticed when another is read."""
    held, path = TrajectoryStore(folder / "manifest.json", IDENTITY), folder / "expert-001.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    failed = []
    for epoch in range(3):
        try:
            held.snapshot(1, epoch)
        except UsageError:
            failed.append(epoch)
    assert len(failed) == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"dataset": "cifar10"}, "dataset: expected 'cifar10', found 'digits'"),
        ({"data": "abd"}, "data: expected 'abd', found 'abc'"),
        (
            {"preprocessing": {**IDENTITY["preprocessing"], "whitening_hash": "f00"}},
            "preprocessing.whitening_hash",
        ),
        ({"preprocessing": {**IDENTITY["preprocessing"], "mean": [0.4]}}, r"preprocessing.mean: expected \[0.4\]"),
        ({"augmentation": None}, r"augmentation: expected None, found \['crop', 'image'\]"),
        ({"network": {"network": "convnet", "width": 8}}, "network.width: expected 8, found 4"),
        ({"network": {"network": "convnet", "width": 4, "depth": 2}}, "network.depth: expected 2, found None"),
        ({"experts": "flat"}, "experts: expected 'flat', found 'sgd'"),
        ({"recipe": {"epochs": 3, "lr": 0.1, "seed": 0}}, "recipe.epochs: expected 3, found 2"),
        ({"recipe": {"epochs": 2, "lr": 0.1, "seed": 1}}, "recipe.seed: expected 1, found 0"),
    ],
)
def test_experts_other_than_asked_for_are_refused_by_the_field(folder: Path, change: Any, text: str) -> None:
    assert differing_fields(IDENTITY, json.loads(json.dumps(IDENTITY))) is None
    rounded = {
        **IDENTITY,
        "preprocessing": {
            **IDENTITY["preprocessing"],
            "mean": [
                0.5 + 1e-16,
            ],
            "std": [0.25 * (1 + 4e-16)],
        },
    }
    assert rounded != IDENTITY and differing_fields(IDENTITY, rounded) is None
    with pytest.raises(UsageError, match=f"not the ones asked for: {text}.*, or train them again") as caught:
        TrajectoryStore(folder / "manifest.json", {**IDENTITY, **change})
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_refused(folder: Path) -> None:
    (folder / "expert-001.safetensors").unlink()
    with pytest.raises(UsageError, match=r"expert-001\.safetensors is missing"):
        TrajectoryStore(folder / "manifest.json", IDENTITY)


def test_a_truncated_shard_is_refused(folder: Path) -> None:
    path = folder / "expert-000.safetensors"
    whole = path.read_bytes()
    for length in (0, 5, 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError, match=rf"expert-000.safetensors has {length} bytes instead of {len(whole)}"):
            TrajectoryStore(folder / "manifest.json", IDENTITY)
        assert shard_identity(folder, 0) is None
        with pytest.raises(UsageError, match="not a whole safetensors file"):
            describe_shard(folder, 0)


def flipped(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_changed_snapshot_is_found_when_it_is_read_and_its_shard_is_made_again(folder: Path) -> None:
    path = folder / "expert-000.safetensors"
    flipped(path, -1)
    held = TrajectoryStore(folder / "manifest.json", IDENTITY)
    held.snapshot(0, 0)
    with pytest.raises(UsageError, match=r"expert-000\.safetensors was changed: its tensor '2' does not have the hash"):
        held.snapshot(0, 2)
    assert shard_identity(folder, 0) is None and shard_identity(folder, 1) == IDENTITY


def test_a_shard_in_the_place_of_another_is_refused(folder: Path) -> None:
    held = TrajectoryStore(folder / "manifest.json", IDENTITY)
    shutil.copy(folder / "expert-001.safetensors", folder / "expert-000.safetensors")
    with pytest.raises(UsageError, match=r"expert-000\.safetensors holds expert 1, expected expert 0"):
        held.snapshot(0, 1)
    assert shard_identity(folder, 0) is None
    write_shard(folder, 0, [torch.full((5,), float(n)) for n in range(3)], {**IDENTITY, "dataset": "other"}, 0.25)
    with pytest.raises(UsageError, match="holds another expert than the manifest says: dataset: expected 'digits'"):
        held.snapshot(0, 1)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"file": "../expert-000.safetensors"}, "file '../expert-000.safetensors' is not that of expert 0"),
        ({"index": 1}, "file 'expert-000.safetensors' is not that of expert 1"),
        ({"snapshots": 0}, "snapshots: .*greater than or equal to 1"),
        ({"bytes": "many"}, "bytes: "),
        ({"more": 1}, "unknown option 'more'"),
        (None, r"lists the experts \[1\], expected \[0\]"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(folder: Path, change: dict[str, Any] | None, text: str) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    del content["sha256"]  # as earlier versions wrote it
    if change is None:
        del content["shards"][0]
    else:
        content["shards"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=text) as caught:
        TrajectoryStore(path)
    assert "\n" not in str(caught.value) and "manifest.json" in str(caught.value)


def test_a_changed_manifest_is_refused_and_an_earlier_one_is_read(folder: Path) -> None:
    path = folder / "manifest.json"
    whole = path.read_text()
    path.write_text(whole.replace('"snapshots": 3', '"snapshots": 2', 1))
    with pytest.raises(UsageError, match="was changed: it does not have the hash that it states"):
        TrajectoryStore(path)
    content = json.loads(whole)
    del content["sha256"]
    path.write_text(json.dumps(content))
    assert TrajectoryStore(path).epochs == 2


def test_a_shard_of_the_right_length_and_wrong_content_is_refused_when_read(folder: Path) -> None:
    path = folder / "expert-000.safetensors"
    path.write_bytes(bytes(path.stat().st_size))
    held = TrajectoryStore(folder / "manifest.json", IDENTITY)
    with pytest.raises(UsageError, match="not a whole safetensors file"):
        held.snapshot(0, 0)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 2, "shards": [1]}', '{"format": 1}'])
def test_a_broken_manifest_is_refused(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UsageError, match=r"manifest\.json .*make "):
        TrajectoryStore(folder / "manifest.json")


def test_weights_that_are_not_finite_are_told(folder: Path) -> None:
    write_shard(folder, 0, [torch.tensor([1.0, float("nan")]) for _ in range(3)], IDENTITY, 0.1)
    write_manifest(folder / "manifest.json", IDENTITY, [describe_shard(folder, 0)])
    with pytest.raises(RunError, match=r"expert-000.safetensors, epoch 1: weights that are not finite; train"):
        TrajectoryStore(folder / "manifest.json").snapshot(0, 1)


def test_the_identity_of_a_shard(folder: Path, tmp_path: Path) -> None:
    assert shard_identity(folder, 1) == IDENTITY
    assert shard_identity(folder, 7) is None
    assert shard_name(7) == "expert-007.safetensors"


def counted(*counts: int) -> torch.Tensor:
    """Labels with so many of each class."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


@pytest.mark.parametrize(
    ("accuracy", "labels", "chance"),
    [
        (1 / 3, counted(100, 100, 100), 1 / 3),
        (0.36, counted(100, 100, 100), 1 / 3),
        (0.45, counted(100, 100, 100), None),
        (0.2, counted(100, 100, 100), 1 / 3),
        (0.9, counted(90, 10), 0.9),  # most are of one class, and it names that class for all
        (0.99, counted(90, 10), None),
        (0.012, counted(*[100] * 100), 0.01),
        (0.014, counted(*[100] * 100), None),
        (2 / 3, counted(1, 1, 1), 1 / 3),  # two of three images are too few to tell
        (float("nan"), counted(50, 50), 0.5),
        (0.0, counted(50, 50), 0.5),
        (1.0, counted(50), None),  # one class: nothing else can be said
    ],
)
def test_experts_near_chance(accuracy: float, labels: torch.Tensor, chance: float | None) -> None:
    assert chance_level(accuracy, labels) == (None if chance is None else pytest.approx(chance))


def test_experts_near_chance_are_said_and_said_again_where_they_are_matched(campaign: Path, refused: Refuse) -> None:
    """Experts with a step size of nothing; the run that they make fail does not blame its own step size."""
    text = (
        Path("tiny.yaml").read_text().replace("other: {count: 1, epochs: 1}", "other: {count: 2, epochs: 3, lr: 1e-9}")
    )
    Path("tiny.yaml").write_text(text)
    cell = ["--config", "tiny.yaml", "--dataset", "digits"]
    assert main(["experts", *cell, "--experts", "other"]) == 0
    told = re.compile(
        r"2 of 2 experts with a test accuracy near chance, 0.100 \(expert 0 0.\d+, expert 1 0.\d+\); check"
    )
    run = Path("results/tiny")
    assert told.search("".join(path.read_text() for path in (run / "logs/experts").rglob("*.log")))
    manifest = run / "experts/digits/other/manifest.json"
    assert [shard["near_chance"] for shard in json.loads(manifest.read_text())["shards"]] == [pytest.approx(0.1)] * 2
    error = refused("distill", *cell, "--ipc", "1", "--method", "mtt", "--experts", "other", code=1)
    assert told.search(error) and "before anything was learned" in error and "step_size" not in error
    log = Path("results/hand/tiny/logs/distill/digits/ipc-1/mtt/seed-0.log").read_text()
    assert "method mtt uses 2 of 2 experts with a test accuracy near chance" in log


def test_a_manifest_of_an_earlier_version_says_nothing_about_chance(folder: Path) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    assert all("near_chance" not in shard for shard in content["shards"])
    assert TrajectoryStore(path).near_chance is None
