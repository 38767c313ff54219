"""Whitening and its variants against their definitions written out with numpy, its file, its refusals."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import torch_generator
from tolerances import DISTINCT, SINGLE, SINGLE_LOOPS

from satm.cli import main
from satm.config import DatasetOptions, load_campaign
from satm.data import (
    ImageData,
    Preprocessor,
    Split,
    Whitening,
    fit_whitening,
    load_dataset,
    load_whitening,
    save_images,
    save_whitening,
)
from satm.errors import UsageError
from satm.stages.inputs import Inputs
from satm.storage.tensors import hash_tensors, read_tensors, write_tensors
from satm.workflow.asked import WHITENING

VARIANTS = [(False, False), (True, False), (False, True), (True, True)]
"""`per_image` and `relative`."""


def make_images(count: int, seed: int = 0, size: int = 4) -> torch.Tensor:
    """Images whose pixels depend on each other, so that whitening has something to do."""
    generator = torch_generator(seed)
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


def standardised(images: torch.Tensor) -> np.ndarray:
    rows = []
    for image in images.numpy().astype(np.float64):
        row = image.ravel() - image.mean()
        rows.append(row / np.sqrt((row**2).sum()))
    return np.stack(rows)


def variant_by_definition(
    images: torch.Tensor, eps: float, per_image: bool, relative: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the images that whitening is fitted on and their matrix and inverse, as RaT-BPTT's preprocessing does."""
    x = images.numpy().reshape(len(images), -1).astype(np.float64) / 255
    x = standardised(images) if per_image else x - x.mean(0)
    e, v = np.linalg.eig(x.T @ x / (len(x) - (not per_image)))
    root = np.sqrt(e.real + eps * (e.real.sum() / len(e) if relative else 1))
    return x, v.real @ np.diag(1 / root) @ v.real.T, v.real @ np.diag(root) @ v.real.T


@pytest.mark.parametrize(("per_image", "relative"), VARIANTS)
def test_the_variants_follow_their_definition(per_image: bool, relative: bool) -> None:
    images, test = make_images(300), make_images(20, seed=1)
    fitted = fit_whitening(images, 0.1, per_image, relative)
    x, matrix, inverse = variant_by_definition(images, 0.1, per_image, relative)
    np.testing.assert_allclose(fitted.matrix.numpy(), matrix, rtol=SINGLE, atol=SINGLE * np.abs(matrix).max())
    np.testing.assert_allclose(fitted.inverse.numpy(), inverse, rtol=SINGLE, atol=SINGLE)
    white = fitted.apply(images.double() / 255).flatten(1).numpy()
    np.testing.assert_allclose(white, x @ matrix, rtol=SINGLE_LOOPS, atol=SINGLE_LOOPS)
    mean = images.numpy().astype(np.float64).mean(0).ravel() / 255
    other = standardised(test) if per_image else test.numpy().reshape(20, -1).astype(np.float64) / 255 - mean
    np.testing.assert_allclose(
        fitted.apply(test.double() / 255).flatten(1).numpy(), other @ matrix, rtol=SINGLE_LOOPS, atol=SINGLE_LOOPS
    )


def test_the_norm_of_whitened_images_is_what_the_eigenvalues_say() -> None:
    images = make_images(400)
    x = standardised(images)
    values = np.linalg.eigvalsh(x.T @ x / 400)
    white = fit_whitening(images, 0.1, True, True).apply(images.double() / 255).flatten(1)
    expected = (values / (values + 0.1 * values.mean())).sum()
    assert float(white.square().sum(1).mean()) == pytest.approx(expected, rel=SINGLE_LOOPS)
    assert 5 < expected < 48


def test_brightness_and_contrast_do_not_matter_per_image_and_come_back_on_average() -> None:
    images = make_images(200)
    scaled = images.double() / 255
    fitted = fit_whitening(images, 0.1, True, True)
    white = fitted.apply(scaled)
    torch.testing.assert_close(fitted.apply(0.3 * scaled + 0.4), white)
    back = fitted.invert(white)
    shape = standardised(images).reshape(scaled.shape)
    level, norm = scaled.flatten(1).mean(1), (scaled - scaled.mean((1, 2, 3), keepdim=True)).flatten(1).norm(dim=1)
    torch.testing.assert_close(back, norm.mean() * torch.from_numpy(shape) + level.mean(), rtol=0, atol=SINGLE_LOOPS)
    shown = Preprocessor((0.5,) * 3, (0.2,) * 3, fitted).to_pixels(white)
    torch.testing.assert_close(shown.double(), back.clamp(0, 1), rtol=0, atol=SINGLE)
    assert (back - scaled).abs().mean() < 0.1  # an average image's brightness and contrast, not its own
    one = images[:1].repeat(5, 1, 1, 1)
    alike = fit_whitening(one, 0.1, True, True)  # where all are alike, nothing is lost
    torch.testing.assert_close(
        alike.invert(alike.apply(one.double() / 255)), one.double() / 255, rtol=0, atol=SINGLE_LOOPS
    )


@pytest.mark.parametrize(("per_image", "relative"), VARIANTS)
def test_variants_keep_their_file_their_hash_and_their_device(tmp_path: Path, per_image: bool, relative: bool) -> None:
    images = make_images(60)
    fitted = fit_whitening(images, 0.1, per_image, relative)
    save_whitening(tmp_path / "a", fitted)
    loaded = load_whitening(tmp_path / "a")
    assert (loaded.hash, loaded.eps, loaded.per_image, loaded.relative) == (fitted.hash, 0.1, per_image, relative)
    scaled = images.double() / 255
    assert torch.equal(loaded.apply(scaled), fitted.apply(scaled))
    assert torch.equal(loaded.invert(scaled), fitted.invert(scaled))
    assert torch.equal(loaded.to("cpu").invert(scaled), loaded.invert(scaled))
    assert (loaded.norm is None) == (not per_image)
    for other in ({"per_image": not per_image}, {"relative": not relative}):
        assert fit_whitening(images, 0.1, **{"per_image": per_image, "relative": relative, **other}).hash != fitted.hash
    held, metadata = read_tensors(tmp_path / "a", "whitening")
    if "norm" in held:
        write_tensors(tmp_path / "a", {**held, "norm": held["norm"] * 2}, metadata)
    else:
        write_tensors(tmp_path / "a", held, {**metadata, "relative": not relative})
    with pytest.raises(UsageError, match="was changed"):
        load_whitening(tmp_path / "a")


def test_a_whitening_is_named_by_what_it_was_fitted_on(tmp_path: Path) -> None:
    """Another processor rounds the matrix in another way; images distilled there must stay usable here."""
    fitted = fit_whitening(make_images(60))
    elsewhere = dataclasses.replace(fitted, matrix=fitted.matrix * (1 + 1e-6))
    save_whitening(tmp_path / "zca", elsewhere)
    there = load_whitening(tmp_path / "zca")
    assert there.hash == fitted.hash and not torch.equal(there.matrix, fitted.matrix)
    mean, std = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
    identity = Preprocessor(mean, std, there).identity
    assert Preprocessor.from_identity(identity, fitted).whitening is fitted
    held, metadata = read_tensors(tmp_path / "zca", "whitening")
    write_tensors(tmp_path / "old", held, {name: value for name, value in metadata.items() if name != "content"})
    with pytest.raises(UsageError, match=r"whitening .*old .*content.*make it again"):
        load_whitening(tmp_path / "old")


def test_an_image_of_one_colour_becomes_zero_per_image() -> None:
    images = make_images(50)
    images[7] = 93
    fitted = fit_whitening(images, 0.1, True, True)
    for kind in (torch.float32, torch.float64):
        white = fitted.apply(images.to(kind) / 255)
        assert white.isfinite().all() and white[7].norm() < 0.1 < white[6].norm()
    x = (images[6:8].double() / 255).requires_grad_()
    fitted.apply(x).square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    for per_image, relative in VARIANTS:
        flat = fit_whitening(torch.full((10, 1, 2, 2), 7, dtype=torch.uint8), 0.1, per_image, relative)
        assert flat.matrix.isfinite().all()
        torch.testing.assert_close(flat.matrix @ flat.inverse, torch.eye(4))


def test_the_workflow_makes_the_whitening_anew_for_each_of_its_options() -> None:
    assert {name for name in DatasetOptions.model_fields if name.startswith("zca_")} == {
        f"zca_{name}" for name in WHITENING
    }


@pytest.mark.parametrize("option", ["zca_per_image", "zca_relative"])
def test_a_variant_without_whitening_is_refused(tmp_path: Path, option: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(f"datasets: {{odd: {{source: digits, {option}: true}}}}\n")
    with pytest.raises(UsageError, match=rf"datasets.odd: {option} changes .* zca is false; set zca to true") as caught:
        load_campaign(path)
    assert "\n" not in str(caught.value)
    assert DatasetOptions.model_validate({"source": "digits", "zca": True, option: True}).zca


def test_the_stage_makes_the_variant_and_a_stale_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    variants = {"zca_per_image": True, "zca_relative": True}
    text = "datasets: {{digits: {{source: digits, zca: true, zca_per_image: {0}, zca_relative: {1}}}}}\n"
    (tmp_path / "odd.yaml").write_text(text.format("true", "true"))
    images = torch.cat([make_images(30, seed)[:, :1] for seed in (0, 1, 2)])
    splits = [Split(images[30 * part :][:30], torch.arange(30) % 3) for part in range(3)]
    data = ImageData("digits", *splits, ("a", "b", "c"), (0.5,), (0.2,), "")
    data = dataclasses.replace(data, hash=hash_tensors(*(t for split in splits for t in (split.images, split.labels))))
    layout = load_campaign(Path("odd.yaml")).layout
    save_images(Path(layout.images("digits")), data)
    assert main(["data", "--config", "odd.yaml", "--dataset", "digits", "--make", "zca"]) == 0
    prepared = Inputs(load_campaign(Path("odd.yaml")), "digits", torch.device("cpu"))
    expected = fit_whitening(splits[0].images, 0.1, True, True)
    assert prepared.preprocessor.identity["whitening_hash"] == expected.hash
    torch.testing.assert_close(prepared.preprocessor.apply(splits[2].images), expected.apply(splits[2].images / 255))
    for name in variants:
        given = {other: str(other != name).lower() for other in variants}
        (tmp_path / "odd.yaml").write_text(text.format(*given.values()))
        with pytest.raises(UsageError, match=rf"was made with {name[4:]} True, {name} is False; make it again"):
            Inputs(load_campaign(Path("odd.yaml")), "digits", torch.device("cpu"))


@pytest.mark.parametrize("count", [300, 20])  # 20 images of 48 numbers: the covariance is singular
def test_fit_follows_the_definition(count: int) -> None:
    images = make_images(count)
    fitted = fit_whitening(images, 0.1)
    for got, expected in zip(
        (fitted.mean, fitted.matrix, fitted.inverse), whitening_by_definition(images, 0.1), strict=True
    ):
        np.testing.assert_allclose(got.numpy(), expected, rtol=SINGLE, atol=SINGLE)


def test_whitened_images_have_the_stated_covariance() -> None:
    images = make_images(400)
    fitted = fit_whitening(images, 1e-4)
    white = fitted.apply(images.double() / 255).flatten(1)
    covariance = torch.cov(images.double().flatten(1).T / 255)
    values = torch.linalg.eigvalsh(covariance)
    torch.testing.assert_close(
        torch.linalg.eigvalsh(torch.cov(white.T)), values / (values + 1e-4), rtol=SINGLE_LOOPS, atol=SINGLE_LOOPS
    )
    torch.testing.assert_close(white.mean(0), torch.zeros(48).double(), rtol=0, atol=SINGLE)


def test_inverse_restores_the_images() -> None:
    images = make_images(100)
    fitted = fit_whitening(images)
    scaled = images.double() / 255
    torch.testing.assert_close(fitted.invert(fitted.apply(scaled)), scaled, rtol=0, atol=SINGLE)
    other = Preprocessor((0.5,) * 3, (0.2,) * 3, fitted)
    torch.testing.assert_close(other.to_pixels(other.apply(images)), images / 255, rtol=0, atol=SINGLE)


def test_test_images_are_whitened_with_the_training_matrix() -> None:
    train, test = make_images(200, seed=0), make_images(50, seed=1)
    mean, matrix, _ = whitening_by_definition(train, 0.1)
    expected = (test.numpy().reshape(50, -1) / 255 - mean) @ matrix
    got = Preprocessor((0.1,) * 3, (9.0,) * 3, fit_whitening(train)).apply(test)
    np.testing.assert_allclose(got.reshape(50, -1).numpy(), expected, rtol=SINGLE_LOOPS, atol=SINGLE)
    assert np.abs(expected.mean(0)).max() > DISTINCT  # another set: not centred by its own mean


@pytest.mark.parametrize(("per_image", "relative"), VARIANTS)
def test_whitening_passes_gradients(per_image: bool, relative: bool) -> None:
    fitted = fit_whitening(make_images(50), 0.1, per_image, relative)
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


def test_a_whitening_says_which_images_it_was_fitted_on(tmp_path: Path) -> None:
    path, fitted = tmp_path / "zca.safetensors", fit_whitening(make_images(60))
    save_whitening(path, fitted, "abc")
    assert load_whitening(path, "abc").hash == load_whitening(path).hash == fitted.hash
    with pytest.raises(UsageError, match="was fitted on other images, expected those of hash abd"):
        load_whitening(path, "abd")
    save_whitening(path, fitted)  # as earlier versions wrote it
    assert load_whitening(path, "abc").hash == fitted.hash


def test_changed_file_is_refused(tmp_path: Path) -> None:
    fitted = fit_whitening(make_images(60))
    path = tmp_path / "zca.safetensors"
    save_whitening(path, fitted)
    held, metadata = read_tensors(path, "whitening")
    write_tensors(path, {**held, "mean": fitted.mean + 1}, metadata)
    with pytest.raises(UsageError, match=r"was changed: the hash of its content is .* it states .*; make it again"):
        load_whitening(path)
    write_tensors(path, held, {**metadata, "eps": 0.2})
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
        (
            torch.zeros(2, 3, 128, 128, dtype=torch.uint8),
            0.1,
            "at most 20000 .* got 3 x 128 x 128 = 49152; set zca",
        ),
    ],
)
def test_unusable_images_are_refused(images: torch.Tensor, eps: float, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        fit_whitening(images, eps)


def test_images_of_another_size_are_refused() -> None:
    fitted = fit_whitening(make_images(20))
    with pytest.raises(UsageError, match=r"fitted on images of 48 numbers, got shape \(3, 6, 6\)"):
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
    torch.testing.assert_close(fitted.invert(fitted.apply(x)), x, rtol=0, atol=SINGLE_LOOPS)
