"""Adaptation of an external synthetic set to a dataset: its images, labels, step size and space.

Shapes: n images of C x H x W; K classes.
Spaces: raw uint8 in 0..255; [0, 1]; normalised, `(x - mean) / std` per channel; whitened; the space of training, which
is normalised or whitened, by the dataset's `Preprocessor`.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from satm.data.images import ImageData, Preprocessor
from satm.errors import UsageError, some
from satm.results.doubts import SHOWN
from satm.results.external import ExternalSet

PerChannel = tuple[float, ...]
"""One number per channel."""

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
"""Types of hard labels."""

BRIGHT = 20.0
"""Largest value of images without negative ones that may be normalised or whitened: those are around zero."""

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
        last = images.shape[3] in (1, 3) and images.shape[1:3] == expected[1:]
        advice = "permute them: the channels are last, expected first" if last else "use the dataset they were made for"
        raise UsageError(
            f"the images of {where} are {shape} (channels, height, width), those of {data.name} {other}; {advice}"
        )
    images = images if images.dtype == torch.uint8 else images.float()
    _check_finite(images, f"the images of {where}")
    return images


def name_labels(
    labels: Tensor, names: Sequence[str], class_names: Sequence[str], where: str
) -> tuple[Tensor, str, list[str]]:
    """Return labels numbered as in the dataset, a description of the matching, and doubts about it.

    `names` are those of the set's labels, `class_names` those of the dataset; `where` is the labels' path. Labels are
    `[n]` integers, or `[n, K]` soft ones, whose columns are sorted.

    Raises:
        UsageError: a label has no name, or only some of the names are classes of the dataset.
    """
    if labels.is_floating_point() or labels.ndim != 1:
        return _name_columns(labels, names, class_names, where)
    low, high = int(labels.min()), int(labels.max())
    if not 0 <= low <= high < len(names):
        raise UsageError(f"{where} names {len(names)} classes and has labels from {low} to {high}; correct it")
    target, how, doubts = _match_names({label: names[label] for label in labels.unique().tolist()}, class_names, where)
    return torch.tensor([target[label] for label in labels.tolist()], dtype=torch.int64), how, doubts


def _name_columns(
    labels: Tensor, names: Sequence[str], class_names: Sequence[str], where: str
) -> tuple[Tensor, str, list[str]]:
    """Return soft labels with their columns in the dataset's order."""
    target, how, doubts = _match_names(dict(enumerate(names)), class_names, where)
    if labels.ndim != 2 or labels.shape[1] != len(names) or sorted(target.values()) != list(range(len(class_names))):
        raise UsageError(
            f"{where} names {len(names)} classes and has labels {tuple(labels.shape)}, the dataset has "
            f"{len(class_names)} classes; correct it"
        )
    return labels[:, sorted(target, key=lambda label: target[label])], how, doubts


def _match_names(
    used: Mapping[int, str], class_names: Sequence[str], where: str
) -> tuple[dict[int, int], str, list[str]]:
    """Return the dataset's label of each of the set's, a description, and doubts."""
    by_name = "by the names of the classes"
    keys: list[tuple[Callable[[str], str | int], str]] = [
        (str, by_name),
        (lambda name: " ".join(re.split(r"[\W_]+", name.casefold())), f"{by_name}, apart from capitals and signs"),
    ]
    numbers = all(name.isdecimal() for name in used.values())
    if numbers and all(name.isdecimal() for name in class_names):
        keys.append((int, "by the numbers that the classes are named by"))
    known: set[int] = set()
    for key, how in keys:
        table = {key(name): label for label, name in enumerate(class_names)}
        target = {label: table[key(name)] for label, name in used.items() if key(name) in table}
        if len(target) == len(used) == len(set(target.values())):
            return target, how, []
        known |= set(target)
    if known:
        strange = next(name for label, name in used.items() if label not in known)
        raise UsageError(
            f"{where} has a class {strange!r}, the dataset has {', '.join(class_names)}; rename it, or name the "
            "classes 0, 1, 2…"
        )
    if numbers:
        return {label: int(name) for label, name in used.items()}, "by the classes' names, which are numbers", []
    pairs = [f"{name!r} = {class_names[label]!r}" for label, name in used.items() if label < len(class_names)]
    how = "in the order of the classes, as the dataset has other names"
    doubt = f"its classes are taken {how}: {some(pairs, most=SHOWN)}; check the order"
    return {label: label for label in used}, how, [doubt]


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
        if low == high and classes > 1:
            raise UsageError(
                f"{where} has the label {low} {count} times and no other, expected {classes} classes; correct it"
            )
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
    if classes > 1 and bool((soft == soft[0]).all()):
        raise UsageError(f"{where} has the same soft label for all {count} images, so they teach nothing; correct it")
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
        UsageError: not one number per channel, a std that is not positive, or numbers of another scale.
    """
    if mean is None and std is None:
        return (CIFAR_MEAN, CIFAR_STD) if data.channels == 3 else (data.mean, data.std)
    if not len(mean or ()) == len(std or ()) == data.channels or not min(std or ()) > 0:
        raise UsageError(
            f"mean {mean} and std {std} must have a number for each of {data.channels} channels, those of std above 0; "
            "give both"
        )
    if not (0 <= min(mean or ()) <= max(mean or ()) <= 1 and max(std or ()) <= 1):
        raise UsageError(
            f"mean {mean} and std {std} must be those of images in [0, 1]; divide those of 0 to 255 by 255"
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
) -> tuple[Tensor, str, str]:
    """Return `[n, C, H, W]` float32 images in the space of training, their space, and a description of both.

    Their space is the file's: `pixels`, `normalised` or `whitened`.

    `images` are those of `fit_images`, `mean` and `std` those of `fit_statistics`. `space` `auto`: pixels for pictures
    and uint8, else the space of training.

    Raises:
        UsageError: the images cannot be in that space.
    """
    training, where, trained = _describe(preprocessor), external.where, str(preprocessor.identity["space"])
    decided = ", decided (space auto)" if space == "auto" else ""
    if external.distilled is not None:
        if space not in ("auto", "trained", trained):
            raise UsageError(f"{where} states that its images are {training}, space is {space!r}; leave space out")
        return images, trained, f"in the space of training, as the file states: {training}"
    if images.dtype == torch.uint8:
        if space not in ("auto", "pixels"):
            what = "uint8 tensors" if external.layout == "tensors" else "pictures"
            raise UsageError(f"{where} holds {what}, which are pixels, space is {space!r}; leave space out")
        return preprocessor.apply(images), "pixels", f"pixels 0 to 255{decided}, prepared as real ones: {training}"
    if space == "whitened" and preprocessor.whitening is None:
        raise UsageError("space 'whitened' needs a whitened dataset, its zca is false; set zca, or another space")
    low, high = float(images.min()), float(images.max())
    if space == "pixels":
        if low < -SLACK or high > 1 + SLACK:
            raise UsageError(
                f"{where} has values from {low:g} to {high:g}, space 'pixels' means 0 to 1; save 0 to 255 as uint8, or "
                "set another space"
            )
        return preprocessor.apply(images), "pixels", f"pixels in [0, 1], prepared as real ones: {training}"
    if low >= 0 and high > BRIGHT:
        raise UsageError(
            f"{where} has values from {low:g} to {high:g}, space {space!r} means values around 0; save 0 to 255 as "
            "uint8"
        )
    if space == "normalised":
        shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
        how = f"normalised by mean {mean} and std {std}, brought back to pixels and prepared as real ones: {training}"
        return preprocessor.apply(images * scale + shift), "normalised", how
    return images, trained, f"taken to be in the space of training{decided}: {training}"


def _check_finite(values: Tensor, what: str) -> None:
    if bad := int((~torch.isfinite(values)).sum()):
        raise UsageError(f"{what} hold {bad} values that are NaN or infinite; use a set of an earlier iteration")
