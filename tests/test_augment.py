import math

import pytest
import torch
from drawing import torch_generator
from tolerances import SUMS
from torch.nn import functional

from satm.data import FAMILIES, Augmentation, Draw
from satm.data.augment import CUTOUT, SCALE, _moved
from satm.errors import UsageError

ALL = "color_crop_cutout_flip_scale_rotate"


def pictures(count: int = 4, channels: int = 3, size: int = 8) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch_generator(99), dtype=torch.float64)


def values_of(draw: Draw) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value for name, values in draw.steps for key, value in values.items()}


@pytest.mark.parametrize("mode", ["single", "multiple"])
@pytest.mark.parametrize("share", ["image", "batch"])
def test_same_seed_same_result(share: str, mode: str) -> None:
    augmentation = Augmentation(ALL, share, mode)  # type: ignore[arg-type]
    x = pictures()
    first, second = (augmentation.apply(x, augmentation.draw(torch_generator(3), 4, 8)) for _ in range(2))
    assert torch.equal(first, second)
    others = [augmentation.apply(x, augmentation.draw(torch_generator(seed), 4, 8)) for seed in range(4, 12)]
    assert any(not torch.equal(first, other) for other in others)


@pytest.mark.parametrize("share", ["image", "batch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_against_finite_differences(family: str, share: str) -> None:
    augmentation = Augmentation(family, share)  # type: ignore[arg-type]
    draw = augmentation.draw(torch_generator(1), 3, 5)
    x = pictures(3, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda images: augmentation.apply(images, draw), (x,))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_changes_an_image_and_keeps_its_form(family: str) -> None:
    augmentation = Augmentation(family, "image")
    for channels in (1, 3):
        x = pictures(16, channels).float()
        y = augmentation.apply(x, augmentation.draw(torch_generator(), 16, 8))
        assert y.shape == x.shape and y.dtype == x.dtype and y.isfinite().all()
        assert not torch.equal(x, y)


def test_siamese_batch_mode_serves_any_length() -> None:
    augmentation = Augmentation(ALL, "batch", "multiple")
    draw = augmentation.draw(torch_generator(2), 4, 8)
    x = pictures(1)
    one = augmentation.apply(x, draw)
    many = augmentation.apply(x.expand(7, 3, 8, 8), draw)
    torch.testing.assert_close(many, one.expand(7, 3, 8, 8))


def test_siamese_image_mode_changes_real_and_synthetic_alike_and_images_apart() -> None:
    augmentation = Augmentation("color_crop_cutout_scale_rotate", "image", "multiple")
    draw = augmentation.draw(torch_generator(2), 6, 8)
    x = pictures(1).expand(6, 3, 8, 8)
    real, synthetic = augmentation.apply(x, draw), augmentation.apply(x.clone(), draw)
    assert torch.equal(real, synthetic)
    assert all(not torch.equal(real[0], real[index]) for index in range(1, 6))


def test_empty_strategy_changes_nothing_and_draws_nothing() -> None:
    augmentation = Augmentation("", "image")
    generator = torch_generator()
    x = pictures()
    assert augmentation.apply(x, augmentation.draw(generator, 4, 8)) is x
    assert torch.equal(generator.get_state(), torch_generator().get_state())


def test_single_draws_every_family_and_multiple_keeps_the_order() -> None:
    single, generator = Augmentation(ALL, "image"), torch_generator()
    drawn = [[name for name, _ in single.draw(generator, 2, 8).steps] for _ in range(200)]
    assert {name for [name] in drawn} == set(FAMILIES)
    multiple = Augmentation("flip_color_crop", "image", "multiple")
    assert [name for name, _ in multiple.draw(generator, 2, 8).steps] == ["flip", "color", "crop"]


def test_ranges_of_the_parameters() -> None:
    draw = Augmentation(ALL, "image", "multiple").draw(torch_generator(), 20_000, 32)
    angle = math.radians(15)
    expected = {  # protocol of DSA at 32 pixels: shifts up to 4, places of a 16 pixel square 0 to 32
        "color.brightness": (-0.5, 0.5),
        "color.saturation": (0, 2),
        "color.contrast": (0.5, 1.5),
        "crop.down": (-4, 4),
        "crop.right": (-4, 4),
        "cutout.row": (0, 32),
        "cutout.column": (0, 32),
        "flip.flip": (0, 1),
        "scale.x": (1 / 1.2, 1.2),
        "scale.y": (1 / 1.2, 1.2),
        "rotate.radians": (-angle, angle),
    }
    values = values_of(draw)
    assert set(values) == set(expected)
    for name, (low, high) in expected.items():
        drawn = values[name].double()
        assert low <= drawn.min() < low + 0.01 * (high - low), name
        assert high - 0.01 * (high - low) < drawn.max() <= high, name
        # At least five standard errors of 20,000 draws, for those that take the two ends only.
        assert abs(drawn.mean() - (low + high) / 2) < 0.02 * (high - low), name
    assert not torch.equal(values["scale.x"], values["scale.y"])


def test_color_is_brightness_saturation_contrast_in_turn() -> None:
    augmentation = Augmentation("color", "image")
    draw = augmentation.draw(torch_generator(), 4, 8)
    x = pictures()
    y = x + draw.steps[0][1]["brightness"].view(-1, 1, 1, 1)
    grey = y.mean(1, keepdim=True)
    y = (y - grey) * draw.steps[0][1]["saturation"].view(-1, 1, 1, 1) + grey
    mean = y.mean((1, 2, 3), keepdim=True)
    y = (y - mean) * draw.steps[0][1]["contrast"].view(-1, 1, 1, 1) + mean
    torch.testing.assert_close(augmentation.apply(x, draw), y)


def test_saturation_leaves_one_channel_alone() -> None:
    x = pictures(2, 1)
    neutral = {"brightness": torch.zeros(1), "contrast": torch.ones(1), "saturation": torch.full((1,), 0.3)}
    parameters = {name: neutral[name].double() for name in ("brightness", "saturation", "contrast")}
    torch.testing.assert_close(FAMILIES["color"].apply(x, parameters), x)


def test_crop_shifts_whole_pixels_and_fills_with_zero() -> None:
    augmentation = Augmentation("crop", "image")
    draw = augmentation.draw(torch_generator(), 30, 16)
    x = pictures(30, 2, 16)
    values = values_of(draw)
    padded = functional.pad(x, (2, 2, 2, 2))
    y = augmentation.apply(x, draw)
    for index in range(30):
        down, right = (2 + int(values[f"crop.{side}"][index]) for side in ("down", "right"))
        assert torch.equal(y[index], padded[index, :, down : down + 16, right : right + 16])


@pytest.mark.parametrize("size", [7, 8, 32])
def test_cutout_sets_one_square_to_zero(size: int) -> None:
    augmentation = Augmentation("cutout", "image")
    draw = augmentation.draw(torch_generator(), 50, size)
    y = augmentation.apply(torch.ones(50, 1, size, size), draw)
    length = int(size * CUTOUT + 0.5)
    values = values_of(draw)
    for index in range(50):
        top, left = (int(values[f"cutout.{axis}"][index]) - length // 2 for axis in ("row", "column"))
        expected = torch.ones(size, size)
        expected[max(top, 0) : top + length, max(left, 0) : left + length] = 0
        assert torch.equal(y[index, 0], expected)
        assert 0 < (y[index] == 0).sum() <= length**2


def test_flip_is_its_own_inverse_and_hits_half() -> None:
    augmentation = Augmentation("flip", "image")
    draw = augmentation.draw(torch_generator(), 1000, 4)
    x = pictures(1000, 1, 4)
    y = augmentation.apply(x, draw)
    assert torch.equal(augmentation.apply(y, draw), x)
    changed = (y != x).flatten(1).any(1)
    assert torch.equal(y[changed], x[changed].flip(3))
    assert 400 < changed.sum() < 600  # six standard deviations


def test_scale_and_rotate_at_rest_are_the_identity() -> None:
    x = pictures()
    one, zero = torch.ones(4), torch.zeros(4)
    torch.testing.assert_close(FAMILIES["scale"].apply(x, {"x": one, "y": one}), x)
    torch.testing.assert_close(FAMILIES["rotate"].apply(x, {"radians": zero}), x)
    quarter = torch.full((4,), math.pi / 2, dtype=torch.float64)
    turned = FAMILIES["rotate"].apply(x, {"radians": quarter})
    assert any(torch.allclose(turned, x.rot90(times, (2, 3)), rtol=0, atol=SUMS) for times in (1, 3))


def test_scale_enlarges_and_shrinks_as_stated() -> None:
    x = torch.ones(1, 1, 32, 32, dtype=torch.float64)
    shrunk = FAMILIES["scale"].apply(x, {"x": torch.tensor([SCALE]), "y": torch.tensor([1.0])})
    assert abs(shrunk.sum() / x.sum() - 1 / SCALE) < 0.02  # less than a column of 32: edges fall between pixels
    enlarged = FAMILIES["scale"].apply(x, {"x": torch.tensor([1 / SCALE]), "y": torch.tensor([1.0])})
    torch.testing.assert_close(enlarged, x)


def test_scale_measures_from_the_centres_of_the_outermost_pixels() -> None:
    ramp = torch.arange(9, dtype=torch.float64).expand(1, 1, 9, 9)
    scaled = FAMILIES["scale"].apply(ramp, {"x": torch.tensor([0.5]), "y": torch.tensor([1.0])})
    torch.testing.assert_close(scaled, (4 + (ramp - 4) / 2))


def test_unknown_family_and_wrong_batches() -> None:
    with pytest.raises(UsageError, match=r"unknown family of augmentation 'colour'; .* Did you mean 'color'\?"):
        Augmentation("colour_flip", "image")
    augmentation = Augmentation("flip", "image")
    draw = augmentation.draw(torch_generator(), 4, 8)
    with pytest.raises(UsageError, match=r"drawn for 4 images of 8 x 8 pixels, got shape \(5, 3, 8, 8\)"):
        augmentation.apply(pictures(5), draw)
    with pytest.raises(UsageError, match="draw it for this batch"):
        augmentation.apply(pictures(4, size=9), draw)


@pytest.mark.parametrize("mode", ["single", "multiple"])
@pytest.mark.parametrize("share", ["image", "batch"])
def test_parameters_of_all_steps_are_moved_together(share: str, mode: str) -> None:
    augmentation = Augmentation("color_crop_cutout_flip_scale_rotate", share, mode)  # type: ignore[arg-type]
    generator, counts = torch_generator(), [3, 5, 1, 4, 2, 7]
    draws = [augmentation.draw(generator, count, 8) for count in counts]
    moved = _moved(draws, torch.device("cpu"))
    for one, other, count in zip(draws, moved, counts, strict=True):
        assert (one.count, one.size) == (other.count, other.size)
        assert [name for name, _ in one.steps] == [name for name, _ in other.steps]
        images = torch.randn(count, 3, 8, 8, generator=generator)
        assert torch.equal(augmentation.apply(images, one), augmentation.apply(images, other))
        for (_, given), (_, found) in zip(one.steps, other.steps, strict=True):
            assert given.keys() == found.keys()
            assert all(torch.equal(given[key], found[key]) and given[key].dtype == found[key].dtype for key in given)
    assert _moved([Augmentation("", "image").draw(generator, 2, 8)], torch.device("cpu"))[0].steps == ()
