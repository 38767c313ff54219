"""ZCA whitening of images: fitted once on the training images, stored, hashed, applied to every split.

Shapes: n images; C channels; H = W pixels; D = C * H * W numbers of one image, flattened in that order.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from satm.errors import UsageError
from satm.files import hash_tensors, read_tensors, write_tensors

LARGEST = 20_000
"""Largest D that is fitted: its float64 matrices take 3 GiB each, and several are needed at once."""

EXACT_CHUNK = 256
"""Images whose pixel products (at most 255 * 255 each) are summed in float32 without rounding: below 2**24."""


@dataclass(frozen=True)
class Whitening:
    """An affine map from images in [0, 1] to whitened images, and back.

    Applied to the images that it was fitted on, a direction of variance s gets the variance s / (s + eps).
    """

    mean: Tensor
    """`[D]` float32, mean training image in [0, 1]."""
    matrix: Tensor
    """`[D, D]` float32, symmetric: `U diag(1 / sqrt(s + eps)) U^T`."""
    inverse: Tensor
    """`[D, D]` float32, symmetric: `U diag(sqrt(s + eps)) U^T`."""
    hash: str
    """SHA-256 over mean, matrix, inverse and eps."""
    eps: float
    """Added to the eigenvalues s of the covariance."""

    def apply(self, images: Tensor) -> Tensor:
        """Return whitened images: `(x - mean) matrix` on each flattened image.

        Args:
            images: `[n, C, H, W]` floating point in [0, 1], on the device of this whitening.

        Returns:
            `[n, C, H, W]`, the same type; differentiable.

        Raises:
            UsageError: the images have another number of pixels than the fitted ones.
        """
        flat = self._flatten(images)
        return ((flat - self.mean.to(flat.dtype)) @ self.matrix.to(flat.dtype)).reshape(images.shape)

    def invert(self, images: Tensor) -> Tensor:
        """Return images in the [0, 1] scale (not clamped) from whitened ones: `x inverse + mean`.

        Args:
            images: `[n, C, H, W]` floating point, whitened, on the device of this whitening.

        Raises:
            UsageError: the images have another number of pixels than the fitted ones.
        """
        flat = self._flatten(images)
        return (flat @ self.inverse.to(flat.dtype) + self.mean.to(flat.dtype)).reshape(images.shape)

    def to(self, device: torch.device | str) -> "Whitening":
        """Return this whitening with its tensors on a device."""
        held = {name: getattr(self, name).to(device) for name in ("mean", "matrix", "inverse")}
        return replace(self, **held)

    def _flatten(self, images: Tensor) -> Tensor:
        flat = images.reshape(len(images), math.prod(images.shape[1:]))
        if flat.shape[1] != len(self.mean):
            raise UsageError(
                f"the whitening was fitted on images of {len(self.mean)} numbers, got images of shape "
                f"{tuple(images.shape[1:])}; fit it on this dataset"
            )
        return flat


def fit_whitening(images: Tensor, eps: float = 0.1) -> Whitening:
    """Return the ZCA whitening of the training images.

    With images x in [0, 1] flattened to D numbers, their mean m and their covariance
    `sum (x - m)(x - m)^T / (n - 1) = U diag(s) U^T`: the matrix is `U diag(1 / sqrt(s + eps)) U^T` and the inverse
    `U diag(sqrt(s + eps)) U^T`.

    The sums are exact: products of uint8 values are added up in float32 in chunks small enough that nothing is rounded,
    and the chunks in float64. The eigenvalues are computed in float64 on the CPU; the result is stored as float32.

    Args:
        images: `[n, C, H, W]` uint8, the training images.
        eps: added to the eigenvalues, positive.

    Raises:
        UsageError: fewer than two images, images that are not uint8, eps not positive, or more than 20,000 numbers an
            image.

    Source: ZCAWhitening of the kornia library (eps 0.1, unbiased covariance), which the MTT family's code uses.
    Differs: float64 instead of float32 for covariance and eigenvalues; an eigendecomposition of the symmetric
        covariance instead of a singular value decomposition, which is the same in exact arithmetic.
    """
    count, dims = len(images), math.prod(images.shape[1:])
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise UsageError(f"whitening is fitted on uint8 images [n, C, H, W], got {images.dtype} {tuple(images.shape)}")
    if count < 2:
        raise UsageError(f"whitening needs at least 2 training images, got {count}; give more or set zca to false")
    if not eps > 0:
        raise UsageError(f"eps of whitening must be above 0, got {eps}; the papers use 0.1")
    if dims > LARGEST:
        raise UsageError(
            f"whitening images of {' x '.join(map(str, images.shape[1:]))} = {dims} numbers needs matrices of "
            f"{dims} x {dims}, too large for memory (limit {LARGEST}); set zca to false or a smaller size"
        )
    total = torch.zeros(dims, dtype=torch.float64)
    products = torch.zeros(dims, dims, dtype=torch.float64)
    for chunk in images.split(EXACT_CHUNK):
        flat = chunk.reshape(len(chunk), dims).to("cpu", torch.float32)
        total += flat.sum(0)
        products += flat.T @ flat
    mean = total / count
    covariance = products.sub_(torch.outer(mean, total)).div_((count - 1) * 255**2)
    values, vectors = torch.linalg.eigh(covariance)
    root = (values.clamp_min(0) + eps).sqrt()  # the smallest eigenvalues may be negative by rounding
    held = (
        (mean / 255).float(),
        ((vectors / root) @ vectors.T).float(),
        ((vectors * root) @ vectors.T).float(),
    )
    return Whitening(*held, hash=_hash(*held, eps), eps=eps)


def save_whitening(path: Path, whitening: Whitening) -> None:
    """Write a whitening as safetensors, atomically."""
    tensors = {"mean": whitening.mean, "matrix": whitening.matrix, "inverse": whitening.inverse}
    write_tensors(path, tensors, {"kind": "whitening", "hash": whitening.hash, "eps": whitening.eps})


def load_whitening(path: Path) -> Whitening:
    """Return the whitening in a file.

    Raises:
        UsageError: the file is missing, cut short, not a whitening, or its content does not have the hash it states.
    """
    tensors, metadata = read_tensors(path, "whitening")
    if metadata.get("kind") != "whitening" or set(tensors) != {"mean", "matrix", "inverse"}:
        raise UsageError(f"{path} holds {metadata.get('kind', 'something else')}, expected a whitening; make it again")
    eps, stated = float(str(metadata["eps"])), str(metadata["hash"])
    held = (tensors["mean"], tensors["matrix"], tensors["inverse"])
    if (found := _hash(*held, eps)) != stated:
        raise UsageError(
            f"whitening {path} was changed: its hash is {found[:12]}, it states {stated[:12]}; make it again"
        )
    return Whitening(*held, hash=stated, eps=eps)


def _hash(mean: Tensor, matrix: Tensor, inverse: Tensor, eps: float) -> str:
    return hash_tensors(mean, matrix, inverse, torch.tensor(eps, dtype=torch.float64))
