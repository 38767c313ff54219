"""Pictures of synthetic images: every pixel where it belongs, and clear words where a picture cannot be drawn."""

import builtins
import dataclasses
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from satm.errors import UsageError
from satm.figures import TILE, mosaic, synthetic_grid
from satm.results import DistilledDataset


def synthetic(classes: int, ipc: int, channels: int = 1) -> DistilledDataset:
    """Return a set whose image i is evenly grey, i / n."""
    count = classes * ipc
    pixels = (torch.arange(count) / count)[:, None, None, None].expand(-1, channels, 8, 8)
    return DistilledDataset(
        images=(pixels - 0.5) / 0.25,
        labels=torch.arange(count) // ipc,
        step_size=torch.tensor(0.1),
        preprocessing={
            "space": "normalised",
            "mean": [0.5] * channels,
            "std": [0.25] * channels,
            "whitening_hash": None,
        },
        class_names=tuple(f"class {label}" for label in range(classes)),
        dataset="greys",
        ipc=ipc,
        method="mtt",
        seed=0,
        options={},
        iteration=1,
        selection="last",
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_is_in_its_column_enlarged_without_blur(channels: int) -> None:
    data = synthetic(3, 2, channels)
    picture = mosaic(data.pixels(), data.labels, 3, 2)
    scale = TILE // 8
    gap = scale // 2
    step = TILE + gap
    assert picture.shape == (2 * step + gap, 3 * step + gap, 3)
    for index in range(6):
        top, left = gap + index % 2 * step, gap + index // 2 * step
        tile = picture[top : top + TILE, left : left + TILE]
        torch.testing.assert_close(tile, torch.full_like(tile, index / 6))
    assert (picture[:gap] == 1).all() and (picture[:, :gap] == 1).all()


def test_a_class_with_fewer_images_leaves_white() -> None:
    image = torch.zeros(1, 1, 8, 8)
    picture = mosaic(image, torch.tensor([1]), 2, 1)
    left, right = picture[:, : picture.shape[1] // 2], picture[:, picture.shape[1] // 2 :]
    assert (left == 1).all() and (right == 0).any()


def test_the_picture_shows_all_methods_and_is_the_same_each_time(tmp_path: Path) -> None:
    sets = {"random": synthetic(10, 1), "mtt": synthetic(10, 1)}
    synthetic_grid(sets, tmp_path / "a.png", "greys, 1 image per class")
    synthetic_grid(sets, tmp_path / "b.png", "greys, 1 image per class")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    shown = numpy.asarray(Image.open(tmp_path / "a.png").convert("L"))
    for index in range(10):  # each image is of one grey, which must fill at least a tile in either block
        assert (abs(shown - 255 * index / 10) <= 1).sum() >= 2 * TILE**2
    assert shown.shape[0] > 2 * TILE and shown.shape[1] > 10 * TILE


def test_many_classes_and_images_are_cut(tmp_path: Path) -> None:
    synthetic_grid({"mtt": synthetic(30, 7)}, tmp_path / "a.png", "much")
    wide, tall = Image.open(tmp_path / "a.png").size
    assert wide < 24 * TILE and tall < 8 * TILE


def test_sets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"same classes and size of image, got 3 classes.*;"):
        synthetic_grid({"a": synthetic(3, 1), "b": synthetic(3, 1, channels=3)}, tmp_path / "a.png", "")
    with pytest.raises(UsageError, match="got none"):
        synthetic_grid({}, tmp_path / "a.png", "")
    with pytest.raises(UsageError, match="the ending is 'gig', expected one of"):
        synthetic_grid({"a": synthetic(3, 1)}, tmp_path / "a.gig", "")
    broken = dataclasses.replace(synthetic(3, 1), preprocessing={"whitening_hash": "abc", "mean": [0.5], "std": [1.0]})
    with pytest.raises(UsageError, match="the whitening is not at"):
        synthetic_grid({"a": broken}, tmp_path / "a.png", "")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'satm\[figures\]'"):
        synthetic_grid({"a": synthetic(3, 1)}, tmp_path / "a.png", "")
