import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from satm.config import DatasetOptions
from satm.data import Preprocessor, Whitening, fit_whitening, load_dataset, load_whitening, save_whitening
from satm.errors import UsageError
from satm.files import write_tensors


def make_images(count: int, seed: int = 0, size: int = 4) -> torch.Tensor:
    """Images whose pixels depend on each other, so that whitening has something to do."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, size // 2, size // 2, generator=generator)
    fine = torch.rand(count, 3, size, size, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return ((0.8 * smooth + 0.2 * fine) * 255).to(torch.uint8)


def whitening_by_definition(images: torch.Tensor, eps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = images.numpy().reshape(len(images), -1).astype(np.float64) / 255
    mean = x.mean(0)
    covariance = np.zeros((x.shape[1], x.shape[1]))
    for row in x:
        covariance += np.outer(row - mean, row - mean)
    u, s, _ = np.linalg.svd(covariance / (len(x) - 1))
    return mean, u @ np.diag(1 / np.sqrt(s + eps)) @ u.T, u @ np.diag(np.sqrt(s + eps)) @ u.T


@pytest.mark.parametrize("count", [300, 20])  # 20 images of 48 numbers: the covariance is singular
def test_fit_follows_the_definition(count: int) -> None:
    images = make_images(count)
    fitted = fit_whitening(images, 0.1)
    for got, expected in zip(
        (fitted.mean, fitted.matrix, fitted.inverse), whitening_by_definition(images, 0.1), strict=True
    ):
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_whitened_images_have_the_stated_covariance() -> None:
    images = make_images(400)
    fitted = fit_whitening(images, 1e-4)
    white = fitted.apply(images.double() / 255).flatten(1)
    covariance = torch.cov(images.double().flatten(1).T / 255)
    values = torch.linalg.eigvalsh(covariance)
    torch.testing.assert_close(
        torch.linalg.eigvalsh(torch.cov(white.T)), values / (values + 1e-4), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(white.mean(0), torch.zeros(48).double(), rtol=0, atol=1e-5)


def test_inverse_round_trip() -> None:
    images = make_images(100)
    fitted = fit_whitening(images)
    scaled = images.double() / 255
    torch.testing.assert_close(fitted.invert(fitted.apply(scaled)), scaled, rtol=0, atol=1e-5)
    other = Preprocessor((0.5,) * 3, (0.2,) * 3, fitted)
    torch.testing.assert_close(other.to_pixels(other.apply(images)), images / 255, rtol=0, atol=1e-5)


def test_test_images_are_whitened_with_the_training_matrix() -> None:
    train, test = make_images(200, seed=0), make_images(50, seed=1)
    mean, matrix, _ = whitening_by_definition(train, 0.1)
    expected = (test.numpy().reshape(50, -1) / 255 - mean) @ matrix
    got = Preprocessor((0.1,) * 3, (9.0,) * 3, fit_whitening(train)).apply(test)
    np.testing.assert_allclose(got.reshape(50, -1).numpy(), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected.mean(0)).max() > 1e-3  # another set: not centred by its own mean


def test_whitening_passes_gradients() -> None:
    fitted = fit_whitening(make_images(50))
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fitted.apply, (x,))
    assert torch.autograd.gradcheck(fitted.invert, (x,))


def test_file_round_trip_and_same_bytes(tmp_path: Path) -> None:
    fitted = fit_whitening(make_images(60))
    for name in ("a", "b"):
        save_whitening(tmp_path / name, fitted)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = load_whitening(tmp_path / "a")
    assert (loaded.hash, loaded.eps) == (fitted.hash, fitted.eps)
    torch.testing.assert_close(loaded.matrix, fitted.matrix, rtol=0, atol=0)
    assert fit_whitening(make_images(60), 0.2).hash != fitted.hash
    assert fit_whitening(make_images(61)).hash != fitted.hash


def test_changed_file_is_refused(tmp_path: Path) -> None:
    fitted = fit_whitening(make_images(60))
    path = tmp_path / "zca.safetensors"
    save_whitening(path, dataclasses.replace(fitted, mean=fitted.mean + 1))
    with pytest.raises(UsageError, match=r"was changed: its hash is .* it states .*; make it again"):
        load_whitening(path)
    save_whitening(path, dataclasses.replace(fitted, eps=0.2))
    with pytest.raises(UsageError, match="was changed"):
        load_whitening(path)
    write_tensors(path, {"x": torch.zeros(1)}, {"kind": "experts"})
    with pytest.raises(UsageError, match="holds experts, expected a whitening"):
        load_whitening(path)
    save_whitening(path, fitted)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UsageError, match="not a whole safetensors file"):
        load_whitening(path)


@pytest.mark.parametrize(
    ("images", "eps", "text"),
    [
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), 0.1, "at least 2 training images, got 1"),
        (torch.zeros(5, 1, 2, 2), 0.1, "fitted on uint8 images"),
        (torch.zeros(5, 1, 2, 2, dtype=torch.uint8), 0.0, "eps of whitening must be above 0, got 0.0"),
        (torch.zeros(2, 3, 128, 128, dtype=torch.uint8), 0.1, "3 x 128 x 128 = 49152 .* too large for memory"),
    ],
)
def test_unusable_input_of_fit(images: torch.Tensor, eps: float, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        fit_whitening(images, eps)


def test_images_of_another_size_are_refused() -> None:
    fitted = fit_whitening(make_images(20))
    with pytest.raises(UsageError, match=r"fitted on images of 48 numbers, got images of shape \(3, 6, 6\)"):
        fitted.apply(torch.zeros(2, 3, 6, 6))


def test_images_of_one_colour_stay_finite() -> None:
    fitted = fit_whitening(torch.full((10, 1, 2, 2), 7, dtype=torch.uint8))
    assert fitted.matrix.isfinite().all()
    torch.testing.assert_close(fitted.matrix @ fitted.inverse, torch.eye(4))


@pytest.mark.skipif(
    not (Path(os.environ.get("SATM_DATA", "absent")) / "tiny-imagenet-subset").is_dir(),
    reason="needs real images: set SATM_DATA to a folder that holds tiny-imagenet-subset/",
)
def test_real_images_become_nearly_white() -> None:
    options = DatasetOptions(
        source="tiny-imagenet", path="$SATM_DATA/tiny-imagenet-subset", classes=(0, 1, 2, 3), size=16
    )
    data = load_dataset("tiny", options)
    fitted: Whitening = fit_whitening(data.train.images)
    x = data.train.images.double() / 255

    def spread(values: torch.Tensor) -> float:
        values = torch.linalg.eigvalsh(torch.cov(values.flatten(1).T)).clamp_min(0).sqrt()
        return float(values[-1] / values[-50])

    assert spread(fitted.apply(x)) < spread(x) / 3
    torch.testing.assert_close(fitted.invert(fitted.apply(x)), x, rtol=0, atol=1e-4)
