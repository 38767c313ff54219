"""A method ready to run: a recipe with its options on a problem. One class per family derives from `Method`."""

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from satm.config.methods import IterativeOptions, MethodOptions
from satm.errors import UsageError, refuse
from satm.methods.parts.init import INITS, real
from satm.methods.parts.labels import LABELS
from satm.methods.parts.parameterisation import Parameterisation
from satm.methods.parts.problem import Problem, Synthetic
from satm.methods.recipe import Recipe
from satm.outer import NO_STATE, MethodState, OuterGradient
from satm.unroll import obstacle

DOUBTS = "doubts"
"""Subject of the note that is a warning."""

OptionsT = TypeVar("OptionsT", bound=MethodOptions, covariant=True)


class Method(Generic[OptionsT]):
    """A way to make a synthetic set: real images with hard labels, unless a family says otherwise.

    Args:
        recipe: the recipe whose `code` the family calls.
        options: checked options of the recipe.
        problem: data, networks and experts of the method.

    Raises:
        UsageError: (on construction) options, experts and data do not fit together.
    """

    parameterisation = Parameterisation()
    """The learned tensors: the images themselves, or tensors that they are computed from."""

    caution: str | None = None
    """Fault of the experts, which is the likelier cause if a run fails."""

    def __init__(self, recipe: Recipe, options: OptionsT, problem: Problem) -> None:
        self.recipe, self.options, self.problem = recipe, options, problem
        self.name = recipe.name
        self.iterative = isinstance(options, IterativeOptions)
        """Whether the set is improved in outer iterations."""
        self.notes: Mapping[str, str] = {}
        """Descriptions, by subject, of decisions that no option determines; logged, and stored beside the options."""
        self.selection: str = options.selection if isinstance(options, IterativeOptions) else "last"
        """Selected iteration: `last`, or the best on `validation` or `test` images."""
        if recipe.needs_experts and problem.experts is None:
            raise UsageError(f"method {self.name!r} needs experts; train them with `python -m satm experts`")
        refuse(recipe.problems(options, problem.facts))
        if recipe.family.differentiates and (layer := obstacle(problem.module)):
            raise UsageError(
                f"method {self.name!r} cannot learn through this network, whose layer {layer}; use a network without "
                "such layers, for example with another norm"
            )

    def start(self) -> Synthetic:
        """Return the set before the first iteration, by the options `init` and `labels`."""
        options, problem = self.options, self.problem
        if not isinstance(options, IterativeOptions):
            return self.synthetic(*real(problem, None))
        images, classes = INITS[options.init](problem, options.init_norm)
        return self.synthetic(images, LABELS[options.labels](problem, images, classes, options))

    def synthetic(self, images: Tensor, labels: Tensor) -> Synthetic:
        """Return images and labels with the initial step size."""
        return Synthetic(images, labels, torch.tensor(self.options.step_size, device=images.device))

    def rates(self) -> dict[str, float]:
        """Return the outer learning rate of each tensor that is learned."""
        options: Any = self.options
        soft = {"labels": options.lr_labels} if options.labels == "learned" else {}
        return {"images": options.lr_images, **soft, "step_size": options.lr_step_size}

    def gradient(self, synthetic: Synthetic, iteration: int, state: MethodState = NO_STATE) -> OuterGradient:
        """Return the gradient that the outer step of this iteration follows; a pure function of its arguments.

        `iteration` counts the completed outer iterations; `state` is `OuterGradient.state` of the previous one.
        """
        outer: OuterGradient = self.recipe.code(self, synthetic, iteration, state)
        return outer

    def observe(self, synthetic: Synthetic, iteration: int) -> Mapping[str, float]:
        """Return further measurements of the set before an iteration, by column of the metrics."""
        return {}

    def finish(self, synthetic: Synthetic, iteration: int) -> Synthetic:
        """Return the set in the form that is evaluated and stored, after some iterations."""
        return synthetic
