"""Ways to differentiate an inner loop: two exact ones and a published approximation.

`reverse` keeps the graph of all steps and calls backward once: simple, with memory proportional to steps x activations.
`mixed` keeps only the weights of each step and recomputes one step at a time on the way back. Both give the exact
gradient through the requested steps. `tesla` keeps nothing of a step and ignores that a step's weights depend on the
images of earlier steps, so it is exact for one step only.

Shapes: n synthetic images of C x H x W, P parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from satm.unroll.loop import InnerLoop, Point
from satm.unroll.rules import Rule, State

Objective = Callable[[Tensor], Tensor]
"""`[P]` weights after the last step -> `[]` outer loss."""


@dataclass(frozen=True)
class Cotangents:
    """Outer loss, weights after the last step, and gradients of the loss with respect to the inputs of the loop.

    Args:
        loss: `[]` outer loss.
        end: `[P]` weights after the last step.
        end_gradient: `[P]` gradient with respect to `end`.
        images: `[n, C, H, W]` gradient.
        labels: gradient, shaped like the labels; None if they are integers.
        step_size: `[]` gradient.
        start: `[P]` gradient with respect to the weights before the first differentiated step.
        directions: `[P]` sum of the directions of the differentiated steps.
    """

    loss: Tensor
    end: Tensor
    end_gradient: Tensor
    images: Tensor
    labels: Tensor | None
    step_size: Tensor
    start: Tensor
    directions: Tensor


Engine = Callable[[InnerLoop, Point, Tensor, Tensor, Tensor, Objective, int], Cotangents]
"""`(loop, point before the first step, images, labels, step size, objective, index of the first step)`."""


def reverse(
    loop: InnerLoop, point: Point, images: Tensor, labels: Tensor, step_size: Tensor, objective: Objective, first: int
) -> Cotangents:
    """Return exact gradients by backpropagation through the unrolled loop (arguments: `Engine`)."""
    leaves = [tensor.detach().requires_grad_() for tensor in (images, step_size, point.weights)]
    soft = labels.is_floating_point()
    if soft:
        labels = labels.detach().requires_grad_()
        leaves.append(labels)
    weights, state = leaves[2], point.state
    directions = torch.zeros_like(weights, requires_grad=False)
    with torch.enable_grad():
        for step in range(first, loop.steps):
            gradient = loop.gradient(weights, leaves[0], labels, step)
            direction, state = loop.rule.direction(weights, state, gradient)
            weights = weights - leaves[1] * direction
            directions += direction.detach()
        loss = objective(weights)
    found = torch.autograd.grad(loss, [weights, *leaves], allow_unused=True)
    end_gradient, *gradients = [
        torch.zeros_like(leaf) if gradient is None else gradient
        for gradient, leaf in zip(found, [weights, *leaves], strict=True)
    ]
    return Cotangents(
        loss.detach(),
        weights.detach(),
        end_gradient,
        images=gradients[0],
        labels=gradients[3] if soft else None,
        step_size=gradients[1],
        start=gradients[2],
        directions=directions,
    )


def mixed(
    loop: InnerLoop, point: Point, images: Tensor, labels: Tensor, step_size: Tensor, objective: Objective, first: int
) -> Cotangents:
    """Return the gradients of `reverse` in the memory of one step and two weight vectors per step (as `Engine`).

    On the way back the cotangent of the weights is pulled back through the update rule, which is elementwise, and gives
    a cotangent of the gradient. Pulling that back through the gradient function of this step gives its product with the
    Hessian, which is symmetric, and the contributions to the images and labels.

    The last pullback is a second backward pass. A Jacobian-vector product (forward over reverse) gives the same
    numbers, but needs a forward-mode rule for every operation of the module; on a ConvNet of width 128 it took 1.32
    times as long as `reverse` and 316 MiB, the second backward pass 1.15 times and 244 MiB (`python -m satm bench
    hypergradient` measures the ratio).
    """
    passed: list[tuple[Point, Tensor]] = []
    directions = torch.zeros_like(point.weights)
    for step in range(first, loop.steps):
        following, direction, gradient = loop.advance(point, images, labels, step_size, step)
        passed.append((point, gradient))
        directions += direction
        point = following
    end = point.weights
    loss, end_gradient = _outer(objective, end)

    images_bar, step_size_bar = torch.zeros_like(images), torch.zeros_like(step_size)
    soft = labels.is_floating_point()
    labels_bar = torch.zeros_like(labels) if soft else None
    weights_bar = end_gradient
    state_bar = {name: torch.zeros_like(value) for name, value in point.state.items()}
    for step in reversed(range(first, loop.steps)):
        here, gradient = passed.pop()
        step_size_bar -= torch.dot(weights_bar, loop.rule.direction(here.weights, here.state, gradient)[0])
        through_rule, tangent, state_bar = _pull_rule(loop.rule, here, gradient, -step_size * weights_bar, state_bar)

        with torch.enable_grad():
            weights, pixels = here.weights.detach().requires_grad_(), images.detach().requires_grad_()
            targets = labels.detach().requires_grad_(soft)
            slope = loop.gradient(weights, pixels, targets, step)
            inputs = [weights, pixels, targets] if soft else [weights, pixels]
            curvature, *shares = torch.autograd.grad(slope, inputs, tangent, materialize_grads=True)
        images_bar += shares[0]
        if labels_bar is not None:
            labels_bar += shares[1]
        weights_bar = weights_bar + through_rule + curvature
    return Cotangents(loss, end, end_gradient, images_bar, labels_bar, step_size_bar, weights_bar, directions)


def tesla(
    loop: InnerLoop, point: Point, images: Tensor, labels: Tensor, step_size: Tensor, objective: Objective, first: int
) -> Cotangents:
    """Return TESLA's gradients in the memory of one step, for any number of steps (arguments: `Engine`).

    Each step's gradient gets the cotangent of the last weights unchanged, as if the weights of a step were constant.
    The exact cotangent of a step has one factor ``1 - step_size * Hessian`` for each later step; these are omitted. For
    a single step there are none, and the gradients with respect to images, labels and step size are exact. The gradient
    with respect to the start is always that of the last weights. The steps are run twice: for the end, then for the
    gradients.

    Source: TESLA (Cui et al. 2023), "constant memory" section; the step size's gradient holds all inner gradients
        constant, as the public code does.
    Differs: any objective and rule; a rule's state counts as constant, like the weights.
    """
    here = point
    directions = torch.zeros_like(point.weights)
    for step in range(first, loop.steps):
        here, direction, _ = loop.advance(here, images, labels, step_size, step)
        directions += direction
    end = here.weights
    loss, end_gradient = _outer(objective, end)

    images_bar = torch.zeros_like(images)
    soft = labels.is_floating_point()
    labels_bar = torch.zeros_like(labels) if soft else None
    here = point
    for step in range(first, loop.steps):
        with torch.enable_grad():
            weights, pixels = here.weights.detach().requires_grad_(), images.detach().requires_grad_()
            targets = labels.detach().requires_grad_(soft)
            slope = loop.gradient(weights, pixels, targets, step)
            none = {name: torch.zeros_like(value) for name, value in here.state.items()}
            _, tangent, _ = _pull_rule(loop.rule, here, slope.detach(), -step_size * end_gradient, none)
            inputs = [pixels, targets] if soft else [pixels]
            shares = torch.autograd.grad(slope, inputs, tangent, materialize_grads=True)
        images_bar += shares[0]
        if labels_bar is not None:
            labels_bar += shares[1]
        direction, state = loop.rule.direction(here.weights, here.state, slope.detach())
        here = Point(here.weights - step_size * direction, state)
    step_size_bar = -torch.dot(end_gradient, directions)
    return Cotangents(
        loss, end, end_gradient, images_bar, labels_bar, step_size_bar, start=end_gradient, directions=directions
    )


def _outer(objective: Objective, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outer loss and its gradient with respect to the last weights, without a graph."""
    with torch.enable_grad():
        end = weights.detach().requires_grad_()
        loss = objective(end)
        (gradient,) = torch.autograd.grad(loss, end)
    return loss.detach(), gradient


def _pull_rule(
    rule: Rule, point: Point, gradient: Tensor, direction_bar: Tensor, state_bar: State
) -> tuple[Tensor, Tensor, State]:
    """Return the cotangents of the weights, the gradient and the state of one update rule."""
    with torch.enable_grad():
        weights, slope = point.weights.detach().requires_grad_(), gradient.detach().requires_grad_()
        state = {name: value.detach().requires_grad_() for name, value in point.state.items()}
        direction, following = rule.direction(weights, state, slope)
        outputs = {"": (direction, direction_bar), **{name: (following[name], state_bar[name]) for name in state}}
        live = [pair for pair in outputs.values() if pair[0].requires_grad]
        inputs = [weights, slope, *state.values()]
        found = torch.autograd.grad(
            [output for output, _ in live], inputs, [bar for _, bar in live], allow_unused=True, materialize_grads=True
        )
    return found[0], found[1], dict(zip(state, found[2:], strict=True))


ENGINES: dict[str, Engine] = {"mixed": mixed, "reverse": reverse, "tesla": tesla}
"""All engines by name."""
