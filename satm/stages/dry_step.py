"""One inner step before experts are trained: does every method that will match them get a hypergradient, and fit?"""

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from satm.config import ExpertsOptions
from satm.config.methods import MatchingOptions
from satm.errors import RunError, refuse
from satm.methods.mtt import matching_loss
from satm.networks.training import soft_cross_entropy
from satm.ops import Precision, own
from satm.params import flatten
from satm.seeds import make_generator
from satm.stages.inputs import Inputs
from satm.unroll import InnerLoop, Point, Sgd, hypergradient
from satm.unroll.engines import Unroll
from satm.unroll.planning import SOME, shortage
from satm.workflow.asked import cell_of
from satm.workflow.graph import Single
from satm.workflow.options import method_options

LOG = logging.getLogger("satm")

IMAGES = 2
"""Real images of the step."""


@dataclass(frozen=True)
class Step:
    """What an inner step of a method depends on, beside the network and the images."""

    engine: str
    precision: Precision
    soft: bool
    augment: bool


def check_step(inputs: Inputs, experts: str, options: ExpertsOptions) -> None:
    """Refuse experts through whose network a method of the campaign cannot learn.

    A fresh network takes one step on two real images for each kind of step among the methods that match these experts,
    and the hypergradient is computed. A warning names methods for which this process's memory would be too small; their
    own jobs may get more. No random generator of a run is used.

    Raises:
        UsageError: one line with every method for which that fails, such as for a network that cannot be differentiated
            twice.
    """
    steps: dict[Step, str] = {}
    sizes: dict[tuple[Step, int, int], str] = {}
    for job in Single(inputs.resolver).jobs():
        if job.rule == "distill" and job.wildcards.dataset == inputs.dataset:
            cell = cell_of(job.wildcards)
            method = method_options(inputs.resolver.method(cell))
            if isinstance(method, MatchingOptions) and method.experts == experts:
                step = Step(method.engine, method.precision, method.labels != "hard", method.augment)
                steps.setdefault(step, cell.method)
                batch = min(method.batch_size or math.inf, cell.ipc * inputs.data.classes)
                sizes.setdefault((step, method.inner_steps, int(batch)), f"{cell.method} at ipc {cell.ipc}")
    problems = []
    for step, name in steps.items():
        if problem := _problem(inputs, options.network, step):
            problems.append(
                f"method {name} cannot learn through network {options.network} of experts {experts} on "
                f"{inputs.dataset}: an inner step fails ({problem}); name experts with another network"
            )
    refuse(problems)
    module = inputs.module(options.network)
    for size, name in sizes.items():
        if problem := _shortage(inputs, module, *size):
            LOG.warning("method %s on %s: %s", name, inputs.dataset, problem)


def _problem(inputs: Inputs, network: str, step: Step) -> str | None:
    """Return why a step fails; None: it does not."""
    data, module = inputs.data, inputs.module(network)
    images, labels = _examples(inputs, step, IMAGES)
    augment = inputs.augmentation.per_step(make_generator("dry-step"), [len(images)], data.size)
    start = flatten(module)
    try:
        hypergradient(
            module,
            images,
            labels,
            0.01,
            lambda weights: matching_loss(weights, start, 0.9 * start),
            steps=1,
            loss=soft_cross_entropy,
            augment=augment if step.augment else None,
            engine=step.engine,
            precision=step.precision,
            stored=0,
        )
    except (torch.OutOfMemoryError, RunError):
        raise
    except (ValueError, RuntimeError) as error:
        return " ".join(str(error).split())
    return None


def _shortage(inputs: Inputs, module: nn.Module, step: Step, inner_steps: int, batch: int) -> str | None:
    """Return that a method's hypergradient takes more memory than this process has; None: it does not."""
    images, labels = _examples(inputs, step, SOME[1])
    batches = [torch.zeros(batch, dtype=torch.int64)] * inner_steps
    loop = InnerLoop(own(module, images), soft_cross_entropy, Sgd(), inner_steps, batches)
    point = Point(flatten(module), {})
    tensors = images, labels, torch.zeros((), device=inputs.device)
    return shortage(Unroll(step.engine, loop, point, *tensors, torch.sum, 0))


def _examples(inputs: Inputs, step: Step, count: int) -> tuple[Tensor, Tensor]:
    """Return the first real images, in the space of training, with labels of the step's kind."""
    data = inputs.data
    images = inputs.preprocessor.to(inputs.device).apply(data.train.images[:count])
    labels = data.train.labels[:count].to(inputs.device)
    return images, torch.zeros(len(images), data.classes, device=inputs.device) if step.soft else labels
