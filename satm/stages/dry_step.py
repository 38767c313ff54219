"""One inner step before experts are trained: does every method that will match them get a hypergradient?"""

from dataclasses import dataclass

import torch

from satm.config import ExpertsOptions
from satm.config.methods import MatchingOptions
from satm.errors import RunError, refuse
from satm.methods.mtt import matching_loss
from satm.networks.training import soft_cross_entropy
from satm.params import flatten
from satm.seeds import make_generator
from satm.stages.inputs import Inputs
from satm.unroll import hypergradient
from satm.workflow.asked import cell_of
from satm.workflow.graph import Single
from satm.workflow.options import method_options

IMAGES = 2
"""Real images of the step."""


@dataclass(frozen=True)
class Step:
    """What an inner step of a method depends on, beside the network and the images."""

    engine: str
    soft: bool
    augment: bool


def check_step(inputs: Inputs, experts: str, options: ExpertsOptions) -> None:
    """Refuse experts through whose network a method of the campaign cannot learn.

    A fresh network takes one step on two real images for each kind of step among the methods that match these experts,
    and the hypergradient is computed. No random generator of a run is used.

    Raises:
        UsageError: one line with every method for which that fails, such as for a network that cannot be differentiated
            twice.
    """
    steps: dict[Step, str] = {}
    for job in Single(inputs.resolver).jobs():
        if job.rule == "distill" and job.wildcards.dataset == inputs.dataset:
            cell = cell_of(job.wildcards)
            method = method_options(inputs.resolver.method(cell))
            if isinstance(method, MatchingOptions) and method.experts == experts:
                step = Step(method.engine, method.labels != "hard", method.augment)
                steps.setdefault(step, cell.method)
    problems = []
    for step, name in steps.items():
        if problem := _problem(inputs, options.network, step):
            problems.append(
                f"method {name} cannot learn through network {options.network} of experts {experts} on "
                f"{inputs.dataset}: an inner step fails ({problem}); name experts with another network"
            )
    refuse(problems)


def _problem(inputs: Inputs, network: str, step: Step) -> str | None:
    """Return why a step fails; None: it does not."""
    data, module = inputs.data, inputs.module(network)
    images = inputs.preprocessor.to(inputs.device).apply(data.train.images[:IMAGES])
    labels, count = data.train.labels[:IMAGES].to(inputs.device), len(images)
    if step.soft:
        labels = torch.zeros(count, data.classes, device=inputs.device)
    augment = inputs.augmentation.per_step(make_generator("dry-step"), [count], data.size) if step.augment else None
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
            augment=augment,
            engine=step.engine,
        )
    except (torch.OutOfMemoryError, RunError):
        raise
    except (ValueError, RuntimeError) as error:
        return " ".join(str(error).split())
    return None
