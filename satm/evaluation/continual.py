"""Class-incremental learning: each step brings new classes, and a new network learns from all synthetic images kept.

Nothing but the memory goes from one step to the next (GDumb), so a step says what the images are worth, not how a
network is updated.

Shapes: n images of C x H x W; K classes of the dataset, S of them seen so far.

Source: GDumb (Prabhu et al. 2020); SATM section 4.2.2; for 5 orders of 3 networks DM's public code (`CL_DM.py`).
Differs: class orders are those of `satm.config.class_order`, not numpy's; networks are trained as evaluation trains
them.
"""

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

# The loop


@dataclass(frozen=True)
class StepImages:
    """The synthetic images that come with one step."""

    data: Data
    """With labels of the whole dataset."""
    classes: tuple[int, ...] | None
    """Classes of the images that come; None: all."""
    step_size: float
    """That belongs to the images."""


@dataclass(frozen=True)
class StepResult:
    """One network, tested on the real images of all classes seen; `seconds` and memory as in `Score`."""

    order: int
    """Number of the class order."""
    step: int
    """From 1."""
    repeat: int
    """Number of the network."""
    right: tuple[int, ...]
    """Images classified correctly, by class, in the order in which the classes were learned."""
    rate: float
    """Step size of the first epoch."""
    seconds: float
    peak_memory_bytes: int


def slices(made: DistilledDataset, parts: Sequence[tuple[int, ...]]) -> list[StepImages]:
    """Return what each step brings where the set of all classes is cut into their images."""
    return [StepImages(made, part, float(made.step_size)) for part in parts]


def one_set_a_step(
    sets: Sequence[DistilledDataset], parts: Sequence[tuple[int, ...]], classes: int
) -> list[StepImages]:
    """Return what each step brings where a set was distilled on the classes of each step, of K classes in all."""
    return [
        StepImages((made.images, whole_labels(made.labels, part, classes)), None, float(made.step_size))
        for made, part in zip(sets, parts, strict=True)
    ]


MakeTask = Callable[[TrainingImages, float, int, tuple[int, ...]], Task]
"""From the memory's images with labels among the seen classes, their step size, the step and the seen classes."""


def learn(
    brought: Sequence[StepImages],
    parts: Sequence[tuple[int, ...]],
    real: TrainingImages,
    make_task: MakeTask,
    order: int,
    axes: Axes,
    repeats: int,
    done: int = 0,
    kept: Keep | None = None,
) -> Iterator[StepResult]:
    """Learn the classes in one order; yield each network tested, step by step.

    The step size of a step is the mean of those of the sets that came so far. Classes are numbered as they are learned.

    Args:
        brought: what comes with each step.
        parts: the classes of each step.
        real: images to test on, with integer labels of the whole dataset.
        make_task: says how networks are trained.
        order: number of this order.
        axes: names of the networks, before order, step and repeat.
        repeats: networks at each step.
        done: networks that were tested before, which are left out.
        kept: gives the place where the state of a network is kept while it is trained alone.
    """
    device = real.labels.device
    memory, rates = Memory(), list[float]()
    seen: tuple[int, ...] = ()
    for step, (each, part) in enumerate(zip(brought, parts, strict=True), 1):
        memory.add(each.data, each.classes)
        seen += part
        rates.append(each.step_size)
        before = max(0, done - (step - 1) * repeats)
        if before >= repeats:
            continue
        labels = renumbered(memory.labels, seen).to(device)
        # `mean` is exact: of equal step sizes it is that step size.
        task = make_task(TrainingImages(memory.images.to(device), labels), statistics.mean(rates), step, seen)
        asked = among(real, seen)
        left = range(before, repeats)
        names = [(*axes, order, step, repeat) for repeat in left]
        test = partial(right_by_class, real=asked, classes=len(seen))
        found = train_and_test(task, names, kept, test)
        for repeat, (right, seconds, peak) in zip(left, found, strict=True):
            yield StepResult(order, step, repeat, right, task.rate, seconds, peak)


def whole_labels(labels: Tensor, part: tuple[int, ...], classes: int) -> Tensor:
    """Return labels of the whole dataset from those of a set that was distilled on some of its classes.

    Args:
        labels: `[n]` int64 in that set, or `[n, k]` logits.
        part: the k classes of the set, by its labels.
        classes: K.

    Returns:
        `[n]` int64, or `[n, K]` logits, minus infinity (probability 0) for the classes that the set does not know.
    """
    if not labels.is_floating_point():
        return torch.tensor(part, device=labels.device)[labels]
    whole = torch.full((len(labels), classes), -torch.inf, dtype=labels.dtype, device=labels.device)
    whole[:, list(part)] = labels
    return whole


def renumbered(labels: Tensor, seen: tuple[int, ...]) -> Tensor:
    """Return labels among the seen classes, numbered as they were learned.

    Args:
        labels: `[n]` int64, all of them seen classes, or `[n, K]` logits.
        seen: S classes.

    Returns:
        `[n]` int64 from 0 to S - 1, or `[n, S]` the columns of the seen classes.
    """
    if labels.is_floating_point():
        return labels[:, list(seen)]
    places = torch.full((max(seen) + 1,), -1, device=labels.device)
    places[list(seen)] = torch.arange(len(seen), device=labels.device)
    return places[labels]


def among(real: TrainingImages, seen: tuple[int, ...]) -> TrainingImages:
    """Return the real images of the seen classes, with labels numbered as the classes were learned."""
    kept = torch.isin(real.labels, torch.tensor(seen, device=real.labels.device))
    return TrainingImages(real.images[kept], renumbered(real.labels[kept], seen), real.preprocessor)


def right_by_class(module: nn.Module, real: TrainingImages, classes: int) -> tuple[int, ...]:
    """Return how many real images of each class are classified correctly; of a network that diverged none."""
    right = torch.zeros(classes, dtype=torch.int64, device=real.labels.device)
    for logits, labels in outputs(module, real):
        known = (logits.argmax(1) == labels) & logits.isfinite().all(1)
        right += labels[known].bincount(minlength=classes)
    return tuple(right.tolist())


def seen_accuracy(result: StepResult, parts: Sequence[tuple[int, ...]], images: Sequence[int]) -> float:
    """Return the accuracy on all classes seen, from the classes of each step and the real images tested on by class."""
    seen = [label for part in parts[: result.step] for label in part]
    return sum(result.right) / sum(images[label] for label in seen)


# Rows, and what they say. Frames hold rows of one or more runs, a run being one network per step of an order.

RUN = ["dataset", "ipc", "method", "seed", "network", "protocol", "order", "repeat"]
"""The columns that name a run; results of the functions below are indexed by them."""


def rows(
    results: Sequence[StepResult],
    parts: Sequence[Sequence[tuple[int, ...]]],
    images: Sequence[int],
    columns: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return one row per network and class seen.

    Args:
        results: of the networks.
        parts: the classes of each step, by order.
        images: real images tested on, by class; at least one each.
        columns: that all rows share.
    """
    found = []
    for each in results:
        learned = [(label, step) for step, part in enumerate(parts[each.order], 1) for label in part]
        for (label, learned_at), right in zip(learned[: len(each.right)], each.right, strict=True):
            found.append(
                {
                    **columns,
                    "order": each.order,
                    "repeat": each.repeat,
                    "step": each.step,
                    "classes_seen": len(each.right),
                    "label": label,
                    "learned_at": learned_at,
                    "images": images[label],
                    "accuracy": right / images[label],
                    "rate": each.rate,
                    "seconds": each.seconds,
                    "peak_memory_bytes": each.peak_memory_bytes,
                }
            )
    return found


def step_accuracies(frame: pandas.DataFrame) -> pandas.Series:
    """Return A_t, the accuracy on all classes seen at step t, by run, step and classes_seen.

    ``A_t = sum_k m_k a_tk / sum_k m_k`` over the classes k seen by then, a_tk being the accuracy on class k after step
    t and m_k its number of test images.
    """
    return _accuracy(frame, ["step", "classes_seen"])


def average_accuracy(frame: pandas.DataFrame) -> pandas.Series:
    """Return ``(1 / T) sum_t A_t`` over the T steps, by run ("average incremental accuracy")."""
    return step_accuracies(frame).groupby(RUN).mean()


def final_accuracy(frame: pandas.DataFrame) -> pandas.Series:
    """Return ``A_T``, the accuracy on all classes after the last step, by run."""
    return step_accuracies(frame).groupby(RUN).last()


def forgetting(frame: pandas.DataFrame) -> pandas.Series:
    """Return how much accuracy on earlier classes was lost, by run; NaN with one step.

    ``F = 1 / (T - 1) sum_j (max_l a_lj - a_Tj)`` over the tasks j = 1 ... T - 1 and l = j ... T - 1, a_lj being the
    accuracy after step l on the classes that step j brought. Labels are among all classes seen by then, so a task gets
    harder with each step and F is above 0 even where nothing is lost of the images.

    Source: Chaudhry et al. 2018 (Riemannian Walk for Incremental Learning), section on forgetting.
    """
    last = frame["step"] == frame.groupby(RUN)["step"].transform("max")
    earlier = frame["learned_at"] < frame.groupby(RUN)["step"].transform("max")
    best = _accuracy(frame[earlier & ~last], ["learned_at", "step"]).groupby([*RUN, "learned_at"]).max()
    end = _accuracy(frame[earlier & last], ["learned_at"])
    lost = (best - end).groupby(RUN).mean()
    return lost.reindex(final_accuracy(frame).index)


def class_accuracies(frame: pandas.DataFrame) -> pandas.Series:
    """Return the accuracy on each class after the last step, by run and label."""
    return frame[frame["step"] == frame.groupby(RUN)["step"].transform("max")].set_index([*RUN, "label"])["accuracy"]


def _accuracy(frame: pandas.DataFrame, by: list[str]) -> pandas.Series:
    """Return the accuracy over all images of some classes, by run and `by`."""
    summed = frame.assign(right=frame["accuracy"] * frame["images"]).groupby([*RUN, *by])[["right", "images"]].sum()
    return summed["right"] / summed["images"]
