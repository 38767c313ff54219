"""The gradient of an outer loss, at the end of training, with respect to the training data.

Shapes: n synthetic images of C x H x W, K classes, P parameters, N inner steps, b images of one step.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from satm.errors import pick
from satm.ops import Precision, fastest, own, products_of
from satm.params import flatten
from satm.unroll.engines import ENGINES, Hypergradient, Objective, Unroll
from satm.unroll.loop import Augment, InnerLoop, Loss, Point
from satm.unroll.planning import needs_graph, one_step, probe, run_engine, stored_steps
from satm.unroll.rules import Rule, Sgd


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
    step_size_gradient: Literal["exact", "first-order"] = "exact",
    engine: str = "mixed",
    precision: Precision = "float32",
    stored: int | None = None,
    keep_points: Sequence[int] = (),
) -> Hypergradient:
    """Train a network for N steps on synthetic images and differentiate the outer loss of its final weights.

    ``theta_{i+1} = theta_i - step_size * direction_i`` for i = first ... N-1, then ``objective(theta_N)``; gradients
    are with respect to the images, soft labels, step size and initial weights. The engines `mixed` and `reverse` are
    exact and differ in memory and time; `tesla` is a published approximation (`satm.unroll.engines`). No argument is
    changed, and no result has a graph.

    Args:
        module: any network whose output is a pure function of its parameters and its input. Its buffers are constants.
        images: `[n, C, H, W]` floating point, in the space of training, or another shape that the network accepts.
        labels: `[n]` int64, or floating point of any shape that the loss accepts (soft labels or their logits).
        step_size: `[]` or a number; not checked to be positive.
        objective: differentiable outer loss of the flat weights `[P]`, in the order of `satm.params.flatten`.
        steps: N, the index after the last step.
        last: number of steps at the end to differentiate through; earlier steps are run and treated as constant. None:
            all.
        start: `[P]` weights before the first step, or a `Point` from `Hypergradient.points` to continue from; None: the
            module's own parameters.
        first: index of the first step; above zero when continuing from a point.
        rule: inner optimiser; None: `Sgd()`.
        loss: inner loss `(outputs, labels) -> []`.
        batches: N index vectors `[b]` int64 on the images' device; None: all images in each step.
        augment: `(images [b, ...], index of the step) -> [b, ...]`, deterministic for a given step.
        step_size_gradient: `exact`: through the differentiated steps; `first-order`: minus the inner product of the
            objective's gradient and the sum of ALL steps' directions, with the inner gradients held constant.
        engine: `mixed`, `reverse` or `tesla`.
        precision: `float32`, or `tf32` or `bfloat16`, which round the operands of convolutions and matrix products in
            the network, the objective and all derivatives (`satm.ops.precision`). Without effect in float64.
        stored: number of last steps whose graphs `mixed` keeps instead of computing them twice, without effect on the
            result; None: as many as fit into the memory ($SATM_MEMORY, or a part of what is free).
        keep_points: indices of steps before which the point of the trajectory is returned.

    Raises:
        ValueError: steps, indices or shapes that do not fit together; an unknown engine (`UsageError`); images of less
            than 32 bits; a module whose output is not a pure function of weights and images (active dropout, batch
            statistics that are being tracked, random numbers), or does not depend on them; a step that fails.
        RunError: more memory is needed than is free; it says what would fit.

    Source: truncation: SATM Eq. 10; first-order step size: SATM Eq. 12 (for SGD the directions are the gradients).
    Differs: Eq. 10 and 12 are for SGD; here they hold for any rule.
    """
    last = steps - first if last is None else last
    module = getattr(module, "_orig_mod", module)  # of torch.compile, which cannot be called with other weights
    loop = InnerLoop(own(module, images), loss, rule or Sgd(), steps, batches, augment, precision)
    _check(loop, images, labels, first, last, keep_points, stored)
    pick(engine, ENGINES, "engine")
    if not isinstance(start, Point):
        weights = flatten(module) if start is None else start.detach()
        start = Point(weights, loop.rule.start(weights))
    rate = torch.as_tensor(step_size, dtype=images.dtype, device=images.device).detach()
    unroll = Unroll(engine, loop, start, images.detach(), labels.detach(), rate, objective, max(first, steps - last))
    with products_of(precision, images.device):
        return _differentiate(unroll, module, first, stored, keep_points, step_size_gradient)


def _differentiate(
    unroll: Unroll,
    module: nn.Module,
    first: int,
    stored: int | None,
    keep_points: Sequence[int],
    step_size_gradient: Literal["exact", "first-order"],
) -> Hypergradient:
    """Return the hypergradient with the operations that are faster; `unroll.point` is that before the step `first`."""
    point, cut, points = unroll.point, unroll.first, dict[int, Point]()
    inputs = unroll.images, unroll.labels, unroll.step_size
    probe(unroll)
    work = "hypergradients", *unroll.kind
    unroll = unroll.with_network(fastest(module, work, unroll.images, partial(one_step, unroll)))
    probe(unroll)
    loop = replace(unroll.loop, with_graph=needs_graph(unroll))
    unroll = replace(unroll, loop=loop)
    earlier = torch.zeros_like(point.weights)
    for step in range(first, cut):
        if step in keep_points:
            points[step] = point
        point, direction, _ = loop.advance(point, *inputs, step)
        earlier += direction
    if cut in keep_points:
        points[cut] = point
    unroll = replace(unroll, point=point)
    unroll = replace(unroll, stored=stored_steps(unroll) if stored is None else stored)
    result, end_bar, directions = run_engine(unroll)
    for step in range(cut + 1, max(keep_points, default=0) + 1):  # inside the differentiated part, which is run again
        point, _, _ = loop.advance(point, *inputs, step - 1)
        if step in keep_points:
            points[step] = point
    step_size_bar = result.step_size
    if step_size_gradient == "first-order":
        step_size_bar = -torch.dot(end_bar, earlier + directions)
    return replace(result, step_size=step_size_bar, start=result.start if cut == first else None, points=points)


def _check(
    loop: InnerLoop,
    images: Tensor,
    labels: Tensor,
    first: int,
    last: int,
    keep_points: Sequence[int],
    stored: int | None,
) -> None:
    """Refuse arguments that would fail late or, worse, silently give a wrong gradient."""
    steps, batches = loop.steps, loop.batches
    if not 0 <= first < steps:
        raise ValueError(f"expected 0 <= first < steps, got first {first} and steps {steps}; correct one of them")
    if last < 1:
        raise ValueError(f"last (differentiated steps) must be at least 1, got {last}; use None for all steps")
    if not images.is_floating_point():
        raise ValueError(f"images must be floating point, got {images.dtype}; convert them with .float()")
    if images.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"images and weights must be float32 or float64, got {images.dtype}, in which small steps and second "
            "derivatives are lost; convert both with .float()"
        )
    parameters = list(loop.module.parameters())
    if not parameters or any(map(nn.parameter.is_lazy, parameters)):
        what = "has no parameters" if not parameters else "has parameters without a shape; call it once on images"
        raise ValueError(f"expected a network with weights to train, got one that {what}")
    if len(labels) != len(images):
        raise ValueError(
            f"expected one label per image, got {len(images)} images and {len(labels)} labels; add or drop some"
        )
    if stored is not None and stored < 0:
        raise ValueError(f"stored must be at least 0, got {stored}; use None for as many steps as fit")
    if batches is not None and len(batches) != steps:
        raise ValueError(f"expected one batch per step, got {len(batches)} batches and {steps} steps; add or drop some")
    if keep_points and not first <= min(keep_points) <= max(keep_points) <= steps:
        raise ValueError(f"keep_points must be from {first} (first) to {steps} (steps), got {list(keep_points)}")
    if layer := obstacle(loop.module):
        raise ValueError(f"{layer}; build it without, or call .eval() on it first")


def obstacle(module: nn.Module) -> str | None:
    """Return the first layer that no gradient may go through training with, and why; None: there is none."""
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.training and part.p > 0:
            return f"{name} is active dropout, so steps cannot be repeated exactly"
        if isinstance(part, nn.modules.batchnorm._NormBase) and part.training and part.track_running_stats:
            return f"{name} tracks running statistics, which the gradient would not account for"
    return None
