"""Inner optimisers as pure functions from state and gradient to the direction of a step and the next state.

Every rule updates the weights as ``weights - step_size * direction``, so the step size enters in one place and its
gradient is the same for all rules. All rules are elementwise in the weights and the gradient.

Shapes: P parameters of the network.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

State = dict[str, Tensor]
"""State of a rule between steps, by name; empty for plain SGD."""


class Rule(Protocol):
    """One step of an inner optimiser, without the step size."""

    def start(self, weights: Tensor) -> State:
        """Return the state before the first step from weights `[P]`."""

    def direction(self, weights: Tensor, state: State, gradient: Tensor) -> tuple[Tensor, State]:
        """Return the direction, `[P]`, and the next state; differentiable in all three arguments."""


@dataclass(frozen=True)
class Sgd:
    """Plain gradient descent: the direction is the gradient plus `weight_decay` times the weights."""

    weight_decay: float = 0.0

    def start(self, weights: Tensor) -> State:
        """Return an empty state."""
        return {}

    def direction(self, weights: Tensor, state: State, gradient: Tensor) -> tuple[Tensor, State]:
        """Return the gradient plus weight decay."""
        return _decayed(gradient, weights, self.weight_decay), state


@dataclass(frozen=True)
class Momentum:
    """SGD with momentum as in `torch.optim.SGD`: the buffer is `momentum * buffer + gradient`, without dampening."""

    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0

    def start(self, weights: Tensor) -> State:
        """Return a buffer of zeros."""
        return {"buffer": torch.zeros_like(weights)}

    def direction(self, weights: Tensor, state: State, gradient: Tensor) -> tuple[Tensor, State]:
        """Return the buffer, or with `nesterov` the gradient plus momentum times the buffer."""
        gradient = _decayed(gradient, weights, self.weight_decay)
        buffer = self.momentum * state["buffer"] + gradient
        return (gradient + self.momentum * buffer if self.nesterov else buffer), {"buffer": buffer}


@dataclass(frozen=True)
class Adam:
    """Adam as in `torch.optim.Adam`, or AdamW with `decoupled`.

    Differs: the derivative of the square root is defined as zero where the second moment is exactly zero. It is not
    finite there, and one parameter that never gets a gradient would make every hypergradient NaN.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False

    def start(self, weights: Tensor) -> State:
        """Return zero moments and a count of zero."""
        return {"first": torch.zeros_like(weights), "second": torch.zeros_like(weights), "count": weights.new_zeros(())}

    def direction(self, weights: Tensor, state: State, gradient: Tensor) -> tuple[Tensor, State]:
        """Return the first moment divided by the root of the second, both corrected for their start at zero."""
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
    """A rule with a step size that is multiplied by `factor` at each milestone.

    A milestone m is reached after m steps, so the step with index m is the first of the new size, as in
    `torch.optim.lr_scheduler.MultiStepLR`. The state is that of the rule and `passed`, the number of steps so far.
    """

    rule: Rule
    milestones: tuple[int, ...]
    factor: float

    def start(self, weights: Tensor) -> State:
        """Return the state of the rule and a count of zero."""
        return {**self.rule.start(weights), "passed": weights.new_zeros(())}

    def direction(self, weights: Tensor, state: State, gradient: Tensor) -> tuple[Tensor, State]:
        """Return the rule's direction, scaled."""
        passed = state["passed"].detach()
        inner = {name: value for name, value in state.items() if name != "passed"}
        direction, following = self.rule.direction(weights, inner, gradient)
        scale = torch.ones_like(passed)
        for milestone in self.milestones:
            scale = torch.where(passed >= milestone, scale * self.factor, scale)
        return scale * direction, {**following, "passed": passed + 1}


def descent_rule(momentum: float, weight_decay: float) -> Rule:
    """Return SGD with momentum, or plain SGD if the momentum is 0."""
    return Momentum(momentum, weight_decay=weight_decay) if momentum else Sgd(weight_decay)


def _decayed(gradient: Tensor, weights: Tensor, weight_decay: float) -> Tensor:
    return gradient + weight_decay * weights if weight_decay else gradient
