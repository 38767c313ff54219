"""What every method computes: one plain function per algorithm, slow and obvious.

From top to bottom: the inner loop; trajectory matching (MTT, ConTra, DATM, TESLA); sharpness-aware steps (SATM, SAM,
ASAM, GSAM, VaSSO); unrolled training (BPTT, T-BPTT, R-BPTT, RaT-BPTT); matching class by class (DC, DSA, DM); choosing
real images (herding, k-center). A function is one outer iteration: the set then moves against the gradient it returns.

Everything is plain autograd through whole graphs. Whatever is random or read from files is an argument: mini-batches,
augmentation, weights of experts and of fresh networks, noise. Nothing of `satm` takes part but the record of a
synthetic set. `test_twins.py` draws as the library does and compares each registered method with its twin.

Shapes: n synthetic images of C x H x W, P parameters, N inner steps.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn import functional

from satm.methods.parts.problem import Synthetic


@dataclass(frozen=True)
class Segment:
    """Part of an expert's trajectory, from `start` to `target`, `[P]` each, with the `weight` of its loss.

    The student starts from `begin` and sees `labels` where these are given, instead of `start` and the set's labels.
    """

    start: Tensor
    target: Tensor
    weight: float = 1.0
    begin: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class Iteration:
    """What an outer iteration draws: the images of each inner step, their augmentation in a step, and segments.

    Only the last `kept` inner steps are differentiated.
    """

    module: nn.Module
    batches: Sequence[Tensor]
    augment: Callable[[Tensor, int], Tensor]
    kept: int
    segments: Sequence[Segment] = ()


@dataclass(frozen=True)
class Gradients:
    """The outer loss and its gradients, with the students' weights before each inner step and after the last."""

    loss: Tensor
    images: Tensor
    labels: Tensor | None
    step_size: Tensor
    sharpness: Tensor | None = None
    paths: tuple[dict[int, Tensor], ...] = ()


# The inner loop


def forward(module: nn.Module, weights: Tensor, images: Tensor) -> Tensor:
    """Return the logits of a network with `[P]` weights, one parameter after another."""
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    parts = weights.split([shape.numel() for shape in shapes.values()])
    named = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    return torch.func.functional_call(module, named, (images,))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy to classes, `[n]` integers, or to the softmax of `[n, K]` logits."""
    if not labels.is_floating_point():
        return functional.cross_entropy(logits, labels)
    return -(labels.softmax(1) * logits.log_softmax(1)).sum(1).mean()


def adam(gradients: Sequence[Tensor]) -> Tensor:
    """Return Adam's direction from all gradients so far. Kingma and Ba 2015, Algorithm 1."""
    count = len(gradients)
    first = sum(0.1 * 0.9 ** (count - 1 - at) * gradient for at, gradient in enumerate(gradients))
    second = sum(0.001 * 0.999 ** (count - 1 - at) * gradient.square() for at, gradient in enumerate(gradients))
    positive = second > 0  # the root of 0 has no derivative
    root = torch.where(positive, torch.where(positive, second / (1 - 0.999**count), 1).sqrt(), 0)
    return first / (1 - 0.9**count) / (root + 1e-8)


def train(
    here: Iteration, synthetic: Synthetic, weights: Tensor, cut: int, first: int = 0, rule: Callable | None = None
) -> tuple[dict[int, Tensor], list[Tensor]]:
    """Train a student on the synthetic set, from step `first` on; return its path and the gradient of each step.

    By SGD, or by a rule that makes a direction of all gradients so far. Steps before `cut` are constants: neither
    their weights nor their gradients pass anything back.
    """
    path, gradients = {first: weights}, []
    for step in range(first, len(here.batches)):
        if step <= max(first, cut):
            weights = leaf(weights)
        batch = here.batches[step]
        logits = forward(here.module, weights, here.augment(synthetic.images[batch], step))
        loss = cross_entropy(logits, synthetic.labels[batch])
        gradients.append(grad(loss, weights, create_graph=True)[0])
        passed = [gradient.detach() if first + at < cut else gradient for at, gradient in enumerate(gradients)]
        weights = weights - synthetic.step_size * (rule(passed) if rule else passed[-1])
        path[step + 1] = weights
    return path, gradients


def leaf(tensor: Tensor) -> Tensor:
    """Return a copy to differentiate with respect to, where it is not of integers."""
    return tensor.detach().clone().requires_grad_(tensor.is_floating_point())


def leaves(synthetic: Synthetic) -> Synthetic:
    """Return a copy of the set to differentiate with respect to."""
    return Synthetic(leaf(synthetic.images), leaf(synthetic.labels), leaf(synthetic.step_size))


def gradients_of(loss: Tensor, synthetic: Synthetic) -> Gradients:
    """Return the gradients of a loss with respect to the set."""
    soft = [synthetic.labels] if synthetic.labels.is_floating_point() else []
    images, step_size, *labels = grad(loss, [synthetic.images, synthetic.step_size, *soft], materialize_grads=True)
    return Gradients(loss.detach(), images, labels[0] if soft else None, step_size)


# Trajectory matching


def matching_loss(student: Tensor, segment: Segment) -> Tensor:
    """Return the student's squared distance from the expert's end, relative to how far the expert went. SATM, Eq. 6."""
    return (student - segment.target).square().sum() / (segment.start - segment.target).square().sum()


def mtt(
    here: Iteration, synthetic: Synthetic, step_size: str = "exact", first: int = 0, begins: Sequence[Tensor] = ()
) -> Gradients:
    """Return the gradients of the matching losses after the inner loop, summed with the weights of the segments.

    MTT (Cazenavette et al. 2022); truncation: SATM, Eq. 9; several segments: ConTra, Eq. 8. The step size's gradient
    is exact, 0 (`fixed`), or holds all inner gradients constant (`first-order`: SATM, Eq. 12). With `first` and
    `begins` the students go on in the middle of the inner loop, from other weights.
    """
    synthetic, steps = leaves(synthetic), len(here.batches)
    losses, shares, paths = [], [], []
    for index, segment in enumerate(here.segments):
        begin = segment.start if segment.begin is None else segment.begin
        seen = synthetic if segment.labels is None else replace(synthetic, labels=segment.labels)
        path, gradients = train(here, seen, begins[index] if begins else begin, steps - here.kept, first)
        losses.append(segment.weight * matching_loss(path[steps], segment))
        shares.append(-grad(losses[-1], path[steps], retain_graph=True)[0] @ torch.stack(gradients).sum(0).detach())
        paths.append({step: weights.detach() for step, weights in path.items()})
    found = gradients_of(torch.stack(losses).sum(), synthetic)
    if step_size != "exact":
        first_order = torch.stack(shares).sum().detach()
        found = replace(found, step_size=first_order if step_size == "first-order" else torch.zeros_like(first_order))
    return replace(found, paths=tuple(paths))


def teacher_labels(module: nn.Module, segment: Segment, images: Tensor) -> Tensor:
    """Return `[n, K]` the logits of the expert at the segment's end, as constants. TESLA (Cui et al. 2023)."""
    return forward(module, segment.target, images).detach()


def expanding_range(first: int, last: int, over: int, iteration: int) -> int:
    """Return below which epoch segments start: a straight line from `first` to `last`. DATM's public code."""
    return min(last, math.floor(first + (last - first) * iteration / over + 1e-9))


def concurrent_starts(sampled: int, least: int, distance: int, count: int, beta: float) -> list[tuple[float, int]]:
    """Return where concurrent segments start, each with the weight of its loss. ConTra, Eq. 8 and Algorithm 1."""
    return [(beta, sampled), *(((1 - beta) / count, least + number * distance) for number in range(count))]


def tesla(here: Iteration, synthetic: Synthetic) -> Gradients:
    """Return the gradients of the matching loss multiplied out, with the weights of each step held constant.

    With ``a`` the step size, ``g_i`` the inner gradients and ``G`` their sum, the images' gradient is that of the sum
    of ``2 (a (target - start) + a^2 G) . g_i / |start - target|^2``; that of the step size holds all ``g_i`` constant.
    TESLA (Cui et al. 2023), section on constant memory, and its public code.
    """
    rate, synthetic, steps = synthetic.step_size, leaves(synthetic), len(here.batches)
    losses, products, of_step_size = [], [], []
    for segment in here.segments:
        seen = synthetic if segment.labels is None else replace(synthetic, labels=segment.labels)
        path, gradients = train(here, seen, segment.start, steps)
        way, total = segment.target - segment.start, torch.stack(gradients).sum(0).detach()
        scale = 2 * segment.weight / way.square().sum()
        products += [scale * (rate * way + rate**2 * total) @ gradient for gradient in gradients]
        losses.append(segment.weight * matching_loss(path[steps].detach(), segment))
        of_step_size.append(scale * (way + rate * total) @ total)
    found = gradients_of(torch.stack(products).sum(), synthetic)
    return replace(found, loss=torch.stack(losses).sum(), step_size=torch.stack(of_step_size).sum())


# Sharpness-aware steps


def smoothing_noise(images: Tensor, drawn: Tensor, gamma: float, kind: str) -> Tensor:
    """Return noise whose deviation, or variance, is gamma times each image's norm. SATM, Algorithm 1, line 7."""
    magnitude = gamma * images.flatten(1).norm(dim=1)[:, None, None, None]
    return drawn * (magnitude if kind == "std" else magnitude.sqrt())


def satm(here: Iteration, synthetic: Synthetic, noise: Tensor, rho: float, tau: int) -> Gradients:
    """Return the hypergradient at the sharpest neighbour of the set.

    SATM, Algorithm 1 with Eq. 9 to 12: unroll on the noisy set; from the set itself ascend along the gradient; unroll
    there, from the first students' weights at step tau on. Loss and step size are those of the first unroll.
    """
    noisy = mtt(here, replace(synthetic, images=synthetic.images + noise), "first-order")
    sharpest = replace(synthetic, images=synthetic.images + rho * noisy.images / noisy.images.norm())
    sharp = mtt(here, sharpest, first=tau, begins=[path[tau] for path in noisy.paths])
    return replace(noisy, images=sharp.images, labels=sharp.labels, sharpness=sharp.loss - noisy.loss)


def sam(
    here: Iteration, synthetic: Synthetic, reuse: bool, ascent: Callable[[Tensor], Tensor]
) -> tuple[Gradients, Tensor]:
    """Return the hypergradient at the neighbour that `ascent` makes of the one at the set, and that one.

    SAM (Foret et al. 2021), Algorithm 1. With `reuse` the second unroll goes on from the first differentiated step.
    """
    plain = mtt(here, synthetic, "first-order")
    first = len(here.batches) - here.kept if reuse else 0
    sharpest = replace(synthetic, images=synthetic.images + ascent(plain.images))
    sharp = mtt(here, sharpest, first=first, begins=[path[first] for path in plain.paths])
    return replace(plain, images=sharp.images, labels=sharp.labels, sharpness=sharp.loss - plain.loss), plain.images


def steepest(gradient: Tensor, rho: float) -> Tensor:
    """Return the step of length rho along the gradient. SAM, Eq. 2."""
    return rho * gradient / gradient.norm()


def adaptive(gradient: Tensor, images: Tensor, rho: float, eta: float) -> Tensor:
    """Return the ascent in units of each pixel's magnitude. ASAM (Kwon et al. 2021), Eq. 8."""
    size = images.abs() + eta
    return rho * size**2 * gradient / (size * gradient).norm()


def gsam(sharp: Tensor, plain: Tensor, alpha: float) -> Tensor:
    """Return SAM's gradient less alpha times the plain one's orthogonal part. GSAM (Zhuang et al. 2022), Alg. 1."""
    unit = sharp / sharp.norm()
    return sharp - alpha * (plain - (plain * unit).sum() * unit)


def vasso(gradient: Tensor, direction: Tensor | None, theta: float) -> Tensor:
    """Return the average of gradients that SAM ascends along. VaSSO (Li and Giannakis 2023), Algorithm 1."""
    return theta * gradient if direction is None else (1 - theta) * direction + theta * gradient


# Unrolled training


def window(name: str, steps: int, length: int, draw: Callable[[int], int]) -> tuple[int, int]:
    """Return the first differentiated inner step and their number; `draw(most)` is uniform from 0 to `most`.

    All N steps (BPTT), the last T (T-BPTT), the first few (R-BPTT), or T anywhere (RaT-BPTT, section 2, Algorithm 1).
    """
    places = {"bptt": lambda: (0, steps), "t-bptt": lambda: (steps - length, length)}
    places |= {"r-bptt": lambda: (0, 1 + draw(steps - 1)), "ratbptt": lambda: (draw(steps - length), length)}
    return places[name]()


def unrolled(
    here: Iteration, synthetic: Synthetic, weights: Tensor, start: int, length: int, real: Tensor, classes: Tensor
) -> Gradients:
    """Return the gradients of a network's loss on real images after some steps of Adam on the synthetic set.

    RaT-BPTT, Algorithm 1: the steps before the window are constants, those after it are not run.
    """
    synthetic = leaves(synthetic)
    path, _ = train(replace(here, batches=here.batches[: start + length]), synthetic, weights, start, rule=adam)
    return gradients_of(cross_entropy(forward(here.module, path[start + length], real), classes), synthetic)


# Matching class by class


@dataclass(frozen=True)
class OneClass:
    """One class in one iteration: the places of its synthetic images, its real images, the augmentation of both."""

    label: int
    places: list[int]
    real: Tensor
    augment: Callable[[Tensor], Tensor]


def layer_gradients(module: nn.Module, images: Tensor, label: int) -> list[Tensor]:
    """Return the gradient of the mean loss with respect to the weights of each convolution and linear layer."""
    losses = [functional.cross_entropy(module(image[None]), torch.tensor([label])) for image in images]
    layers = [layer.weight for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    return list(grad(torch.stack(losses).mean(), layers, create_graph=True))


def dc(module: nn.Module, images: Tensor, classes: Sequence[OneClass]) -> tuple[Tensor, Tensor]:
    """Return 1 - cosine of gradients on synthetic and real images, over classes, layers, channels; and its gradient.

    DC (Zhao et al. 2021), Eq. 10 and public code; with augmentation: DSA (Zhao and Bilen 2021), section 3.
    """
    images, distances = leaf(images), []
    for one in classes:
        synthetic = layer_gradients(module, one.augment(images[one.places]), one.label)
        real = layer_gradients(module, one.augment(one.real), one.label)
        for mine, theirs in zip(synthetic, real, strict=True):
            for channel in range(len(mine)):
                a, b = mine[channel].flatten(), theirs[channel].flatten().detach()
                distances.append(1 - a.dot(b) / (a.dot(a).sqrt() * b.dot(b).sqrt() + 1e-6))
    total = torch.stack(distances).sum()
    return total.detach(), grad(total, images)[0]


def dm(module: nn.Module, images: Tensor, classes: Sequence[OneClass]) -> tuple[Tensor, Tensor]:
    """Return the squared distance of mean features, over the classes, and its gradient. DM (Zhao and Bilen), Eq. 6."""
    images, distances = leaf(images), []
    for one in classes:
        synthetic = module.features(one.augment(images[one.places])).flatten(1)
        real = module.features(one.augment(one.real)).flatten(1).detach()
        distances.append((synthetic.mean(0) - real.mean(0)).square().sum())
    total = torch.stack(distances).sum()
    return total.detach(), grad(total, images)[0]


# Choosing real images


def herding(features: Tensor, count: int) -> list[int]:
    """Return rows whose mean stays as near as possible to the mean of all. iCaRL (Rebuffi et al. 2017), Algorithm 4."""
    chosen: list[int] = []
    while len(chosen) < count:
        rest = [index for index in range(len(features)) if index not in chosen]
        chosen.append(min(rest, key=lambda row: math.dist(features[[*chosen, row]].mean(0), features.mean(0))))
    return chosen


def k_center(features: Tensor, count: int) -> list[int]:
    """Return the row nearest to the mean, then always the farthest. Sener and Savarese 2018, Algorithm 1."""
    chosen = [min(range(len(features)), key=lambda row: math.dist(features[row], features.mean(0)))]
    while len(chosen) < count:
        rest = [index for index in range(len(features)) if index not in chosen]
        chosen.append(max(rest, key=lambda row: min(math.dist(features[row], features[one]) for one in chosen)))
    return chosen
