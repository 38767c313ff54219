"""Training of one network, plain or sharpness-aware, for experts and evaluation.

Shapes: B images of a batch, C x H x W an image, K classes.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from satm.data import Augmentation, Preprocessor, Split
from satm.ops import fastest, own
from satm.run.stopping import check_stop

TEST_BATCH = {"cpu": 100, "cuda": 1000}
"""Batch size for evaluation by kind of device, without effect on the result: a processor's caches hold the activations
of 100 images of 32 pixels; a GPU needs larger batches to be busy."""


@dataclass(frozen=True)
class TrainingImages:
    """Images with labels on the device, returned in the space that networks are trained in.

    Normalised images stay uint8 and are normalised batch by batch, which takes a quarter of the memory. Whitening
    multiplies by a matrix over all pixels, so whitened images are computed once and kept as float32.
    """

    images: Tensor
    """`[n, C, H, W]` uint8, or float32 already in the training space."""
    labels: Tensor
    """`[n]` int64, or float32 `[n, K]` soft labels."""
    preprocessor: Preprocessor | None = None
    """Applied to each batch; None: the images are in the training space."""

    @classmethod
    def of(cls, split: Split, preprocessor: Preprocessor, device: torch.device) -> "TrainingImages":
        """Move real images to a device."""
        moved = preprocessor.to(device)
        if preprocessor.whitening:
            return cls(moved.apply(split.images), split.labels.to(device))
        return cls(split.images.to(device), split.labels.to(device), moved)

    def __len__(self) -> int:
        """Return n."""
        return len(self.images)

    def batch(self, chosen: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return the chosen images, `[B, C, H, W]` float32, and their labels."""
        images, labels = self.images[chosen], self.labels[chosen]
        return (self.preprocessor.apply(images) if self.preprocessor else images), labels

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images in order, in batches for evaluation."""
        step = TEST_BATCH["cpu" if self.images.device.type == "cpu" else "cuda"]
        for start in range(0, len(self), step):
            yield self.batch(slice(start, start + step))


def soft_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `[]` the cross-entropy of `[B, K]` logits with `[B]` classes or `[B, K]` logits of soft labels.

    Soft labels are stored as logits and become probabilities here, so that gradients can move them freely.
    """
    targets = labels.softmax(1) if labels.is_floating_point() else labels
    return functional.cross_entropy(logits, targets)


Weights = Mapping[str, Tensor]
"""Weights or their gradients by parameter name."""


@dataclass(frozen=True)
class SharpnessAware:
    """A gradient that leads to flat minima, combining those at the weights w and at a neighbour with a higher loss.

    Args:
        rule: with g the gradient at w and g' the gradient at the neighbour, `paper`: neighbour ``w + rho g / |g|``,
            gradient ``alpha g' + (1 - alpha) g``, which is SAM for alpha 1; `code`: neighbour
            ``w + rho g / (|g| + 1e-12)``, gradient ``g' - alpha v``, with v the part of g orthogonal to g' (GSAM).
        rho: distance to the neighbour, over all weights together.
        alpha: see `rule`.
        adaptive: `code` only: the neighbour is ``w + rho w^2 g / (|w g| + 1e-12)``, elementwise (ASAM).

    Raises:
        ValueError: `adaptive` with the rule `paper`, which has no adaptive form.

    Source: `paper`: FTD Algorithm 1 and Eq. 15, 16. `code`: FTD's public buffer code, which calls the GSAM package
        (`gsam.py`: `perturb_weights`, `gradient_decompose`) with a constant rho.
    Differs: that package returns from the neighbour by subtraction, which rounds; here the weights never move.
    """

    rule: Literal["paper", "code"]
    rho: float
    alpha: float
    adaptive: bool = False

    def __post_init__(self) -> None:
        if self.adaptive and self.rule == "paper":
            raise ValueError("adaptive has no effect with the rule 'paper'; use the rule 'code' or leave it out")

    def neighbour(self, weights: Weights, gradient: Weights) -> dict[str, Tensor]:
        """Return the weights of the neighbour with a higher loss; the weights themselves if the gradient is zero."""
        scaled = {name: weights[name].abs() * slope if self.adaptive else slope for name, slope in gradient.items()}
        norm = _norm(scaled)
        if self.rule == "code":
            factor = self.rho / (norm + 1e-12)
        else:
            factor = torch.where(norm > 0, self.rho / norm, torch.zeros_like(norm))
        return {
            name: weights[name] + factor * (weights[name] ** 2 * slope if self.adaptive else slope)
            for name, slope in gradient.items()
        }

    def combine(self, gradient: Weights, there: Weights) -> dict[str, Tensor]:
        """Return the gradient to follow, from the gradients at the weights and at the neighbour (`there`)."""
        if self.rule == "paper":
            return {name: slope.lerp(there[name], self.alpha) for name, slope in gradient.items()}
        here_norm, there_norm = _norm(gradient), _norm(there)
        product = torch.stack([(slope * there[name]).sum() for name, slope in gradient.items()]).sum()
        cosine = product / (there_norm * here_norm + 1e-12)
        along = cosine * here_norm / (there_norm + 1e-12)
        return {name: there[name] - self.alpha * (slope - along * there[name]) for name, slope in gradient.items()}

    def replace_gradients(self, module: nn.Module, images: Tensor, labels: Tensor) -> None:
        """Replace the gradients of a batch in `parameter.grad` by the sharpness-aware ones.

        The second pass uses the same augmented images. It changes neither weights nor buffers: running statistics of
        batch norms are those of the first pass, as in the GSAM package.
        """
        parameters = dict(module.named_parameters())
        here = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
        weights = {name: parameters[name].detach() for name in here}
        near = {name: value.requires_grad_() for name, value in self.neighbour(weights, here).items()}
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        loss = soft_cross_entropy(torch.func.functional_call(module, (near, buffers), (images,)), labels)
        there = dict(zip(near, torch.autograd.grad(loss, list(near.values())), strict=True))
        for name, slope in self.combine(here, there).items():
            parameters[name].grad = slope


def _norm(values: Weights) -> Tensor:
    """Return `[]` the Euclidean norm of all values together."""
    norm: Tensor = torch.stack([value.norm() for value in values.values()]).norm()
    return norm


def train_epoch(
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    data: TrainingImages,
    batch_size: int,
    augmentation: Augmentation,
    generator: torch.Generator,
    *,
    among: Tensor | None = None,
    sharpness_aware: SharpnessAware | None = None,
    batches: int | None = None,
) -> float:
    """Train for one epoch, in a random order of the images, and return the mean loss.

    Args:
        module: network, changed in place.
        optimiser: optimiser of the module's parameters.
        data: images and labels.
        batch_size: images per batch; the last batch may be smaller.
        augmentation: augmentation, drawn for each batch.
        generator: generator on the CPU, which draws the order and the augmentation.
        among: `[m]` int64 on the CPU, indices of the images in this epoch; None: all.
        sharpness_aware: replaces the plain gradient. The returned loss is always the plain one.
        batches: number of batches after which the epoch ends; None: all of them.
    """
    count = len(data) if among is None else len(among)
    order = torch.randperm(count, generator=generator)
    order = order if among is None else among[order]
    order = order if batches is None else order[: batches * batch_size]
    network = _faster(module.train(), data, order[:batch_size])
    total = torch.zeros((), device=data.labels.device)
    for chosen in order.split(batch_size):
        check_stop()
        images, labels = data.batch(chosen.to(data.labels.device))
        images = augmentation.apply(images, augmentation.draw(generator, len(images), images.shape[-1]))
        loss = soft_cross_entropy(network(images), labels)
        optimiser.zero_grad()
        loss.backward()
        if sharpness_aware is not None:
            sharpness_aware.replace_gradients(network, images, labels)
        optimiser.step()
        total += loss.detach() * len(chosen)
    return float(total) / len(order)


def _faster(module: nn.Module, data: TrainingImages, batch: Tensor) -> nn.Module:
    """Return the network with the operations that train it faster on batches such as this one."""
    images, labels = data.batch(batch.to(data.labels.device))

    def pass_over(network: nn.Module) -> None:
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        weights = {name: each.detach().requires_grad_() for name, each in network.named_parameters()}
        loss = soft_cross_entropy(torch.func.functional_call(network, (weights, buffers), (images,)), labels)
        torch.autograd.grad(loss, list(weights.values()), allow_unused=True)

    size = "training", *images.shape, next(module.parameters()).dtype
    return fastest(module, size, images, pass_over)


@torch.no_grad()
def outputs(module: nn.Module, data: TrainingImages) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `[B, K]` logits and labels of all images in order, without augmentation, in evaluation mode."""
    network: nn.Module | None = None
    for images, labels in data.batches():
        check_stop()
        if network is None:
            network = own(module.eval(), images)
        yield network(images), labels


def measure(module: nn.Module, data: TrainingImages) -> tuple[float, float]:
    """Return accuracy, a fraction, and mean cross-entropy on images with integer labels, without augmentation.

    If the network diverged (its loss is not finite), accuracy is NaN, rather than that of always predicting one class.
    """
    right = torch.zeros((), dtype=torch.int64, device=data.labels.device)
    total = torch.zeros((), dtype=torch.float64, device=data.labels.device)
    for logits, labels in outputs(module, data):
        right += (logits.argmax(1) == labels).sum()
        total += functional.cross_entropy(logits, labels, reduction="sum").double()
    loss = float(total) / len(data)
    return (int(right) / len(data) if math.isfinite(loss) else math.nan), loss
