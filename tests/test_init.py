"""What a synthetic set starts from: images and labels, and which methods may ask for which."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMOOTH, image_data, write_experts
from drawing import torch_generator
from matching import make
from tolerances import DISTINCT
from torch import Tensor

from satm.config import Cell
from satm.config.methods import IterativeOptions
from satm.data import Split
from satm.errors import UsageError
from satm.methods import METHODS
from satm.methods.parts import init as starts
from satm.methods.parts.labels import confident, expert_labels
from satm.methods.parts.method import Method
from satm.methods.parts.problem import Problem
from satm.methods.recipe import SELECTED, Recipe
from satm.networks import build
from satm.params import flatten, load_flat
from satm.seeds import make_generator

EACH = 20


def outputs(problem: Problem, weights: Tensor, images: Tensor) -> Tensor:
    """Return the logits of a module that holds the weights."""
    module = problem.build(0).float()
    load_flat(module, weights)
    with torch.no_grad():
        return module(images)


def judges(problem: Problem, folder: Path, each: int) -> Problem:
    """Return three classes of images and three experts that see every class about equally often.

    The first expert's last snapshot is right about half of each class. The other experts and its own earlier snapshots
    are of another mind.
    """
    data = image_data(each=4 * each)
    images = problem.preprocessor.apply(data.train.images)
    snapshots, verdicts = [], []
    for seed in range(4):
        weights = 3 * flatten(build(SMOOTH, 1, 3, 8, seed=seed + 10))
        weights[-3:] -= outputs(problem, weights, images).mean(0)  # the bias of the last layer
        snapshots.append(weights)
        verdicts.append(outputs(problem, weights, images).argmax(1))
    free = torch.ones(len(images), dtype=torch.bool)
    chosen = []
    for agrees, label in itertools.product((True, False), range(3)):
        members = (free & ((verdicts[0] == label) == agrees)).nonzero()[: each // 2, 0]
        free[members] = False
        chosen.append(members)
    order = torch.randperm(3 * each, generator=torch_generator(4))
    labels = torch.arange(3).repeat_interleave(each // 2).repeat(2)
    train = Split(data.train.images[torch.cat(chosen)[order]], labels[order])
    paths = [[snapshots[which] for which in path] for path in ([3, 3, 3, 3, 0], [0, 0, 0, 3, 1], [0, 1, 1, 0, 2])]
    return replace(problem, data=replace(data, train=train), experts=write_experts(folder / "judges", paths))


@pytest.fixture
def judged(problem: Problem, tmp_path: Path) -> Problem:
    """The judges of twenty images a class."""
    return judges(problem, tmp_path, EACH)


def right(problem: Problem, expert: int, epoch: int = 4) -> Tensor:
    """Return which training images an expert classifies correctly."""
    assert problem.experts is not None
    images = problem.preprocessor.apply(problem.data.train.images)
    weights = problem.experts.snapshot(expert, epoch)
    return outputs(problem, weights, images).argmax(1) == problem.data.train.labels


def orders(problem: Problem) -> list[list[int]]:
    """Return the images of each class in the order in which starts take them."""
    generator = make_generator("init", "noise", problem.ipc, 0)
    found = []
    for label in range(3):
        members = (problem.data.train.labels == label).nonzero()[:, 0]
        found.append(members[torch.randperm(len(members), generator=generator)].tolist())
    return found


def gathered(problem: Problem, chosen: list[list[int]]) -> Tensor:
    return problem.preprocessor.apply(problem.data.train.images[list(itertools.chain(*chosen))])


def test_experts_of_the_fixture_disagree(judged: Problem) -> None:
    assert judged.experts is not None
    for label in range(3):
        assert int((right(judged, 0) & (judged.data.train.labels == label)).sum()) == EACH // 2
    for expert, epoch in ((0, 0), (0, 3), (1, 4), (2, 4)):
        assert not torch.equal(right(judged, expert, epoch), right(judged, 0))


def test_real_images_in_a_random_order(judged: Problem) -> None:
    judged = replace(judged, ipc=3)
    images, labels = starts.real(judged, None)
    assert torch.equal(images, gathered(judged, [order[:3] for order in orders(judged)]))
    assert labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    assert orders(judged)[0] != sorted(orders(judged)[0])


@pytest.mark.parametrize(("each", "ipc"), [(20, 1), (20, 4), (20, 10), (520, 3), (520, 260)])
def test_correct_images_are_the_first_of_them(problem: Problem, tmp_path: Path, each: int, ipc: int) -> None:
    judged = replace(judges(problem, tmp_path, each), ipc=ipc)
    assert judged.experts is not None
    images, labels = starts.correct(judged, None)
    fine = right(judged, 0)
    expected = [[index for index in order if fine[index]][:ipc] for order in orders(judged)]
    assert torch.equal(images, gathered(judged, expected))
    assert torch.equal(labels, torch.arange(3).repeat_interleave(ipc))
    assert torch.equal(outputs(judged, judged.experts.snapshot(0, 4), images).argmax(1), labels)
    first = [order[:ipc] for order in orders(judged)]
    assert torch.equal(images, starts.real(judged, None)[0]) == (expected == first)


@pytest.mark.parametrize("each", [20, 520])
def test_a_class_with_too_few_correct_images_is_filled(problem: Problem, tmp_path: Path, each: int) -> None:
    judged = replace(judges(problem, tmp_path, each), ipc=each // 2 + 4)
    assert judged.experts is not None
    images, labels = starts.correct(judged, None)
    fine = right(judged, 0)
    expected = []
    for order in orders(judged):
        first, rest = ([index for index in order if fine[index] == kind] for kind in (True, False))
        assert len(first) == each // 2
        expected.append([*first, *rest[:4]])
    assert torch.equal(images, gathered(judged, expected))
    assert torch.equal(labels, torch.arange(3).repeat_interleave(judged.ipc))
    none = replace(judged.data.train, labels=judged.data.train.labels.clone())
    wrong = outputs(judged, judged.experts.snapshot(0, 4), judged.preprocessor.apply(none.images)).argmax(1)
    nowhere = replace(judged, data=replace(judged.data, train=Split(none.images, (wrong + 1) % 3)), ipc=5)
    assert torch.equal(starts.correct(nowhere, None)[0], starts.real(nowhere, None)[0])


def test_gaussian_images_have_unit_variance_or_the_norm(problem: Problem) -> None:
    wide = replace(problem, ipc=200, cell=Cell("noise", 200, "any"))
    images, labels = starts.gaussian(wide, None)
    assert images.shape == (600, 1, 8, 8) and images.dtype == torch.float32
    assert torch.equal(labels, torch.arange(3).repeat_interleave(200)) and labels.dtype == torch.int64
    # Six standard errors of 38,400 numbers, and more.
    assert float(images.std()) == pytest.approx(1, rel=0.03) and abs(float(images.mean())) < 0.03
    scaled, _ = starts.gaussian(wide, 2.5)
    torch.testing.assert_close(scaled.flatten(1).norm(dim=1), torch.full((600,), 2.5))
    cosine = torch.nn.functional.cosine_similarity(scaled.flatten(1), images.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(600))
    # Not one factor for all.
    assert float((scaled / images).flatten(1)[:, 0].std()) > DISTINCT


@pytest.mark.parametrize("kind", ["real", "gaussian", "correct"])
def test_a_start_depends_on_dataset_ipc_and_seed_but_not_on_the_method(judged: Problem, kind: str) -> None:
    def start(dataset: str, ipc: int, method: str, seed: int) -> Tensor:
        made = make(replace(judged, cell=Cell(dataset, ipc, method, seed), ipc=ipc), "mtt", init=kind)
        return made.start().images

    base = start("noise", 2, "any", 0)
    assert len(base) == 6 and torch.equal(start("noise", 2, "mtt", 0), base)
    assert not torch.equal(start("noise", 2, "any", 1), base)
    assert not torch.equal(start("other", 2, "any", 0), base)
    wider = start("noise", 4, "any", 0)
    assert len(wider) == 12 and not torch.equal(wider[:2], base[:2])


@pytest.mark.parametrize(
    ("ipc", "text"),
    [
        (21, r"ipc 21 is too large: class 0 \(a\) of noise has 20"),
        (0, "ipc.*got 0"),
        (-1, "ipc.*got -1"),
    ],
)
@pytest.mark.parametrize("kind", ["real", "gaussian", "correct"])
def test_impossible_numbers_of_images_are_refused(judged: Problem, kind: str, ipc: int, text: str) -> None:
    if kind == "gaussian" and ipc > 0:
        return
    judged = replace(judged, cell=Cell("noise", ipc, "any"), ipc=ipc)
    made: Any = make(judged, "mtt", init=kind)
    with pytest.raises(UsageError, match=text):
        made.start()
    if kind == "real":
        with pytest.raises(UsageError, match=text):
            METHODS["random"](METHODS["random"].options(), judged).start()


def test_labels_of_experts_that_are_right(judged: Problem) -> None:
    judged = replace(judged, ipc=EACH)
    assert judged.experts is not None
    images, labels = starts.real(judged, None)
    found = expert_labels(judged, judged.experts, images, labels)
    opinions = [outputs(judged, judged.experts.snapshot(expert, 4), images) for expert in range(3)]
    counts = set()
    for index, label in enumerate(labels.tolist()):
        agreeing = [opinion[index] for opinion in opinions if int(opinion[index].argmax()) == label]
        counts.add(len(agreeing))
        asked = agreeing or [opinion[index] for opinion in opinions]
        torch.testing.assert_close(found[index], sum(asked) / len(asked))
        assert not agreeing or int(found[index].argmax()) == label
    assert counts == {0, 1, 2, 3}
    assert found.shape == (3 * EACH, 3) and found.dtype == torch.float32 and not found.requires_grad


@pytest.mark.parametrize("count", [1, 2])
def test_labels_of_some_experts_only(judged: Problem, count: int) -> None:
    judged = replace(judged, ipc=EACH)
    assert judged.experts is not None
    method = make(judged, "datm", init="real", label_experts=count)
    images, labels = starts.real(judged, None)
    first = [outputs(judged, judged.experts.snapshot(index, 4), images) for index in range(count)]
    found = method.start().labels
    if count == 1:
        torch.testing.assert_close(found, first[0])  # whether or not it is right, as in DATM's public code
    agreeing = [(each.argmax(1) == labels)[:, None] for each in first]
    total = sum(each * right for each, right in zip(first, agreeing, strict=True)) / sum(agreeing).clamp_min(1)
    torch.testing.assert_close(found, torch.where(sum(agreeing) > 0, total, sum(first) / count))
    assert not torch.allclose(found, expert_labels(judged, judged.experts, images, labels))


@pytest.mark.parametrize("probability", [0.2, 0.5, 0.9, 0.999])
def test_confident_labels_have_the_probability(probability: float) -> None:
    labels = torch.tensor([0, 2, 1, 4])
    logits = confident(labels, 5, probability)
    assert logits.shape == (4, 5) and logits.dtype == torch.float32
    expected = torch.full((4, 5), (1 - probability) / 4)
    expected[torch.arange(4), labels] = probability
    torch.testing.assert_close(logits.softmax(1), expected)


def test_one_class_has_no_confident_labels() -> None:
    with pytest.raises(UsageError, match="at least 2 classes, the dataset has 1; use labels hard"):
        confident(torch.zeros(3, dtype=torch.int64), 1, 0.9)


def test_options_choose_the_start(judged: Problem) -> None:
    assert judged.experts is not None
    real, correct = starts.real(judged, None), starts.correct(judged, None)
    for init, expected in (("real", real), ("correct", correct), ("gaussian", starts.gaussian(judged, None))):
        found = make(judged, "mtt", init=init, step_size=0.3).start()
        assert torch.equal(found.images, expected[0]) and torch.equal(found.labels, expected[1])
        assert float(found.step_size) == pytest.approx(0.3) and found.step_size.shape == ()
    scaled = make(judged, "mtt", init="gaussian", init_norm=1.5).start().images
    assert torch.equal(scaled, starts.gaussian(judged, 1.5)[0])
    soft = make(judged, "datm").start()
    assert torch.equal(soft.images, correct[0])
    assert torch.equal(soft.labels, expert_labels(judged, judged.experts, *correct))
    taught = make(judged, "tesla").start()
    assert torch.equal(taught.images, real[0]) and torch.equal(taught.labels, real[1])


def plain(options: IterativeOptions, problem: Problem) -> Method[Any]:
    """Return a method without experts."""
    return Recipe("plain", SELECTED, IterativeOptions, None, None, {})(options, problem)


def test_without_experts_soft_labels_start_from_the_classes(problem: Problem) -> None:
    alone = replace(problem, experts=None)
    found = plain(IterativeOptions(labels="learned", confidence=0.7, init="gaussian"), alone).start()
    assert torch.equal(found.labels, confident(torch.tensor([0, 0, 1, 1, 2, 2]), 3, 0.7))
    assert torch.equal(found.images, starts.gaussian(alone, None)[0])


@pytest.mark.parametrize(("option", "value"), [("init", "correct"), ("labels", "teacher")])
def test_what_needs_experts_is_refused_without(problem: Problem, option: str, value: str) -> None:
    with pytest.raises(
        UsageError, match=f"{option} '{value}' needs experts, method 'plain' uses none; choose another {option}"
    ):
        plain(IterativeOptions(**{option: value}), replace(problem, experts=None))
    assert make(problem, "mtt", **{option: value})


def test_learned_tensors_have_the_rates_of_the_options(problem: Problem) -> None:
    values: dict[str, Any] = {"lr_images": 3.0, "lr_labels": 2.0, "lr_step_size": 0.5}
    for labels in ("hard", "teacher", "learned"):
        rates = make(problem, "mtt", **values, labels=labels).rates()
        soft = {"labels": 2.0} if labels == "learned" else {}
        assert rates == {"images": 3.0, **soft, "step_size": 0.5}
