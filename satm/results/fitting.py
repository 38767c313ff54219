"""Making a synthetic set of other code fit a dataset: its images, labels, step size and space, or a clear refusal.

Shapes: n images of C x H x W; K classes.
Spaces: raw uint8 in 0..255; [0, 1]; normalised, `(x - mean) / std` per channel; whitened; training, the one of the last
two that a dataset's `Preprocessor` leads to.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from satm.data.images import ImageData, Preprocessor
from satm.errors import UsageError
from satm.results.external import ExternalSet

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
"""Types of labels that are classes."""

FAR = 5.0
"""Factor between the standard deviations of synthetic and of real images from which on the space is in doubt."""

SLACK = 1e-3
"""How far pixels may lie outside [0, 1], and the sum of probabilities from 1: rounding of 16-bit numbers, and more."""

LEAST = 1e-30
"""Probability that smaller ones are raised to before the logarithm."""

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
"""Per channel, [0, 1] scale. Source: public code of MTT (`utils.py`), for CIFAR-10 and CIFAR-100 alike."""


def fit_images(found: ExternalSet, data: ImageData, ipc: int) -> Tensor:
    """Return `[n, C, H, W]` uint8 or float32 images, still in their own space, that fit a dataset.

    Grey pictures get three equal channels where the dataset has three.

    Raises:
        UsageError: another type, number, shape or size of images than the dataset needs at so many images per class, or
            values that are not finite.
    """
    images, classes = found.images.detach(), data.classes
    if not (images.dtype == torch.uint8 or images.is_floating_point()) or images.ndim != 4:
        raise UsageError(
            f"{found.where} holds images {images.dtype} {tuple(images.shape)}, expected uint8 or floating point "
            "[n, C, H, W]; convert them"
        )
    if not len(images) or len(images) != ipc * classes:
        each, rest = divmod(len(images), classes)
        advice = f"use --ipc {each}" if each and not rest else "no --ipc fits them"
        raise UsageError(
            f"{found.where} holds {len(images)} images, expected {ipc * classes}: {ipc} for each of the {classes} "
            f"classes of {data.name}; {advice}"
        )
    if found.layout in ("parquet", "folder") and (images.shape[1], data.channels) == (1, 3):
        images = images.expand(-1, 3, -1, -1)
    wanted = (data.channels, data.size, data.size)
    if images.shape[1:] != wanted:
        raise UsageError(
            f"the images of {found.where} are {_times(images.shape[1:])} (channels, height, width), those of "
            f"{data.name} {_times(wanted)}; use the dataset they were made for"
        )
    images = images if images.dtype == torch.uint8 else images.float()
    _check_finite(images, f"the images of {found.where}")
    return images


def name_labels(labels: Tensor, names: Sequence[str], class_names: Sequence[str], where: str) -> tuple[Tensor, str]:
    """Return `[n]` int64 labels as the dataset counts its classes, and in words how they were found.

    Args:
        labels: `[n]` int64.
        names: what they mean, by label.
        class_names: of the dataset, by label.
        where: path of the labels, for messages.

    Raises:
        UsageError: a label without a name, or some of the names are classes of the dataset and others are not.
    """
    low, high = int(labels.min()), int(labels.max())
    if not 0 <= low <= high < len(names):
        raise UsageError(f"{where} names {len(names)} classes and has labels from {low} to {high}; correct it")
    used = {label: names[label] for label in labels.unique().tolist()}
    known = {name: label for label, name in enumerate(class_names)}
    strange = [name for name in used.values() if name not in known]
    if not strange:
        meant, how = {label: known[name] for label, name in used.items()}, "by the names of the classes"
    elif all(name.isdecimal() for name in used.values()):
        meant, how = {label: int(name) for label, name in used.items()}, "by the classes' names, which are numbers"
    elif len(strange) < len(used):
        raise UsageError(
            f"{where} has a class {strange[0]!r}, the dataset has {', '.join(class_names)}; rename it, or name "
            "the classes 0, 1, 2…"
        )
    else:
        meant = {label: label for label in used}
        how = "in the order of the classes, none of whose names the dataset has"
    return torch.tensor([meant[label] for label in labels.tolist()], dtype=torch.int64), how


def fit_labels(labels: Tensor | None, kind: str, ipc: int, classes: int, where: str) -> tuple[Tensor, str]:
    """Return `[n]` int64 classes or `[n, K]` float32 logits, and in words what was decided.

    Probabilities become their logarithms, so that their softmax gives them back.

    Args:
        labels: as found; None: the images are sorted by class.
        kind: what soft labels are; `auto`: probabilities if none is negative and each row sums to 1, else logits.
        ipc: images per class.
        classes: K.
        where: path of the labels, for messages.

    Raises:
        UsageError: another type or shape, a class that is not there, values that are not finite, or that are no
            probabilities and are said to be some.
    """
    count = ipc * classes
    if labels is None:
        return torch.arange(classes).repeat_interleave(ipc), (
            "there are none: the images are taken to be sorted by class, as the MTT family's code saves them"
        )
    labels = labels.detach()
    hard = labels.dtype in INTEGERS and labels.shape == (count,)
    if not hard and not (labels.is_floating_point() and labels.shape == (count, classes)):
        raise UsageError(
            f"{where} holds labels {labels.dtype} {tuple(labels.shape)}, expected integers [{count}] or floating point "
            f"[{count}, {classes}]; correct them"
        )
    if hard:
        labels = labels.to(torch.int64)
        low, high = int(labels.min()), int(labels.max())
        if not 0 <= low <= high < classes:
            raise UsageError(f"{where} has labels from {low} to {high}, expected 0 to {classes - 1}; renumber them")
        return labels, "the classes' numbers"
    soft = labels.float()
    _check_finite(soft, f"the labels of {where}")
    least, furthest = float(soft.min()), float((soft.sum(1) - 1).abs().max())
    probable = least >= 0 and furthest <= SLACK
    if kind == "probabilities" and not probable:
        raise UsageError(
            f"{where} is said to hold probabilities, the least is {least:g} and the sum of a row is off by up to "
            f"{furthest:g}; set label_kind to logits"
        )
    because = "no value is negative and each row sums to 1" if probable else "they are no probabilities"
    decided = f", decided (label_kind auto) because {because}" if kind == "auto" else ""
    if kind == "probabilities" or (kind == "auto" and probable):
        return soft.clamp_min(LEAST).log(), f"probabilities, stored as their logarithms{decided}"
    return soft, f"logits{decided}"


def fit_step_size(step_size: Tensor, where: str) -> Tensor:
    """Return `[]` float32, a positive number.

    Raises:
        UsageError: it is none.
    """
    numbers = step_size.detach().float().reshape(-1)
    if len(numbers) != 1 or not 0 < float(numbers) < torch.inf:
        shown = f"{float(numbers):g}" if len(numbers) == 1 else f"{len(numbers)} numbers"
        raise UsageError(f"the step size in {where} is {shown}, expected one positive number; give another file")
    return numbers.reshape(())


def fit_statistics(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, data: ImageData
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std per channel that normalised images were made with, [0, 1] scale.

    Without both they are, with three channels, those of MTT's public code for CIFAR, else the dataset's own.

    Raises:
        UsageError: not one number per channel, or a std that is not positive.
    """
    if mean is None and std is None:
        return (CIFAR_MEAN, CIFAR_STD) if data.channels == 3 else (data.mean, data.std)
    if not len(mean or ()) == len(std or ()) == data.channels or not min(std or ()) > 0:
        raise UsageError(
            f"mean {mean} and std {std} must have a number for each of {data.channels} channels, those of std above 0; "
            "give both"
        )
    return mean or (), std or ()


def describe(preprocessor: Preprocessor) -> str:
    """Return in words what the space of training is."""
    whitening = preprocessor.whitening
    if whitening is None:
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (preprocessor.mean, preprocessor.std))
        return f"normalised by the dataset's mean ({mean}) and std ({std}) per channel"
    variant = " times the mean eigenvalue" if whitening.relative else ""
    variant += ", each image brought to mean 0 and norm 1 before" if whitening.per_image else ""
    if not variant and whitening.eps == 0.1:
        variant = ", as the MTT family's code does with its --zca flag"
    return f"ZCA-whitened, fitted on the training images with eps {whitening.eps:g}{variant}"


def fit_space(
    images: Tensor,
    found: ExternalSet,
    space: str,
    preprocessor: Preprocessor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tuple[Tensor, str]:
    """Return `[n, C, H, W]` float32 images in the space of training, and in words what they were taken for.

    Args:
        images: of `fit_images`.
        found: where they are from.
        space: what they are in; `auto`: pictures and uint8 are pixels, all else is in the space of training.
        preprocessor: of the dataset.
        mean: per channel, [0, 1] scale, that normalised images were made with.
        std: per channel, [0, 1] scale, that normalised images were made with.

    Raises:
        UsageError: a space that the images cannot be in, or pixels outside [0, 1].
    """
    here, decided = describe(preprocessor), "" if space != "auto" else ", decided (space auto)"
    if found.made is not None:
        if space not in ("auto", "trained", preprocessor.identity["space"]):
            raise UsageError(
                f"{found.where} says itself that its images are {here}, space is {space!r}; leave space out"
            )
        return images, f"in the space of training, as the file states: {here}"
    if images.dtype == torch.uint8:
        if space not in ("auto", "pixels"):
            what = "uint8 tensors" if found.layout == "tensors" else "pictures"
            raise UsageError(f"{found.where} holds {what}, which are pixels, space is {space!r}; leave space out")
        return preprocessor.apply(images), f"pixels 0 to 255{decided}, prepared as real ones: {here}"
    if space == "whitened" and preprocessor.whitening is None:
        raise UsageError(
            "space 'whitened' needs a dataset that is whitened, its zca is false; set zca, or another space"
        )
    if space == "pixels":
        low, high = float(images.min()), float(images.max())
        if low < -SLACK or high > 1 + SLACK:
            raise UsageError(
                f"{found.where} has values from {low:g} to {high:g}, space 'pixels' means 0 to 1; save 0 to 255 as "
                "uint8, or set another space"
            )
        return preprocessor.apply(images), f"pixels in [0, 1], prepared as real ones: {here}"
    if space == "normalised":
        shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
        told = f"normalised by mean {mean} and std {std}, brought back to pixels and prepared as real ones: {here}"
        return preprocessor.apply(images * scale + shift), told
    return images, f"taken to be in the space of training{decided}: {here}"


def doubts(images: Tensor, labels: Tensor, ipc: int, real: Tensor) -> list[str]:
    """Return in words what makes it unlikely that images are what they were taken for.

    Args:
        images: `[n, C, H, W]` in the space of training.
        labels: `[n]` int64, or `[n, K]` float32 logits.
        ipc: images per class.
        real: `[m, C, H, W]` real images in that space.
    """
    found = []
    ours, theirs = float(images.std()), float(real.std())
    if not theirs / FAR <= ours <= theirs * FAR:
        found.append(f"their standard deviation is {ours:.3g}, that of real ones {theirs:.3g}; check `space`")
    if float(images.min()) >= 0 and float(images.max()) <= 1 and float(real.min()) < 0:
        found.append("they lie in [0, 1] as pixels do, and real ones do not; set `space: pixels` if they are pixels")
    elif abs(float(images.mean() - real.mean())) > theirs:
        found.append(
            f"their mean of {float(images.mean()):.3g} lies more than a standard deviation ({theirs:.3g}) from that of "
            f"real ones, {float(real.mean()):.3g}; check `space`"
        )
    if labels.ndim == 1 and int(most := labels.bincount().max()) > ipc:
        found.append(f"a class has {int(most)} of them, not {ipc} as asked for; check the labels")
    return found


def _check_finite(values: Tensor, what: str) -> None:
    if bad := int((~torch.isfinite(values)).sum()):
        raise UsageError(f"{what} hold {bad} values that are NaN or infinite; use a set of an earlier iteration")


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
