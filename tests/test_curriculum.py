"""How hard images are, in which order a curriculum shows them, and the command line from one to the other."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from drawing import torch_generator
from resuming import check_resumes
from tolerances import SINGLE
from torch import Tensor, nn
from torch.nn import functional

from satm.cli import main
from satm.config import Campaign, ExpertsOptions, Resolver, load_campaign
from satm.data import Augmentation
from satm.errors import UsageError
from satm.experts import (
    Difficulty,
    Snapshot,
    TrajectoryStore,
    describe_shard,
    expert_difficulty,
    load_difficulty,
    mean_difficulty,
    save_difficulty,
    train_expert,
    write_manifest,
    write_shard,
)
from satm.experts.difficulty import easiest, pace
from satm.networks import build
from satm.networks.training import TrainingImages
from satm.params import flatten, load_flat
from satm.run.lock import IN_WORKFLOW, KEPT
from satm.seeds import make_generator
from satm.storage.tensors import read_tensors

Refuse = Callable[..., str]
AXES = ("experts", "noise", 0)
COUNT = 20


def images() -> TrainingImages:
    generator = torch_generator(0)
    return TrainingImages(torch.randn(COUNT, 1, 8, 8, generator=generator), torch.arange(COUNT) % 3)


def network() -> nn.Module:
    return build({"network": "convnet", "depth": 1, "width": 3}, 1, 3, 8, seed=4)


@pytest.fixture
def store(tmp_path: Path) -> TrajectoryStore:
    """Two experts of four epochs, on random paths."""
    records = []
    for index in range(2):
        generator = torch_generator(index)
        start = flatten(network())
        path = [start + 0.5 * epoch * torch.randn(len(start), generator=generator) for epoch in range(5)]
        write_shard(tmp_path, index, path, {"name": "paths"}, 0.5)
        records.append(describe_shard(tmp_path, index))
    write_manifest(tmp_path / "manifest.json", {"name": "paths"}, records)
    return TrajectoryStore(tmp_path / "manifest.json")


def twin(store: TrajectoryStore, expert: int) -> tuple[list[float], list[float]]:
    """One image after another, one epoch after another."""
    module, data = network().eval(), images()
    learned, losses = [], []
    for image, label in zip(data.images, data.labels, strict=True):
        first, total = store.epochs + 1, 0.0
        for epoch in range(1, store.epochs + 1):
            load_flat(module, store.snapshot(expert, epoch))
            with torch.no_grad():
                logits = module(image[None])[0]
            if int(logits.argmax()) == int(label) and first > store.epochs:
                first = epoch
            total += float(functional.cross_entropy(logits, label))
        learned.append(float(first))
        losses.append(total / store.epochs)
    return learned, losses


def test_difficulty_is_the_first_epoch_of_a_right_answer(store: TrajectoryStore) -> None:
    found = [expert_difficulty(network(), store, expert, images()) for expert in range(2)]
    for expert, difficulty in enumerate(found):
        learned, losses = twin(store, expert)
        assert difficulty.epoch.dtype == torch.float32 and difficulty.epoch.tolist() == learned
        torch.testing.assert_close(difficulty.loss, torch.tensor(losses), rtol=SINGLE, atol=SINGLE)
        assert len(set(learned)) > 1 and set(learned) <= {1.0, 2.0, 3.0, 4.0, 5.0}  # 5: never; none before training
    mean = mean_difficulty(found)
    torch.testing.assert_close(mean.epoch, (found[0].epoch + found[1].epoch) / 2)
    torch.testing.assert_close(mean.loss, (found[0].loss + found[1].loss) / 2)


def test_easy_comes_first_and_the_loss_decides_between_equals() -> None:
    held = Difficulty(torch.tensor([2.0, 1.0, 2.0, 1.5, 2.0, 1.0]), torch.tensor([0.3, 0.9, 0.1, 0.5, 0.2, 0.4]))
    assert held.order().tolist() == [5, 1, 3, 2, 4, 0]
    equal = Difficulty(torch.ones(4), torch.tensor([0.5, 0.1, 0.5, 0.1]))
    assert equal.order().tolist() == [1, 3, 0, 2]
    assert held.order(torch.tensor([0, 0, 0, 1, 1, 1])).tolist() == [5, 1, 3, 2, 4, 0]
    unequal = held.order(torch.tensor([0, 0, 0, 0, 0, 1])).tolist()
    assert unequal == [1, 3, 5, 2, 4, 0]  # the only image of its class lies in the middle
    assert held.hash != equal.hash == Difficulty(equal.epoch.clone(), equal.loss.clone()).hash


def test_the_pace_is_the_papers() -> None:
    assert [pace(epoch, 0.2, 4) for epoch in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert [pace(epoch, 1.0, 4) for epoch in range(3)] == [1.0, 1.0, 1.0]
    order = torch.tensor([3, 0, 4, 1, 2])
    assert [easiest(order, fraction).tolist() for fraction in (0.01, 0.4, 0.6, 1.0)] == [
        [3],
        [0, 3],
        [0, 3, 4],
        [0, 1, 2, 3, 4],
    ]


def test_a_file_of_difficulties_says_whose_they_are(tmp_path: Path) -> None:
    path, identity = tmp_path / "difficulty.safetensors", {"experts": "sgd", "data": "abc"}
    held = Difficulty(torch.tensor([2.0, 1.0]), torch.tensor([0.3, 0.9]))
    save_difficulty(path, held, identity, 3)
    again = load_difficulty(path, identity, 3, 2)
    assert torch.equal(again.epoch, held.epoch) and torch.equal(again.loss, held.loss) and again.hash == held.hash
    for other, text in (
        (({"experts": "sgd", "data": "abd"}, 3, 2), "identity.data: expected 'abd', found 'abc'"),
        ((identity, 2, 2), "experts: expected 2, found 3"),
        ((identity, 3, 7), "images: expected 7, found 2"),
    ):
        with pytest.raises(UsageError, match=f"belongs to other experts: {text}; measure the difficulty again"):
            load_difficulty(path, *other)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UsageError, match="not a whole safetensors file"):
        load_difficulty(path, identity, 3, 2)


# Training

OPTIONS = ExpertsOptions(
    epochs=5, lr=0.1, batch_size=8, order="curriculum", difficulty="sgd", start_fraction=0.25, full_epoch=3
)
ORDER = torch.randperm(COUNT, generator=torch_generator(9))


def train(options: ExpertsOptions, after: Snapshot | None = None, order: Tensor | None = ORDER) -> Iterator[Snapshot]:
    augmentation = Augmentation("color_crop_flip", "image") if options.augment else Augmentation("", "image")
    return train_expert(network(), images(), options, augmentation, AXES, after, order)


def test_a_curriculum_is_sgd_on_the_easy_images_first() -> None:
    options = OPTIONS.model_copy(update={"augment": False})
    found = list(train(options))
    module, data = network(), images()
    for epoch, share in enumerate((5, 10, 15, 20, 20), 1):
        easy = sorted(ORDER[:share].tolist())
        for chosen in torch.randperm(share, generator=make_generator(*AXES, epoch)).split(8):
            batch = torch.tensor([easy[index] for index in chosen])
            loss = functional.cross_entropy(module(data.images[batch]), data.labels[batch])
            gradients = torch.autograd.grad(loss, list(module.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                    parameter -= 0.1 * gradient
        torch.testing.assert_close(found[epoch].weights, flatten(module))


@pytest.mark.parametrize("changes", [{}, {"momentum": 0.9}, {"optimiser": "flat", "rho": 0.1}], ids=str)
def test_a_curriculum_goes_on_from_any_epoch(changes: dict[str, Any], tmp_path: Path) -> None:
    options = OPTIONS.model_copy(update=changes)
    check_resumes(partial(train, options), options.epochs, tmp_path)


def test_a_curriculum_that_begins_with_everything_is_none() -> None:
    full = OPTIONS.model_copy(update={"order": "full"})
    at_once = OPTIONS.model_copy(update={"start_fraction": 1.0})
    for one, other, slow in zip(train(full, order=None), train(at_once), train(OPTIONS), strict=True):
        assert torch.equal(one.weights, other.weights)
        assert slow.epoch == 0 or not torch.equal(one.weights, slow.weights)


def test_all_images_from_the_middle_on_unless_told() -> None:
    half = OPTIONS.model_copy(update={"epochs": 7, "full_epoch": None})
    three = half.model_copy(update={"full_epoch": 3})
    four = half.model_copy(update={"full_epoch": 4})
    ends = [list(train(options))[-1].weights for options in (half, three, four)]
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_options_and_order_must_agree() -> None:
    with pytest.raises(ValueError, match="the options' order is 'curriculum', the images' order is None"):
        next(train(OPTIONS, order=None))
    with pytest.raises(ValueError, match="the options' order is 'full'"):
        next(train(OPTIONS.model_copy(update={"order": "full"})))


# Options


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"order": "curriculum"}, "order 'curriculum' needs difficulty; name the experts"),
        (
            {"order": "curriculum", "difficulty": "sgd", "epochs": 5, "full_epoch": 6},
            "full_epoch 6 is above epochs 5",
        ),
        ({"difficulty": "sgd"}, "difficulty 'sgd' has no effect with order 'full'; set order to curriculum, or leave"),
        ({"full_epoch": 3}, "full_epoch 3 has no effect with order 'full'"),
        ({"start_fraction": 0.3}, "start_fraction 0.3 has no effect with order 'full'"),
        ({"rho": 0.3}, "rho 0.3 has no effect with optimiser 'sgd'; set optimiser to flat, or leave rho out"),
        ({"flat_rule": "code"}, "flat_rule 'code' has no effect with optimiser 'sgd'"),
        (
            {"optimiser": "flat", "adaptive": True},
            "adaptive True has no effect with flat_rule 'paper'; set",
        ),
        (
            {"order": "curriculum", "difficulty": "curriculum"},
            "names curriculum, experts of order 'balanced-curriculum'; name",
        ),
        ({"order": "curriculum", "difficulty": "sdg"}, "unknown experts 'sdg'; known: .*Did you mean 'sgd'?"),
        ({"start_fraction": 0}, "start_fraction: input should be greater than 0"),
        ({"start_fraction": 1.5}, "start_fraction: input should be less than or equal to 1"),
        ({"full_epoch": 0}, "full_epoch: input should be greater than or equal to 1"),
        ({"rho": -1}, "rho: input should be greater than or equal to 0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_options_that_do_not_fit_together_are_refused(tmp_path: Path, values: dict[str, Any], text: str) -> None:
    (tmp_path / "mine.yaml").write_text(json.dumps({"experts": {"mine": values}}))
    with pytest.raises(UsageError, match=text) as caught:
        held = load_campaign(tmp_path / "mine.yaml")
        held.difficulty("mine", "digits", held.experts("mine", "digits"))
    assert "\n" not in str(caught.value) and "mine" in str(caught.value)


def test_the_built_in_recipes_and_what_a_campaign_changes_of_them() -> None:
    held = Resolver(Campaign(), (), "results")
    known = {name: held.experts(name, "digits") for name in ("sgd", "flat", "flat-code", "curriculum")}
    assert known["sgd"] == ExpertsOptions()
    assert [(one.optimiser, one.flat_rule, one.rho, one.alpha, one.adaptive) for one in known.values()] == [
        ("sgd", "paper", 0.01, 1.0, False),
        ("flat", "paper", 0.01, 1.0, False),
        ("flat", "code", 0.01, 0.4, True),
        ("sgd", "paper", 0.01, 1.0, False),
    ]
    assert held.difficulty("curriculum", "digits", known["curriculum"]) == "sgd"
    assert held.difficulty("flat", "digits", known["flat"]) is None
    changed = Campaign.model_validate(
        {
            "experts": {
                "flat": {"count": 3},
                "both": {"optimiser": "flat", "order": "curriculum", "difficulty": "sgd"},
            },
            "settings": [{"stage": "experts", "experts": "flat", "options": {"alpha": 0.3, "count": 9}}],
        }
    )
    flat = Resolver(changed, (), "results").experts("flat", "digits")
    assert (flat.optimiser, flat.alpha, flat.count) == ("flat", 0.3, 3)
    assert Resolver(changed, (), "results").experts("both", "digits").order == "curriculum"


# The command line

CONFIG = ("--config", "tiny.yaml", "--dataset", "digits")
FOLDER = Path("results/tiny/experts/digits")


def add_experts(text: str) -> None:
    path = Path("tiny.yaml")
    path.write_text(path.read_text().replace("  other: {count: 1", f"  {text}\n  other: {{count: 1"))


def test_from_experts_to_difficulty_to_a_curriculum_to_a_synthetic_set(
    campaign: Path, refused: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_experts("curriculum: {count: 1, epochs: 3, lr: 0.05, full_epoch: 2}")
    told = refused("experts", *CONFIG, "--experts", "curriculum")
    assert (
        "sgd/difficulty.safetensors does not exist; make it with: python -m satm experts --measure-difficulty" in told
    )
    assert "--config tiny.yaml --dataset digits --experts sgd\n" in told
    assert not (FOLDER / "curriculum").exists()
    assert main(["experts", *CONFIG, "--experts", "sgd", "--measure-difficulty"]) == 0
    path = FOLDER / "sgd/difficulty.safetensors"
    tensors, metadata = read_tensors(path, "difficulty")
    assert metadata["experts"] == 2 and metadata["identity"]["experts"] == "sgd"
    assert len(tensors["epoch"]) == 1437 and tensors["epoch"].min() >= 1 and tensors["epoch"].max() <= 4
    before = path.read_bytes()
    assert main(["experts", *CONFIG, "--experts", "sgd", "--measure-difficulty"]) == 0
    assert path.read_bytes() == before
    kept = FOLDER.parent.parent / "state/experts/digits/sgd/difficulty" / KEPT
    monkeypatch.setenv(IN_WORKFLOW, "yes")
    for _ in range(2):  # measured, then put back
        assert main(["experts", *CONFIG, "--experts", "sgd", "--measure-difficulty"]) == 0
        assert path.stat().st_ino == (kept / path.name).stat().st_ino and path.read_bytes() == before
        path.unlink()
    assert main(["experts", *CONFIG, "--experts", "sgd", "--measure-difficulty"]) == 0
    assert main(["experts", *CONFIG, "--experts", "curriculum"]) == 0
    manifest = json.loads((FOLDER / "curriculum/manifest.json").read_text())["identity"]
    assert manifest["difficulty"] == Difficulty(tensors["epoch"], tensors["loss"]).hash
    assert main(["distill", *CONFIG, "--ipc", "1", "--method", "mtt", "--experts", "curriculum"]) == 0
    Path("tiny.yaml").write_text(Path("tiny.yaml").read_text().replace("lr: 0.05, batch_size", "lr: 0.06, batch_size"))
    assert "identity.recipe.lr: expected 0.06, found 0.05" in refused("experts", *CONFIG, "--experts", "curriculum")


def test_a_difficulty_of_experts_that_are_not_there_names_their_command(campaign: Path, refused: Refuse) -> None:
    told = refused("experts", *CONFIG, "--experts", "other", "--measure-difficulty")
    assert "make it with: python -m satm experts --config tiny.yaml --dataset digits --experts other" in told
    told = refused("experts", *CONFIG, "--experts", "sgd", "--measure-difficulty", "--collect")
    assert "--part, --collect and --measure-difficulty exclude each other; give one of them" in told
    told = refused("experts", *CONFIG, "--experts", "sgd", "--order", "curriculum")
    assert "order 'curriculum' needs difficulty" in told


def test_the_files_of_a_difficulty_have_their_places() -> None:
    layout = Resolver(Campaign(), (), "results/mine").layout
    assert layout.difficulty("digits", "sgd") == "results/mine/experts/digits/sgd/difficulty.safetensors"
    assert layout.expert_sharpness("digits", "flat") == "results/mine/analysis/digits/experts/flat/sharpness.parquet"


def test_the_workflow_measures_difficulty_before_a_curriculum(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from satm.workflow.campaigns import Campaigns

    path = tmp_path / "mine.yaml"
    path.write_text("experts: {late: {order: curriculum, difficulty: flat, difficulty_count: 2}}")
    held = Campaigns(Path(__file__).parent.parent, [path])

    def wild(experts: str) -> SimpleNamespace:
        return SimpleNamespace(root="results/mine", dataset="digits", experts=experts)

    found = {
        name: held.inputs("experts_part", wild(name))["difficulty"] for name in ("sgd", "flat", "late", "curriculum")
    }
    assert found == {
        "sgd": [],
        "flat": [],
        "late": ["results/mine/experts/digits/flat/difficulty.safetensors"],
        "curriculum": ["results/mine/experts/digits/sgd/difficulty.safetensors"],
    }
    assert json.loads(held.options("difficulty", wild("late")))["experts"] == 2
    assert "difficulty_count" not in held.options("experts_part", wild("late"))


@pytest.mark.workflow
def test_snakemake_plans_experts_difficulty_curriculum_in_turn(tmp_path: Path) -> None:
    from test_workflow import counts, make_checkout

    folder = make_checkout(tmp_path)
    assert counts(folder, "results/demo/experts/digits/curriculum/manifest.json") == {
        "images": 1,
        "experts_part": 4,
        "experts": 2,
        "difficulty": 1,
    }
    assert counts(folder, "results/demo/analysis/digits/experts/flat/sharpness.parquet") == {
        "images": 1,
        "experts_part": 2,
        "experts": 1,
        "expert_sharpness": 1,
    }
