"""The gradient of what training ends at with respect to the data that it was trained on.

Shapes: n synthetic images of C x H x W, K classes, P parameters, N inner steps, b images of one step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from satm.errors import pick
from satm.params import flatten
from satm.unroll.engines import ENGINES, Objective
from satm.unroll.loop import Augment, InnerLoop, Loss, Point
from satm.unroll.rules import Rule, Sgd

StepSizeGradient = Literal["exact", "first-order"]


@dataclass(frozen=True)
class Hypergradient:
    """An outer loss and its gradients; nothing here has a graph.

    Args:
        loss: `[]` outer loss at the weights after the last step.
        images: `[n, C, H, W]` gradient with respect to the synthetic images.
        labels: gradient with respect to the labels, of their shape; None where they are integers.
        step_size: `[]` gradient with respect to the inner step size.
        start: `[P]` gradient with respect to the weights before the first step; None if the loop was truncated.
        end: `[P]` weights after the last step.
        points: the places that `keep_points` asked for, by the index of the step that follows.
    """

    loss: Tensor
    images: Tensor
    labels: Tensor | None
    step_size: Tensor
    start: Tensor | None
    end: Tensor
    points: dict[int, Point] = field(default_factory=dict)


def hypergradient(
    module: nn.Module,
    images: Tensor,
    labels: Tensor,
    step_size: Tensor | float,
    objective: Objective,
    *,
    steps: int,
    last: int | None = None,
    start: Tensor | Point | None = None,
    first: int = 0,
    rule: Rule | None = None,
    loss: Loss = functional.cross_entropy,
    batches: Sequence[Tensor] | None = None,
    augment: Augment | None = None,
    step_size_gradient: StepSizeGradient = "exact",
    engine: str = "mixed",
    keep_points: Sequence[int] = (),
) -> Hypergradient:
    """Train a network for N steps on synthetic images and differentiate where it ends.

    ``theta_{i+1} = theta_i - step_size * direction_i`` for i = first ... N-1, then ``objective(theta_N)``; the
    gradients are with respect to the images, soft labels, step size and the weights at the start. The engines `mixed`
    and `reverse` are exact; they differ in memory and time. `tesla` is a published approximation
    (`satm.unroll.engines`). No argument is changed and nothing keeps a graph.

    Args:
        module: any network whose output is a pure function of its parameters and its input. Its buffers are constants.
        images: `[n, C, H, W]` floating point, in the space the network trains in; or another shape it takes.
        labels: `[n]` int64, or floating point of any shape that the loss takes (soft labels or their logits).
        step_size: `[]` or a number; not checked to be positive.
        objective: outer loss of the flat weights `[P]`, in the order of `satm.params.flatten`; differentiable.
        steps: N, the index after the last step.
        last: differentiate through the last so many steps only; the earlier ones are run and taken as constant. None:
            through all.
        start: `[P]` weights before the first step, or a `Point` from `Hypergradient.points` to go on from; None: the
            module's own parameters.
        first: index of the first step; above zero when going on from a point.
        rule: inner optimiser; None: `Sgd()`.
        loss: inner loss `(outputs, labels) -> []`.
        batches: N index vectors `[b]` int64 on the images' device; None: all images in each step.
        augment: `(images [b, ...], index of the step) -> [b, ...]`, the same each time for the same step.
        step_size_gradient: `exact`: of the differentiated steps; `first-order`: minus the inner product of the
            objective's gradient and the sum of ALL steps' directions, the inner gradients held constant.
        engine: `mixed`, `reverse` or `tesla`.
        keep_points: indices of steps before which the trajectory is to be returned.

    Returns:
        `Hypergradient`.

    Raises:
        ValueError: (a `UsageError` for the engine's name) steps, indices or shapes that do not fit together; a module
            whose output is not a function: active dropout, or batch statistics that are being tracked.

    Source: truncation: SATM Eq. 10; first-order step size: SATM Eq. 12 (for SGD the directions are the gradients).
    Differs: Eq. 10 and 12 are for SGD; here they hold for any rule.
    """
    rule = Sgd() if rule is None else rule
    held_step_size = torch.as_tensor(step_size, dtype=images.dtype, device=images.device).detach()
    point = _start(module, rule, start)
    last = steps - first if last is None else last
    _check(module, images, labels, steps, first, last, batches, keep_points)
    differentiate = pick(engine, ENGINES, "engine")
    loop = InnerLoop(module, loss, rule, steps, batches, augment)

    points: dict[int, Point] = {}
    travelled = torch.zeros_like(point.weights)
    cut = max(first, steps - last)
    wanted = set(keep_points)
    for step in range(first, cut):
        if step in wanted:
            points[step] = point
        point, direction, _ = loop.advance(point, images.detach(), labels.detach(), held_step_size, step)
        travelled += direction
    if cut in wanted:
        points[cut] = point
    found = differentiate(loop, point, images.detach(), labels.detach(), held_step_size, objective, cut)
    for step in range(cut + 1, max(wanted, default=0) + 1):  # inside the differentiated part: run it once more
        point = loop.advance(point, images.detach(), labels.detach(), held_step_size, step - 1)[0]
        if step in wanted:
            points[step] = point
    step_size_bar = found.step_size
    if step_size_gradient == "first-order":
        step_size_bar = -torch.dot(found.end_gradient, travelled + found.directions)
    return Hypergradient(
        loss=found.loss,
        images=found.images,
        labels=found.labels,
        step_size=step_size_bar,
        start=found.start if cut == first else None,
        end=found.end,
        points=points,
    )


def _start(module: nn.Module, rule: Rule, start: Tensor | Point | None) -> Point:
    if isinstance(start, Point):
        return start
    weights = flatten(module) if start is None else start.detach()
    return Point(weights, rule.start(weights))


def _check(
    module: nn.Module,
    images: Tensor,
    labels: Tensor,
    steps: int,
    first: int,
    last: int,
    batches: Sequence[Tensor] | None,
    keep_points: Sequence[int],
) -> None:
    """Refuse what would fail late or, worse, would give a wrong gradient in silence."""
    if not 0 <= first < steps:
        raise ValueError(f"steps first <= i < N are run, got first {first} and N {steps}; use 0 <= first < N")
    if last < 1:
        raise ValueError(f"last counts the differentiated steps, got {last}; use at least 1, or None for all")
    if not images.is_floating_point():
        raise ValueError(f"images must be floating point, got {images.dtype}; convert them with .float()")
    if len(labels) != len(images):
        raise ValueError(f"got {len(images)} images and {len(labels)} labels; give one label an image")
    if batches is not None and len(batches) != steps:
        raise ValueError(f"got {len(batches)} batches for {steps} steps; give the indices of each step's images")
    if keep_points and not first <= min(keep_points) <= max(keep_points) <= steps:
        raise ValueError(f"keep_points {list(keep_points)} must lie in first {first} to N {steps}; ask for those only")
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.training and part.p > 0:
            raise ValueError(f"{name} is active dropout, so a step cannot be repeated; call .eval() on it first")
        tracks = isinstance(part, nn.modules.batchnorm._NormBase) and part.training and part.track_running_stats
        if tracks:
            raise ValueError(
                f"{name} tracks running statistics, which training would change behind the gradient; "
                "build it with track_running_stats=False or call .eval() on it first"
            )
