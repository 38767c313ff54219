"""In which order classes are learned, and the names of datasets that hold the classes of one step only.

Nothing here imports torch: the workflow needs the names too. Labels are those of the whole dataset, from 0; orders
count from 0, steps from 1.
"""

import hashlib
import json
import re
from dataclasses import dataclass

from satm.errors import UsageError


def class_order(classes: int, order: int) -> tuple[int, ...]:
    """Return all labels in the order of that number, a permutation that stays the same everywhere and for ever.

    The labels are sorted by the SHA-256 of the axes ("class-order", classes, order, label). So order 0 is mixed like
    any other, and an order belongs to a number of classes: datasets with as many classes share it, and so do methods.
    """

    def rank(label: int) -> bytes:
        return hashlib.sha256(json.dumps(["class-order", classes, order, label]).encode()).digest()

    return tuple(sorted(range(classes), key=rank))


def split_classes(classes: int, order: int, steps: int) -> tuple[tuple[int, ...], ...]:
    """Return the labels that each step brings, in order; where they cannot be even, earlier steps have one more.

    Raises:
        UsageError: there are more steps than classes, or none.
    """
    if not 1 <= steps <= classes:
        raise UsageError(f"{classes} classes cannot be learned in {steps} steps; use 1 to {classes} steps")
    each, rest = divmod(classes, steps)
    found = iter(class_order(classes, order))
    return tuple(tuple(next(found) for _ in range(each + (step < rest))) for step in range(steps))


@dataclass(frozen=True)
class Step:
    """One step of a dataset's classes."""

    dataset: str
    """Name of the whole dataset."""
    order: int
    """Number of the class order, from 0."""
    step: int
    """From 1."""
    steps: int
    """How many there are."""

    @property
    def name(self) -> str:
        """The dataset that holds these classes only, numbered from 0 as they come in the order."""
        return f"{self.dataset}-order-{self.order}-step-{self.step}-of-{self.steps}"

    def labels(self, classes: int) -> tuple[int, ...]:
        """Return its labels in the whole dataset of so many classes.

        Raises:
            UsageError: there is no such step, or there are more steps than classes.
        """
        parts = split_classes(classes, self.order, self.steps)
        if not 1 <= self.step <= self.steps:
            raise UsageError(f"{self.name} names step {self.step} of {self.steps}; name one of 1 to {self.steps}")
        return parts[self.step - 1]


def step_of(name: str) -> Step | None:
    """Return the step that the name of a dataset means; None: it is the name of another dataset."""
    number = "(0|[1-9][0-9]{0,99})"
    found = re.fullmatch(f"(.+)-order-{number}-step-{number}-of-{number}", name)
    return found and Step(found[1], *(int(found[part]) for part in (2, 3, 4)))
