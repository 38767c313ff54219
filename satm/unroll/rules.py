"""Inner optimisers as pure functions: the state and the gradient in, the direction of the step and the next state out.

Every rule moves the weights by ``weights - step_size * direction``, so the step size enters in one place and its
gradient is the same for all. All of them are elementwise in the weights and the gradient.

Shapes: P parameters of the network.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

State = dict[str, Tensor]
"""What a rule remembers between steps, by name; empty for plain SGD."""


class Rule(Protocol):
    """One step of an inner optimiser, without the step size."""

    def start(self, weights: Tensor) -> State:
        """Return the state before the first step of `[P]` weights."""
        ...

    def direction(self, weights: Tensor, state: State, gradient: Tensor) -> tuple[Tensor, State]:
        """Return `[P]` the direction and the state after the step; differentiable in all three arguments."""
        ...


@dataclass(frozen=True)
class Sgd:
    """Plain gradient descent: the direction is the gradient plus `weight_decay` times the weights."""

    weight_decay: float = 0.0

    def start(self, weights: Tensor) -> State:
        """Return nothing: SGD has no state."""
        return {}

    def direction(self, weights: Tensor, state: State, gradient: Tensor) -> tuple[Tensor, State]:
        """Return the gradient with decay."""
        return _decayed(gradient, weights, self.weight_decay), state


@dataclass(frozen=True)
class Momentum:
    """SGD with momentum as `torch.optim.SGD` defines it: the buffer is `momentum * buffer + gradient`, not damped."""

    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0

    def start(self, weights: Tensor) -> State:
        """Return a buffer of zeros."""
        return {"buffer": torch.zeros_like(weights)}

    def direction(self, weights: Tensor, state: State, gradient: Tensor) -> tuple[Tensor, State]:
        """Return the buffer, or one more momentum step ahead of it with `nesterov`."""
        gradient = _decayed(gradient, weights, self.weight_decay)
        buffer = self.momentum * state["buffer"] + gradient
        return (gradient + self.momentum * buffer if self.nesterov else buffer), {"buffer": buffer}


@dataclass(frozen=True)
class Adam:
    """Adam as `torch.optim.Adam` defines it, or AdamW with `decoupled`.

    Differs: the derivative of the square root is taken as zero where the second moment is exactly zero. It has no
    finite value there, and a parameter that never gets a gradient would turn every hypergradient into NaN.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False

    def start(self, weights: Tensor) -> State:
        """Return zero moments and a count of zero."""
        return {
            "first": torch.zeros_like(weights),
            "second": torch.zeros_like(weights),
            "count": torch.zeros((), dtype=weights.dtype, device=weights.device),
        }

    def direction(self, weights: Tensor, state: State, gradient: Tensor) -> tuple[Tensor, State]:
        """Return the first moment over the root of the second, both corrected for their start at zero."""
        if not self.decoupled:
            gradient = _decayed(gradient, weights, self.weight_decay)
        count = state["count"].detach() + 1
        first = self.beta1 * state["first"] + (1 - self.beta1) * gradient
        second = self.beta2 * state["second"] + (1 - self.beta2) * gradient.square()
        unbiased = second / (1 - self.beta2**count)
        positive = unbiased > 0
        root = torch.where(positive, torch.where(positive, unbiased, 1).sqrt(), 0)
        direction = first / (1 - self.beta1**count) / (root + self.eps)
        if self.decoupled:
            direction = _decayed(direction, weights, self.weight_decay)
        return direction, {"first": first, "second": second, "count": count}


@dataclass(frozen=True)
class Scheduled:
    """A rule whose step size falls in steps: its direction times `factor` for each milestone that is passed.

    A milestone of m is passed after m steps, so the step of index m is the first one that is smaller, as
    `torch.optim.lr_scheduler.MultiStepLR` counts. The state is that of the rule and, under `passed`, the steps done.
    """

    rule: Rule
    milestones: tuple[int, ...]
    factor: float

    def start(self, weights: Tensor) -> State:
        """Return the state of the rule and no step done."""
        return {**self.rule.start(weights), "passed": torch.zeros((), dtype=weights.dtype, device=weights.device)}

    def direction(self, weights: Tensor, state: State, gradient: Tensor) -> tuple[Tensor, State]:
        """Return the rule's direction, scaled."""
        held = dict(state)
        passed = held.pop("passed").detach()
        direction, following = self.rule.direction(weights, held, gradient)
        scale = torch.ones_like(passed)
        for milestone in self.milestones:
            scale = torch.where(passed >= milestone, scale * self.factor, scale)
        return scale * direction, {**following, "passed": passed + 1}


def _decayed(gradient: Tensor, weights: Tensor, weight_decay: float) -> Tensor:
    return gradient + weight_decay * weights if weight_decay else gradient
