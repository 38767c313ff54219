"""Experts whose network has running statistics: stored with every snapshot, and used wherever an expert is rebuilt."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Refuse, image_data
from resuming import check_resumes, stopped_after
from tolerances import SINGLE
from torch import Tensor, nn
from torch.nn import functional

from satm.analysis.expert_sharpness import measure_expert_sharpness
from satm.cli import main
from satm.config import Cell, ExpertsOptions
from satm.config.methods import IterativeOptions
from satm.data import Augmentation, Preprocessor
from satm.errors import UsageError
from satm.experts import (
    Snapshot,
    TrajectoryStore,
    describe_shard,
    expert_difficulty,
    shard_identity,
    train_expert,
    write_manifest,
    write_shard,
)
from satm.methods import METHODS, resolve
from satm.methods.parts.init import INITS
from satm.methods.parts.labels import LABELS, expert_labels
from satm.methods.parts.problem import Problem
from satm.networks import build
from satm.networks.training import TrainingImages, measure
from satm.params import buffer_names, flatten
from satm.storage.tensors import read_tensors

NETWORK = {"network": "convnet", "depth": 1, "width": 4, "norm": "batch"}
DATA = image_data(classes=3, each=12)
PREPROCESSOR = Preprocessor(DATA.mean, DATA.std, None)
IMAGES = TrainingImages.of(DATA.train, PREPROCESSOR, torch.device("cpu"))
OPTIONS = ExpertsOptions(epochs=3, lr=0.1, batch_size=8, momentum=0.5)


def fresh(seed: int = 4, values: dict[str, Any] = NETWORK) -> nn.Module:
    return build(values, 1, 3, 8, seed)


def snapshots(module: nn.Module, after: Snapshot | None = None) -> Iterator[Snapshot]:
    return train_expert(module, IMAGES, OPTIONS, Augmentation("", "image"), ("experts", "noise", 0), after)


def store(folder: Path, path: list[Snapshot], buffers: bool = True) -> TrajectoryStore:
    kept = [snapshot.buffers for snapshot in path] if buffers else ()
    write_shard(folder, 0, [snapshot.weights for snapshot in path], {"name": "it"}, 0.5, kept)
    write_manifest(folder / "manifest.json", {"name": "it"}, [describe_shard(folder, 0)])
    return TrajectoryStore(folder / "manifest.json")


@pytest.fixture
def trained(tmp_path: Path) -> tuple[nn.Module, Problem]:
    """A trained network in evaluation mode, and a problem whose only expert it is."""
    module = fresh()
    experts = store(tmp_path, list(snapshots(module)))
    about = (2, torch.device("cpu"), Cell("noise", 2, "any"), experts)
    return module.eval(), Problem(DATA, PREPROCESSOR, Augmentation("", "image"), fresh, *about)


def logits(module: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = module(images)
    return found


def test_a_rebuilt_expert_is_the_trained_network(trained: tuple[nn.Module, Problem]) -> None:
    module, problem = trained
    assert problem.experts is not None
    rebuilt = fresh(seed=9)
    problem.experts.load(rebuilt, 0, 3)
    assert measure(rebuilt, IMAGES) == measure(module, IMAGES)
    for name, tensor in module.state_dict().items():
        assert torch.equal(rebuilt.state_dict()[name], tensor) and rebuilt.state_dict()[name].dtype == tensor.dtype
    assert int(rebuilt.state_dict()["features.1.num_batches_tracked"]) == 15
    problem.experts.load(rebuilt, 0, 0)
    assert int(rebuilt.state_dict()["features.1.num_batches_tracked"]) == 0


def test_labels_images_and_features_of_an_expert_are_those_of_the_trained_network(
    trained: tuple[nn.Module, Problem],
) -> None:
    module, problem = trained
    assert problem.experts is not None
    images, classes = IMAGES.batch(slice(0, 20))
    found = expert_labels(problem, problem.experts, images, classes)
    torch.testing.assert_close(found, logits(module, images), rtol=0, atol=0)
    assert torch.equal(LABELS["learned"](problem, images, classes, IterativeOptions()), found)
    right = logits(module, IMAGES.batch(slice(None))[0]).argmax(1) == IMAGES.labels
    assert 0 < int(right.sum()) < len(right)
    chosen, labels = INITS["correct"](replace(problem, ipc=1), None)
    for label in range(3):
        if bool(right[IMAGES.labels == label].any()):
            assert int(logits(module, chosen[labels == label]).argmax()) == label
    for name in ("herding", "k-center"):
        recipe, options = resolve({"method": name})
        made = recipe(options, problem).start()
        code, members = METHODS[name].code, [(IMAGES.labels == label).nonzero().squeeze(1) for label in range(3)]
        with torch.no_grad():
            features = [module.embed(IMAGES.batch(part)[0]) for part in members]  # type: ignore[operator]
        expected = [part[code(each, 2, torch.Generator())] for part, each in zip(members, features, strict=True)]
        assert torch.equal(made.images, IMAGES.batch(torch.cat(expected))[0]), name


def test_difficulty_and_sharpness_are_those_of_the_trained_network(trained: tuple[nn.Module, Problem]) -> None:
    module, problem = trained
    assert problem.experts is not None
    everything, labels = IMAGES.batch(slice(None))
    losses, learned = [], torch.full((len(labels),), 4.0)
    other = fresh()
    for snapshot in reversed(list(snapshots(other))[1:]):
        other.load_state_dict({**dict(_weights(other, snapshot)), **snapshot.buffers})
        found = logits(other.eval(), everything)
        losses.append(functional.cross_entropy(found, labels, reduction="none"))
        learned[found.argmax(1) == labels] = float(snapshot.epoch)
    rated = expert_difficulty(fresh(seed=9), problem.experts, 0, IMAGES)
    assert torch.equal(rated.epoch, learned)
    torch.testing.assert_close(rated.loss, torch.stack(losses).mean(0))
    *_, [row] = measure_expert_sharpness(fresh(seed=9), problem.experts, IMAGES, 1, [0.01])
    assert row["epoch"] == 3 and row["loss"] == pytest.approx(measure(module, IMAGES)[1], rel=SINGLE)


def _weights(module: nn.Module, snapshot: Snapshot) -> Iterator[tuple[str, Tensor]]:
    sizes = [parameter.numel() for parameter in module.parameters()]
    parts = snapshot.weights.split(sizes)
    for (name, parameter), part in zip(module.named_parameters(), parts, strict=True):
        yield name, part.view_as(parameter)


def test_going_on_from_any_epoch_keeps_the_statistics(tmp_path: Path) -> None:
    check_resumes(lambda after: snapshots(fresh(), after), OPTIONS.epochs, tmp_path)


def test_networks_without_buffers_have_the_shards_of_before(tmp_path: Path) -> None:
    plain = fresh(values={**NETWORK, "norm": "instance"})
    path = list(snapshots(plain))
    assert buffer_names(plain) == [] and all(snapshot.buffers == {} for snapshot in path)
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    store(tmp_path / "with", path)
    store(tmp_path / "without", path, buffers=False)
    name = "expert-000.safetensors"
    assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    assert set(read_tensors(tmp_path / "with" / name, "shard")[0]) == {"0", "1", "2", "3"}


def test_a_shard_counts_snapshots_and_not_buffers(tmp_path: Path) -> None:
    held = store(tmp_path, list(snapshots(fresh())))
    assert held.epochs == 3 and describe_shard(tmp_path, 0)["snapshots"] == 4
    with pytest.raises(UsageError, match="has no snapshot 4; it has 4"):
        held.snapshot(0, 4)
    assert shard_identity(tmp_path, 0) == {"name": "it"}
    path = tmp_path / "expert-000.safetensors"
    content = path.read_bytes()
    place = content.rindex(held.buffers(0, 3)["features.1.running_mean"].numpy().tobytes())
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(UsageError, match=r"was changed: its tensor '3/features\.1\.running_mean'"):
        held.load(fresh(), 0, 3)
    assert shard_identity(tmp_path, 0) is None


def test_experts_without_their_statistics_are_refused(tmp_path: Path) -> None:
    held = store(tmp_path, list(snapshots(fresh())), buffers=False)
    with pytest.raises(UsageError, match=r"has 0 buffers for epoch 3, the network has others: .*train the experts"):
        held.load(fresh(), 0, 3)
    plain = fresh(values={**NETWORK, "norm": "instance"})
    other = store(tmp_path, list(snapshots(fresh())))
    with pytest.raises(UsageError, match="train the experts again"):
        other.load(plain, 0, 3)  # as many parameters, other buffers


BATCH = TINY.replace("convnet, options: {depth: 1, width: 4}", "convnet, options: {depth: 1, width: 4, norm: batch}")
BATCH = BATCH.replace("[random, mtt, satm]", "[random, herding]")
EXPERTS = ["experts", "--config", "tiny.yaml", "--dataset", "digits", "--part", "0-0"]
SHARD = Path("results/tiny/experts/digits/sgd/expert-000.safetensors")


def test_an_expert_that_was_stopped_has_the_accuracy_and_the_bytes_of_one_that_was_not(campaign: Path) -> None:
    (campaign / "tiny.yaml").write_text(BATCH)
    assert main([*EXPERTS, "--overwrite"]) == 0  # the finished campaign's expert has another network
    whole = SHARD.read_bytes()
    assert read_tensors(SHARD, "shard")[1]["test_accuracy"] > 0.2
    for epochs in (1, 3, 4):  # 4: stopped after the last one
        SHARD.unlink()
        with stopped_after(epochs, "/epoch-"):
            assert main(EXPERTS) == 75
        assert main(EXPERTS) == 0
        assert SHARD.read_bytes() == whole, epochs


def test_experts_of_an_earlier_version_are_trained_again(campaign: Path, refused: Refuse) -> None:
    (campaign / "tiny.yaml").write_text(BATCH)
    everything = [*EXPERTS[:-2], "--overwrite"]
    assert main(everything) == 0
    tensors, metadata = read_tensors(SHARD, "shard")
    identity = dict(metadata["identity"])  # type: ignore[call-overload]
    assert identity.pop("buffers") == "stored"
    folder = SHARD.parent
    for index in (0, 1):
        tensors, _ = read_tensors(folder / f"expert-00{index}.safetensors", "shard")
        write_shard(folder, index, [tensors[str(epoch)] for epoch in range(4)], identity, 0.5)
    write_manifest(folder / "manifest.json", identity, [describe_shard(folder, index) for index in (0, 1)])
    herding = ["distill", "--config", "tiny.yaml", "--dataset", "digits", "--ipc", "1", "--method", "herding"]
    assert (
        "buffers: expected 'stored', found None; use the options they were trained with, or train them again: `"
        in refused(*herding)
    )
    assert main(everything) == 0 and main(herding) == 0


def test_the_weights_of_a_rebuilt_expert_are_the_snapshot(trained: tuple[nn.Module, Problem]) -> None:
    _, problem = trained
    assert problem.experts is not None
    rebuilt = fresh(seed=9)
    problem.experts.load(rebuilt, 0, 2)
    assert torch.equal(flatten(rebuilt), problem.experts.snapshot(0, 2))
