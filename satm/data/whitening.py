"""ZCA whitening of images: fitted once on the training images, stored with hashes, applied to every split.

Shapes: n images; C channels; H = W pixels; D = C * H * W numbers of an image, flattened in that order.

There are two independent options: `per_image` brings each image to mean 0 and norm 1, instead of subtracting the mean
training image; `relative` measures eps in units of the mean eigenvalue. Together they are the whitening of RaT-BPTT.
With both, a whitened training image of CIFAR-10 has a norm of about 25 (root mean square 26.1, the square root of
`sum s / (s + eps * mean s)` over the eigenvalues s), so images initialised with norm 1 in this space are faint beside
real ones. The plain variant gives about 14.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from satm.config.datasets import LARGEST_WHITENED
from satm.errors import UsageError
from satm.storage.files import expect
from satm.storage.tensors import hash_tensors, read_tensors, write_tensors

EXACT_CHUNK = 256
"""Images whose pixel products (at most 255 * 255 each) sum to less than 2**24, so float32 does not round."""

FLAT = 1e-3
"""Smallest norm, mean removed, that `per_image` divides an image in [0, 1] by: less than one grey level in one pixel.
Images below it have one colour, and dividing by their norm would amplify rounding errors."""

ROUNDING = 1e-12
"""Mean eigenvalue below which all images are of one colour."""


@dataclass(frozen=True)
class Whitening:
    """A map from images in [0, 1] to whitened images, and back.

    On the images that it was fitted on, it turns a variance s along an eigenvector into s / (s + eps). With `per_image`
    the map is not affine and has no inverse: an image's mean and norm are lost, and `invert` uses their averages over
    the training images instead.
    """

    mean: Tensor
    """`[D]` float32, mean training image in [0, 1]; with `per_image` the average of all images' means, repeated."""
    matrix: Tensor
    """`[D, D]` float32, symmetric: `U diag(1 / sqrt(s + eps)) U^T`."""
    inverse: Tensor
    """`[D, D]` float32, symmetric: `U diag(sqrt(s + eps)) U^T`."""
    hash: str
    """SHA-256 of the training images, eps and the variant, but not of the matrix, which processors round differently:
    images distilled on one machine can be used on another."""
    eps: float
    """Added to the eigenvalues s of the covariance; with `relative`, multiplied by their mean first."""
    per_image: bool = False
    """Whether each image is first standardised to mean 0 and norm 1."""
    relative: bool = False
    """Whether eps is in units of the mean eigenvalue."""
    norm: Tensor | None = None
    """`[]` float32, average norm of the training images in [0, 1], their means removed; None without `per_image`."""

    def apply(self, images: Tensor) -> Tensor:
        """Return whitened images: `(x - mean) matrix` for each flattened image, or `standardise(x) matrix`.

        Differentiable. Images are `[n, C, H, W]` floating point in [0, 1], on the device of this whitening.

        Raises:
            UsageError: the images do not have the size of the training images.
        """
        flat = self._flatten(images)
        centred = standardise(flat) if self.per_image else flat - self.mean.to(flat.dtype)
        return (centred @ self.matrix.to(flat.dtype)).reshape(images.shape)

    def invert(self, images: Tensor) -> Tensor:
        """Return images on the [0, 1] scale, not clamped, from whitened ones: `x inverse + mean`.

        With `per_image` it is `norm * (x inverse) + mean`, only for viewing: brightness and contrast are those of an
        average image. Arguments and errors as in `apply`.
        """
        flat = self._flatten(images) @ self.inverse.to(images.dtype)
        flat = flat if self.norm is None else flat * self.norm.to(flat.dtype)
        return (flat + self.mean.to(flat.dtype)).reshape(images.shape)

    def to(self, device: torch.device | str) -> "Whitening":
        """Return this whitening with its tensors on a device."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return replace(self, **moved)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, the norm only if there is one."""
        tensors = {"mean": self.mean, "matrix": self.matrix, "inverse": self.inverse}
        return tensors if self.norm is None else {**tensors, "norm": self.norm}

    def _flatten(self, images: Tensor) -> Tensor:
        flat = images.reshape(len(images), math.prod(images.shape[1:]))
        if flat.shape[1] != len(self.mean):
            raise UsageError(
                f"the whitening was fitted on images of {len(self.mean)} numbers, got shape {tuple(images.shape[1:])}; "
                "fit it on this dataset"
            )
        return flat


def standardise(flat: Tensor) -> Tensor:
    """Return `[n, D]` images with mean 0 and norm 1 over all D numbers; an image of one colour becomes zero."""
    centred = flat - flat.mean(1, keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    return centred / norm.clamp_min(FLAT)


def fit_whitening(images: Tensor, eps: float = 0.1, per_image: bool = False, relative: bool = False) -> Whitening:
    """Fit ZCA whitening to the training images, `[n, C, H, W]` uint8; for `eps` and variants see `Whitening`.

    U and s are from `sum (x - m)(x - m)^T / (n - 1) = U diag(s) U^T`, the covariance of images x in [0, 1] with mean m;
    with `per_image` from `sum x x^T / n` of standardised images x, without subtracting a mean image.

    The sums are exact: products of uint8 values are summed in float32 in chunks small enough not to round, and the
    chunks in float64; with `per_image` all sums are float64. Eigenvalues are computed in float64 on the CPU.

    Raises:
        UsageError: fewer than two images, images that are not uint8, eps not positive, or more than 20,000 numbers per
            image.

    Source: ZCAWhitening of the kornia library (eps 0.1, unbiased covariance), which the MTT family's code uses; with
        `per_image` and `relative`: public code of RaT-BPTT (`framework/config.py`, regularisation 0.1), section C.1.
    Differs: float64 instead of float32 for covariance and eigenvalues; an eigendecomposition of the symmetric
        covariance instead of a singular value decomposition, which is the same in exact arithmetic. An image of one
        colour becomes zero; RaT-BPTT's code gives NaN.
    """
    count, dims = len(images), math.prod(images.shape[1:])
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise UsageError(
            f"whitening is fitted on uint8 images [n, C, H, W], got {images.dtype} {tuple(images.shape)}; convert them"
        )
    if count < 2:
        raise UsageError(f"whitening needs at least 2 training images, got {count}; add some or set zca to false")
    if not eps > 0:
        raise UsageError(f"eps of whitening must be above 0, got {eps}; the papers use 0.1")
    if dims > LARGEST_WHITENED:
        raise UsageError(
            f"whitening supports images of at most {LARGEST_WHITENED} numbers (its matrices have the square of that), "
            f"got {' x '.join(map(str, images.shape[1:]))} = {dims}; set zca to false, or a smaller size"
        )
    mean, norm, covariance = (_moments_per_image if per_image else _moments)(images)
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(0)  # the smallest eigenvalues may be negative by rounding
    root = (values + eps * (_unit(values) if relative else 1)).sqrt()
    matrix, inverse = ((vectors / root) @ vectors.T).float(), ((vectors * root) @ vectors.T).float()
    hash, norm = hash_tensors(images, _variant(eps, per_image, relative)), None if norm is None else norm.float()
    return Whitening(mean.float(), matrix, inverse, hash, eps, per_image, relative, norm)


def _moments(images: Tensor) -> tuple[Tensor, None, Tensor]:
    """Return `[D]` mean, no norm, and `[D, D]` covariance of images in [0, 1], float64."""
    count, dims = len(images), math.prod(images.shape[1:])
    total, products = torch.zeros(dims, dtype=torch.float64), torch.zeros(dims, dims, dtype=torch.float64)
    for chunk in images.split(EXACT_CHUNK):
        flat = chunk.reshape(len(chunk), dims).to("cpu", torch.float32)
        total += flat.sum(0)
        products += flat.T @ flat
    mean = total / count
    return mean / 255, None, products.sub_(torch.outer(mean, total)).div_((count - 1) * 255**2)


def _moments_per_image(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `[D]` average mean, repeated, `[]` average norm, and `[D, D]` second moment of standardised images."""
    count, dims = len(images), math.prod(images.shape[1:])
    level, norm = torch.zeros(2, dtype=torch.float64)
    products = torch.zeros(dims, dims, dtype=torch.float64)
    for chunk in images.split(EXACT_CHUNK):
        flat = chunk.reshape(len(chunk), dims).to("cpu", torch.float64) / 255
        means = flat.mean(1, keepdim=True)
        level += means.sum()
        norm += torch.linalg.vector_norm(flat - means, dim=1).sum()
        standard = standardise(flat)
        products.addmm_(standard.T, standard)
    return (level / count).expand(dims).clone(), norm / count, products.div_(count)


def _unit(values: Tensor) -> Tensor:
    """Return `[]` the mean eigenvalue, or 1 if it is a mere rounding error, which division would amplify."""
    mean = values.mean()
    return mean if mean > ROUNDING else torch.ones_like(mean)


def save_whitening(path: Path, whitening: Whitening, data: str | None = None) -> None:
    """Write a whitening as safetensors, atomically, with the hash of its dataset (`ImageData.hash`); None: unknown."""
    metadata = {field: getattr(whitening, field) for field in ("hash", "eps", "per_image", "relative")}
    metadata |= {"kind": "whitening", "content": _content(whitening), "data": data}
    write_tensors(path, whitening.tensors(), metadata)


def load_whitening(path: Path, data: str | None = None) -> Whitening:
    """Return the whitening in a file; `data` is the expected hash of its dataset, None: not checked.

    Raises:
        UsageError: the file is missing, cut short, not a whitening, fitted on another dataset, or does not match its
            stated hash.
    """
    tensors, metadata = read_tensors(path, "whitening")
    per_image, relative = bool(metadata.get("per_image")), bool(metadata.get("relative"))
    expected = {"mean", "matrix", "inverse", *(["norm"] if per_image else [])}
    if metadata.get("kind") != "whitening" or set(tensors) != expected:
        raise UsageError(f"{path} holds {metadata.get('kind', 'something else')}, expected a whitening; make it again")
    if data is not None and metadata.get("data") not in (None, data):
        raise UsageError(f"{path} was fitted on other images, expected those of hash {data[:12]}; make it again")
    values = expect(metadata, {"eps": float, "hash": str, "content": str}, f"whitening {path}")
    eps = float(values["eps"])
    whitening = Whitening(**tensors, hash=values["hash"], eps=eps, per_image=per_image, relative=relative)
    if (actual := _content(whitening)) != (stated := values["content"]):
        raise UsageError(
            f"whitening {path} was changed: the hash of its content is {actual[:12]}, it states {stated[:12]}; "
            "make it again"
        )
    return whitening


def _content(whitening: Whitening) -> str:
    """Return the hash of everything that affects results."""
    variant = _variant(whitening.eps, whitening.per_image, whitening.relative)
    return hash_tensors(*whitening.tensors().values(), variant)


def _variant(eps: float, per_image: bool, relative: bool) -> Tensor:
    return torch.tensor([eps, per_image, relative], dtype=torch.float64)
