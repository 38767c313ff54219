"""The forms in which a synthetic set is evaluated: averaged and raw, with hard and with soft labels.

Shapes: n synthetic images of C x H x W, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from satm.config import EvaluateOptions
from satm.networks.training import TrainingImages
from satm.results.distilled import DistilledDataset


@dataclass(frozen=True)
class Form:
    """A synthetic set as networks are trained on it."""

    images: TrainingImages
    options: EvaluateOptions
    """How networks are trained."""
    columns: Mapping[str, str]
    """What rows of results say of the form: `labels`, `average`, `labelled`."""
    text: str = ""
    """The same in words, for progress; may be empty."""


def averages(made: DistilledDataset, options: EvaluateOptions, device: torch.device) -> list[Form]:
    """Return a set as it is; a moving average is followed by the set that was not averaged."""
    return [
        Form(
            TrainingImages(each.images.to(device), each.labels.to(device)),
            options,
            {"labels": kind_of(each.labels), "average": each.average, "labelled": "own"},
            "" if made.average == "raw" else f" on the {each.average} set",
        )
        for each in ([made] if made.raw_images is None else [made, made.unaveraged()])
    ]


def label_variants(
    made: DistilledDataset, taught: Tensor | None, options: EvaluateOptions, device: torch.device
) -> list[Form]:
    """Return a set with hard and with soft labels, each with and without augmentation.

    Hard labels are the class of each image; of learned soft labels it is the largest.

    Args:
        made: the set.
        taught: `[n, K]` soft labels that a teacher gives its images; None where the set has soft labels itself.
        options: how networks are trained, except for the augmentation.
        device: of the images.
    """
    images = made.images.to(device)
    kinds = {"class": made.classes} | ({"own": made.labels} if taught is None else {"teacher": taught})
    return [
        Form(
            TrainingImages(images, labels.to(device)),
            options.model_copy(update={"augment": augment}),
            {"labels": "hard" if kind == "class" else "soft", "average": made.average, "labelled": kind},
            f" with {kind} labels{'' if augment else ', not augmented'}",
        )
        for kind, labels in kinds.items()
        for augment in (True, False)
    ]


def kind_of(labels: Tensor) -> str:
    """Return `soft` for logits, `hard` for classes."""
    return "soft" if labels.is_floating_point() else "hard"
