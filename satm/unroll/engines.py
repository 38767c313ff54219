"""Ways to differentiate an inner loop: two exact ones and a published approximation.

`reverse` keeps the graph of all steps and calls backward once: simple, with memory proportional to steps x activations.
`mixed` keeps the weights of each step, and the graphs of as many of the last steps as it is told to, and computes the
other steps again, one at a time, on the way back. Both give the exact gradient through the requested steps. `tesla`
stores no step and ignores that a step's weights depend on the images of earlier steps, so it is exact for one step
only.

Shapes: n synthetic images of C x H x W, P parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from satm.unroll.loop import InnerLoop, Point
from satm.unroll.recording import recorded_step
from satm.unroll.rules import Rule, State

Objective = Callable[[Tensor], Tensor]
"""`[P]` weights after the last step -> `[]` outer loss."""


@dataclass(frozen=True)
class Gradients:
    """An outer loss and its gradients, without graphs.

    Args:
        loss: `[]` outer loss.
        images: `[n, C, H, W]` gradient with respect to the synthetic images.
        labels: gradient with respect to the labels, of their shape; None if they are integers.
        step_size: `[]` gradient with respect to the inner step size.
    """

    loss: Tensor
    images: Tensor
    labels: Tensor | None
    step_size: Tensor


@dataclass(frozen=True)
class Hypergradient(Gradients):
    """The outer loss at the end of an inner loop, and its gradients.

    Args:
        start: `[P]` gradient with respect to the weights before the first step; None if the loop was truncated.
        end: `[P]` weights after the last step.
        points: trajectory points requested by `keep_points`, by the index of the next step.
    """

    start: Tensor | None
    end: Tensor
    points: dict[int, Point] = field(default_factory=dict)


Derivatives = tuple[Hypergradient, Tensor, Tensor]
"""The hypergradient through all steps of an engine, `[P]` gradient with respect to the weights after the last step, and
`[P]` sum of the directions of the steps."""


@dataclass(frozen=True)
class Unroll:
    """The steps that an engine differentiates.

    Args:
        engine: name of the engine.
        loop: the inner loop.
        point: before the first of these steps.
        images: `[n, C, H, W]`, without a graph, as are the labels and the step size.
        labels: classes `[n]`, or soft labels.
        step_size: `[]`.
        objective: the outer loss.
        first: index of the first of these steps.
        stored: number of last steps whose graphs `mixed` keeps.
    """

    engine: str
    loop: InnerLoop
    point: Point
    images: Tensor
    labels: Tensor
    step_size: Tensor
    objective: Objective
    first: int
    stored: int = 0

    @property
    def steps(self) -> int:
        """Number of these steps."""
        return self.loop.steps - self.first

    @property
    def batch(self) -> int:
        """Images of a step."""
        return len(self.images) if self.loop.batches is None else len(self.loop.batches[self.first])

    @property
    def kind(self) -> tuple[Any, ...]:
        """What the time and the memory of a step depend on, beside the network; images come first."""
        images, labels = self.images, self.labels
        about = images.dtype, images.device, labels.dtype, self.loop.precision
        return self.batch, *images.shape[1:], *labels.shape[1:], *about

    @property
    def point_bytes(self) -> int:
        """Bytes of the point before a step."""
        return self.point.weights.nbytes + sum(value.nbytes for value in self.point.state.values())

    def with_network(self, module: nn.Module) -> "Unroll":
        """Return the same steps with another network."""
        return replace(self, loop=replace(self.loop, module=module))


Engine = Callable[[Unroll], Derivatives]
"""A way to differentiate steps."""


def reverse(unroll: Unroll) -> Derivatives:
    """Return exact gradients by backpropagation through the unrolled loop."""
    point, (pixels, targets, inputs) = unroll.point, _leaves(unroll)
    start, rate = point.weights.detach().requires_grad_(), unroll.step_size.detach().requires_grad_()
    end, directions = _unroll(unroll.loop, Point(start, point.state), pixels, targets, rate, unroll.first)
    loss = _outer_loss(unroll, end)
    gradients = torch.autograd.grad(loss, [end, start, rate, *inputs], materialize_grads=True)
    end_bar, start_bar, step_size_bar, *bars = gradients
    return _result(loss.detach(), bars, step_size_bar, start_bar, end.detach()), end_bar, directions


def mixed(unroll: Unroll) -> Derivatives:
    """Return the gradients of `reverse` with less memory: that of one step, and the weights of each.

    On the way back the cotangent of the weights is pulled back through the update rule, which is elementwise, and gives
    a cotangent of the gradient. Pulling that back through the gradient function of this step gives its product with the
    Hessian, which is symmetric, and the contributions to the images and labels. The gradient function is computed again
    for that, except in the `stored` last steps, whose graphs are kept, as those of all steps are in `reverse`. Their
    number does not change the results. On a GPU the steps that are computed again are recorded and replayed
    (`satm.unroll.recording`), with the gradient of each step kept beside its weights.

    The last pullback is a second backward pass. A Jacobian-vector product (forward over reverse) gives the same
    numbers, but needs a forward-mode rule for every operation of the module.
    """
    loop, point, images, labels = unroll.loop, unroll.point, unroll.images, unroll.labels
    step_size, first = unroll.step_size, unroll.first
    cut = max(first, loop.steps - unroll.stored)
    path: list[Point] = []
    directions, recorded = torch.zeros_like(point.weights), None
    if cut > first:
        recorded = recorded_step(loop, point.weights, images, labels, first)
    slopes: list[Tensor] = []
    for step in range(first, cut):
        path.append(point)
        if recorded is None:
            point, direction, _ = loop.advance(point, images, labels, step_size, step)
        else:
            with torch.no_grad():
                slopes.append(recorded.slope(point.weights, *loop.batch(images, labels, step)))
            point, direction = loop.follow(point, slopes[-1], step_size)
        directions += direction

    pixels, targets, inputs = _leaves(unroll)
    rate, start = step_size.detach().requires_grad_(), point.weights.detach().requires_grad_()
    state = {name: value.detach().requires_grad_() for name, value in point.state.items()}
    end, rest = _unroll(loop, Point(start, state), pixels, targets, rate, cut)
    directions += rest
    loss = _outer_loss(unroll, end)
    gradients = torch.autograd.grad(loss, [end, start, rate, *inputs, *state.values()], materialize_grads=True)
    end_bar, weights_bar, step_size_bar, *others = gradients
    bars, state_bar = list(others[: len(inputs)]), dict(zip(state, others[len(inputs) :], strict=True))
    end, loss = end.detach(), loss.detach()  # which frees the graphs

    for step in reversed(range(first, cut)):
        here = path.pop()
        with torch.enable_grad():
            if recorded is None:
                weights = here.weights.detach().requires_grad_()
                slope = loop.gradient(weights, pixels, targets, step)
            else:
                slope, chosen = slopes.pop(), loop.batch(pixels, targets, step)
        pulled = _pull_rule(loop.rule, here, slope, step_size, weights_bar, state_bar)
        through_rule, tangent, state_bar, rate_bar = pulled
        if recorded is None:
            curvature, *shares = torch.autograd.grad(slope, [weights, *inputs], tangent, materialize_grads=True)
        else:
            curvature, *parts = recorded.pull(here.weights, chosen[0].detach(), chosen[1].detach(), tangent)
            shares = list(torch.autograd.grad(chosen[: len(parts)], inputs, parts, materialize_grads=True))
        bars = [bar + share for bar, share in zip(bars, shares, strict=True)]
        weights_bar, step_size_bar = through_rule + curvature, step_size_bar + rate_bar
    return _result(loss, bars, step_size_bar, weights_bar, end), end_bar, directions


def tesla(unroll: Unroll) -> Derivatives:
    """Return TESLA's gradients with the memory of one step, for any number of steps.

    Each step's gradient gets the cotangent of the last weights unchanged, as if the weights of a step were constant.
    The exact cotangent of a step has one factor ``1 - step_size * Hessian`` for each later step; these are omitted. For
    a single step there are none, and the gradients with respect to images, labels and step size are exact. The gradient
    with respect to the start is always that of the last weights. The steps are run twice: first to reach the last
    weights, then for the gradients.

    Source: TESLA (Cui et al. 2023), "constant memory" section; the step size's gradient holds all inner gradients
        constant, as the public code does.
    Differs: works with any objective and rule; a rule's state is treated as constant, like the weights.
    """
    loop, point, images, labels = unroll.loop, unroll.point, unroll.images, unroll.labels
    step_size, first = unroll.step_size, unroll.first
    here = point
    directions = torch.zeros_like(point.weights)
    for step in range(first, loop.steps):
        here, direction, _ = loop.advance(here, images, labels, step_size, step)
        directions += direction
    end = here.weights
    loss, end_bar = _outer(unroll, end)

    pixels, targets, inputs = _leaves(unroll)
    bars, here = [torch.zeros_like(leaf) for leaf in inputs], point
    for step in range(first, loop.steps):
        with torch.enable_grad():
            slope = loop.gradient(here.weights.detach().requires_grad_(), pixels, targets, step)
            zero = {name: torch.zeros_like(value) for name, value in here.state.items()}
            _, tangent, _, _ = _pull_rule(loop.rule, here, slope, step_size, end_bar, zero)
            shares = torch.autograd.grad(slope, inputs, tangent, materialize_grads=True)
        bars = [bar + share for bar, share in zip(bars, shares, strict=True)]
        direction, state = loop.rule.direction(here.weights, here.state, slope.detach())
        here = Point(here.weights - step_size * direction, state)
    return _result(loss, bars, -torch.dot(end_bar, directions), end_bar, end), end_bar, directions


def _leaves(unroll: Unroll) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return images and labels as leaves of a graph, and the leaves that need gradients; hard labels do not."""
    labels, pixels = unroll.labels, unroll.images.detach().requires_grad_()
    targets = labels.detach().requires_grad_(labels.is_floating_point())
    return pixels, targets, [leaf for leaf in (pixels, targets) if leaf.requires_grad]


def _result(loss: Tensor, bars: list[Tensor], step_size: Tensor, start: Tensor, end: Tensor) -> Hypergradient:
    """Return the hypergradient; `bars` are the gradients of the leaves."""
    return Hypergradient(loss, bars[0], bars[1] if len(bars) > 1 else None, step_size, start, end)


def _outer_loss(unroll: Unroll, weights: Tensor) -> Tensor:
    """Return the outer loss, with a graph to the last weights.

    Raises:
        ValueError: it has none.
    """
    with torch.enable_grad():
        loss = unroll.objective(weights)
    if not loss.requires_grad:
        raise ValueError("the objective does not depend on the last weights, so there is nothing to differentiate")
    return loss


def _outer(unroll: Unroll, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outer loss and its gradient with respect to the last weights, without a graph."""
    end = weights.detach().requires_grad_()
    loss = _outer_loss(unroll, end)
    (gradient,) = torch.autograd.grad(loss, end)
    return loss.detach(), gradient


def _unroll(
    loop: InnerLoop, point: Point, images: Tensor, labels: Tensor, step_size: Tensor, first: int
) -> tuple[Tensor, Tensor]:
    """Return the weights after the steps from `first` on, with a graph to all arguments, and the sum of directions."""
    weights, state = point.weights, point.state
    directions = torch.zeros_like(weights, requires_grad=False)
    with torch.enable_grad():
        for step in range(first, loop.steps):
            gradient = loop.gradient(weights, images, labels, step)
            direction, state = loop.rule.direction(weights, state, gradient)
            weights = weights - step_size * direction
            directions += direction.detach()
    return weights, directions


def _pull_rule(
    rule: Rule, point: Point, gradient: Tensor, step_size: Tensor, weights_bar: Tensor, state_bar: State
) -> tuple[Tensor, Tensor, State, Tensor]:
    """Return the cotangents of the weights, the gradient, the state and the step size from those after one step.

    The gradient's dependence on the weights is not in them. These are the operations of `_unroll`, so that it makes no
    difference, not even by rounding, which steps `mixed` stores.
    """
    with torch.enable_grad():
        weights, slope = point.weights.detach().requires_grad_(), gradient.detach().requires_grad_()
        rate = step_size.detach().requires_grad_()
        state = {name: value.detach().requires_grad_() for name, value in point.state.items()}
        direction, following = rule.direction(weights, state, slope)
        pairs = [(weights - rate * direction, weights_bar), *((following[name], state_bar[name]) for name in state)]
        live = [(output, bar) for output, bar in pairs if output.requires_grad]
        outputs, bars = zip(*live, strict=True)
        inputs = [weights, slope, rate, *state.values()]
        through, slope_bar, rate_bar, *rest = torch.autograd.grad(outputs, inputs, bars, materialize_grads=True)
    return through, slope_bar, dict(zip(state, rest, strict=True)), rate_bar


ENGINES: dict[str, Engine] = {"mixed": mixed, "reverse": reverse, "tesla": tesla}
"""All engines by name."""
