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
    """A synthetic set in one form, and the options of training on it."""

    images: TrainingImages
    options: EvaluateOptions
    columns: Mapping[str, str]  # `labels`, `average` and `labelled` in rows of results
    text: str = ""  # description of the form, for progress; may be empty


def averages(synthetic: DistilledDataset, options: EvaluateOptions, device: torch.device) -> list[Form]:
    """Return the set, and for a moving average also the raw set."""
    return [
        Form(
            TrainingImages(each.images.to(device), each.labels.to(device)),
            options,
            {"labels": kind_of(each.labels), "average": each.average, "labelled": "own"},
            "" if synthetic.average == "raw" else f" on the {each.average} set",
        )
        for each in ([synthetic] if synthetic.raw_images is None else [synthetic, synthetic.unaveraged()])
    ]


def label_variants(
    synthetic: DistilledDataset, teacher: Tensor | None, options: EvaluateOptions, device: torch.device
) -> list[Form]:
    """Return a set with hard and with soft labels, each with and without augmentation.

    Hard labels are the class of each image, for learned soft labels the most probable one. Soft labels are a teacher's
    logits, `[n, K]`, or without a teacher the set's own.
    """
    images = synthetic.images.to(device)
    kinds = {"class": synthetic.classes} | ({"own": synthetic.labels} if teacher is None else {"teacher": teacher})
    return [
        Form(
            TrainingImages(images, labels.to(device)),
            options.model_copy(update={"augment": augment}),
            {"labels": "hard" if kind == "class" else "soft", "average": synthetic.average, "labelled": kind},
            f" with {kind} labels{'' if augment else ', not augmented'}",
        )
        for kind, labels in kinds.items()
        for augment in (True, False)
    ]


def kind_of(labels: Tensor) -> str:
    """Return `soft` for logits, `hard` for classes."""
    return "soft" if labels.is_floating_point() else "hard"
