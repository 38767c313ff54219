"""Initial labels of a synthetic set: hard, or logits.

Shapes: n synthetic images of C x H x W, K classes.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from satm.config.methods import IterativeOptions
from satm.errors import UsageError
from satm.experts import TrajectoryStore
from satm.methods.parts.init import expert_outputs
from satm.methods.parts.problem import Problem


def hard(problem: Problem, images: Tensor, classes: Tensor, options: IterativeOptions) -> Tensor:
    """Return `[n]` int64 the class of each image; a teacher, if any, replaces them in each iteration."""
    return classes


def learned(problem: Problem, images: Tensor, classes: Tensor, options: IterativeOptions) -> Tensor:
    """Return `[n, K]` logits: the experts', or without experts those of a given confidence in each image's class."""
    if problem.experts is None:
        return confident(classes, problem.data.classes, options.confidence)
    return expert_labels(problem, problem.experts, images, classes, options.label_experts)


def expert_labels(
    problem: Problem, experts: TrajectoryStore, images: Tensor, labels: Tensor, count: int | None = None
) -> Tensor:
    """Return `[n, K]` logits of `[n, C, H, W]` images with `[n]` classes, by the first `count` experts; None: all.

    Each is the mean over the experts, at their last epoch, that classify the image correctly; over all if none does.

    Source: DATM's public code.
    """
    total = torch.zeros(len(images), problem.data.classes, device=images.device)
    right, agreeing = torch.zeros_like(total), torch.zeros(len(images), 1, device=images.device)
    asked = len(experts) if count is None else count
    for index in range(asked):
        expert = experts.state(problem.expert_module, index, experts.epochs)
        logits = expert_outputs(problem, expert, images)
        correctly = (logits.argmax(1) == labels)[:, None]
        total, right, agreeing = total + logits, right + logits * correctly, agreeing + correctly
    return torch.where(agreeing > 0, right / agreeing.clamp_min(1), total / asked)


def confident(labels: Tensor, classes: int, probability: float) -> Tensor:
    """Return `[n, K]` float32 logits with a given probability of each image's class, the rest shared equally.

    Raises:
        UsageError: there is only one class.
    """
    if classes < 2:
        raise UsageError("soft labels need at least 2 classes, the dataset has 1; use labels hard")
    hot = torch.nn.functional.one_hot(labels, classes).to(torch.float32)
    return hot * float(torch.tensor(probability * (classes - 1) / (1 - probability)).log())


Labels = Callable[[Problem, Tensor, Tensor, IterativeOptions], Tensor]
"""`(problem, images, classes, options) -> labels`."""

LABELS: Mapping[str, Labels] = {"hard": hard, "learned": learned, "teacher": hard}
"""Initial labels by the option `labels`."""
