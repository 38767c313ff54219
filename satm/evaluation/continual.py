"""Class-incremental learning: each step brings new classes, and a new network learns from the whole replay buffer.

Only the buffer goes from one step to the next (GDumb), so a step measures the images, not how a network is updated.

Shapes: n images of C x H x W; K classes of the dataset, S of them seen so far.

Source: GDumb (Prabhu et al. 2020); SATM section 4.2.2; for 5 orders of 3 networks DM's public code (`CL_DM.py`).
Differs: class orders are those of `satm.config.class_order`, not numpy's; networks are trained as in evaluation. They
    have an output for each class seen so far; those of `CL_DM.py` have outputs for all classes from the first step on.
"""

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas
import torch
from torch import Tensor, nn

from satm.evaluation.networks import Axes, Keep, Task, train_and_test
from satm.evaluation.replay import Data, Memory
from satm.networks.training import TrainingImages, outputs
from satm.results.distilled import DistilledDataset


@dataclass(frozen=True)
class StepImages:
    """New synthetic images of one step."""

    data: Data  # labels of the whole dataset
    classes: tuple[int, ...] | None  # of the new images; None: all
    step_size: float  # learned with the images


@dataclass(frozen=True)
class StepResult:
    """One network, tested on the real images of all seen classes; `seconds` and memory as in `Score`."""

    order: int  # number of the class order
    step: int  # from 1
    repeat: int  # number of the network
    right: tuple[int, ...]  # images classified correctly, by class, in the order of learning
    rate: float  # step size of the first epoch
    seconds: float
    peak_memory_bytes: int


def slices(synthetic: DistilledDataset, parts: Sequence[tuple[int, ...]]) -> list[StepImages]:
    """Return the images of each step, cut from a set of all classes."""
    return [StepImages(synthetic, part, float(synthetic.step_size)) for part in parts]


def one_set_a_step(
    sets: Sequence[DistilledDataset], parts: Sequence[tuple[int, ...]], classes: int
) -> list[StepImages]:
    """Return the images of each step from sets distilled on the classes of one step each, of K classes in all."""
    return [
        StepImages((each.images, whole_labels(each.labels, part, classes)), None, float(each.step_size))
        for each, part in zip(sets, parts, strict=True)
    ]


def learn(
    steps: Sequence[StepImages],
    parts: Sequence[tuple[int, ...]],
    real: TrainingImages,
    make_task: Callable[[TrainingImages, float, int, tuple[int, ...]], Task],
    order: int,
    axes: Axes,
    repeats: int,
    done: int = 0,
    kept: Keep | None = None,
) -> Iterator[StepResult]:
    """Learn the classes in one order; yield each tested network, step by step.

    The step size of a step is the mean of those of all sets so far. Classes are numbered in the order of learning.
    Networks, `repeats` at each step, are named by `axes`, order, step and repeat; the first `done`, which an earlier
    process has tested, are skipped. `make_task` gets the buffer's images with labels among the seen classes, their step
    size, the step and the seen classes. Real images have integer labels of the whole dataset.
    """
    device, memory, rates = real.labels.device, Memory(), list[float]()
    for step, (new, seen) in enumerate(zip(steps, itertools.accumulate(parts), strict=True), 1):
        memory.add(new.data, new.classes)
        rates.append(new.step_size)
        left = range(max(0, done - (step - 1) * repeats), repeats)
        if not left:
            continue
        images = TrainingImages(memory.images.to(device), renumbered(memory.labels, seen).to(device))
        task = make_task(images, statistics.mean(rates), step, seen)  # the mean of equal step sizes is exact
        names = [(*axes, order, step, repeat) for repeat in left]
        test = partial(right_by_class, real=among(real, seen), classes=len(seen))
        for repeat, (right, seconds, peak) in zip(left, train_and_test(task, names, kept, test), strict=True):
            yield StepResult(order, step, repeat, right, task.rate, seconds, peak)


def whole_labels(labels: Tensor, part: tuple[int, ...], classes: int) -> Tensor:
    """Return labels of the whole dataset from those of a set distilled on its k classes `part`.

    `[n]` int64 stay `[n]` int64; `[n, k]` logits become `[n, K]`, minus infinity (probability 0) for other classes.
    """
    if not labels.is_floating_point():
        return torch.tensor(part, device=labels.device)[labels]
    whole = labels.new_full((len(labels), classes), -torch.inf)
    whole[:, list(part)] = labels
    return whole


def renumbered(labels: Tensor, seen: tuple[int, ...]) -> Tensor:
    """Return labels among the S seen classes, numbered in the order of learning.

    `[n]` int64, all of them seen, become `[n]` int64 from 0 to S - 1; `[n, K]` logits become `[n, S]`, the columns of
    the seen classes.
    """
    if labels.is_floating_point():
        return labels[:, list(seen)]
    places = torch.full((max(seen) + 1,), -1, device=labels.device)
    places[list(seen)] = torch.arange(len(seen), device=labels.device)
    return places[labels]


def among(real: TrainingImages, seen: tuple[int, ...]) -> TrainingImages:
    """Return the real images of the seen classes, with labels numbered in the order of learning."""
    chosen = torch.isin(real.labels, torch.tensor(seen, device=real.labels.device))
    return TrainingImages(real.images[chosen], renumbered(real.labels[chosen], seen), real.preprocessor)


def right_by_class(module: nn.Module, real: TrainingImages, classes: int) -> tuple[int, ...]:
    """Return the number of correctly classified images of each class; 0 for a network that diverged."""
    right = torch.zeros(classes, dtype=torch.int64, device=real.labels.device)
    for logits, labels in outputs(module, real):
        known = (logits.argmax(1) == labels) & logits.isfinite().all(1)
        right += labels[known].bincount(minlength=classes)
    return tuple(right.tolist())


def seen_accuracy(result: StepResult, parts: Sequence[tuple[int, ...]], images: Sequence[int]) -> float:
    """Return the accuracy on all seen classes, from the classes of each step and the test images by class."""
    return sum(result.right) / sum(images[label] for part in parts[: result.step] for label in part)


RUN = ["dataset", "ipc", "method", "seed", "network", "protocol", "order", "repeat"]
"""Columns that name a run, one network per step of an order; they index the results of the functions below."""


def rows(
    results: Sequence[StepResult],
    parts: Sequence[Sequence[tuple[int, ...]]],
    images: Sequence[int],
    columns: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return one row per network and seen class; `parts` are by order, then step, `images` are counts by class."""
    table = []
    for result in results:
        shared = {**columns, **vars(result), "classes_seen": len(result.right)}
        counts = iter(shared.pop("right"))
        for step, part in enumerate(parts[result.order][: result.step], 1):
            for label in part:
                own = {"images": images[label], "accuracy": next(counts) / images[label]}
                table.append({**shared, "label": label, "learned_at": step, **own})
    return table


def step_accuracies(frame: pandas.DataFrame) -> pandas.Series:
    """Return A_t, the accuracy on all classes seen at step t, by run, step and classes_seen.

    ``A_t = sum_k m_k a_tk / sum_k m_k`` over the classes k seen by then, with the accuracy a_tk on class k after step t
    and its number m_k of test images.
    """
    return _accuracy(frame, ["step", "classes_seen"])


def average_accuracy(frame: pandas.DataFrame) -> pandas.Series:
    """Return ``(1 / T) sum_t A_t`` over the T steps, by run ("average incremental accuracy")."""
    return step_accuracies(frame).groupby(RUN).mean()


def final_accuracy(frame: pandas.DataFrame) -> pandas.Series:
    """Return ``A_T``, the accuracy on all classes after the last step, by run."""
    return step_accuracies(frame).groupby(RUN).last()


def forgetting(frame: pandas.DataFrame) -> pandas.Series:
    """Return the loss of accuracy on earlier classes, by run; NaN with one step.

    ``F = 1 / (T - 1) sum_j (max_l a_lj - a_Tj)`` over the tasks j = 1 ... T - 1 and l = j ... T - 1, with the accuracy
    a_lj after step l on the new classes of step j. Labels are among all classes seen by then, so a task gets harder
    with each step and F is above 0 even if no image is lost.

    Source: Chaudhry et al. 2018 (Riemannian Walk for Incremental Learning), section on forgetting.
    """
    last = frame.groupby(RUN)["step"].transform("max")
    earlier, at_end = frame["learned_at"] < last, frame["step"] == last
    best = _accuracy(frame[earlier & ~at_end], ["learned_at", "step"]).groupby([*RUN, "learned_at"]).max()
    lost = (best - _accuracy(frame[earlier & at_end], ["learned_at"])).groupby(RUN).mean()
    return lost.reindex(final_accuracy(frame).index)


def _accuracy(frame: pandas.DataFrame, by: list[str]) -> pandas.Series:
    """Return the accuracy over all images of some classes, by run and `by`."""
    counts = frame.assign(right=frame["accuracy"] * frame["images"]).groupby([*RUN, *by])[["right", "images"]].sum()
    return counts["right"] / counts["images"]
