"""What tests of methods share: small options, methods by name, sets in float64, and an iteration's draws for twins."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import twins
from torch import Tensor
from twins import Iteration, OneClass, Segment

from satm.data import Augmentation
from satm.methods import METHODS, resolve
from satm.methods.parts.class_matching import ClassMatching
from satm.methods.parts.matching import TrajectoryMatching
from satm.methods.parts.problem import Problem, Synthetic
from satm.outer import OuterGradient
from satm.unroll.batches import mini_batches

BASE: dict[str, Any] = {
    "inner_steps": 6,
    "expert_epochs": 2,
    "max_start_epoch": 3,
    "batch_size": 4,
    "step_size": 0.2,
}

EXPANDING: dict[str, Any] = {"segments": "expanding", "expand_from": 1, "expand_iterations": 8}

PARTS = ("loss", "images", "labels", "step_size")


def make(problem: Problem, name: str, **options: Any) -> Any:
    """Return a method with those of `BASE` that it has, and further options."""
    known = METHODS[name].options.model_fields
    kind, checked = resolve({"method": name, **{key: held for key, held in BASE.items() if key in known}, **options})
    return kind(checked, problem)


def single(problem: Problem) -> Problem:
    """Return the problem with networks in float32."""
    return replace(problem, build=lambda seed: problem.build(seed).float())


def double(made: Any) -> Synthetic:
    """Return the set that a method starts with in float64."""
    start = made.start()
    labels = start.labels.double() if start.labels.is_floating_point() else start.labels
    return replace(start, images=start.images.double(), labels=labels, step_size=start.step_size.double())


def unlike(one: Tensor, other: Tensor) -> float:
    """Return the relative distance; 0 if nothing differs, also where all is 0 because no ReLU is on."""
    apart = (one.detach() - other.detach()).norm()
    return float(apart / other.detach().norm()) if apart != 0 else 0.0


def differing(one: OuterGradient, other: OuterGradient) -> list[str]:
    """Return the parts that are not the same bit for bit."""
    found = []
    for part in PARTS:
        here, there = getattr(one, part), getattr(other, part)
        if (here is None) != (there is None) or (here is not None and not torch.equal(here, there)):
            found.append(part)
    return found


def inner(problem: Problem, options: Any, count: int, generator: torch.Generator) -> Iteration:
    """Draw the mini-batches of an iteration among `count` images, then the augmentation of each inner step."""
    batches = mini_batches(count, options.batch_size, options.inner_steps, generator, torch.device("cpu"))
    batches = batches or [torch.arange(count)] * options.inner_steps
    draws = [problem.augmentation.draw(generator, len(batches[0]), 8) for _ in range(options.inner_steps)]

    def augment(images: Tensor, step: int) -> Tensor:
        return problem.augmentation.apply(images, draws[step]) if options.augment else images

    return Iteration(problem.module, batches, augment, options.inner_steps)


def segments(made: TrajectoryMatching[Any], generator: torch.Generator, iteration: int) -> list[Segment]:
    """Draw the segments of an iteration: an expert, then a start; those without weight are left out."""
    options = made.options
    expert, below = int(torch.randint(len(made.experts), (1,), generator=generator)), options.max_start_epoch
    if options.expand_from is not None:
        below = twins.expanding_range(options.expand_from, below, options.expand_iterations, iteration)
    sampled = int(torch.randint(options.min_start_epoch, below, (1,), generator=generator))
    starts = [(1.0, sampled)]
    if count := options.concurrent:
        distance = options.distance or (options.max_start_epoch - options.min_start_epoch) // count
        starts = twins.concurrent_starts(sampled, options.min_start_epoch, distance, count, options.beta)

    def snapshot(epoch: int) -> Tensor:
        return made.experts.snapshot(expert, epoch).double()

    return [
        Segment(snapshot(start), snapshot(start + options.expert_epochs), weight) for weight, start in starts if weight
    ]


def drawn(made: TrajectoryMatching[Any], synthetic: Synthetic, iteration: int) -> Iteration:
    """Draw what a method of trajectory matching draws: segments, mini-batches, augmentation, noise on the students."""
    problem, options, count = made.problem, made.options, len(synthetic.images)
    generator = problem.generator("iteration", iteration)
    chosen = segments(made, generator, iteration)
    here = inner(problem, options, count, generator)
    if sigma := options.start_noise:
        noises = [torch.randn(one.start.shape, generator=generator).double() for one in chosen]
        chosen = [replace(one, begin=one.start + sigma * noise) for one, noise in zip(chosen, noises, strict=True)]
    if options.labels == "teacher":
        chosen = [replace(one, labels=twins.teacher_labels(problem.module, one, synthetic.images)) for one in chosen]
    return replace(here, kept=int(options.inner_steps / options.keep_divisor), segments=chosen)


def classes(method: ClassMatching[Any], synthetic: Synthetic, iteration: int) -> Iterator[OneClass]:
    """Draw each class of an iteration in turn: its real images, then the augmentation of both kinds."""
    problem, data, options = method.problem, method.problem.data, method.options
    generator = problem.generator("iteration", iteration)
    augmentation = Augmentation(problem.augmentation.strategy if options.augment else "", "batch")
    for label in range(data.classes):
        members = [index for index, one in enumerate(data.train.labels.tolist()) if one == label]
        chosen = torch.randperm(len(members), generator=generator).tolist()[: options.real_batch]
        draw = augmentation.draw(generator, len(chosen), data.size)
        real = problem.preprocessor.apply(data.train.images[[members[place] for place in chosen]]).double()
        places = [index for index, one in enumerate(synthetic.labels.tolist()) if one == label]
        yield OneClass(label, places, real, lambda images, draw=draw: augmentation.apply(images, draw))
