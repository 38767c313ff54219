"""Differentiable Siamese augmentation (DSA): random transformations that gradients pass through.

Shapes: b images; C channels; H = W pixels. Images are normalised or whitened; pixels from outside an image are 0.
Drawing and applying are separate: one `Draw` can be applied to a real and a synthetic batch (Siamese) or in a second
pass, and applying is a pure function.

Source: Zhao and Bilen 2021 (Dataset Condensation with Differentiable Siamese Augmentation), section on augmentation;
values of the constants: the public code of DSA and MTT (`utils.py`, `ParamDiffAug`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from satm.errors import UsageError, pick

BRIGHTNESS = 1.0
"""Added to all pixels of an image: uniform in [-BRIGHTNESS / 2, BRIGHTNESS / 2)."""
SATURATION = 2.0
"""Factor of the difference to the grey image: uniform in [0, SATURATION)."""
CONTRAST = 0.5
"""Factor of the difference to the image's mean: uniform in [CONTRAST, CONTRAST + 1)."""
CROP_PADDING = 0.125
"""Largest shift in each direction, as a fraction of the size (rounded half up)."""
CUTOUT = 0.5
"""Height and width of the square set to 0, as a fraction of the size (rounded half up)."""
FLIP = 0.5
"""Probability of mirroring left and right."""
SCALE = 1.2
"""Stretch of the sampling grid, separately for each axis: uniform in [1 / SCALE, SCALE)."""
ROTATE = 15.0
"""Largest angle in degrees, in both directions."""

Parameters = Mapping[str, Tensor]
"""Random parameters of one family: each `[b]`, or `[1]` for the whole batch."""


@dataclass(frozen=True)
class Family:
    """One kind of transformation: how its parameters are drawn and how it is applied."""

    draw: Callable[[torch.Generator, int, int], Parameters]
    """`(generator, number of draws, size in pixels) -> parameters`."""
    apply: Callable[[Tensor, Parameters], Tensor]
    """`(images, parameters) -> images`; the first dimension of the parameters is b or 1."""


@dataclass(frozen=True)
class Draw:
    """The random parameters of one augmentation."""

    steps: tuple[tuple[str, Parameters], ...]
    """Names of the families with their parameters, in the order of application."""
    count: int | None
    """Number of images it can be applied to; None: any."""
    size: int
    """Height and width of the images in pixels."""


@dataclass(frozen=True)
class Augmentation:
    """The families that transform a batch, and the images that share parameters; UsageError for an unknown family."""

    strategy: str
    """Names of families joined by `_`; empty: none."""
    share: Literal["image", "batch"]
    """`image`: each image has its own parameters. `batch`: all images share one draw, for batches of any length."""
    mode: Literal["single", "multiple"] = "single"
    """`single`: one family, chosen at random in each draw. `multiple`: all families, in order."""

    def __post_init__(self) -> None:
        for name in self.families:
            pick(name, FAMILIES, "family of augmentation")

    @property
    def families(self) -> tuple[str, ...]:
        """Names in the order of the strategy."""
        return tuple(self.strategy.split("_")) if self.strategy else ()

    def draw(self, generator: torch.Generator, batch: int, size: int) -> Draw:
        """Return new random parameters for `batch` images of `size` x `size` pixels, from a generator on the CPU."""
        names = self.families
        if names and self.mode == "single":
            names = (names[int(torch.randint(len(names), (1,), generator=generator))],)
        count = batch if self.share == "image" else 1
        steps = tuple((name, FAMILIES[name].draw(generator, count, size)) for name in names)
        return Draw(steps, batch if self.share == "image" else None, size)

    def per_step(
        self, generator: torch.Generator, counts: Sequence[int], size: int, device: torch.device | None = None
    ) -> Callable[[Tensor, int], Tensor]:
        """Return `(images, step) -> augmented images` for `counts` images in each step, with parameters drawn now.

        All parameters are copied to the device at once; None: the CPU.
        """
        draws = [self.draw(generator, count, size) for count in counts]
        if device is not None and device.type != "cpu":
            draws = _moved(draws, device)
        return lambda images, step: self.apply(images, draws[step])

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """Return augmented images; a pure function, differentiable with respect to the images.

        Args:
            images: `[b, C, H, W]` floating point of any precision on any device, normalised or whitened; the result has
                the same type.
            draw: random parameters for this number and size of images.

        Raises:
            UsageError: the draw is for another number or size of images.
        """
        count, _, *sides = images.shape
        if sides != [draw.size, draw.size] or draw.count not in (None, count):
            raise UsageError(
                f"the augmentation was drawn for {draw.count or 'any number of'} images of {draw.size} x {draw.size} "
                f"pixels, got shape {tuple(images.shape)}; draw it for this batch"
            )
        for name, parameters in draw.steps:
            images = FAMILIES[name].apply(images, parameters)
        return images


def _moved(draws: Sequence[Draw], device: torch.device) -> list[Draw]:
    """Return draws on a device, with one copy for each type of number, because each copy makes the CPU wait."""
    tensors = [values for draw in draws for _, parameters in draw.steps for values in parameters.values()]
    parts: dict[torch.dtype, Iterator[Tensor]] = {}
    for dtype in {tensor.dtype for tensor in tensors}:
        alike = [tensor for tensor in tensors if tensor.dtype == dtype]
        parts[dtype] = iter(torch.cat(alike).to(device).split([len(tensor) for tensor in alike]))
    return [
        replace(
            draw,
            steps=tuple(
                (name, {key: next(parts[values.dtype]) for key, values in parameters.items()})
                for name, parameters in draw.steps
            ),
        )
        for draw in draws
    ]


def _uniform(generator: torch.Generator, count: int) -> Tensor:
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    """Return parameters `[b or 1]` as `[b or 1, 1, 1, 1]` on the images' device, real numbers in the images' dtype."""
    dtype = images.dtype if values.is_floating_point() else values.dtype
    return values.to(images.device, dtype)[:, None, None, None]


def _draw_color(generator: torch.Generator, count: int, size: int) -> Parameters:
    return {
        "brightness": (_uniform(generator, count) - 0.5) * BRIGHTNESS,
        "saturation": _uniform(generator, count) * SATURATION,
        "contrast": _uniform(generator, count) + CONTRAST,
    }


def _color(images: Tensor, parameters: Parameters) -> Tensor:
    """Change brightness, then saturation, then contrast, with one multiplication and one addition per pixel.

    Neither saturation nor contrast moves the mean of an image, so with the grey image g (mean over the channels) and
    the mean m: contrast * (saturation * x + (1 - saturation) * g) + (1 - contrast) * m + brightness.
    """
    brightness, saturation, contrast = (_per_image(values, images) for values in parameters.values())
    grey = images.mean(1, keepdim=True)
    rest = contrast * (1 - saturation) * grey + ((1 - contrast) * grey.mean((2, 3), keepdim=True) + brightness)
    return contrast * saturation * images + rest


def _draw_crop(generator: torch.Generator, count: int, size: int) -> Parameters:
    most = _rounded(size * CROP_PADDING)
    down, right = torch.randint(-most, most + 1, (2, count), generator=generator)
    return {"down": down, "right": right}


def _crop(images: Tensor, parameters: Parameters) -> Tensor:
    """Shift images by whole pixels; pixels from outside are 0."""
    count, channels, size, _ = images.shape
    place = torch.arange(size, device=images.device)
    down, right = (values.to(images.device)[:, None] + place for values in parameters.values())
    inside = ((down >= 0) & (down < size))[:, :, None] & ((right >= 0) & (right < size))[:, None, :]
    index = (down.clamp(0, size - 1) * size)[:, :, None] + right.clamp(0, size - 1)[:, None, :]
    index = index.flatten(1)[:, None].expand(count, channels, size * size)
    return images.flatten(2).gather(2, index).view_as(images) * inside[:, None].to(images.dtype)


def _draw_cutout(generator: torch.Generator, count: int, size: int) -> Parameters:
    # With an even length the centre lies between two pixels, so there is one more place.
    places = size + 1 - _rounded(size * CUTOUT) % 2
    row, column = torch.randint(places, (2, count), generator=generator)
    return {"row": row, "column": column}


def _cutout(images: Tensor, parameters: Parameters) -> Tensor:
    """Set a square around a random place to 0; it may cross the border."""
    size = images.shape[-1]
    length = _rounded(size * CUTOUT)
    place = torch.arange(size, device=images.device)
    row, column = (
        (place >= first) & (place < first + length)
        for first in (values.to(images.device)[:, None] - length // 2 for values in parameters.values())
    )
    return images * ~(row[:, None, :, None] & column[:, None, None, :])


def _draw_flip(generator: torch.Generator, count: int, size: int) -> Parameters:
    return {"flip": _uniform(generator, count) < FLIP}


def _flip(images: Tensor, parameters: Parameters) -> Tensor:
    return torch.where(_per_image(parameters["flip"], images), images.flip(3), images)


def _draw_scale(generator: torch.Generator, count: int, size: int) -> Parameters:
    return {axis: _uniform(generator, count) * (SCALE - 1 / SCALE) + 1 / SCALE for axis in ("x", "y")}


def _scale(images: Tensor, parameters: Parameters) -> Tensor:
    x, y = parameters.values()
    zero = torch.zeros_like(x)
    return _affine(images, torch.stack([x, zero, zero, zero, y, zero], 1))


def _draw_rotate(generator: torch.Generator, count: int, size: int) -> Parameters:
    return {"radians": (2 * _uniform(generator, count) - 1) * math.radians(ROTATE)}


def _rotate(images: Tensor, parameters: Parameters) -> Tensor:
    angle = parameters["radians"]
    zero = torch.zeros_like(angle)
    return _affine(images, torch.stack([angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero], 1))


def _affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Sample images `[b, C, H, W]` bilinearly at pixel positions mapped by `matrices`, `[b or 1, 6]`.

    The centres of the outermost pixels are at -1 and 1, as in MTT's `utils.py`; DSA's code has the image's edges there.
    """
    theta = matrices.to(images.device, images.dtype).view(-1, 2, 3).expand(len(images), 2, 3)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=True)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def _rounded(value: float) -> int:
    return int(value + 0.5)


FAMILIES: Mapping[str, Family] = {
    "color": Family(_draw_color, _color),
    "crop": Family(_draw_crop, _crop),
    "cutout": Family(_draw_cutout, _cutout),
    "flip": Family(_draw_flip, _flip),
    "scale": Family(_draw_scale, _scale),
    "rotate": Family(_draw_rotate, _rotate),
}
"""The six families by name."""
