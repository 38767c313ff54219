"""Sets from elsewhere that may mean something else than they are taken for: order of classes, labels, value space."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from conftest import Refuse
from test_data import encode, needs_data, pixels, write_parquet
from torch import Tensor

from satm.cli import main
from satm.config import DatasetOptions
from satm.data import ImageData, Preprocessor, fit_whitening, load_dataset
from satm.data.images import numbered
from satm.data.listing import natural_order
from satm.errors import UsageError
from satm.results.distilled import load_distilled, save_distilled
from satm.results.doubts import copy_doubts, label_doubts, mapping_doubts, number_doubts, sorting_doubts, space_doubts
from satm.results.external import read_set
from satm.results.fitting import fit_labels, name_labels

TWELVE = [str(number) for number in range(12)]


# Order of classes


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10", "2", "0", "1"], ["0", "1", "2", "10"]),
        (["class10", "class9", "class1"], ["class1", "class9", "class10"]),
        (["a2b10", "a2b9", "a10b1", "a"], ["a", "a2b9", "a2b10", "a10b1"]),
        (["01", "1", "002", "10"], ["01", "1", "002", "10"]),
        (["n02", "n01", "b", "2", "-1"], ["2", "-1", "b", "n01", "n02"]),
        (["9" * 5000, "1" + "0" * 5000, ""], ["", "9" * 5000, "1" + "0" * 5000]),
    ],
)
def test_names_with_numbers_are_sorted_by_value(names: list[str], expected: list[str]) -> None:
    backwards = names[::-1]
    assert sorted(names, key=natural_order) == sorted(backwards, key=natural_order) == expected


def write_classes(folder: Path, names: list[str], each: int = 1, first: int = 0) -> Path:
    """A grey level for each class, in the order of the names; images differ by their numbers, from `first` on."""
    for level, name in enumerate(names):
        for index in range(each):
            path = folder / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode((pixels(first + index, grey=True) // 32 + 20 * level).astype("uint8")))
    return folder


@pytest.mark.parametrize("names", [TWELVE, [f"class{number}" for number in range(1, 13)], ["2b", "10a", "20"]])
def test_class_folders_are_in_natural_order(names: list[str], tmp_path: Path) -> None:
    for first, part in enumerate(("train", "test")):
        write_classes(tmp_path / part, names, first=first)
    data = load_dataset("own", DatasetOptions(source="folder", path=str(tmp_path)))
    assert data.class_names == tuple(names)
    levels = [float(image.float().mean()) for image in data.train.images]
    assert data.train.labels.tolist() == list(range(len(names))) and levels == sorted(levels)


def test_order_of_classes_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for first, part in enumerate(("train", "test")):
        write_classes(tmp_path / "images" / part, TWELVE, first=first)
    Path("c.yaml").write_text("datasets: {own: {source: folder, path: images, augment: ''}}\n")
    assert main(["data", "--config", "c.yaml", "--dataset", "own", "--make", "images"]) == 0
    log = next(Path("results").rglob("*.log")).read_text()
    assert (
        "own: classes 0 = 0, 1 = 1, 2 = 2" in log and "11 = 11 (numbers by value; sorted as text: 0, 1, 10, 11" in log
    )


def test_long_orders_are_cut_and_plain_ones_say_no_more() -> None:
    assert numbered(["cat", "dog"]) == "0 = cat, 1 = dog"
    assert numbered([f"{number:03d}" for number in range(100)]).endswith("9 = 009, …, 99 = 099")


def test_folders_and_files_of_a_set_are_in_natural_order(tmp_path: Path) -> None:
    """A file of labels, written in the order 0, 1, 2…, fits the pictures."""
    write_classes(tmp_path / "set", ["1", "2", "10"], each=11)
    names = read_set(tmp_path / "set").class_names
    assert names == ("1", "2", "10")
    folder = tmp_path / "one" / "k"
    folder.mkdir(parents=True)
    for level in range(12):
        (folder / f"{level}.png").write_bytes(encode((pixels(0, grey=True) // 32 + 20 * level).astype("uint8")))
        write_parquet(tmp_path / f"shards/{level}.parquet", [(folder / f"{level}.png").read_bytes()], [0])
    for path in (tmp_path / "one", tmp_path / "shards"):
        levels = [float(image.float().mean()) for image in read_set(path).images]
        assert levels == sorted(levels)


@pytest.mark.parametrize(
    ("names", "classes", "expected", "how"),
    [
        (["Truck", "CAT"], ["cat", "truck"], [1, 0], "by the names of the classes, apart from capitals and signs"),
        (["garbage_truck", "gas-pump"], ["gas pump", "garbage truck"], [1, 0], "apart from capitals and signs"),
        (["00", "01", "10"], [*TWELVE], [0, 1, 10], "by the numbers that the classes are named by"),
        (["1", "3", "2"], ["01", "02", "03"], [0, 2, 1], "by the numbers that the classes are named by"),
        (["1", "10"], ["0", "1", "10", "2"], [1, 2], "by the names of the classes"),
    ],
)
def test_names_are_matched_however_they_are_written(
    names: list[str], classes: list[str], expected: list[int], how: str
) -> None:
    found, told, doubts = name_labels(torch.arange(len(names)), names, classes, "here")
    assert found.tolist() == expected and told.endswith(how) and not doubts


def test_numbers_from_0_are_not_names_from_1() -> None:
    """0 is no class of 1 to 3, so 1 and 2 may not be taken for the classes of these names, nor for labels."""
    with pytest.raises(UsageError, match=r"here has a class '0', the dataset has 1, 2, 3; rename it"):
        name_labels(torch.arange(3), ["0", "1", "2"], ["1", "2", "3"], "here")


def test_other_names_are_taken_in_order_and_that_is_a_doubt() -> None:
    _, _, [doubt] = name_labels(
        torch.arange(4), ["plane", "car", "birdie", "kitty"], ["airplane", "auto", "bird", "cat"], ""
    )
    assert "'plane' = 'airplane', 'car' = 'auto', 'birdie' = 'bird' and 1 more; check the order" in doubt


@pytest.mark.parametrize("soft", [False, True])
def test_names_beside_tensors_are_heeded(soft: bool, tmp_path: Path) -> None:
    labels = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]) if soft else torch.tensor([0, 2])
    torch.save({"images": torch.zeros(2, 1, 8, 8), "labels": labels, "class_names": ["c", "a", "b"]}, tmp_path / "s.pt")
    found = read_set(tmp_path / "s.pt")
    assert found.labels is not None and found.class_names == ("c", "a", "b")
    mapped, _, _ = name_labels(found.labels, found.class_names, ["a", "b", "c"], "here")
    assert mapped.tolist() == (labels[:, [1, 2, 0]].tolist() if soft else [2, 1])


def test_soft_labels_with_names_of_other_classes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"here names 2 classes and has labels \(4, 2\), the dataset has 3 classes"):
        name_labels(torch.zeros(4, 2), ["a", "b"], ["a", "b", "c"], "here")


def test_labels_that_may_be_names_are_doubted() -> None:
    text = ["0", "1", "10", "11", *TWELVE[2:10]]
    [doubt] = number_doubts(torch.arange(12), text)
    assert "label 2 is class '10', label 3 is class '11', label 4 is class '2' and 7 more; renumber" in doubt
    assert number_doubts(torch.arange(12), TWELVE) == []
    assert number_doubts(torch.arange(3), ["1", "2", "3"]) == []  # a label 0 is no name
    assert number_doubts(torch.tensor([1, 2]), ["1", "2", "3"]) != []
    assert number_doubts(torch.arange(2), ["cat", "dog"]) == []


# Labels


@pytest.mark.parametrize("labels", [torch.zeros(6, dtype=torch.int64), torch.full((6, 3), 0.2)])
def test_labels_that_are_all_the_same_are_refused(labels: Tensor) -> None:
    with pytest.raises(
        UsageError, match=r"here has the (label 0 6 times and no other|same soft label for all 6 images)"
    ):
        fit_labels(labels, "auto", 2, 3, "here")


def test_one_class_needs_one_label() -> None:
    assert fit_labels(torch.zeros(6, dtype=torch.int64), "auto", 6, 1, "here")[0].tolist() == [0] * 6


def test_classes_without_labels_are_counted() -> None:
    [doubt] = label_doubts(torch.tensor([0, 0, 0, 2]), 2, ["a", "b", "c"])
    assert doubt == "3 of 3 classes: 1 have no label, the others not 2 each ('a' 3, 'b' 0, 'c' 1); check the labels"
    assert label_doubts(torch.tensor([2, 1, 0]), 1, ["a", "b", "c"]) == []
    [doubt] = label_doubts(torch.tensor([[0.9, 0.1], [0.8, 0.2]]).log(), 1, ["a", "b"])
    assert doubt == "1 of 2 classes: no image has them with more than 1 / 2 ('b' 0); check the labels"
    # Learned labels: the third class is nowhere the most probable one, and still taught.
    learned = torch.tensor([[0.6, 0.0, 0.4], [0.0, 1.0, 0.0], [0.5, 0.1, 0.4]]).log()
    assert label_doubts(learned, 1, ["a", "b", "c"]) == []
    [doubt] = label_doubts(torch.zeros(100, dtype=torch.int64), 1, [f"k{number}" for number in range(100)])
    assert "99 have no label, the others not 1 each ('k0' 100, 'k1' 0" in doubt and "and 90 more" in doubt


def test_copies_are_counted() -> None:
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert copy_doubts(images) == []
    assert copy_doubts(images[[0, 1, 1, 3]]) == ["only 3 of 4 images differ; check the file"]


# Real digits: an assignment of classes, and spaces


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return load_dataset("digits", DatasetOptions(source="digits"))


def first_images(data: ImageData, each: int = 1, start: int = 0) -> tuple[Tensor, Tensor]:
    """Real images sorted by class, as a set made elsewhere."""
    chosen = [(data.train.labels == label).nonzero()[start : start + each, 0] for label in range(data.classes)]
    part = data.train.select(torch.cat(chosen))
    return part.images, part.labels


def mapping(data: ImageData, labels: Tensor, preprocessor: Preprocessor, images: Tensor) -> list[str]:
    real = preprocessor.apply(data.train.images)
    return mapping_doubts(preprocessor.apply(images), labels, real, data.train.labels, data.class_names)


def preprocessors(data: ImageData) -> dict[str, Preprocessor]:
    white = Preprocessor(data.mean, data.std, fit_whitening(data.train.images))
    return {"normalised": Preprocessor(data.mean, data.std, None), "whitened": white}


@pytest.mark.parametrize("space", ["normalised", "whitened"])
@pytest.mark.parametrize("each", [4, 10])
def test_permuted_labels_are_noticed_and_right_ones_are_not(digits: ImageData, each: int, space: str) -> None:
    (images, labels), preprocessor = first_images(digits, each), preprocessors(digits)[space]
    assert mapping(digits, labels, preprocessor, images) == []
    text = torch.tensor([0, 1, 4, 5, 6, 7, 8, 9, 2, 3])  # as if the classes were 0, 1, 10, 11, 2…
    [doubt] = mapping(digits, text[labels], preprocessor, images)
    assert re.search(
        r"real images .* [0-9]% agree with the labels, but [5-9].% if .*'6' should be '4' and [345] more", doubt
    )
    swapped = torch.tensor([0, 1, 2, 7, 4, 5, 6, 3, 8, 9])
    [doubt] = mapping(digits, swapped[labels], preprocessor, images)
    assert "if '7' should be '3', '3' should be '7'; check" in doubt
    soft = 3 * torch.nn.functional.one_hot(labels, 10).float()
    assert mapping(digits, soft, preprocessor, images) == []
    assert mapping(digits, soft.roll(1, 1), preprocessor, images)[0].endswith("check the order of the classes")
    assert mapping(digits, labels.clamp_max(8), preprocessor, images) == []  # a class without images is told elsewhere


def test_classes_that_alternate_are_noticed(digits: ImageData) -> None:
    """Without labels, images are taken to be sorted by class; here they are 0, 1, 2, …, 0, 1, 2, …"""
    preprocessor, (images, labels) = preprocessors(digits)["normalised"], first_images(digits, 4)
    real, alternating = preprocessor.apply(digits.train.images), torch.arange(40).reshape(10, 4).T.reshape(-1)
    images = preprocessor.apply(images)
    assert sorting_doubts(images, labels, real, digits.train.labels, 10) == []
    [doubt] = sorting_doubts(images[alternating], labels, real, digits.train.labels, 10)
    assert re.search(
        r"1?\d% of real images agree with images sorted by class, but [78]\d% if their classes alternate", doubt
    )
    assert sorting_doubts(images[alternating], labels[alternating], real, digits.train.labels, 10) == []


def in_space(images: Tensor, space: str, known: dict[str, Preprocessor]) -> Tensor:
    scaled = images.float() / 255
    if space == "[-1, 1]":
        return scaled * 2 - 1
    return scaled if space == "pixels" else known[space].apply(images)


CASES = [
    ("normalised", "whitened", r"as normalised they do; set `space: normalised, mean: \[0.3\d*\], std: \[0.37\d*\]`"),
    ("whitened", "normalised", "the images' contrast is 0.1"),
    ("pixels", "normalised", "set `space: pixels` if they are pixels"),
    ("pixels", "whitened", "set `space: pixels` if they are pixels"),
    ("normalised", "normalised", None),
    ("whitened", "whitened", None),
    ("pixels", "pixels", None),
]


@pytest.mark.parametrize(("space", "taken", "text"), CASES)
def test_space_of_digits(digits: ImageData, space: str, taken: str, text: str | None) -> None:
    known = preprocessors(digits)
    preprocessor = known["normalised" if taken == "pixels" else taken]
    for start in range(5):
        stored = in_space(first_images(digits, start=start)[0], space, known)
        fitted = preprocessor.apply(stored) if taken == "pixels" else stored
        doubts = space_doubts(stored, fitted, taken, preprocessor, digits.train.images[::3])
        assert len(doubts) == (text is not None)
        if text:
            assert re.search(text, doubts[0])


@pytest.mark.parametrize("twice", [False, True])
def test_pixels_of_a_smaller_scale_are_noticed(digits: ImageData, twice: bool) -> None:
    """Pixels 0 and 1 of 255, and pixels that were divided by 255 twice."""
    preprocessor, images = preprocessors(digits)["normalised"], first_images(digits)[0]
    stored = images / 255**2 if twice else (images > 99).to(torch.uint8)
    [doubt] = space_doubts(stored, preprocessor.apply(stored), "pixels", preprocessor, digits.train.images)
    assert doubt.startswith("the images' contrast is 0.00")


PHOTOGRAPHS = [
    *CASES[2:],
    ("normalised", "whitened", r"as normalised they do; set `space: normalised, mean: \[0.4\d*, "),
    ("whitened", "normalised", r"the images' contrast is 0.0\d*|correlate by 0"),
    ("[-1, 1]", "normalised", r"lie in \[-1, 1\]; set `space: normalised, mean: \[0.5, 0.5, 0.5\], std: \[0.5, "),
    ("[-1, 1]", "whitened", r"lie in \[-1, 1\]; set"),
]


@pytest.fixture(scope="session")
def photographs() -> ImageData:
    options = {"source": "parquet", "path": "$SATM_DATA/imagenette-128-subset", "size": 16, "train": "valid.parquet"}
    return load_dataset("photographs", DatasetOptions(**options, test="train.parquet"))


@needs_data("imagenette-128-subset")
@pytest.mark.parametrize(("space", "taken", "text"), PHOTOGRAPHS)
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_space_of_photographs(photographs: ImageData, space: str, taken: str, text: str | None, noise: float) -> None:
    known, generator = preprocessors(photographs), torch.Generator().manual_seed(0)
    preprocessor = known["normalised" if taken == "pixels" else taken]
    for start in range(5):
        stored = in_space(first_images(photographs, start=start)[0], space, known)
        if space in known:
            stored = stored + noise * stored.std() * torch.randn(stored.shape, generator=generator)
        fitted = preprocessor.apply(stored) if taken == "pixels" else stored
        doubts = space_doubts(stored, fitted, taken, preprocessor, photographs.train.images)
        assert len(doubts) == (text is not None), doubts
        if text:
            assert re.search(text, doubts[0])


# The stage


CELL = ("--config", "tiny.yaml", "--ipc", "1", "--dataset")
RUN, HAND = Path("results/tiny"), Path("results/hand/tiny")


def distil(folder: Path, images: Tensor, dataset: str = "digits", **more: Tensor) -> tuple[Mapping[str, str], str]:
    """Return the notes of an imported set, and the log."""
    torch.save({"images": images, **more}, folder / "set.pt")
    assert (
        main(["distill", *CELL, dataset, "--method", "files", "--images", str(folder / "set.pt"), "--overwrite"]) == 0
    )
    made = load_distilled(HAND / f"distilled/{dataset}/ipc-1/files/seed-0/distilled.safetensors")
    return made.options["notes"], (HAND / f"logs/distill/{dataset}/ipc-1/files/seed-0.log").read_text()


def test_doubts_are_in_the_log_and_in_the_set(campaign: Path, tmp_path: Path, digits: ImageData) -> None:
    images, labels = first_images(digits)
    notes, log = distil(tmp_path, images, labels=labels)
    assert "doubts" not in notes and "doubts: " not in log
    assert re.search("of set.pt: the classes' numbers; digits has 0 = 0, 1 = 1, .*, 9 = 9$", notes["labels"])
    assert notes["labels"] in log
    notes, log = distil(tmp_path, images, labels=labels.roll(1))
    assert "'9' should be '0', '0' should be '1', " in notes["doubts"]
    assert f"doubts: {notes['doubts']}" in log
    assert main(["data", "--config", "tiny.yaml", "--dataset", "white"]) == 0
    normalised = preprocessors(digits)["normalised"].apply(images)
    notes, log = distil(tmp_path, normalised, "white")
    assert "as normalised they do; set `space: normalised, mean: [0.3" in notes["doubts"] in log


@pytest.mark.parametrize("method", ["random", "satm"])
def test_sets_of_this_project_are_not_doubted(campaign: Path, tmp_path: Path, method: str) -> None:
    assert method == "satm" or main(["distill", *CELL, "digits", "--method", method]) == 0
    original = load_distilled(RUN / f"distilled/digits/ipc-1/{method}/seed-0/distilled.safetensors")
    notes, _ = distil(tmp_path, original.images, labels=original.labels)
    assert "doubts" not in notes


def test_labels_that_contradict_the_folders_are_doubted(campaign: Path, tmp_path: Path, digits: ImageData) -> None:
    images, labels = first_images(digits)
    for image, label in zip(images, labels.tolist(), strict=True):
        (tmp_path / f"set/{label}").mkdir(parents=True)
        (tmp_path / f"set/{label}/0.png").write_bytes(encode(image[0].numpy()))
    for given, told in ((labels, False), (labels.roll(1), True)):
        torch.save(torch.nn.functional.one_hot(given, 10).float(), tmp_path / "soft.pt")
        options = ("--images", str(tmp_path / "set"), "--labels-from", str(tmp_path / "soft.pt"))
        assert main(["distill", *CELL, "digits", "--method", "files", *options, "--overwrite"]) == 0
        log = (HAND / "logs/distill/digits/ipc-1/files/seed-0.log").read_text()
        assert ("soft.pt gives 10 of 10 images another class than set does; check the order" in log) == told


def test_a_set_of_another_order_of_classes_is_refused(campaign: Path, refused: Refuse) -> None:
    """As after class folders 0 to 11 were put in another order: the pixels' statistics are the same."""
    path = RUN / "distilled/digits/ipc-1/satm/seed-0/distilled.safetensors"
    made = load_distilled(path)
    save_distilled(path, dataclasses.replace(made, class_names=(*made.class_names[:8], "9", "8")))
    told = refused("evaluate", *CELL, "digits", "--method", "satm")
    assert "was made for other classes or in another order: class_names: expected" in told
