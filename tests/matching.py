"""What tests of trajectory matching share: small options, methods by name, sets in float64, one plain hypergradient."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from satm import hypergradient
from satm.data.augment import Draw
from satm.methods import resolve
from satm.methods.parts.matching import TrajectoryMatching
from satm.methods.parts.problem import Problem, Synthetic
from satm.methods.parts.segments import Segment
from satm.networks.training import soft_cross_entropy
from satm.outer import OuterGradient
from satm.unroll import Hypergradient

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
    """Return a method with `BASE` and further options."""
    kind, checked = resolve({"method": name, **BASE, **options})
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
    """Return the relative distance."""
    return float((one.detach() - other.detach()).norm() / other.detach().norm())


def differing(one: OuterGradient, other: OuterGradient) -> list[str]:
    """Return the parts that are not the same bit for bit."""
    found = []
    for part in PARTS:
        here, there = getattr(one, part), getattr(other, part)
        if (here is None) != (there is None) or (here is not None and not torch.equal(here, there)):
            found.append(part)
    return found


@dataclass(frozen=True)
class Drawn:
    """Everything random about one iteration; the generator has drawn it and nothing more."""

    made: TrajectoryMatching[Any]
    segments: list[tuple[float, Segment]]
    batches: list[Tensor] | None
    draws: list[Draw]
    generator: torch.Generator

    @classmethod
    def of(cls, made: TrajectoryMatching[Any], iteration: int) -> "Drawn":
        """Draw: segments, then batches, then the augmentation of each step."""
        problem, generator = made.problem, made.problem.generator("iteration", iteration)
        segments = made.segments(generator, iteration)
        batches = made._batches(6, generator)
        count = 6 if batches is None else len(batches[0])
        draws = [problem.augmentation.draw(generator, count, 8) for _ in range(made.options.inner_steps)]
        return cls(made, segments, batches, draws, generator)

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        """Return `[P]` an expert's weights in float64."""
        return self.made.experts.snapshot(expert, epoch).double()

    def plain(self, synthetic: Synthetic, segment: Segment, **options: Any) -> Hypergradient:
        """Return the hypergradient of one segment's matching loss; `start` and `labels` may be others."""
        origin = self.snapshot(segment.expert, segment.start)
        target = self.snapshot(segment.expert, segment.end)
        augmentation, draws = self.made.problem.augmentation, self.draws

        def augment(images: Tensor, step: int) -> Tensor:
            return augmentation.apply(images, draws[step])

        return hypergradient(
            self.made.problem.module,
            options.pop("images", synthetic.images),
            options.pop("labels", synthetic.labels),
            synthetic.step_size,
            lambda weights: (weights - target).square().sum() / (origin - target).square().sum(),
            start=options.pop("start", origin),
            steps=self.made.options.inner_steps,
            loss=soft_cross_entropy,
            batches=self.batches,
            augment=augment if self.made.options.augment else None,
            **options,
        )
