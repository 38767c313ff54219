"""Pictures of synthetic images: every pixel where it belongs, and clear words where a picture cannot be drawn."""

import dataclasses
import sys
from pathlib import Path

import numpy
import pytest
import torch
from conftest import grey_set
from PIL import Image

from satm.errors import UsageError
from satm.figures.mosaic import TIGHT, TILE, Block, clipped, draw_images, mosaic, write_animation
from satm.figures.style import save
from satm.results.distilled import DistilledDataset, History


def synthetic(classes: int, ipc: int, channels: int = 1) -> DistilledDataset:
    """Return a set whose image i is evenly grey, i / n."""
    count = classes * ipc
    names = [f"class {label}" for label in range(classes)]
    labels = torch.arange(count) // ipc
    return grey_set((torch.arange(count) / count - 0.5) / 0.25, labels, names, ipc, channels=channels)


def with_history(classes: int, greys: tuple[float, ...]) -> DistilledDataset:
    """Return a set that was evenly of these greys on its way, one per iteration."""
    data = synthetic(classes, 1)
    way = torch.stack([torch.full_like(data.images, (grey - 0.5) / 0.25) for grey in greys])
    count = len(greys)
    states = History(torch.arange(count), way, data.labels.expand(count, -1).contiguous(), torch.full((count,), 0.1))
    return dataclasses.replace(data, history=states)


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


def draw(blocks: dict[str, DistilledDataset], path: Path) -> None:
    save(draw_images([Block(label, data) for label, data in blocks.items()], "greys"), path, TIGHT)


def test_the_picture_shows_all_methods_and_is_the_same_each_time(tmp_path: Path) -> None:
    sets = {"random": synthetic(10, 1), "mtt": synthetic(10, 1)}
    for kind in ("png", "pdf"):
        draw(sets, tmp_path / f"a.{kind}")
        draw(sets, tmp_path / f"b.{kind}")
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    shown = numpy.asarray(Image.open(tmp_path / "a.png").convert("L"))
    for index in range(10):  # each image is of one grey, which must fill at least a tile in either block
        assert (abs(shown - 255 * index / 10) <= 1).sum() >= 2 * TILE**2
    assert shown.shape[0] > 2 * TILE and shown.shape[1] > 10 * TILE


def test_many_classes_and_images_are_cut(tmp_path: Path) -> None:
    draw({"mtt": synthetic(30, 7)}, tmp_path / "a.png")
    wide, tall = Image.open(tmp_path / "a.png").size
    assert wide < 24 * TILE and tall < 8 * TILE


def test_sets_of_other_classes_have_names_of_their_own_above() -> None:
    figure = draw_images([Block("a", synthetic(3, 1)), Block("b", synthetic(3, 1)), Block("c", synthetic(2, 1))], "")
    names = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert names[0] == ["a", "class 0", "class 1", "class 2"] and names[1] == ["b"]
    assert names[2] == ["c", "class 0", "class 1"]


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the ending is 'gig'; use one of"):
        draw({"a": synthetic(3, 1)}, tmp_path / "a.gig")
    broken = dataclasses.replace(synthetic(3, 1), preprocessing={"whitening_hash": "abc", "mean": [0.5], "std": [1.0]})
    with pytest.raises(UsageError, match="the whitening is not at"):
        draw({"a": broken}, tmp_path / "a.png")
    with pytest.raises(UsageError, match="at least one state"):
        write_animation([], tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_without_sets_has_title_and_note() -> None:
    figure = draw_images([], "digits", "Left out: all of them.")
    assert [text.get_text() for text in figure.texts] == ["digits", "Left out: all of them."] and not figure.axes


def test_what_is_clipped_is_counted() -> None:
    data = synthetic(4, 1)  # greys 0, 1/4, 2/4, 3/4; one of them moves beyond white
    data.images[3] = (1.5 - 0.5) / 0.25
    assert clipped(data) == pytest.approx({"clipped": 0.25, "lowest": 0, "highest": 1.5})
    assert float(data.pixels().max()) == 1 and float(data.pixels(clip=False).max()) == pytest.approx(1.5)


def test_an_animation_shows_the_states_in_their_order(tmp_path: Path) -> None:
    data = synthetic(2, 1)
    way = [torch.full_like(data.images, (grey - 0.5) / 0.25) for grey in (0.0, 0.4, 1.0)]
    states = History(
        torch.tensor([0, 5, 9]), torch.stack(way), data.labels.expand(3, -1), torch.tensor([0.1, 0.2, 0.3])
    )
    moving = dataclasses.replace(data, history=states)
    write_animation([moving.at(place) for place in range(3)], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.n_frames == 3
        greys = []
        for frame in range(3):
            picture.seek(frame)
            greys.append(numpy.asarray(picture.convert("L"))[TILE // 2, TILE // 2])
    assert greys == [0, 102, 255]


def test_a_missing_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)  # Python then refuses to import it
    with pytest.raises(UsageError, match=r"pip install 'satm\[figures\]'"):
        draw({"a": synthetic(3, 1)}, tmp_path / "a.png")
