"""Classes learned step by step: orders, parts of datasets, the loop, what the rows say, and the stage around it."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
import torch
from conftest import Refuse, grey_set, image_data
from drawing import torch_generator
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from resuming import kept_rows, stopped_after
from test_workflow import make_checkout, planned
from tolerances import WRITTEN
from torch import Tensor, nn

from satm.cli import main
from satm.config import (
    Campaign,
    Cell,
    EvaluateOptions,
    LearnOptions,
    Resolver,
    StepsOptions,
    load_campaign,
    load_yaml,
    parse,
)
from satm.config.class_order import Step, class_order, split_classes, step_of
from satm.data import Augmentation, Preprocessor, keep_classes, load_images, save_images
from satm.data.images import hash_images
from satm.errors import UsageError
from satm.evaluation import continual
from satm.evaluation.continual import StepImages, among, learn, one_set_a_step, renumbered, rows, whole_labels
from satm.evaluation.networks import Task, train
from satm.networks.training import TrainingImages, outputs, soft_cross_entropy
from satm.results.columns import CONTINUAL
from satm.results.distilled import DistilledDataset, load_distilled, save_distilled
from satm.results.rows import read_rows
from satm.tables.base import table_of
from satm.tables.continual import by_order
from satm.tables.reader import Reader
from satm.workflow import asked
from satm.workflow.campaigns import Campaigns
from satm.workflow.check import check

ROOT = Path(__file__).parent.parent

# Orders, steps and names


def test_orders_are_frozen() -> None:
    assert [class_order(10, order) for order in range(3)] == [
        (2, 6, 0, 7, 8, 3, 1, 4, 5, 9),
        (9, 6, 8, 7, 2, 3, 5, 0, 1, 4),
        (5, 2, 6, 9, 4, 1, 8, 3, 7, 0),
    ]
    assert class_order(3, 0) == (2, 0, 1)


@pytest.mark.parametrize("classes", [1, 2, 10, 200])
def test_an_order_holds_every_class_once(classes: int) -> None:
    found = [class_order(classes, order) for order in range(5)]
    assert all(sorted(order) == list(range(classes)) for order in found)
    assert classes < 10 or len({*found, tuple(range(classes))}) == 6


def test_steps_are_even_or_the_earlier_ones_larger() -> None:
    order = class_order(10, 0)
    assert split_classes(10, 0, 3) == (order[:4], order[4:7], order[7:])
    assert split_classes(10, 0, 5) == tuple(order[start : start + 2] for start in range(0, 10, 2))
    assert split_classes(10, 1, 10) == tuple((label,) for label in class_order(10, 1))
    assert split_classes(10, 0, 1) == (order,)


@given(st.data(), st.integers(1, 200), st.integers(0, 10**6))
def test_steps_bring_every_class_once_as_even_as_can_be(data: st.DataObject, classes: int, order: int) -> None:
    steps = data.draw(st.integers(1, classes))
    parts = split_classes(classes, order, steps)
    assert [label for part in parts for label in part] == list(class_order(classes, order))
    assert sorted(map(len, parts), reverse=True) == list(map(len, parts)) and len(parts[0]) - len(parts[-1]) <= 1
    step = Step(data.draw(st.text(min_size=1)), order, data.draw(st.integers(1, steps)), steps)
    assert step.labels(classes) == parts[step.step - 1]


@given(st.from_regex(r"[a-z][a-z0-9-]*", fullmatch=True), st.integers(0), st.integers(1), st.integers(1))
def test_the_name_of_any_step_says_which_it_is(dataset: str, order: int, step: int, steps: int) -> None:
    assert step_of(Step(dataset, order, step, steps).name) == Step(dataset, order, step, steps)


@pytest.mark.parametrize("steps", [11, 0])
def test_more_steps_than_classes_are_refused(steps: int) -> None:
    with pytest.raises(UsageError, match=f"10 classes cannot be learned in {steps} steps; use 1 to 10 steps"):
        split_classes(10, 0, steps)


def test_a_name_says_which_step_it_is() -> None:
    step = Step("tiny-imagenet", 3, 12, 20)
    assert step.name == "tiny-imagenet-order-3-step-12-of-20" and step_of(step.name) == step
    assert step.labels(200) == class_order(200, 3)[110:120]
    for name in ("digits", "digits-order-0", "digits-order-00-step-1-of-5", "-order-0-step-1-of-5x", "d-step-1-of-5"):
        assert step_of(name) is None


def resolver(**content: object) -> Resolver:
    return Resolver(parse(Campaign, content, "test"), (), "results/test", Path("test.yaml"))


def test_the_dataset_of_a_step_has_the_options_of_the_whole_and_its_own_classes() -> None:
    held = resolver(datasets={"three": {"source": "digits", "classes": [7, 1, 4], "validation": 2, "zca": True}})
    part = held.dataset("digits-order-0-step-2-of-3")
    assert part == held.dataset("digits").model_copy(update={"classes": (8, 3, 1)})
    order = class_order(3, 0)
    assert held.dataset("three-order-0-step-1-of-2").classes == tuple((7, 1, 4)[label] for label in order[:2])
    assert held.dataset("three-order-0-step-2-of-2").validation == 2
    assert (held.whole("three-order-0-step-2-of-2"), held.whole("three")) == ("three", "three")


def test_settings_of_a_whole_dataset_are_those_of_its_steps() -> None:
    name, other = "digits-order-0-step-1-of-5", "digits-order-0-step-2-of-5"
    rows = [
        {"stage": "network", "network": "convnet", "dataset": "digits", "options": {"width": 8}},
        {"stage": "experts", "experts": "sgd", "dataset": "digits", "options": {"epochs": 7}},
        {"stage": "evaluate", "dataset": "digits", "options": {"epochs": 9}},
        {"method": "mtt", "dataset": "digits", "options": {"iterations": 3}},
        {"method": "mtt", "dataset": name, "options": {"iterations": 4}},
    ]
    held = resolver(settings=rows)
    assert held.network("convnet", name) == {"network": "convnet", "width": 8}
    assert held.experts("sgd", name).epochs == 7
    assert held.evaluation(Cell(name, 1, "mtt")).epochs == 9
    assert [held.method(Cell(each, 1, "mtt"))["iterations"] for each in (name, other, "digits")] == [4, 3, 3]
    assert held.method(Cell("cifar10-order-0-step-1-of-5", 1, "mtt")) == {"method": "mtt"}


def test_a_dataset_of_its_own_may_be_called_like_a_step() -> None:
    name = "digits-order-0-step-1-of-5"
    held = resolver(datasets={name: {"source": "digits", "size": 4}})
    assert (held.dataset(name).size, held.dataset(name).classes, held.whole(name)) == (4, None, name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("digts-order-0-step-1-of-5", "unknown dataset 'digts'; known: .*Did you mean 'digits'?"),
        ("digits-order-0-step-6-of-5", "names step 6 of 5; name one of 1 to 5"),
        ("digits-order-0-step-0-of-5", "names step 0 of 5; name one of 1 to 5"),
        ("digits-order-0-step-1-of-11", "10 classes cannot be learned in 11 steps"),
        ("pets-order-0-step-1-of-2", "the steps of dataset pets need its number of classes.*name the labels to keep"),
    ],
)
def test_a_step_that_cannot_be_is_refused(name: str, text: str) -> None:
    held = resolver(datasets={"pets": {"source": "folder"}})
    with pytest.raises(UsageError, match=text) as caught:
        held.dataset(name)
    assert "\n" not in str(caught.value)


def test_the_labels_of_a_part_lead_back_to_the_whole() -> None:
    whole = image_data(4, 3)
    part = keep_classes(whole, "some", (3, 1))
    assert (part.name, part.class_names, part.classes) == ("some", ("d", "b"), 2)
    assert (part.mean, part.std) == (whole.mean, whole.std) and part.hash != whole.hash
    for mine, theirs in ((part.train, whole.train), (part.validation, whole.validation), (part.test, whole.test)):
        assert mine.labels.tolist() == [1] * 3 + [0] * 3  # in the order of the whole, whose labels are sorted
        for label, old in enumerate((3, 1)):
            assert torch.equal(mine.images[mine.labels == label], theirs.images[theirs.labels == old])


# Labels


def test_labels_are_renumbered_as_the_classes_were_learned() -> None:
    assert renumbered(torch.tensor([5, 0, 2, 5]), (2, 5, 0)).tolist() == [1, 2, 0, 1]
    soft = torch.arange(8.0).reshape(2, 4)
    assert renumbered(soft, (3, 0)).tolist() == [[3, 0], [7, 4]]


def test_labels_of_a_part_are_those_of_the_whole_and_silent_about_other_classes() -> None:
    part = (4, 1)
    assert whole_labels(torch.tensor([0, 1, 1]), part, 6).tolist() == [4, 1, 1]
    soft = torch.tensor([[2.0, -1.0], [0.5, 3.0]], dtype=torch.float64)
    whole = whole_labels(soft, part, 6)
    assert whole.dtype == soft.dtype
    assert torch.equal(whole[:, [4, 1]], soft)
    shown = renumbered(whole, (0, 1, 4)).softmax(1)
    assert torch.equal(shown[:, 0], torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(shown[:, [2, 1]], soft.softmax(1))
    logits = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    loss = soft_cross_entropy(logits, renumbered(whole, (0, 1, 4)))
    expected = -(soft.softmax(1) * logits.log_softmax(1)[:, [2, 1]]).sum(1).mean()
    torch.testing.assert_close(loss, expected)
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_real_images_are_those_of_the_seen_classes() -> None:
    real = TrainingImages(torch.arange(6)[:, None, None, None], torch.tensor([0, 1, 2, 0, 1, 2]))
    found = among(real, (2, 0))
    assert found.images.flatten().tolist() == [0, 2, 3, 5] and found.labels.tolist() == [1, 0, 1, 0]


# The loop

PARTS = ((2, 0), (3,), (1,))
COUNTS = (2, 2, 4, 1)
"""Test images of the classes 0 to 3."""


def synthetic(soft: bool = False, part: Sequence[int] = range(4), ipc: int = 2) -> DistilledDataset:
    """A set of some classes whose every image is evenly 10 times its class and its place within it."""
    labels = torch.arange(len(part)).repeat_interleave(ipc)
    pixels = 10.0 * torch.tensor(list(part))[labels] + torch.arange(len(labels)) % ipc
    soft_labels = torch.randn(len(labels), len(part), generator=torch_generator(4))
    return grey_set(pixels, soft_labels if soft else labels, ["abcd"[label] for label in part], ipc)


def real_images() -> TrainingImages:
    """Images that are evenly their label and, behind the point, their place within the class."""
    labels = torch.tensor([label for label, count in enumerate(COUNTS) for _ in range(count)])
    places = torch.tensor([place for count in COUNTS for place in range(count)])
    return TrainingImages((labels + 0.1 * places)[:, None, None, None].expand(-1, 1, 8, 8), labels)


def make_task(synthetic: TrainingImages, step_size: float, step: int, seen: tuple[int, ...], **options: Any) -> Task:
    chosen = EvaluateOptions(**{"epochs": 2, "augment": False, "batch_size": 3, **options})
    network = {"network": "convnet", "depth": 1, "width": 2}
    return Task(synthetic, step_size, network, len(seen), chosen, Augmentation("", "image"))


class Foretold(nn.Module):
    """Answers with the class in a table of pixels, as the output of that number; with the first where it has none."""

    def __init__(self, answers: dict[float, int], classes: int) -> None:
        super().__init__()
        self.answers, self.classes, self.weight = answers, classes, nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        answers = [self.answers.get(round(float(pixel), 1), 0) for pixel in images[:, 0, 0, 0]]
        return nn.functional.one_hot(torch.tensor(answers), self.classes).float() + 0 * self.weight


ANSWERS = {
    1: {2.0: 0, 2.1: 0, 2.2: 0, 2.3: 1, 0.0: 1, 0.1: 1},
    2: {2.0: 0, 2.1: 0, 2.2: 1, 2.3: 2, 0.0: 1, 0.1: 0, 3.0: 2},
    3: {2.0: 1, 2.1: 0, 2.2: 1, 2.3: 2, 0.0: 1, 0.1: 1, 3.0: 0, 1.0: 3, 1.1: 2},
}
"""By step and pixel; right are 3 of 4 and 2 of 2; 2 of 4, 1 of 2 and 1 of 1; 1 of 4, 2 of 2, 0 of 1 and 1 of 2."""
RIGHT = [(3, 2), (2, 1, 1), (1, 2, 0, 1)]


class Trained(list[tuple[Task, tuple[Any, ...]]]):
    """What the loop trains networks on; they have the answers of `ANSWERS`."""

    def make_task(self, *given: Any) -> Task:
        noted = self

        class Noted(Task):
            def fresh(self, axes: tuple[Any, ...]) -> nn.Module:
                noted.append((self, axes))
                return Foretold(ANSWERS[axes[-2]], self.classes)

        return Noted(**vars(make_task(*given, epochs=1)))


@pytest.fixture
def trained() -> Trained:
    return Trained()


def sliced(soft: bool = False) -> list[StepImages]:
    return [StepImages(synthetic(soft), part, 0.1) for part in PARTS]


def per_step(soft: bool = False, rates: Sequence[float] = (0.1, 0.2, 0.6)) -> list[StepImages]:
    found = [synthetic(soft, part) for part in PARTS]
    pairs = [(made.images, whole_labels(made.labels, part, 4)) for made, part in zip(found, PARTS, strict=True)]
    return [StepImages(pair, None, rate) for pair, rate in zip(pairs, rates, strict=True)]


@pytest.mark.parametrize("brought", [sliced, per_step])
@pytest.mark.parametrize("soft", [False, True])
def test_networks_see_the_seen_classes_only(trained: Trained, brought: Callable[[bool], list], soft: bool) -> None:
    found = list(learn(brought(soft), PARTS, real_images(), trained.make_task, 7, ("a",), repeats=2))
    assert [(one.order, one.step, one.repeat) for one in found] == [(7, step, n) for step in (1, 2, 3) for n in (0, 1)]
    assert [one.right for one in found] == [right for right in RIGHT for _ in range(2)]
    assert [axes for _, axes in trained] == [("a", 7, step, n) for step in (1, 2, 3) for n in (0, 1)]
    order = (2, 0, 3, 1)
    for index, (task, _) in enumerate(trained):
        seen = order[: (2, 3, 4)[index // 2]]
        held = sorted({int(pixel) // 10 for pixel in task.synthetic.images[:, 0, 0, 0]})
        assert held == sorted(seen) and len(task.synthetic) == 2 * len(seen)
        assert task.classes == len(seen)
        labels = task.synthetic.labels
        if soft:
            assert labels.shape == (2 * len(seen), len(seen))
        else:
            pixels = task.synthetic.images[:, 0, 0, 0].int() // 10
            assert [order[label] for label in labels.tolist()] == pixels.tolist()


def test_the_step_size_is_the_mean_of_the_sets_so_far(trained: Trained) -> None:
    list(learn(per_step(), PARTS, real_images(), trained.make_task, 0, (), repeats=1))
    assert [task.rate for task, _ in trained] == pytest.approx([0.1, 0.15, 0.3])
    trained.clear()
    found = list(learn(sliced(), PARTS, real_images(), trained.make_task, 0, (), repeats=1))
    assert [task.rate for task, _ in trained] == [0.1, 0.1, 0.1] == [one.rate for one in found]


@pytest.mark.parametrize("done", range(7))
def test_what_was_tested_before_is_left_out(trained: Trained, done: int) -> None:
    whole = list(learn(sliced(), PARTS, real_images(), trained.make_task, 0, (), repeats=2))
    trained.clear()
    rest = list(learn(sliced(), PARTS, real_images(), trained.make_task, 0, (), repeats=2, done=done))
    assert [(one.step, one.repeat, one.right) for one in rest] == [
        (one.step, one.repeat, one.right) for one in whole[done:]
    ]
    assert len(trained) == 6 - done


@pytest.mark.parametrize("soft", [False, True])
def test_a_network_is_trained_as_evaluation_trains_it(soft: bool) -> None:
    """The last step on renumbered labels, written out."""
    made, order = synthetic(soft), (2, 0, 3, 1)
    [*_, last] = learn(sliced(soft), PARTS, real_images(), make_task, 5, ("x",), repeats=1)
    chosen = torch.cat([torch.arange(8)[torch.arange(8) // 2 == label] for part in PARTS for label in sorted(part)])
    labels = made.labels[chosen]
    labels = labels[:, list(order)] if soft else torch.tensor([order.index(label) for label in labels.tolist()])
    task = make_task(TrainingImages(made.images[chosen], labels), 0.1, 3, order)
    module = train(task, ("x", 5, 3, 0))
    real, right = real_images(), [0] * 4
    for logits, classes in outputs(module, real):
        for answer, label in zip(logits.argmax(1).tolist(), classes.tolist(), strict=True):
            right[order.index(label)] += order[answer] == label
    assert last.right == tuple(right)


def test_networks_trained_at_once_are_the_same() -> None:
    def at_once(*given: Any) -> Task:
        return make_task(*given, together="yes")

    found = [list(learn(sliced(), PARTS, real_images(), make, 0, (), repeats=3)) for make in (make_task, at_once)]
    assert [one.right for one in found[0]] == [one.right for one in found[1]]


# What the rows say


def frame(**axes: object) -> pandas.DataFrame:
    """Three steps of classes 0 and 1, 2, 3 with 10, 30, 30 and 10 images."""
    accuracies = {1: (0.2, 0.6), 2: (1.0, 0.8, 0.6), 3: (0.6, 0.2, 0.7, 0.9)}
    right = {step: tuple(round(a * m) for a, m in zip(each, IMAGES, strict=False)) for step, each in accuracies.items()}
    tested = [continual.StepResult(0, step, 0, counts, 0.1, 1.0, 1) for step, counts in right.items()]
    common = {"dataset": "d", "ipc": 1, "method": "m", "seed": 0, "network": "n", "protocol": "p", **axes}
    return pandas.DataFrame(rows(tested, [((0, 1), (2,), (3,))], IMAGES, common))


IMAGES = (10, 30, 30, 10)


def test_rows_are_one_per_network_and_class() -> None:
    found = frame()
    assert found["label"].tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 3]
    assert found["learned_at"].tolist() == [1, 1, 1, 1, 2, 1, 1, 2, 3]
    assert found["classes_seen"].tolist() == [2, 2, 3, 3, 3, 4, 4, 4, 4]
    assert found["images"].tolist() == [10, 30, 10, 30, 30, 10, 30, 30, 10]
    assert found["accuracy"].tolist() == pytest.approx([0.2, 0.6, 1.0, 0.8, 0.6, 0.6, 0.2, 0.7, 0.9])


def test_numbers_by_hand() -> None:
    found = frame()
    steps = [(2 + 18) / 40, (10 + 24 + 18) / 70, (6 + 6 + 21 + 9) / 80]
    accuracies = continual.step_accuracies(found)
    assert accuracies.tolist() == pytest.approx(steps)
    assert accuracies.index.get_level_values("classes_seen").tolist() == [2, 3, 4]
    assert continual.average_accuracy(found).tolist() == pytest.approx([sum(steps) / 3])
    assert continual.final_accuracy(found).tolist() == pytest.approx([steps[2]])
    first, second = max(20 / 40, 34 / 40) - 12 / 40, 18 / 30 - 21 / 30  # of the second step more is known than before
    assert continual.forgetting(found).tolist() == pytest.approx([(first + second) / 2])


def test_numbers_of_several_runs_stay_apart_and_one_step_forgets_nothing_that_can_be_told() -> None:
    one = frame()[frame()["step"] == 1].assign(order=1)
    both = pandas.concat([frame(), frame(repeat=0).assign(repeat=1, accuracy=0.5), one])
    assert continual.final_accuracy(both).tolist() == pytest.approx([42 / 80, 0.5, 0.5])
    forgotten = continual.forgetting(both)
    assert forgotten.index.get_level_values("order").tolist() == [0, 0, 1]
    assert forgotten.tolist()[:2] == pytest.approx([0.225, 0.0]) and pandas.isna(forgotten.iloc[2])
    assert by_order(continual.final_accuracy(both)).tolist() == pytest.approx([0.5125, 0.5])


# The stage, on digits

PROTOCOLS = """
  two: {kind: continual, datasets: {digits: [1]}, methods: [random, satm], steps: 2, orders: 2, repeats: 2}
  three: {kind: continual, datasets: {digits: [1]}, methods: [random], steps: 3, orders: 1, repeats: 1}
  parts:
    kind: continual
    datasets: {white: [1]}
    methods: [random, mtt]
    seeds: [3]
    steps: 2
    orders: 1
    repeats: 1
    sets: per-step
"""
"""Added to the campaign's tables, which are its last section."""
RUN = Path("results/tiny")
HAND = Path("results/hand/tiny")
"""Folder of runs with other options than the campaign's."""
CONFIG = ("--config", "tiny.yaml")
CELL = (*CONFIG, "--dataset", "digits", "--ipc", "1", "--method", "satm", "--protocol", "two")
FOUND = RUN / "continual/digits/ipc-1/satm/seed-0/two.parquet"
STATE = RUN / "state/continual/digits/ipc-1/satm/seed-0/two"
SET = RUN / "distilled/digits/ipc-1/satm/seed-0/distilled.safetensors"


@pytest.fixture
def steps(campaign: Path) -> Path:
    """The finished campaign with protocols of continual learning."""
    path = campaign / "tiny.yaml"
    path.write_text(path.read_text() + PROTOCOLS)
    return campaign


def measured(path: Path) -> list[dict[str, Any]]:
    return read_rows(path, CONTINUAL).drop(columns=["seconds", "peak_memory_bytes"]).to_dict("records")


def test_a_run_goes_on_where_it_was_stopped(steps: Path) -> None:
    assert main(["continual", *CELL]) == 0
    whole = measured(FOUND)
    assert len(whole) == 2 * 2 * (5 + 10) and not STATE.exists()
    assert {row["label"] for row in whole if row["order"] == 1 and row["step"] == 1} == set(class_order(10, 1)[:5])
    FOUND.unlink()
    kept: list[float] = []
    for left in (2, 4):
        with stopped_after(2, "/rows-"):
            assert main(["continual", *CELL]) == 75 and not FOUND.exists()
        seconds = [row["seconds"] for row in kept_rows(STATE)]
        assert len(seconds) == left and seconds[: len(kept)] == kept
        kept = seconds
    assert main(["continual", *CELL]) == 0
    assert measured(FOUND) == whole and not STATE.exists()


def test_a_state_of_other_options_is_not_gone_on_with(steps: Path, refused: Refuse) -> None:
    with stopped_after(3, "/rows-"):
        assert main(["continual", *CELL]) == 75
    (steps / "tiny.yaml").write_text((steps / "tiny.yaml").read_text().replace("repeats: 2, epochs: 3", "epochs: 2"))
    assert "unfinished run that differs (options.epochs: expected 2, found 3)" in refused("continual", *CELL)
    assert main(["continual", *CELL, "--overwrite"]) == 0
    found = measured(FOUND)
    FOUND.unlink()
    assert main(["continual", *CELL]) == 0
    assert measured(FOUND) == found


def test_the_flags_are_the_options_of_the_protocol_and_of_training(
    steps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["continual", *CELL[:-2], "--protocol", "three", "--help"]) == 0
    told = capsys.readouterr().out
    for flag in ("--steps", "--orders", "--repeats", "--network", "--sets", "--protocol", "--decay-epoch", "--device"):
        assert flag in told
    assert "(default: 3)" in told
    shown = ("--orders", "1", "--repeats", "1", "--steps", "4", "--network", "small", "--lr", "0.05")
    assert main(["continual", *CELL, *shown]) == 0
    found = read_rows(HAND / FOUND.relative_to(RUN), CONTINUAL)
    assert found["classes_seen"].unique().tolist() == [3, 6, 8, 10]
    assert set(found["network"]) == {"small"} and set(found["step_size"]) == {"fixed"} and set(found["rate"]) == {0.05}
    assert (found["accuracy"] * found["images"]).round(6).mod(1).eq(0).all() and set(found["images"]) == {36}


def test_without_a_campaign_the_protocol_has_the_defaults(tmp_path: Path) -> None:
    held = load_campaign(None)
    found = held.learning("default", Cell("digits", 1, "mtt"))
    assert (found.steps, found.orders, found.repeats, found.network, found.sets) == (5, 5, 3, "convnet", "sliced")
    assert found.epochs == held.evaluation(Cell("digits", 1, "mtt")).epochs != EvaluateOptions().epochs


def test_soft_labels_and_averages_are_learned_from(steps: Path) -> None:
    made = load_distilled(SET)
    labels = 5 * nn.functional.one_hot(made.labels, 10).float()
    save_distilled(SET, replace(made, labels=labels, average="ema", raw_images=made.images))
    assert main(["continual", *CELL]) == 0
    found = read_rows(FOUND, CONTINUAL)
    assert (set(found["labels"]), set(found["average"])) == ({"soft"}, {"ema"})


def test_a_step_size_is_searched_on_the_held_out_images_of_the_seen_classes(
    steps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["data", *CONFIG, "--dataset", "held"]) == 0
    cell = (*CONFIG, "--dataset", "held", "--ipc", "1", "--method", "random")
    assert main(["distill", *cell]) == 0
    asked: list[TrainingImages] = []

    def search(task: Task, option: str, values: object, real: TrainingImages, axes: tuple[Any, ...]) -> Task:
        asked.append(real)
        rate = (0.05, 0.07)[len(asked) % 2]
        return replace(task, options=task.options.model_copy(update={option: rate}))

    monkeypatch.setattr("satm.evaluation.networks.search", search)
    shown = ("--protocol", "three", "--lr", "searched", "--repeats", "2", "--steps", "2")
    assert main(["continual", *cell, *shown]) == 0
    found = read_rows(HAND / "continual/held/ipc-1/random/seed-0/three.parquet", CONTINUAL)
    assert [(len(real), len(real.labels.unique())) for real in asked] == [(25, 5), (50, 10)]
    assert found.groupby("step")["rate"].unique().map(list).tolist() == [[0.07], [0.05]]
    assert set(found["step_size"]) == {"searched"}


def test_a_whole_campaign_from_slices(steps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", *CELL[:-4], "--method", "random"]) == 0
    for method in ("random", "satm"):
        assert main(["continual", *CELL[:-4], "--method", method, "--protocol", "two"]) == 0
    assert main(["table", *CONFIG, "--name", "two"]) == 0
    assert main(["figure", *CONFIG, "--name", "two"]) == 0
    table = pandas.read_csv(RUN / "two.csv")
    assert table["method"].tolist() == ["random", "satm"]
    held = pandas.concat([read_rows(FOUND, CONTINUAL)])
    last = held[held["step"] == 2].groupby(["order", "repeat"])["accuracy"].mean().groupby("order").mean()
    row = table.iloc[1]
    assert (row["final_mean"], row["final_std"]) == pytest.approx((last.mean(), last.std()), rel=WRITTEN)
    assert row[["n", "seeds", "orders", "networks", "steps"]].tolist() == [2, 1, 2, 2, 2]
    text = (RUN / "two.md").read_text()
    assert "| digits | 1 | satm |" in text and "2 steps" in text and "last" not in text.split("\n\n")[0]
    with Image.open(RUN / "figures/two.png") as picture:
        assert min(picture.size) > 200
    assert (RUN / "figures/two.pdf").read_bytes().startswith(b"%PDF")
    loaded = load_campaign(Path("tiny.yaml"))
    curves = table_of(loaded, "two").curves(Reader(loaded), "two")["digits", 1]["satm"]  # type: ignore[attr-defined]
    assert curves.index.tolist() == [5, 10]
    assert curves["mean"].iloc[1] == pytest.approx(row["final_mean"], rel=WRITTEN)
    assert curves["mean"].mean() == pytest.approx(row["average_mean"], rel=WRITTEN)


def test_a_whole_campaign_from_sets_of_each_step(steps: Path) -> None:
    """The stages that make any set make those of the steps, in the space of the whole dataset."""
    assert main(["data", *CONFIG, "--dataset", "white"]) == 0
    names = [Step("white", 0, step, 2).name for step in (1, 2)]
    whole = load_images(RUN / "data/white/images.safetensors")
    for name, part in zip(names, split_classes(10, 0, 2), strict=True):
        assert main(["experts", *CONFIG, "--dataset", name]) == 0
        for method in ("random", "mtt"):
            assert main(["distill", *CONFIG, "--dataset", name, "--ipc", "1", "--method", method, "--seed", "3"]) == 0
        made = load_distilled(RUN / f"distilled/{name}/ipc-1/random/seed-3/distilled.safetensors")
        assert made.class_names == tuple(whole.class_names[label] for label in part)
        pixels = (255 * made.pixels()).round().to(torch.uint8)
        for image, label in zip(pixels, part, strict=True):
            members = whole.train.images[whole.train.labels == label]
            assert (members == image).flatten(1).all(1).any(), "a real image of that class, whitened with all"
    cell = (*CONFIG, "--dataset", "white", "--ipc", "1", "--seed", "3", "--protocol", "parts")
    for method in ("random", "mtt"):
        assert main(["continual", *cell, "--method", method]) == 0
    found = read_rows(RUN / "continual/white/ipc-1/mtt/seed-3/parts.parquet", CONTINUAL)
    assert set(found["sets"]) == {"per-step"}
    sizes = [
        float(load_distilled(RUN / f"distilled/{name}/ipc-1/mtt/seed-3/distilled.safetensors").step_size)
        for name in names
    ]
    assert found.groupby("step")["rate"].first().tolist() == pytest.approx([sizes[0], sum(sizes) / 2])
    assert main(["table", *CONFIG, "--name", "parts"]) == 0
    assert main(["figure", *CONFIG, "--name", "parts"]) == 0
    assert "images distilled on its classes only" in (RUN / "parts.md").read_text()
    assert sorted(path.name for path in (RUN / "data").iterdir()) == ["digits", "white"], "no images are stored twice"


def test_sets_of_each_step_are_put_together_with_the_labels_of_the_whole(steps: Path) -> None:
    """Random real images of each step: what networks learn from says which class it is."""
    cell = (*CONFIG, "--ipc", "2", "--method", "random")
    names = [Step("digits", 0, step, 3).name for step in (1, 2, 3)]
    for name in names:
        assert main(["distill", *cell, "--dataset", name]) == 0
    assert main(["continual", *cell, "--dataset", "digits", "--protocol", "three", "--sets", "per-step"]) == 0
    data, order = load_images(RUN / "data/digits/images.safetensors"), class_order(10, 0)
    mean, std = (torch.tensor(value) for value in (data.mean, data.std))
    sets = [load_distilled(RUN / f"distilled/{name}/ipc-2/random/seed-0/distilled.safetensors") for name in names]
    asked: list[TrainingImages] = []

    def noted(synthetic: TrainingImages, *rest: Any) -> Task:
        asked.append(synthetic)
        return make_task(synthetic, *rest, epochs=1)

    parts = split_classes(10, 0, 3)
    real = TrainingImages.of(data.test, Preprocessor(data.mean, data.std, None), torch.device("cpu"))
    assert len(list(learn(one_set_a_step(sets, parts, 10), parts, real, noted, 0, ("a",), 1))) == 3
    assert [len(images) for images in asked] == [8, 14, 20]
    for image, label in zip(asked[-1].images, asked[-1].labels.tolist(), strict=True):
        pixels = (255 * (image * std + mean)).round().to(torch.uint8)
        found = data.train.labels[(data.train.images == pixels).flatten(1).all(1)]
        assert order[label] in found


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("continual", *CELL[:-1], "tow"), "unknown protocol .* in tiny.yaml 'tow'; known: .*two.*mean 'two'?"),
        (("continual", *CELL, "--steps", "11"), "10 classes cannot be learned in 11 steps; use 1 to 10 steps"),
        (("continual", *CELL, "--steps", "0"), "greater than or equal to 1"),
        (
            ("continual", *CELL, "--sets", "per-step"),
            "digits-order-0-step-1-of-2/ipc-1/satm/.* does not exist; begin with: .*; then make it with: .* distill",
        ),
        (("continual", *CELL, "--split", "validation"), "holds out no validation images"),
        (("continual", *CELL, "--lr", "searched"), "holds out no validation images"),
        (("continual", *CELL, "--network", "convnets"), "unknown network 'convnets'"),
        (
            ("table", *CONFIG, "--name", "two"),
            "begin with: .* distill .*--method random .*; then make it with: .* continual .*--protocol two",
        ),
        (("figure", *CONFIG, "--name", "tow"), "unknown figure 'tow' in tiny.yaml; .* Did you mean 'two'"),
        (
            ("figure", *CONFIG, "--name", "two"),
            "begin with: .* distill .*--method random .*; then make it with: .* continual .*--protocol two",
        ),
        (
            ("experts", *CONFIG, "--dataset", "white-order-0-step-1-of-2"),
            "satm data --config tiny.yaml --dataset white",
        ),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    steps: Path, refused: Refuse, arguments: tuple[str, ...], text: str
) -> None:
    assert re.search(text, refused(*arguments))


def test_a_set_of_other_classes_is_refused(steps: Path, refused: Refuse) -> None:
    save_distilled(SET, replace(load_distilled(SET), class_names=tuple("abcdefghij")))
    assert "was made for other classes or in another order: class_names" in refused("continual", *CELL)


def test_a_class_without_images_to_test_on_is_refused(steps: Path, refused: Refuse) -> None:
    path = RUN / "data/digits/images.safetensors"
    data = load_images(path)
    kept = data.test.labels != 4
    test = replace(data.test, images=data.test.images[kept], labels=data.test.labels[kept])
    options = asked.of_images(load_campaign(Path("tiny.yaml")), asked.wildcards({"dataset": "digits"}))["options"]
    changed = replace(data, test=test, hash=hash_images(data.train, data.validation, test))
    save_images(path, changed, {"options": options.values})
    assert "class 4 (4) of digits has no test images to be tested on" in refused("continual", *CELL)


def test_rows_of_another_plan_are_refused_by_the_table(steps: Path, refused: Refuse) -> None:
    shown = ("--method", "random", "--protocol", "three")
    assert main(["distill", *CELL[:-4], "--method", "random"]) == 0
    path = Path("tiny.yaml")
    text = path.read_text()
    plan = "steps: 3, orders: 1, repeats: 1}"
    for other, told in (("steps: 2", "steps: expected 3, found 2"), ("repeats: 2", "repeats: expected 1, found 2")):
        name = other.split(":")[0]
        path.write_text(text.replace(plan, re.sub(f"{name}: .", other, plan)))
        assert main(["continual", *CELL[:-4], *shown, "--overwrite"]) == 0
        path.write_text(text)
        why = f"three.parquet is not what the campaign asks for: options.{told}; make it with: python -m satm continual"
        assert why in refused("table", *CONFIG, "--name", "three")
    assert main(["continual", *CELL[:-4], *shown, "--overwrite"]) == 0
    with (RUN / "distilled/digits/ipc-1/random/seed-0/distilled.safetensors").open("ab") as file:
        file.write(b"another")
    assert "three.parquet is not what the campaign asks for: it is of another synthetic set than" in refused(
        "table", *CONFIG, "--name", "three"
    )


# Campaigns and the workflow

PROTOCOL: dict[str, Any] = {"kind": "continual", "datasets": {"digits": [1]}, "methods": ["random"]}


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        ({"synthetic-p": PROTOCOL}, "the figure of 'synthetic-p' could be taken for a picture"),
        ({"p_q": PROTOCOL}, "the name 'p_q' must have letters, digits and '-' only"),
        ({"p": {**PROTOCOL, "step": 3}}, "unknown option 'tables.p.step'.*Did you mean 'steps'?"),
        ({"p": {**PROTOCOL, "sets": "slices"}}, "tables.p.sets: .*'sliced' or 'per-step'"),
        ({"p": {**PROTOCOL, "orders": 0}}, "tables.p.orders: .*greater than or equal to 1"),
    ],
)
def test_an_unusable_protocol_is_told_when_it_is_loaded(tables: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        resolver(tables=tables)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"steps": 11}, "table p: 10 classes cannot be learned in 11 steps; use 1 to 10 steps"),
        ({"network": "convnets"}, "unknown network .*'convnets'.*Did you mean 'convnet'?"),
        ({"methods": ["mttt"]}, "unknown method .*'mttt'.*mean 'mtt'?"),
        ({"datasets": {"digit": [1]}}, "unknown dataset .*'digit'.*mean 'digits'?"),
        ({"datasets": {"pets": [1]}, "sets": "per-step"}, "table p: the steps of dataset pets need its number of"),
        ({"datasets": {"some": [1]}, "steps": 4}, "table p: 3 classes cannot be learned in 4 steps"),
    ],
)
def test_a_protocol_is_checked_before_any_job(change: dict[str, Any], text: str) -> None:
    datasets = {"pets": {"source": "folder"}, "some": {"source": "folder", "classes": [1, 2, 3]}}
    with pytest.raises(UsageError, match=text):
        check(resolver(datasets=datasets, tables={"p": {**PROTOCOL, **change}}))
    check(resolver(datasets=datasets, tables={"p": {**PROTOCOL, "datasets": {"pets": [1]}}}))


def campaigns(tmp_path: Path, text: str) -> Campaigns:
    path = tmp_path / "steps.yaml"
    path.write_text(text)
    return Campaigns(ROOT, [path])


WORKFLOW = """
datasets:
  white: {source: digits, zca: true}
tables:
  parts: {kind: continual, datasets: {white: [1]}, methods: [mtt], steps: 2, orders: 2, sets: per-step}
  whole: {kind: continual, datasets: {white: [1]}, methods: [mtt], steps: 2, orders: 2}
"""


def wildcards(**changes: str) -> SimpleNamespace:
    held = {"root": "results/steps", "dataset": "white", "ipc": "1", "method": "mtt", "seed": "0", "protocol": "parts"}
    return SimpleNamespace(**{**held, **changes})


def test_the_workflow_knows_what_a_protocol_is_made_of(tmp_path: Path) -> None:
    held = campaigns(tmp_path, WORKFLOW)
    root = "results/steps"
    assert held.inputs("continual", wildcards())["distilled"] == [
        f"{root}/distilled/white-order-{order}-step-{step}-of-2/ipc-1/mtt/seed-0/distilled.safetensors"
        for order in (0, 1)
        for step in (1, 2)
    ]
    whole = wildcards(protocol="whole")
    assert held.inputs("continual", whole)["distilled"] == [
        f"{root}/distilled/white/ipc-1/mtt/seed-0/distilled.safetensors"
    ]
    files = [f"{root}/data/white/images.safetensors", f"{root}/data/white/zca.safetensors"]
    part = wildcards(dataset="white-order-1-step-2-of-2")
    assert held.inputs("distill", part)["data"] == held.inputs("distill", whole)["data"] == files
    assert held.inputs("distill", part)["experts"] == [f"{root}/experts/white-order-1-step-2-of-2/sgd/manifest.json"]
    learned = [f"{root}/continual/white/ipc-1/mtt/seed-0/whole.parquet"]
    measured = [*learned, *held.inputs("continual", whole)["distilled"]]
    assert held.inputs("table", SimpleNamespace(root=root, table="whole")) == {"measured": measured}
    assert held.inputs("figure", SimpleNamespace(root=root, figure="whole")) == {"measured": measured}
    steps = held.inputs("table", SimpleNamespace(root=root, table="parts"))["measured"]
    assert steps[1:] == held.inputs("continual", wildcards())["distilled"]
    wanted = held.defaults(SimpleNamespace())
    assert {f"{root}/whole.csv", f"{root}/figures/whole.png", f"{root}/parts.csv"} <= set(wanted)


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("orders: 2, sets", "orders: 3, sets", True),
        ("steps: 2, orders: 2, sets", "steps: 3, orders: 2, sets", True),
        ("orders: 2}", "orders: 3}", False),
        ("methods: [mtt], steps: 2, orders: 2, sets", "methods: [mtt, satm], steps: 2, orders: 2, sets", False),
        ("tables:", "networks: {convnet: {width: 4}}\ntables:", True),
        ("tables:", "settings: [{stage: evaluate, options: {epochs: 3}}]\ntables:", True),
        ("tables:", "settings: [{stage: evaluate, options: {repeats: 3}}]\ntables:", False),
        ("tables:", "settings: [{method: mtt, options: {iterations: 3}}]\ntables:", False),
        ("zca: true}", "zca: true, augment: flip}", True),
    ],
)
def test_a_job_knows_only_the_values_that_it_uses(tmp_path: Path, old: str, new: str, changes: bool) -> None:
    assert WORKFLOW.count(old) == 1
    before = campaigns(tmp_path, WORKFLOW).options("continual", wildcards())
    after = campaigns(tmp_path, WORKFLOW.replace(old, new)).options("continual", wildcards())
    assert (before != after) == changes


@pytest.mark.workflow
def test_the_workflow_plans_the_sets_of_each_step(tmp_path: Path) -> None:
    folder = make_checkout(tmp_path)
    (folder / "config" / "steps.yaml").write_text(WORKFLOW)
    found = planned(folder, "results/steps/parts.csv", "results/steps/figures/parts.png")
    names = {f"white-order-{order}-step-{step}-of-2" for order in (0, 1) for step in (1, 2)}
    assert {wild["dataset"] for rule, wild in found if rule == "distill"} == names
    assert {wild["dataset"] for rule, wild in found if rule in ("images", "zca", "continual")} == {"white"}
    assert {wild["dataset"] for rule, wild in found if rule == "experts"} == names
    assert Counter(rule for rule, _ in found if rule not in ("experts_part", "experts", "distill")) == {
        **dict.fromkeys(("images", "zca", "continual", "table", "figure"), 1)
    }


def test_the_profiles_know_the_stage() -> None:
    slurm, local = (load_yaml(ROOT / "workflow" / "profiles" / name / "profile.yaml") for name in ("slurm", "local"))
    assert slurm["set-resources"]["continual"] == '?site.gpu("continual")'
    assert local["set-threads"]["continual"] == 1


def test_the_papers_figure_2_is_in_its_campaign() -> None:
    paper = load_campaign(ROOT / "config" / "paper.yaml")
    found = {
        (dataset, ipc, one.steps): one.methods
        for one in paper.campaign.tables_with(StepsOptions).values()
        for dataset, ipcs in one.datasets.items()
        for ipc in ipcs
    }
    methods = ("dm", "mtt", "ftd", "satm")
    assert found == {
        ("cifar10", 50, 5): methods,
        ("tiny-imagenet", 3, 10): methods,
        ("tiny-imagenet", 3, 20): methods,
    }


def test_options_of_learning_are_those_of_the_protocol_and_of_the_evaluation() -> None:
    held = resolver(
        tables={"p": {**PROTOCOL, "repeats": 4, "steps": 3}},
        settings=[{"stage": "evaluate", "options": {"epochs": 11, "repeats": 7}}],
    )
    found = held.learning("p", Cell("digits", 1, "random"))
    assert isinstance(found, LearnOptions) and (found.epochs, found.repeats, found.steps) == (11, 4, 3)
