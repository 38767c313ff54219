"""Doubts about the interpretation of a synthetic set from elsewhere: its value space, its labels, its class order.

A doubt is a sentence for the log and the set's metadata; it changes nothing. The limits lie between what sets of this
project (digits normalised, CIFAR-10 whitened) and real images with noise give in the right space and in wrong ones.

Shapes: n images of C x H x W, m real ones; K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from satm.data.images import Preprocessor
from satm.errors import some

SHOWN = 3
"""Classes of another mapping that a doubt names."""

LEAST_CONTRAST, MOST_CONTRAST, LIKENESS, MEAN, BEYOND = 0.6, 1.6, 0.8, 0.15, 0.005
"""Bounds of images that look like real ones: contrast and likeness as multiples, differences of mean and far."""

FAR, OUTSIDE, FAINT, ROUGH = 0.12, 0.95, 0.55, 3.5
"""Limits that the right space does not cross: share of values beyond [-0.5, 1.5] of normalised images, and outside
[0, 1] of whitened ones; contrast, and roughness, as multiples of those of real images."""

NEAR_ONE = 0.95
"""Least extent, either way, of images on the scale [-1, 1]."""

TWICE, SURE = 2.0, 6.0
"""Another mapping of classes is stated if at least so many times as many images agree with it, by so many standard
deviations."""


@dataclass(frozen=True)
class Look:
    """Statistics of images on the [0, 1] scale, not clamped."""

    mean: float
    contrast: float
    """Standard deviation within images."""
    likeness: float
    """Correlation of horizontal neighbours within images; 0.9 in photographs, less in whitened ones."""
    outside: float
    """Share of values outside [0, 1]."""
    far: float
    """Share of values outside [-0.5, 1.5]."""

    @classmethod
    def of(cls, pixels: Tensor) -> "Look":
        """Measure `[n, C, H, W]` images."""
        mean, centred = pixels.mean(), pixels - pixels.mean((2, 3), keepdim=True)
        left, right = centred[..., :-1], centred[..., 1:]
        likeness = (left * right).sum() / (left.norm() * right.norm()).clamp_min(1e-12)
        distance = (pixels - 0.5).abs()
        outside, far = ((distance > limit).float().mean() for limit in (0.5 + 1e-3, 1.0))
        contrast = (pixels - pixels.mean((1, 2, 3), keepdim=True)).square().mean().sqrt()
        return cls(*map(float, (mean, contrast, likeness, outside, far)))

    def like(self, real: "Look") -> bool:
        """Return whether these images look like real ones."""
        return (
            LEAST_CONTRAST * real.contrast <= self.contrast <= MOST_CONTRAST * real.contrast
            and self.likeness >= LIKENESS * real.likeness
            and abs(self.mean - real.mean) <= MEAN
            and self.far <= real.far + BEYOND
        )


def space_doubts(stored: Tensor, fitted: Tensor, taken: str, preprocessor: Preprocessor, real: Tensor) -> list[str]:
    """Return at most one reason to doubt the space that a set was taken to be in.

    Args:
        stored: images as the file has them, `[n, C, H, W]`.
        fitted: the same in the space of training.
        taken: `pixels`, `normalised` or `whitened`.
        preprocessor: map to the space of training.
        real: `[m, C, H, W]` uint8, real images.
    """
    stored = stored.float() / 255 if stored.dtype == torch.uint8 else stored
    low, high, half = float(stored.min()), float(stored.max()), [0.5] * len(preprocessor.mean)
    if taken != "pixels" and low >= 0 and high <= 1:
        return ["the images lie in [0, 1] as pixels do; set `space: pixels` if they are pixels"]
    if taken != "pixels" and -1 <= low < -NEAR_ONE and NEAR_ONE < high <= 1 and float(fitted.abs().max()) <= 1:
        advice = f"set `space: normalised, mean: {half}, std: {half}` if they are pixels on that scale"
        return [f"the images lie in [-1, 1]; {advice}"]
    plain = real_look = Look.of(real.float() / 255)
    if preprocessor.whitening and preprocessor.whitening.per_image:  # then the way back is not exact, for real ones too
        real_look = Look.of(preprocessor.to_pixels(preprocessor.apply(real), clip=False))
    look = Look.of(preprocessor.to_pixels(fitted, clip=False))
    if not look.like(real_look) and taken != "pixels":
        for space, (pixels, advice) in _alternatives(stored, preprocessor).items():
            other = real_look if space == "whitened" else plain
            if space != taken and Look.of(pixels).like(other):
                return [
                    f"taken as {taken} the images do not look like real ones (contrast {look.contrast:.2g}, real "
                    f"{real_look.contrast:.2g}), as {space} they do; set {advice} if they are"
                ]
    check = "check `space`, and `zca` of the dataset"
    if taken == "whitened" and look.outside > OUTSIDE:
        share = f"{look.outside:.0%} of the values lie outside [0, 1] on the way back to pixels"
        return [f"{share}, as those of images that are not whitened do; {check}"]
    if taken == "normalised" and look.far > real_look.far + FAR:
        share = f"{look.far:.0%} of the values lie beyond -0.5 or 1.5 on the way back to pixels"
        return [f"{share}, of real ones {real_look.far:.0%}; {check}"]
    if look.contrast < FAINT * real_look.contrast:
        contrasts = f"{look.contrast:.2g} on the scale of pixels, that of real ones {real_look.contrast:.2g}"
        return [f"the images' contrast is {contrasts}; {check}"]
    if taken == "normalised" and 1 - look.likeness > ROUGH * (1 - real_look.likeness):
        return [
            f"neighbouring pixels correlate by {look.likeness:.2f}, those of real ones by "
            f"{real_look.likeness:.2f}, as in whitened images or noise; {check}"
        ]
    spread = float(real.float().std()) / 255
    if taken != "whitened" and abs(look.mean - real_look.mean) > spread:
        return [
            f"the images' mean is {look.mean:.2f} on the scale of pixels, more than a standard deviation "
            f"({spread:.2f}) from that of real ones, {real_look.mean:.2f}; {check}"
        ]
    return []


def _alternatives(stored: Tensor, preprocessor: Preprocessor) -> Mapping[str, tuple[Tensor, str]]:
    """Return the stored images on the [0, 1] scale by the space that they may be in, each with the options to set."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessor.mean, preprocessor.std))
    own = f"mean: {_numbers(preprocessor.mean)}, std: {_numbers(preprocessor.std)}"
    others = {
        "pixels": (stored, "`space: pixels`"),
        "normalised": (stored * std + mean, f"`space: normalised, {own}`"),
    }
    if preprocessor.whitening is None:
        return others
    return {**others, "whitened": (preprocessor.to_pixels(stored, clip=False), "`space: whitened`")}


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.4g}' for value in values)}]"


def label_doubts(labels: Tensor, ipc: int, names: Sequence[str]) -> list[str]:
    """Return a reason to doubt the labels if classes have different numbers of images, or none.

    `labels` are `[n]` int64 or `[n, K]` logits; of the latter, a class needs an image that has it with more than 1 / K.
    `names` are those of the classes.
    """
    classes = len(names)
    if labels.ndim == 2:
        counts = (labels.softmax(1) > 1 / classes).sum(0).tolist()
        what, wrong = (
            f"no image has them with more than 1 / {classes}",
            [n for n, count in enumerate(counts) if not count],
        )
    else:
        counts = labels.bincount(minlength=classes).tolist()
        what = f"{counts.count(0)} have no label, the others not {ipc} each"
        wrong = [label for label, count in enumerate(counts) if count != ipc]
    if not wrong:
        return []
    texts = [f"{names[label]!r} {counts[label]}" for label in wrong]
    return [f"{len(wrong)} of {classes} classes: {what} ({some(texts)}); check the labels"]


def number_doubts(classes: Tensor, names: Sequence[str]) -> list[str]:
    """Return a reason to doubt labels that came as numbers, if the classes' names are other numbers.

    `classes` are `[n]` int64 in the dataset's order.
    """
    used = {str(label) for label in classes.unique().tolist()}
    moved = [f"label {label} is class {name!r}" for label, name in enumerate(names) if name != str(label)]
    if not moved or not used <= set(names):
        return []
    listed = some(moved, most=SHOWN)
    return [f"the classes are named by other numbers than their labels: {listed}; renumber labels that are names"]


def mapping_doubts(
    images: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor, names: Sequence[str]
) -> list[str]:
    """Return a reason to doubt the labels if another assignment of classes agrees far better with real images.

    The assignment is fitted on every second real image (`scipy.optimize.linear_sum_assignment`) and compared on the
    others, so that a weak classifier gives no other assignment by chance.

    `images` and `real` are in the space of training; `labels` are `[n]` int64 or `[n, K]` logits, `real_labels` `[m]`
    int64.
    """
    count = len(names)
    if labels.ndim == 1 and len(labels.unique()) < count:
        return []
    nearest = _nearest(images, labels, real, count)
    fit, test = (
        torch.bincount(real_labels[part] * count + nearest[part], minlength=count**2).reshape(count, count)
        for part in (slice(0, None, 2), slice(1, None, 2))
    )
    best = torch.from_numpy(linear_sum_assignment(fit.numpy(), maximize=True)[1])
    label = torch.arange(count)
    moved = best != label
    stated, other, tested = (int(part[moved].sum()) for part in (test[label, label], test[label, best], test.sum(1)))
    if not _far_more(other, stated):
        return []
    pairs = [f"{names[to]!r} should be {names[at]!r}" for at, to in enumerate(best.tolist()) if at != to]
    return [
        f"of {tested} real images of the classes concerned, {stated / tested:.0%} agree with the labels, but "
        f"{other / tested:.0%} if {some(pairs, most=SHOWN)}; check the order of the classes"
    ]


def sorting_doubts(images: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor, classes: int) -> list[str]:
    """Return a reason to doubt images sorted by class: classes that alternate agree far better with real images.

    Arguments are as in `mapping_doubts`.
    """
    label = torch.arange(classes)
    by_class, alternating = (spread(len(images) // classes) for spread in (label.repeat_interleave, label.repeat))
    if labels.ndim == 2 or torch.equal(by_class, alternating) or not torch.equal(labels, by_class):
        return []
    stated, other = (
        int((_nearest(images, given, real, classes) == real_labels).sum()) for given in (by_class, alternating)
    )
    if not _far_more(other, stated):
        return []
    shares = f"{stated / len(real):.0%} of real images agree with images sorted by class, but {other / len(real):.0%}"
    return [f"{shares} if their classes alternate (0, 1, 2, …, 0, 1, 2, …); check the labels"]


def _nearest(images: Tensor, labels: Tensor, real: Tensor, classes: int) -> Tensor:
    """Return the class of each real image, `[m]` int64, by the nearest mean image of a class of the set.

    The angle between images without their mean counts. Probabilities of soft labels are weights of the means.
    """
    weights = one_hot(labels, classes).float() if labels.ndim == 1 else labels.softmax(1)
    means, real = (weights / weights.sum(0).clamp_min(1e-12)).T @ images.flatten(1), real.flatten(1)
    return (normalize(real - real.mean(0), dim=1) @ normalize(means - means.mean(0), dim=1).T).argmax(1)


def _far_more(other: int, stated: int) -> bool:
    return other > TWICE * stated and other - stated > SURE * (other + stated) ** 0.5


def copy_doubts(images: Tensor) -> list[str]:
    """Return a reason to doubt a set with the same image twice."""
    if (different := len({image.tobytes() for image in images.cpu().numpy()})) == len(images):
        return []
    return [f"only {different} of {len(images)} images differ; check the file"]
