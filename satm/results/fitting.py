"""Adaptation of an external synthetic set to a dataset: its images, labels, step size and space.

Shapes: n images of C x H x W; K classes.
Spaces: raw uint8 in 0..255; [0, 1]; normalised, `(x - mean) / std` per channel; whitened; the space of training, which
is normalised or whitened, by the dataset's `Preprocessor`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from satm.data.images import ImageData, Preprocessor
from satm.errors import UsageError
from satm.results.external import ExternalSet

PerChannel = tuple[float, ...]
"""One number per channel."""

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
"""Types of hard labels."""

FAR = 5.0
"""Ratio of the standard deviations of synthetic and real images, either way, above which the space is in doubt."""

SLACK = 1e-3
"""Tolerance for pixels outside [0, 1] and for sums of probabilities other than 1; covers rounding to 16 bits."""

LEAST = 1e-30
"""Lower bound of probabilities before the logarithm."""

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
"""Per channel, [0, 1] scale. Source: public code of MTT (`utils.py`), for CIFAR-10 and CIFAR-100 alike."""


def fit_images(external: ExternalSet, data: ImageData, ipc: int) -> Tensor:
    """Return `[n, C, H, W]` uint8 or float32 images, still in their original space.

    Grey pictures get three equal channels if the dataset has three.

    Raises:
        UsageError: type, number or shape of the images do not fit the dataset and `ipc`, or values are not finite.
    """
    images, classes, where = external.images.detach(), data.classes, external.where
    if not (images.dtype == torch.uint8 or images.is_floating_point()) or images.ndim != 4:
        raise UsageError(
            f"{where} holds images {images.dtype} {tuple(images.shape)}, expected uint8 or floating point "
            "[n, C, H, W]; convert them"
        )
    each, rest = divmod(len(images), classes)
    if not each or rest or each != ipc:
        advice = f"use --ipc {each}" if each and not rest else "no --ipc fits them"
        raise UsageError(
            f"{where} holds {len(images)} images, expected {ipc * classes}: {ipc} for each of the {classes} "
            f"classes of {data.name}; {advice}"
        )
    if external.layout in ("parquet", "folder") and (images.shape[1], data.channels) == (1, 3):
        images = images.expand(-1, 3, -1, -1)
    expected = (data.channels, data.size, data.size)
    if images.shape[1:] != expected:
        shape, other = (" x ".join(map(str, sizes)) for sizes in (images.shape[1:], expected))
        raise UsageError(
            f"the images of {where} are {shape} (channels, height, width), those of {data.name} {other}; use the "
            "dataset they were made for"
        )
    images = images if images.dtype == torch.uint8 else images.float()
    _check_finite(images, f"the images of {where}")
    return images


def name_labels(labels: Tensor, names: Sequence[str], class_names: Sequence[str], where: str) -> tuple[Tensor, str]:
    """Return `[n]` int64 labels numbered as in the dataset, and a description of the matching.

    `names` are those of the set's labels, `[n]` int64, `class_names` those of the dataset; `where` is the labels' path.

    Raises:
        UsageError: a label has no name, or only some of the names are classes of the dataset.
    """
    low, high = int(labels.min()), int(labels.max())
    if not 0 <= low <= high < len(names):
        raise UsageError(f"{where} names {len(names)} classes and has labels from {low} to {high}; correct it")
    used = {label: names[label] for label in labels.unique().tolist()}
    known = {name: label for label, name in enumerate(class_names)}
    unknown = [name for name in used.values() if name not in known]
    if not unknown:
        target, how = {label: known[name] for label, name in used.items()}, "by the names of the classes"
    elif all(name.isdecimal() for name in used.values()):
        target, how = {label: int(name) for label, name in used.items()}, "by the classes' names, which are numbers"
    elif len(unknown) < len(used):
        raise UsageError(
            f"{where} has a class {unknown[0]!r}, the dataset has {', '.join(class_names)}; rename it, or name the "
            "classes 0, 1, 2…"
        )
    else:
        target, how = {label: label for label in used}, "in the order of the classes, as the dataset has other names"
    return torch.tensor([target[label] for label in labels.tolist()], dtype=torch.int64), how


def fit_labels(labels: Tensor | None, kind: str, ipc: int, classes: int, where: str) -> tuple[Tensor, str]:
    """Return `[n]` int64 classes or `[n, K]` float32 logits, and a description of their interpretation.

    Probabilities become their logarithms, whose softmax they are. Without labels, images are assumed to be sorted by
    class. `kind` `auto`: soft labels are probabilities if none is negative and each row sums to 1, else logits.

    Raises:
        UsageError: a wrong type or shape, unknown class, value that is not finite, or wrong sum of probabilities.
    """
    count = ipc * classes
    if labels is None:
        sorted_by_class = "the images are taken to be sorted by class, as the MTT family's code saves them"
        return torch.arange(classes).repeat_interleave(ipc), f"there are none: {sorted_by_class}"
    labels = labels.detach()
    if labels.dtype in INTEGERS and labels.shape == (count,):
        labels = labels.to(torch.int64)
        low, high = int(labels.min()), int(labels.max())
        if not 0 <= low <= high < classes:
            raise UsageError(f"{where} has labels from {low} to {high}, expected 0 to {classes - 1}; renumber them")
        return labels, "the classes' numbers"
    if not labels.is_floating_point() or labels.shape != (count, classes):
        raise UsageError(
            f"{where} holds labels {labels.dtype} {tuple(labels.shape)}, expected integers [{count}] or floating point "
            f"[{count}, {classes}]; correct them"
        )
    soft = labels.float()
    _check_finite(soft, f"the labels of {where}")
    least, furthest = float(soft.min()), float((soft.sum(1) - 1).abs().max())
    probable = least >= 0 and furthest <= SLACK
    if kind == "probabilities" and not probable:
        raise UsageError(
            f"{where} does not hold probabilities: the least value is {least:g}, and the sum of a row differs from 1 "
            f"by up to {furthest:g}; set label_kind to logits"
        )
    because = "no value is negative and each row sums to 1" if probable else "they are no probabilities"
    reason = f", decided (label_kind auto) because {because}" if kind == "auto" else ""
    if kind == "probabilities" or (kind == "auto" and probable):
        return soft.clamp_min(LEAST).log(), f"probabilities, stored as their logarithms{reason}"
    return soft, f"logits{reason}"


def fit_step_size(step_size: Tensor, where: str) -> Tensor:
    """Return a positive step size, `[]` float32.

    Raises:
        UsageError: it is not one positive number.
    """
    numbers = step_size.detach().float().reshape(-1)
    if len(numbers) != 1 or not 0 < float(numbers) < torch.inf:
        shown = f"{float(numbers):g}" if len(numbers) == 1 else f"{len(numbers)} numbers"
        raise UsageError(f"the step size in {where} is {shown}, expected one positive number; give another file")
    return numbers.reshape(())


def fit_statistics(mean: PerChannel | None, std: PerChannel | None, data: ImageData) -> tuple[PerChannel, PerChannel]:
    """Return mean and std of normalised images, [0, 1] scale.

    The defaults are those of MTT's public code (CIFAR) for three channels, else those of the dataset.

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


def _describe(preprocessor: Preprocessor) -> str:
    """Describe the space of training."""
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
    images: Tensor, external: ExternalSet, space: str, preprocessor: Preprocessor, mean: PerChannel, std: PerChannel
) -> tuple[Tensor, str]:
    """Return `[n, C, H, W]` float32 images in the space of training, and a description of their interpretation.

    `images` are those of `fit_images`, `mean` and `std` those of `fit_statistics`. `space` `auto`: pixels for pictures
    and uint8, else the space of training.

    Raises:
        UsageError: the images cannot be in that space.
    """
    training, where = _describe(preprocessor), external.where
    decided = ", decided (space auto)" if space == "auto" else ""
    if external.distilled is not None:
        if space not in ("auto", "trained", preprocessor.identity["space"]):
            raise UsageError(f"{where} states that its images are {training}, space is {space!r}; leave space out")
        return images, f"in the space of training, as the file states: {training}"
    if images.dtype == torch.uint8:
        if space not in ("auto", "pixels"):
            what = "uint8 tensors" if external.layout == "tensors" else "pictures"
            raise UsageError(f"{where} holds {what}, which are pixels, space is {space!r}; leave space out")
        return preprocessor.apply(images), f"pixels 0 to 255{decided}, prepared as real ones: {training}"
    if space == "whitened" and preprocessor.whitening is None:
        raise UsageError("space 'whitened' needs a whitened dataset, its zca is false; set zca, or another space")
    if space == "pixels":
        low, high = float(images.min()), float(images.max())
        if low < -SLACK or high > 1 + SLACK:
            raise UsageError(
                f"{where} has values from {low:g} to {high:g}, space 'pixels' means 0 to 1; save 0 to 255 as uint8, or "
                "set another space"
            )
        return preprocessor.apply(images), f"pixels in [0, 1], prepared as real ones: {training}"
    if space == "normalised":
        shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
        how = f"normalised by mean {mean} and std {std}, brought back to pixels and prepared as real ones: {training}"
        return preprocessor.apply(images * scale + shift), how
    return images, f"taken to be in the space of training{decided}: {training}"


def doubts(images: Tensor, labels: Tensor, ipc: int, real: Tensor) -> list[str]:
    """Return reasons to doubt the interpretation of images and labels.

    `images` and `real`, `[n, C, H, W]` and `[m, C, H, W]`, are in the space of training; `labels` come from
    `fit_labels`.
    """
    reasons = []
    mean, real_mean, std, real_std = (float(value) for value in (images.mean(), real.mean(), images.std(), real.std()))
    if not real_std / FAR <= std <= real_std * FAR:
        reasons.append(f"their standard deviation is {std:.3g}, that of real ones {real_std:.3g}; check `space`")
    if float(images.min()) >= 0 and float(images.max()) <= 1 and float(real.min()) < 0:
        reasons.append("they lie in [0, 1] as pixels do, and real ones do not; set `space: pixels` if they are pixels")
    elif abs(float(images.mean() - real.mean())) > real_std:
        reasons.append(
            f"their mean of {mean:.3g} lies more than a standard deviation ({real_std:.3g}) from that of real ones, "
            f"{real_mean:.3g}; check `space`"
        )
    if labels.ndim == 1 and (most := int(labels.bincount().max())) > ipc:
        reasons.append(f"a class has {most} of them, expected {ipc}; check the labels")
    return reasons


def _check_finite(values: Tensor, what: str) -> None:
    if bad := int((~torch.isfinite(values)).sum()):
        raise UsageError(f"{what} hold {bad} values that are NaN or infinite; use a set of an earlier iteration")
