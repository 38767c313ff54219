"""Class orders of continual learning, and the names of datasets with the classes of one step.

Labels are those of the whole dataset, from 0; orders count from 0, steps from 1.
"""

import hashlib
import itertools
import json
import re
from dataclasses import dataclass

from satm.errors import UsageError


def class_order(classes: int, order: int) -> tuple[int, ...]:
    """Return all labels in the class order of a number, a fixed permutation.

    The labels are sorted by the SHA-256 of the axes ("class-order", classes, order, label). So order 0 is shuffled like
    any other, and all methods and all datasets with the same number of classes share it.
    """
    axes = {label: json.dumps(["class-order", classes, order, label]).encode() for label in range(classes)}
    return tuple(sorted(axes, key=lambda label: hashlib.sha256(axes[label]).digest()))


def split_classes(classes: int, order: int, steps: int) -> tuple[tuple[int, ...], ...]:
    """Return the new labels of each step, in order; if steps are unequal, earlier ones have one label more.

    Raises:
        UsageError: there are more steps than classes, or none.
    """
    if not 1 <= steps <= classes:
        raise UsageError(f"{classes} classes cannot be learned in {steps} steps; use 1 to {classes} steps")
    each, rest = divmod(classes, steps)
    labels = iter(class_order(classes, order))
    return tuple(tuple(itertools.islice(labels, each + (step < rest))) for step in range(steps))


@dataclass(frozen=True)
class Step:
    """A step (from 1) of continual learning on a whole dataset in a class order (from 0)."""

    dataset: str
    order: int
    step: int
    steps: int

    @property
    def name(self) -> str:
        """Name of the dataset with these classes only, numbered from 0 in the class order."""
        return f"{self.dataset}-order-{self.order}-step-{self.step}-of-{self.steps}"

    def labels(self, classes: int) -> tuple[int, ...]:
        """Return its labels among all `classes` of the dataset; UsageError if the step does not exist."""
        parts = split_classes(classes, self.order, self.steps)
        if not 1 <= self.step <= self.steps:
            raise UsageError(f"{self.name} names step {self.step} of {self.steps}; name one of 1 to {self.steps}")
        return parts[self.step - 1]


def step_of(name: str) -> Step | None:
    """Return the step that the name of a dataset denotes; None for any other dataset."""
    number = "(0|[1-9][0-9]{0,99})"
    match = re.fullmatch(f"(.+)-order-{number}-step-{number}-of-{number}", name)
    return match and Step(match[1], *(int(match[part]) for part in (2, 3, 4)))
