"""Trajectory matching: the segments, batches, augmentation and loss of an iteration, and its hypergradient.

Shapes: n synthetic images of C x H x W, K classes, P parameters, N inner steps.
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, Unpack

import torch
from torch import Tensor

from satm.config.methods import MatchingOptions
from satm.errors import UsageError
from satm.methods.mtt import matching_loss
from satm.methods.parts.method import Method
from satm.methods.parts.problem import Problem, Synthetic
from satm.methods.parts.segments import Segment, draw
from satm.methods.recipe import Recipe
from satm.networks.training import soft_cross_entropy
from satm.outer import HypergradientFn, OuterValue, Points, Span
from satm.params import call_flat
from satm.unroll import Point, hypergradient
from satm.unroll.batches import mini_batches


@dataclass(frozen=True)
class Student:
    """One unroll: from weights `begin`, at or near the expert's `origin`, towards its `target`, all `[P]`.

    `weight` is the weight of its loss, `labels` are the labels of all synthetic images.
    """

    weight: float
    origin: Tensor
    begin: Tensor
    target: Tensor
    labels: Tensor


Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(student's last weights, expert's weights at its start, expert's weights at its target)`, all `[P]` -> `[]` loss."""

OptionsT = TypeVar("OptionsT", bound=MatchingOptions, covariant=True)


class TrajectoryMatching(Method[OptionsT]):
    """Match the end of a short training on the synthetic set to an expert's trajectory.

    A recipe's code is ``step(matching, synthetic, iteration, state) -> OuterGradient``, which gets hypergradients from
    `oracle`.
    """

    def __init__(self, recipe: Recipe, options: OptionsT, problem: Problem) -> None:
        super().__init__(recipe, options, problem)
        assert problem.experts is not None  # or refused
        self.experts = problem.experts

    def finish(self, synthetic: Synthetic, iteration: int) -> Synthetic:
        """Return the set; if `labels` is teacher, with the labels of the last iteration's teacher."""
        if self.options.labels != "teacher" or iteration == 0:
            return synthetic
        segments = self.segments(self.problem.generator("iteration", iteration - 1), iteration - 1)
        segment = next(segment for weight, segment in segments if weight)
        return replace(synthetic, labels=self._labels(synthetic, self._snapshot(segment.expert, segment.end)))

    def segments(self, generator: torch.Generator, iteration: int | None) -> list[tuple[float, Segment]]:
        """Return the segments of one iteration, each with the weight of its loss (`satm.methods.parts.segments.draw`).

        With monitoring, the last expert is held out.
        """
        return draw(self.options, generator, len(self.experts) - bool(self.options.monitor), iteration)

    def observe(self, synthetic: Synthetic, iteration: int) -> Mapping[str, float]:
        """Return the matching losses of the monitored segments, `monitor_EPOCH`, every `monitor_every` iterations.

        Batches and augmentation are the same in every iteration, so that a loss changes with the set only. Teacher
        labels are those of the network at the monitored segment's end.
        """
        options = self.options
        if iteration % options.monitor_every:
            return {}
        last, losses = len(self.experts) - 1, {}
        for start in range(options.monitor):
            segment = Segment(last, start, start + options.expert_epochs)
            oracle = self.oracle_of(synthetic, self.problem.generator("monitor", start), [(1.0, segment)])
            losses[f"monitor_{start}"] = float(oracle(synthetic.images, last=1).loss)
        return losses

    def oracle(self, synthetic: Synthetic, iteration: int, objective: Objective = matching_loss) -> HypergradientFn:
        """Return the hypergradient of an iteration's objective as a function of the images (`oracle_of`)."""
        generator = self.problem.generator("iteration", iteration)
        return self.oracle_of(synthetic, generator, self.segments(generator, iteration), objective)

    def oracle_of(
        self,
        synthetic: Synthetic,
        generator: torch.Generator,
        segments: Sequence[tuple[float, Segment]],
        objective: Objective = matching_loss,
    ) -> HypergradientFn:
        """Return the hypergradient of an objective as a function of the images, with all random choices fixed.

        The generator, on the CPU, draws mini-batches, augmentation and noise on the student's weights. Segments have
        the weights of their losses; concurrent ones are unrolled one after another on the same batches and
        augmentation, so the memory does not grow with their number.

        Raises:
            UsageError: the expert did not move between a segment's ends.
        """
        options = self.options
        count, steps, size = len(synthetic.images), options.inner_steps, synthetic.images.shape[-1]
        batches = mini_batches(count, options.batch_size, steps, generator, self.problem.device)
        each = count if batches is None else len(batches[0])
        augment = self.problem.augmentation.per_step(generator, [each] * steps, size, self.problem.device)
        students = [self._student(synthetic, weight, segment, generator) for weight, segment in segments if weight]

        def value(student: Student, images: Tensor, start: Tensor | Point, span: Span) -> OuterValue:
            """Return the weighted loss and hypergradient of one student."""
            inner = hypergradient(
                self.problem.module,
                images,
                student.labels,
                synthetic.step_size,
                lambda weights: objective(weights, student.origin, student.target),
                steps=steps,
                start=start,
                loss=soft_cross_entropy,
                batches=batches,
                augment=augment if options.augment else None,
                step_size_gradient="first-order" if options.step_size_gradient == "first-order" else "exact",
                engine=options.engine,
                precision=options.precision,
                **span,
            )
            weight, points = student.weight, {index: (point,) for index, point in inner.points.items()}
            labels = weight * inner.labels if options.labels == "learned" and inner.labels is not None else None
            return OuterValue(weight * inner.loss, weight * inner.images, labels, weight * inner.step_size, points)

        def at(images: Tensor, start: Points | None = None, **span: Unpack[Span]) -> OuterValue:
            starts: Sequence[Tensor | Point] = start or [student.begin for student in students]
            values = (value(student, images, begin, span) for student, begin in zip(students, starts, strict=True))
            total = functools.reduce(operator.add, values)
            if options.step_size_gradient == "fixed":
                total = replace(total, step_size=torch.zeros_like(total.step_size))
            if options.engine == "tesla" and options.tesla_scale == "code":
                total = replace(total, images=total.images / 2)
            return total

        return at

    def _student(self, synthetic: Synthetic, weight: float, segment: Segment, generator: torch.Generator) -> Student:
        """Return one unroll of an iteration."""
        origin = self._snapshot(segment.expert, segment.start).to(synthetic.images)
        target = self._snapshot(segment.expert, segment.end).to(synthetic.images)
        if torch.equal(origin, target):
            raise UsageError(
                f"expert {segment.expert} did not move from epoch {segment.start} to {segment.end}, so there is "
                "nothing to match; use other epochs or train the experts again"
            )
        begin = origin
        if sigma := self.options.start_noise:
            begin = origin + sigma * torch.randn(origin.shape, generator=generator).to(origin)
        return Student(weight, origin, begin, target, self._labels(synthetic, target))

    def _snapshot(self, expert: int, epoch: int) -> Tensor:
        return self.experts.snapshot(expert, epoch).to(self.problem.device)

    def _labels(self, synthetic: Synthetic, target: Tensor) -> Tensor:
        """Return the labels that a student is trained on: the set's, or logits of the network at the segment's end."""
        if self.options.labels != "teacher":
            return synthetic.labels
        with torch.no_grad():
            return call_flat(self.problem.module, target.to(synthetic.images), synthetic.images)
