"""A replay buffer of synthetic images: what it takes, what it refuses, and in which order it gives back."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import grey_set
from drawing import torch_generator
from torch import Tensor

import satm
from satm import Memory, UsageError
from satm.results.distilled import DistilledDataset, save_distilled

SPACE = {"space": "normalised", "mean": [0.5], "std": [0.25], "whitening_hash": None}


def synthetic(soft: bool = False, classes: int = 3, ipc: int = 2, size: int = 4) -> DistilledDataset:
    """A set whose image i is evenly i; its soft labels say that every image is of class 0."""
    count = classes * ipc
    labels = torch.zeros(count, classes) if soft else torch.arange(count) // ipc
    if soft:
        labels[:, 0] = 1
    return grey_set(torch.arange(count), labels, "abcdefghij"[:classes], ipc, size)


def which(images: Tensor) -> list[int]:
    return images[:, 0, 0, 0].int().tolist()


def test_it_is_a_public_name_with_two_methods() -> None:
    assert satm.Memory is Memory and "Memory" in satm.__all__
    assert [name for name in vars(Memory) if not name.startswith("_")] == ["images", "labels", "classes", "add", "draw"]


def test_it_keeps_only_the_classes_asked_for_in_the_order_they_come() -> None:
    memory = Memory()
    memory.add(synthetic(), classes=(2,))
    assert (memory.classes, which(memory.images), memory.labels.tolist(), len(memory)) == ((2,), [4, 5], [2, 2], 2)
    memory.add(synthetic(), classes=(1, 0))
    assert memory.classes == (2, 1, 0)
    assert (which(memory.images), memory.labels.tolist()) == ([4, 5, 0, 1, 2, 3], [2, 2, 0, 0, 1, 1])


def test_without_classes_it_keeps_all() -> None:
    memory = Memory()
    memory.add(synthetic())
    assert (memory.classes, len(memory)) == ((0, 1, 2), 6)
    other = Memory()
    other.add((torch.ones(3, 1, 4, 4), torch.tensor([7, 5, 7])))
    assert other.classes == (7, 5)


def test_the_class_of_soft_labels_is_the_place_in_a_set_and_the_largest_of_a_pair() -> None:
    data = synthetic(soft=True)
    memory = Memory()
    memory.add(data, classes=(1,))
    assert which(memory.images) == [2, 3] and memory.labels.shape == (2, 3)
    pair = Memory()
    pair.add((data.images, data.labels))
    assert (pair.classes, len(pair)) == ((0,), 6)


@pytest.mark.parametrize("batch", [1, 4, 6, 15])
def test_no_image_comes_again_before_all_have_come(batch: int) -> None:
    memory, generator = Memory(), torch_generator(0)
    memory.add(synthetic())
    drawn: list[int] = []
    orders = set()
    while len(drawn) < 60:
        images, labels = memory.draw(batch, generator)
        assert images.shape == (batch, 1, 4, 4)
        assert labels.tolist() == [image // 2 for image in which(images)]
        drawn += which(images)
    for start in range(0, 60, 6):
        assert sorted(drawn[start : start + 6]) == [0, 1, 2, 3, 4, 5]
        orders.add(tuple(drawn[start : start + 6]))
    assert len(orders) > 5


def test_what_is_added_joins_what_has_not_come_yet() -> None:
    memory, generator = Memory(), torch_generator(0)
    memory.add(synthetic(), classes=(0, 1))
    first = which(memory.draw(3, generator)[0])
    memory.add(synthetic(), classes=(2,))
    rest = which(memory.draw(3, generator)[0])
    assert sorted(first + rest) == [0, 1, 2, 3, 4, 5]


def test_a_generator_names_the_batches() -> None:
    found = []
    for seed in (1, 1, 2):
        memory = Memory()
        memory.add(synthetic(ipc=4))
        found.append(which(memory.draw(9, torch_generator(seed))[0]))
    assert found[0] == found[1] != found[2]


def test_every_image_is_as_likely_to_come_first() -> None:
    memory, generator = Memory(), torch_generator(3)
    memory.add(synthetic(classes=2, ipc=1))
    firsts = Counter(which(memory.draw(2, generator)[0])[0] for _ in range(400))
    assert abs(firsts[0] - 200) < 50


def refusals() -> list[tuple[str, object]]:
    good = synthetic()
    whitened = replace(good, preprocessing={**SPACE, "space": "whitened"})
    return [
        ("class 1 is in the memory already; add each class once", (good, (2, 1))),
        ("the data has no images of class 9; it has the classes \\[0, 1, 2\\]", (good, (9,))),
        ("another space than those of the memory: space: expected 'normalised', found 'whitened'", (whitened, (2,))),
        ("holds images of torch.float32 \\(1, 4, 4\\), got torch.float32 \\(1, 8, 8\\)", (synthetic(size=8), (2,))),
        ("holds labels of torch.int64 \\(\\), got torch.float32 \\(3,\\)", (synthetic(soft=True), (2,))),
        ("needs images \\[m, C, H, W\\] with labels", ((good.images[0], good.labels[:1]), None)),
        ("got \\(6, 1, 4, 4\\) and torch.int64 \\(2,\\)", ((good.images, good.labels[:2]), None)),
        ("got \\(6, 1, 4, 4\\) and torch.float32 \\(6,\\)", ((good.images, good.labels.float()), None)),
    ]


@pytest.mark.parametrize(("text", "given"), refusals())
def test_what_does_not_fit_is_refused_and_changes_nothing(text: str, given: tuple) -> None:
    memory = Memory()
    memory.add(synthetic(), classes=(1,))
    with pytest.raises(UsageError, match=text) as caught:
        memory.add(*given)
    assert "\n" not in str(caught.value)
    assert (memory.classes, len(memory)) == ((1,), 2)
    memory.add(synthetic(), classes=(0, 2))


def test_the_space_is_that_of_the_first_synthetic_set() -> None:
    memory = Memory()
    memory.add((torch.ones(1, 1, 4, 4), torch.tensor([5])))
    memory.add(synthetic(), classes=(0,))
    memory.add((torch.ones(1, 1, 4, 4), torch.tensor([6])))
    with pytest.raises(UsageError, match="another space"):
        memory.add(replace(synthetic(), preprocessing={**SPACE, "std": [0.5]}), classes=(1,))


def test_an_empty_memory_and_an_empty_batch_are_refused() -> None:
    memory, generator = Memory(), torch.Generator()
    for ask in (lambda: memory.images, lambda: memory.labels, lambda: memory.draw(1, generator)):
        with pytest.raises(UsageError, match="the memory is empty; add a synthetic set first"):
            ask()
    memory.add(synthetic())
    with pytest.raises(UsageError, match="at least 1 image, got count 0"):
        memory.draw(0, generator)


def test_its_attributes_cannot_be_set() -> None:
    memory = Memory()
    for name in ("images", "labels", "classes"):
        with pytest.raises(AttributeError):
            setattr(memory, name, ())


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text()
    section = page.split("## Continual learning\n")[1]
    [example] = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], flags=re.DOTALL)
    save_distilled(tmp_path / re.findall(r'"(results/.*)"', example)[0], synthetic(classes=10, ipc=1, size=8))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    memory = names["memory"]
    assert (memory.classes, tuple(memory.images.shape), len(memory.labels)) == ((2, 6, 0, 7, 8, 3), (6, 1, 8, 8), 6)
    assert names["images"].shape == (8, 1, 8, 8)
