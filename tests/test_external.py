"""Sets made elsewhere: every layout gives the same set, nothing in a file is run, and what does not fit is refused."""

import dataclasses
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import image_data
from drawing import torch_generator
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import save_file
from test_data import encode, write_parquet
from tolerances import SINGLE, SINGLE_LOOPS, SUMS
from torch import Tensor

from satm.cli import main
from satm.config import Cell, DatasetOptions, data_path, expand
from satm.data import Augmentation, Preprocessor, fit_whitening
from satm.errors import UsageError
from satm.methods import METHODS, resolve
from satm.methods.parts.external import External
from satm.methods.parts.problem import Problem
from satm.results.columns import EVALUATION, METRICS
from satm.results.distilled import DistilledDataset, load_distilled, save_distilled
from satm.results.external import beside
from satm.results.fitting import CIFAR_MEAN, CIFAR_STD, fit_labels, name_labels
from satm.results.rows import read_rows, read_rows_metadata

Refuse = Callable[..., str]


def problem_of(channels: int = 1, white: bool = False, **whitening: Any) -> Problem:
    """Three classes a, b, c of random 8 x 8 images, two for each asked for, without experts and networks."""
    data = image_data(channels=channels)
    preprocessor = Preprocessor(data.mean, data.std, fit_whitening(data.train.images, **whitening) if white else None)
    augmentation = Augmentation("", "image")
    return Problem(data, preprocessor, augmentation, None, 2, torch.device("cpu"), Cell("noise", 2, "files"))  # type: ignore[arg-type]


def adopt(problem: Problem, **options: Any) -> External:
    kind, checked = resolve({"method": "files", **{name: as_option(value) for name, value in options.items()}})
    return kind(checked, problem)  # type: ignore[return-value]


def as_option(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def some(channels: int = 1, seed: int = 0) -> Tensor:
    """Six images in the space of training."""
    return torch.randn(6, channels, 8, 8, generator=torch_generator(seed))


HARD = torch.tensor([2, 0, 1, 1, 0, 2])
SOFT = torch.randn(6, 3, generator=torch_generator(3))
RATE = torch.tensor(0.0123)


def stored(images: Tensor, labels: Tensor, problem: Problem, **changed: Any) -> DistilledDataset:
    """A set as this project stores it."""
    names, preprocessing = problem.data.class_names, problem.preprocessor.identity
    options: dict[str, Any] = {"dataset": "noise", "ipc": 2, "method": "mtt", "seed": 0, "options": {}, "iteration": 3}
    return DistilledDataset(images, labels, RATE, preprocessing, names, **{**options, "selection": "last", **changed})


def write_mtt(folder: Path, images: Tensor, labels: Tensor) -> dict[str, Any]:
    for name, held in (("images", images.requires_grad_()), ("labels", labels), ("lr", RATE)):
        torch.save(held, folder / f"{name}_best.pt")
    return {"images": folder / "images_best.pt"}


def write_named(folder: Path, images: Tensor, labels: Tensor) -> dict[str, Any]:
    torch.save(images.double(), folder / "a.pt")
    torch.save(labels, folder / "b.pth")
    torch.save(float(RATE), folder / "c.pt")
    return {"images": folder / "a.pt", "labels_from": folder / "b.pth", "step_size_from": folder / "c.pt"}


def write_dictionary(folder: Path, images: Tensor, labels: Tensor) -> dict[str, Any]:
    torch.save({"images": images, "labels": labels, "lr": RATE[None], "step": 3, "about": "mine"}, folder / "set.pt")
    return {"images": folder / "set.pt"}


def write_tuple(folder: Path, images: Tensor, labels: Tensor) -> dict[str, Any]:
    torch.save((torch.nn.Parameter(images), labels), folder / "set.pt", _use_new_zipfile_serialization=False)
    torch.save({"lr": torch.nn.Parameter(RATE)}, folder / "lr.pt")
    return {"images": folder / "set.pt"}


def write_safetensors(folder: Path, images: Tensor, labels: Tensor) -> dict[str, Any]:
    save_file({"images": images, "labels": labels, "step_size": RATE}, folder / "set.safetensors", {"by": "others"})
    return {"images": folder / "set.safetensors"}


def write_two_safetensors(folder: Path, images: Tensor, labels: Tensor) -> dict[str, Any]:
    for name, held in (("images", images), ("labels", labels), ("lr", RATE)):
        save_file({name: held}, folder / f"{name}.safetensors")
    return {"images": folder / "images.safetensors"}


def write_ours(folder: Path, images: Tensor, labels: Tensor) -> dict[str, Any]:
    save_distilled(folder / "distilled.safetensors", stored(images, labels, problem_of(images.shape[1])))
    return {"images": folder / "distilled.safetensors"}


LAYOUTS = [
    *(write_mtt, write_named, write_dictionary, write_tuple, write_safetensors, write_two_safetensors, write_ours),
]


@pytest.mark.parametrize("labels", [HARD, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("write", LAYOUTS)
def test_every_layout_of_tensors_gives_the_set_bit_for_bit(write: Any, labels: Tensor, tmp_path: Path) -> None:
    for channels in (1, 3):
        images = some(channels)
        made = adopt(problem_of(channels), **write(tmp_path, images.clone(), labels))
        found = made.start()
        assert found.images.dtype == torch.float32 and torch.equal(found.images, images)
        assert found.labels.dtype == labels.dtype and torch.equal(found.labels, labels)
        assert found.step_size.shape == () and torch.equal(found.step_size, RATE)
        assert not any(held.requires_grad for held in vars(found).values())
        assert made.notes["step_size"].startswith("0.0123 of ")


def pictures(channels: int) -> Tensor:
    return torch.randint(256, (6, channels, 8, 8), generator=torch_generator(1), dtype=torch.uint8)


def encoded(images: Tensor) -> list[bytes]:
    return [encode(np.ascontiguousarray(image.permute(1, 2, 0).squeeze(2).numpy())) for image in images]


def write_folder(folder: Path, images: Tensor, labels: list[str]) -> Path:
    for index, (content, label) in enumerate(zip(encoded(images), labels, strict=True)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / f"{index}.png").write_bytes(content)
    return folder


@pytest.mark.parametrize("white", [False, True])
@pytest.mark.parametrize(("stored_channels", "channels"), [(1, 1), (1, 3), (3, 3)])
def test_pictures_are_prepared_as_real_images(stored_channels: int, channels: int, white: bool, tmp_path: Path) -> None:
    problem, raw = problem_of(channels, white), pictures(stored_channels)
    prepared = problem.preprocessor.apply(raw.expand(-1, channels, -1, -1))
    shards = tmp_path / "shards"
    write_parquet(tmp_path / "set.parquet", encoded(raw), HARD.tolist(), ["a", "b", "c"])
    write_parquet(shards / "1.parquet", encoded(raw[3:]), HARD[3:].tolist(), columns=("img", "fine_label"))
    write_parquet(shards / "0.parquet", encoded(raw[:3]), HARD[:3].tolist(), columns=("img", "fine_label"))
    for path in (tmp_path / "set.parquet", shards):
        found = adopt(problem, images=path).start()
        assert torch.equal(found.images, prepared) and torch.equal(found.labels, HARD)
    folder = write_folder(tmp_path / "classes", raw, [problem.data.class_names[label] for label in HARD])
    found, order = adopt(problem, images=folder).start(), HARD.argsort(stable=True)
    # With several threads the rounding of a row depends on its place.
    ordered = problem.preprocessor.apply(raw[order].expand(-1, channels, -1, -1))
    assert torch.equal(found.images, ordered) and torch.equal(found.labels, HARD[order])
    torch.save(raw.expand(-1, channels, -1, -1).clone(), tmp_path / "images.pt")
    torch.save(HARD, tmp_path / "labels.pt")
    found = adopt(problem, images=tmp_path / "images.pt").start()
    assert torch.equal(found.images, prepared) and torch.equal(found.labels, HARD)


def test_columns_of_parquet_can_be_named(tmp_path: Path) -> None:
    raw, more = pictures(1), {"other": pa.array([0] * 6)}
    write_parquet(tmp_path / "set.parquet", encoded(raw), HARD.tolist(), columns=("img", "mine"), **more)
    with pytest.raises(UsageError, match=r"no column 'label'.*in `label_column`"):
        adopt(problem_of(), images=tmp_path / "set.parquet")
    named = {"image_column": "img", "label_column": "mine"}
    assert torch.equal(adopt(problem_of(), images=tmp_path / "set.parquet", **named).start().labels, HARD)


@pytest.mark.parametrize(
    ("names", "expected", "how"),
    [
        (["c", "a", "b"], [2, 0, 1], "by the names of the classes"),
        (["10", "2", "0"], [10, 2, 0], "by the classes' names, which are numbers"),
        (["cat", "dog", "eel"], [0, 1, 2], "in the order of the classes"),
    ],
)
def test_named_labels_are_matched_to_classes(names: list[str], expected: list[int], how: str) -> None:
    found, told, _ = name_labels(torch.tensor([0, 1, 2, 1]), names, ("a", "b", "c"), "here")
    assert found.tolist() == [*expected, expected[1]] and told.startswith(how)


def test_only_names_in_use_matter_and_mixed_ones_are_refused() -> None:
    assert name_labels(torch.tensor([0, 2]), ["b", "strange", "a"], ("a", "b"), "here")[0].tolist() == [1, 0]
    with pytest.raises(UsageError, match=r"here has a class 'bird', the dataset has a, b, c; rename it"):
        name_labels(torch.tensor([0, 1]), ["a", "bird"], ("a", "b", "c"), "here")
    with pytest.raises(UsageError, match="here names 2 classes and has labels from 0 to 2"):
        name_labels(torch.tensor([0, 2]), ["a", "b"], ("a", "b"), "here")


def test_without_labels_the_images_are_sorted_by_class(tmp_path: Path) -> None:
    torch.save(some(), tmp_path / "images_best.pt")
    made = adopt(problem_of(), images=tmp_path / "images_best.pt", step_size=0.3)
    assert made.start().labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert made.notes["labels"].startswith("there are none: the images are taken to be sorted by class")
    assert float(made.start().step_size) == pytest.approx(0.3)
    assert made.notes["step_size"] == "0.3 of the option step_size, as no file holds one"


def test_the_nearest_source_of_labels_and_step_size_counts(tmp_path: Path) -> None:
    """Given paths, then the images' own file, then files beside it."""
    torch.save({"images": some(), "labels": HARD, "lr": 0.1}, tmp_path / "images_1.pt")
    torch.save(some(), tmp_path / "images_2.pt")
    for name, labels, rate in (("_1", HARD.flip(0), 0.2), ("_2", HARD.roll(1), 0.3), ("", HARD.roll(2), 0.4)):
        torch.save(labels, tmp_path / f"labels{name}.pt")
        torch.save(rate, tmp_path / f"lr{name}.pt")
    asked = {"labels_from": tmp_path / "labels.pt", "step_size_from": tmp_path / "lr.pt"}
    for name, options, labels, rate in (
        ("images_1.pt", {}, HARD, 0.1),
        ("images_2.pt", {}, HARD.roll(1), 0.3),
        ("images_1.pt", asked, HARD.roll(2), 0.4),
    ):
        found = adopt(problem_of(), images=tmp_path / name, step_size=0.9, **options).start()
        assert torch.equal(found.labels, labels) and float(found.step_size) == pytest.approx(rate)


def test_files_beside_the_images_are_found(tmp_path: Path) -> None:
    images = tmp_path / "images_best.pt"
    assert beside(images, "labels") is None
    (tmp_path / "labels.pt").touch()
    assert beside(images, "labels") == tmp_path / "labels.pt"
    (tmp_path / "labels_best.pt").touch()
    assert beside(images, "labels") == tmp_path / "labels_best.pt"
    assert beside(tmp_path / "lr.pt", "lr") is None and beside(tmp_path / "images.parquet", "labels") is None


@pytest.mark.parametrize("kind", ["auto", "probabilities"])
def test_probabilities_become_logits_with_that_softmax(kind: Any) -> None:
    given = torch.cat([SOFT.softmax(1), torch.eye(3)]).double()
    found, told = fit_labels(given, kind, 3, 3, "here")
    assert torch.isfinite(found).all() and found.dtype == torch.float32
    torch.testing.assert_close(found.double().softmax(1), given, rtol=SINGLE, atol=SUMS)
    assert told.startswith("probabilities, stored as their logarithms") and ("decided" in told) == (kind == "auto")


@pytest.mark.parametrize("kind", ["auto", "logits"])
@pytest.mark.parametrize(
    "given", [SOFT, SOFT.abs(), -SOFT.softmax(1), SOFT.softmax(1) * 1.01, SOFT - SOFT.mean(1, keepdim=True) + 1 / 3]
)
def test_other_numbers_are_logits(kind: Any, given: Tensor) -> None:
    found, told = fit_labels(given, kind, 2, 3, "here")
    decided = ", decided (label_kind auto) because they are no probabilities" if kind == "auto" else ""
    assert torch.equal(found, given) and told == f"logits{decided}"


def test_probabilities_can_be_said_to_be_logits() -> None:
    assert torch.equal(fit_labels(SOFT.softmax(1), "logits", 2, 3, "here")[0], SOFT.softmax(1))


def test_pixel_tensors_are_normalised(tmp_path: Path) -> None:
    problem, raw = problem_of(3), pictures(3)
    torch.save(raw.float() / 255, tmp_path / "floats.pt")
    found = adopt(problem, images=tmp_path / "floats.pt", space="pixels").start().images
    assert torch.equal(found, problem.preprocessor.apply(raw))
    assert torch.equal(adopt(problem, images=tmp_path / "floats.pt").start().images, raw.float() / 255)


@pytest.mark.parametrize("white", [False, True])
@pytest.mark.parametrize(
    ("channels", "options", "mean", "std"),
    [
        (3, {}, CIFAR_MEAN, CIFAR_STD),
        (1, {}, (0.5,), (0.25,)),
        (1, {"mean": (0.3,), "std": (0.7,)}, (0.3,), (0.7,)),
        (3, {"mean": (0.3, 0.4, 0.5), "std": (0.7, 0.8, 0.9)}, (0.3, 0.4, 0.5), (0.7, 0.8, 0.9)),
    ],
)
def test_normalised_images_are_those_of_their_pixels(
    channels: int, options: Any, mean: Any, std: Any, white: bool, tmp_path: Path
) -> None:
    problem, raw = problem_of(channels, white), pictures(channels)
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    torch.save((raw / 255 - shift) / scale, tmp_path / "images.pt")
    made = adopt(problem, images=tmp_path / "images.pt", space="normalised", **options)
    torch.testing.assert_close(made.start().images, problem.preprocessor.apply(raw), rtol=SINGLE_LOOPS, atol=SINGLE)
    assert made.notes["images"].startswith(f"normalised by mean {mean} and std {std}, brought back to pixels")


@pytest.mark.parametrize(
    ("white", "space", "told"),
    [
        ({}, "auto", "decided (space auto): normalised by the dataset's mean (0.5) and std (0.25) per channel"),
        ({}, "trained", "taken to be in the space of training: normalised by"),
        (
            {"white": True},
            "auto",
            "decided (space auto): ZCA-whitened, fitted on the training images with eps 0.1, as the MTT family's code "
            "does with its --zca flag",
        ),
        ({"white": True, "eps": 0.2}, "whitened", "fitted on the training images with eps 0.2"),
        ({"white": True, "relative": True}, "auto", "with eps 0.1 times the mean eigenvalue"),
        ({"white": True, "per_image": True}, "trained", "with eps 0.1, each image brought to mean 0 and norm 1 before"),
    ],
)
def test_assumptions_are_noted(white: Any, space: str, told: str, tmp_path: Path) -> None:
    torch.save(some(), tmp_path / "images.pt")
    made = adopt(problem_of(**white), images=tmp_path / "images.pt", space=space)
    assert told in made.notes["images"] and ("decided" in made.notes["images"]) == (space == "auto")
    assert told.endswith("flag") or "--zca" not in made.notes["images"]
    assert torch.equal(made.start().images, some())


class Dropper:
    """What unpickling would turn into a call that makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("what", ["images", "labels", "lr"])
def test_code_in_a_file_is_not_run(what: str, old: bool, tmp_path: Path) -> None:
    mark, options = tmp_path / "mark", {} if not old else {"_use_new_zipfile_serialization": False}
    for name, held in (("images", some()), ("labels", HARD), ("lr", RATE)):
        content = {name: held, "more": Dropper(mark)} if name == what else held
        torch.save(content, tmp_path / f"{name}_best.pt", **options)
    with pytest.raises(
        UsageError, match=rf"{what}_best.pt is refused: reading it would call posix.mkdir, .* any code"
    ) as caught:
        adopt(problem_of(), images=tmp_path / "images_best.pt")
    assert "\n" not in str(caught.value) and "torch.save({'images': images" in str(caught.value)
    assert not mark.exists()
    torch.load(tmp_path / f"{what}_best.pt", weights_only=False)
    assert mark.exists(), "the file would have run code"


@pytest.mark.parametrize("make", [lambda: {"images": np.zeros((6, 1, 8, 8))}, lambda: torch.nn.Linear(2, 2)])
def test_more_than_tensors_is_refused(make: Callable[[], object], tmp_path: Path) -> None:
    torch.save(make(), tmp_path / "set.pt")
    with pytest.raises(UsageError, match=r"set.pt is refused: reading it would call (numpy|torch\.nn)\S+, and a file"):
        adopt(problem_of(), images=tmp_path / "set.pt")


def test_plain_pickles_and_damaged_files_are_refused(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "set.pt"
    torch.save(some(), path)
    whole = path.read_bytes()
    contents = [pickle.dumps(Dropper(mark)), b"", b"anything", whole[: len(whole) // 2], whole[: len(whole) - 30]]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(
            UsageError, match=r"set.pt is (refused|damaged, incomplete, or not a tensor file)"
        ) as caught:
            adopt(problem_of(), images=path)
        assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_a_part_of_an_archive_with_another_checksum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.pt"
    images = some()
    torch.save(images, path)
    raw, held = path.read_bytes(), images.numpy().tobytes()
    assert raw.count(held) == 1
    changed = raw.replace(held, held[:-1] + bytes([held[-1] ^ 1]))
    path.write_bytes(changed)
    assert not torch.equal(torch.load(path, weights_only=True), images), "torch itself does not notice"
    with pytest.raises(UsageError, match=r"set\.pt is damaged, incomplete, or not a tensor file"):
        adopt(problem_of(), images=path)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(images, path)
    finally:
        torch.serialization.set_crc32_options(before)
    adopt(problem_of(), images=path)  # without checksums there is nothing to compare


def saved(content: object) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        torch.save(content, folder / "images.pt")
        return {"images": folder / "images.pt"}

    return write


def labelled(labels: object, **options: Any) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: {**saved({"images": some(), "labels": labels})(folder), **options}


def folder_of(labels: list[str], raw: Tensor | None = None, **options: Any) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: {
        "images": write_folder(folder / "set", pictures(1) if raw is None else raw, labels),
        **options,
    }


def ours(**changed: Any) -> Callable[[Path], dict[str, Any]]:
    options = {name: changed.pop(name) for name in ("space", "label_kind") if name in changed}

    def write(folder: Path) -> dict[str, Any]:
        save_distilled(folder / "d.safetensors", dataclasses.replace(stored(some(), SOFT, problem_of()), **changed))
        return {"images": folder / "d.safetensors", **options}

    return write


def wrong(images: Tensor, value: float) -> Tensor:
    images[1, 0, 2, 3] = value
    return images


OTHER_MEAN = {**problem_of().preprocessor.identity, "mean": [0.4]}
PAIRS = ["a", "a", "b", "b", "c", "c"]
REFUSALS: list[tuple[Callable[[Path], dict[str, Any]], str]] = [
    (lambda folder: {}, "method 'files' needs images, the path of an external set"),
    (lambda folder: {"images": folder / "no.pt"}, "no.pt does not exist; correct the path"),
    (lambda folder: {"images": folder / "no.parquet"}, "no.parquet does not exist; correct the path"),
    (lambda folder: {"images": "$NOWHERE/x.pt"}, r"'\$NOWHERE/x.pt' has an environment variable that is not set"),
    (lambda folder: {"images": folder}, "holds neither parquet files nor class folders; expected CLASS/image in it"),
    (lambda folder: {"images": Path(__file__)}, "test_external.py is of an unknown format, expected .pt"),
    (lambda folder: {**saved(some())(folder), "labels_from": folder / "l.pt"}, "l.pt does not exist"),
    (lambda folder: {**saved(some())(folder), "step_size_from": folder / "l.pt"}, "l.pt does not exist"),
    (saved({"data": some()}), "images.pt holds data, expected one tensor of images, or several named images"),
    (saved([some()]), "images.pt holds a list alone, expected a tensor"),
    (saved({}), "images.pt holds nothing, expected one tensor"),
    (labelled([0, 0, 1, 1, 2, 2]), "images.pt holds a list labels, expected a tensor"),
    (saved({"images": some(), "lr": "0.1"}), "images.pt holds a str lr, expected a tensor"),
    (
        saved(torch.cat([some(), some()])),
        "holds 12 images, expected 6: 2 for each of the 3 classes of noise; use --ipc 4",
    ),
    (saved(some()[:5]), "holds 5 images, expected 6: .*; no --ipc fits them"),
    (saved(some()[:0]), "holds 0 images, expected 6: .*; no --ipc fits them"),
    (saved(some(3)), "are 3 x 8 x 8 .channels, height, width., those of noise 1 x 8 x 8; use the dataset"),
    (saved(some().permute(0, 2, 3, 1)), "are 8 x 8 x 1 .*; permute them: the channels are last, expected first"),
    (saved(torch.randn(6, 1, 9, 9)), "are 1 x 9 x 9"),
    (saved(some()[:, 0]), r"holds images torch.float32 \(6, 8, 8\), expected uint8 or floating point"),
    (saved(torch.ones(6, 1, 8, 8, dtype=torch.int64)), "holds images torch.int64"),
    (saved(wrong(some(), torch.nan)), "the images of .* hold 1 values that are NaN or infinite"),
    (saved(wrong(some(), -torch.inf)), "hold 1 values that are NaN or infinite"),
    (labelled(HARD + 1), "has labels from 1 to 3, expected 0 to 2; renumber them"),
    (labelled(HARD - 1), "has labels from -1 to 1"),
    (labelled(HARD[:5]), r"holds labels torch.int64 \(5,\), expected integers \[6\] or floating point \[6, 3\]"),
    (labelled(SOFT[:, :2]), r"holds labels torch.float32 \(6, 2\), expected"),
    (labelled(HARD.float()), r"holds labels torch.float32 \(6,\), expected"),
    (labelled(torch.eye(3).repeat(2, 1).long()), r"holds labels torch.int64 \(6, 3\), expected"),
    (labelled(HARD > 1), r"holds labels torch.bool \(6,\), expected"),
    (labelled(SOFT / 0), "the labels of .* hold 18 values that are NaN or infinite"),
    (
        labelled(SOFT, label_kind="probabilities"),
        "does not hold probabilities: the least value is -.*; set label_kind to",
    ),
    (labelled(SOFT.softmax(1) * 2, label_kind="probabilities"), "the sum of a row differs from 1 by up to 1; set"),
    (labelled(HARD, label_kind="logits"), "'files': label_kind 'logits' has no effect with labels that are not soft"),
    (saved({"images": some(), "lr": 0.0}), "the step size in .* is 0, expected one positive number"),
    (saved({"images": some(), "lr": torch.nan}), "is nan, expected one positive number"),
    (saved({"images": some(), "lr": torch.inf}), "is inf, expected one positive number"),
    (saved({"images": some(), "lr": torch.ones(2)}), "is 2 numbers, expected one positive number"),
    (labelled(HARD, space="whitened"), "space 'whitened' needs a whitened dataset, its zca is false"),
    (labelled(HARD, space="pixels"), "has values from -.* to .*, space 'pixels' means 0 to 1; save 0 to 255 as uint8"),
    (
        saved({"images": pictures(1).float(), "labels": HARD}),
        "has values from .* to 25., space 'auto' means values around 0",
    ),
    (labelled(HARD * 0), "has the label 0 6 times and no other, expected 3 classes; correct it"),
    (labelled(SOFT[:1].expand(6, 3)), "has the same soft label for all 6 images, so they teach nothing"),
    (
        lambda folder: {**saved(pictures(1))(folder), "space": "trained"},
        "uint8 tensors, which are pixels, space is 'tra",
    ),
    (labelled(HARD, mean=(0.5,)), r"'files': mean \(0.5,\) has no effect with space 'auto'; set space to normalised"),
    (labelled(HARD, space="trained", std=(0.5,)), r"std \(0.5,\) has no effect with space 'trained'"),
    (labelled(HARD, space="normalised", std=(0.5,)), "mean None and std .* must have a number for each of 1 channels"),
    (labelled(HARD, space="normalised", mean=(0.5,), std=(0.0,)), "those of std above 0; give both"),
    (labelled(HARD, space="normalised", mean=(125.3,), std=(63.0,)), "must be those of images in .0, 1.; divide those"),
    (labelled(HARD, space="normalised", mean=(-0.1,), std=(0.3,)), "must be those of images in .0, 1."),
    (labelled(HARD, label_column="l"), "label_column 'l' has no effect with .*, which is not parquet"),
    (folder_of(PAIRS, space="normalised"), "holds pictures, which are pixels, space is 'normalised'; leave space out"),
    (folder_of(PAIRS, pictures(3)), "are 3 x 8 x 8"),
    (folder_of(PAIRS, label_kind="logits"), "label_kind 'logits' has no effect"),
    (folder_of(["a", "a", "b", "b", "d", "d"]), "has a class 'd', the dataset has a, b, c; rename it"),
    (folder_of(["1", "1", "2", "2", "3", "3"]), "has labels from 1 to 3, expected 0 to 2"),
    (folder_of(["k", "l", "m", "n", "o", "p"]), "has labels from 0 to 5, expected 0 to 2"),
    (folder_of(["a", "a", "b", "b", "c", "c/deep"]), "deep \\(a folder among images\\)"),
    (
        ours(preprocessing=OTHER_MEAN),
        "was made for another dataset or another preprocessing: preprocessing.mean: expected .0.5., found .0.4.; ",
    ),
    (
        ours(class_names=("a", "b", "d")),
        "was made for another dataset .*: class_names: expected .*'c'.*, found .*'d'",
    ),
    (ours(space="pixels"), "states that its images are normalised by .*, space is 'pixels'; leave space out"),
    (ours(space="whitened"), "space is 'whitened'; leave space out"),
    (ours(label_kind="probabilities"), "does not hold probabilities"),
]


@pytest.mark.parametrize(("write", "text"), REFUSALS, ids=[text for _, text in REFUSALS])
def test_sets_that_do_not_fit_are_refused(
    write: Callable[[Path], dict[str, Any]], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(UsageError, match=text) as caught:
        adopt(problem_of(), **write(tmp_path))
    assert "\n" not in str(caught.value)


def test_files_of_different_classes_and_other_safetensors_are_refused(tmp_path: Path) -> None:
    for index, names in enumerate((["a", "b", "c"], ["a", "c", "b"])):
        write_parquet(tmp_path / f"{index}.parquet", encoded(pictures(1)[:3]), [0, 1, 2], names)
    with pytest.raises(UsageError, match="have different class names; use files of one set"):
        adopt(problem_of(), images=tmp_path)
    save_file({"train.images": pictures(1)}, tmp_path / "images.safetensors")
    with pytest.raises(UsageError, match=r"images.safetensors holds train.images, expected one tensor of images"):
        adopt(problem_of(), images=tmp_path / "images.safetensors")
    (tmp_path / "images.safetensors").write_bytes(b"cut short")
    with pytest.raises(UsageError, match=r"images.safetensors is not a whole safetensors file"):
        adopt(problem_of(), images=tmp_path / "images.safetensors")


@pytest.mark.parametrize("space", ["auto", "trained", "normalised"])
def test_a_set_of_this_project_needs_no_statement(space: str, tmp_path: Path) -> None:
    path = tmp_path / "distilled.safetensors"
    probable = SOFT.softmax(1)  # logits that look like probabilities stay what they are
    save_distilled(path, stored(some(), probable, problem_of(), selection="validation"))
    made = adopt(problem_of(), images=path, space=space)
    assert torch.equal(made.start().labels, probable) and torch.equal(made.start().images, some())
    assert made.selection == "validation" and made.notes["images"].startswith("in the space of training, as the file")
    assert adopt(problem_of(), images=path, selection="last").selection == "last"


def test_how_a_set_was_chosen_is_test_unless_it_is_said(tmp_path: Path) -> None:
    torch.save(some(), tmp_path / "images_best.pt")
    made = adopt(problem_of(), images=tmp_path / "images_best.pt")
    assert made.selection == "test" and made.notes["selection"].startswith("test, assumed, as the MTT family")
    made = adopt(problem_of(), images=tmp_path / "images_best.pt", selection="last")
    assert made.selection == "last" and "selection" not in made.notes


def test_variables_in_paths_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEIRS", str(tmp_path))
    torch.save(some(), tmp_path / "images.pt")
    torch.save(SOFT, tmp_path / "soft.pt")
    torch.save(RATE, tmp_path / "rate.pt")
    paths = {"labels_from": "${THEIRS}/soft.pt", "step_size_from": "$THEIRS/rate.pt"}
    found = adopt(problem_of(), images="$THEIRS/images.pt", **paths).start()
    assert torch.equal(found.labels, SOFT) and torch.equal(found.step_size, RATE)
    assert expand("$THEIRS/x") == data_path(DatasetOptions(source="folder", path="${THEIRS}/x")) == tmp_path / "x"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand("~/x") == tmp_path / "x"


RUN = Path("results/tiny")
HAND = Path("results/hand/tiny")
"""Folder of runs with other options than the campaign's."""
CELL = ("--config", "tiny.yaml", "--dataset", "digits", "--ipc", "1", "--method")


def measured(method: str) -> list[Any]:
    assert main(["evaluate", *CELL, method, "--overwrite"]) == 0
    rows = read_rows(RUN / f"evaluation/digits/ipc-1/{method}/seed-0/convnet.parquet", EVALUATION)
    return rows[["repeat", "labels", "accuracy", "loss"]].to_dict("records")


@pytest.mark.parametrize("soft", [False, True])
def test_an_exported_set_is_tested_as_the_original(
    soft: bool, campaign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation draws its networks by the method's name, so both sets stand under one name in turn."""
    original = load_distilled(RUN / "distilled/digits/ipc-1/satm/seed-0/distilled.safetensors")
    if soft:
        logits = torch.randn(10, 10, generator=torch_generator(1))
        original = dataclasses.replace(original, labels=logits)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    torch.save(original.images, theirs / "images_best.pt")
    torch.save(original.labels, theirs / "labels_best.pt")
    torch.save(original.step_size, theirs / "lr_best.pt")
    monkeypatch.setenv("THEIRS", str(theirs))
    text = Path("tiny.yaml").read_text()
    Path("tiny.yaml").write_text(text + "methods: {their-mtt: {method: files, images: $THEIRS/images_best.pt}}\n")
    assert main(["distill", *CELL, "their-mtt"]) == 0
    path = RUN / "distilled/digits/ipc-1/their-mtt/seed-0/distilled.safetensors"
    made = load_distilled(path)
    assert torch.equal(made.images, original.images) and torch.equal(made.step_size, original.step_size)
    assert torch.equal(made.labels, original.labels)
    assert (made.method, made.selection, made.iteration) == ("their-mtt", "test", 0)
    assert made.options["images"] == "$THEIRS/images_best.pt" and made.options["space"] == "auto"
    assert "decided (space auto): normalised by the dataset's mean" in made.options["notes"]["images"]
    assert [part.split()[0] for part in made.options["notes"]["sha256"].split(", ")] == [
        *("images_best.pt", "labels_best.pt", "lr_best.pt")
    ]
    log = (RUN / "logs/distill/digits/ipc-1/their-mtt/seed-0.log").read_text()
    assert all(f"{name.replace('_', '-')}: {note}" in log for name, note in made.options["notes"].items())
    metrics = read_rows_metadata(path.with_name("metrics.parquet"), METRICS)
    assert metrics["options"]["options"] == made.options
    found = measured("their-mtt")
    named = dataclasses.replace(original, method="their-mtt", options=made.options)
    save_distilled(path, named)
    assert found == measured("their-mtt")
    save_distilled(path, dataclasses.replace(named, images=original.images.roll(1, 0)))
    assert found != measured("their-mtt")


def test_the_command_takes_files_and_refuses_in_one_line(campaign: Path, tmp_path: Path, refused: Refuse) -> None:
    told = refused("distill", *CELL, "files", "--images", str(tmp_path / "no.pt"))
    assert "no.pt does not exist" in told
    set_here = RUN / "distilled/digits/ipc-1/satm/seed-0/distilled.safetensors"
    assert main(["distill", *CELL, "files", "--images", str(set_here), "--seed", "3"]) == 0
    made = load_distilled(HAND / "distilled/digits/ipc-1/files/seed-3/distilled.safetensors")
    assert torch.equal(made.images, load_distilled(set_here).images) and made.selection == "last"
    assert main(["data", "--config", "tiny.yaml", "--dataset", "held"]) == 0
    held = ("--config", "tiny.yaml", "--dataset", "held", "--ipc", "1", "--method", "files")
    assert "another preprocessing: preprocessing.mean" in refused("distill", *held, "--images", str(set_here))


def test_a_written_picture_of_a_set_can_be_used(campaign: Path, tmp_path: Path) -> None:
    """Pictures of a set, saved as 8 bits, give the set up to rounding and clamping."""
    original = load_distilled(RUN / "distilled/digits/ipc-1/satm/seed-0/distilled.safetensors")
    pixels = original.pixels()
    for index, image in enumerate(pixels):
        folder = tmp_path / "classes" / original.class_names[int(original.labels[index])]
        folder.mkdir(parents=True)
        Image.fromarray((image[0] * 255).round().to(torch.uint8).numpy()).save(folder / "0.png")
    assert main(["distill", *CELL, "files", "--images", str(tmp_path / "classes")]) == 0
    found = load_distilled(HAND / "distilled/digits/ipc-1/files/seed-0/distilled.safetensors")
    assert found.labels.tolist() == list(range(10))
    assert float((found.pixels() - pixels).abs().max()) <= 0.5 / 255 + SINGLE


def test_the_example_of_the_page_of_methods_can_be_used() -> None:
    page = (Path(__file__).parent.parent / "docs" / "methods.md").read_text()
    section = page.split("## Sets made elsewhere\n")[1].split("\n## ")[0]
    examples = YAML(typ="safe", pure=True).load(section.split("```yaml\n")[1].split("```")[0])["methods"]
    assert len(examples) > 1 and all(resolve(entry)[0] is METHODS["files"] for entry in examples.values())
