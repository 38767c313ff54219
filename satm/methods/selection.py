"""Choosing training images by what an expert sees in them: what all methods share that do.

Shapes: m images of one class, F features.
"""

from typing import ClassVar

import torch
from torch import Tensor

from satm.errors import UsageError
from satm.methods.base import Method, MethodOptions, Problem, Synthetic
from satm.methods.parts.embedding import embed_flat

CHUNK = 500
"""Real images that are embedded in one go."""


class SelectionOptions(MethodOptions):
    """Options of every method that chooses training images."""

    experts: str = "sgd"
    """Name of the experts; the first one's last snapshot says what images look like."""


class Selection(Method):
    """Choose training images class by class, by their features in a trained network. Subclasses say which: `pick`.

    Composition: real images, hard labels; nothing is learned. The step size for training on them is an option.

    Raises:
        UsageError: (on construction) no experts, or a class with fewer images than are asked for.
    """

    options: ClassVar[type[MethodOptions]] = SelectionOptions
    needs_experts: ClassVar[bool] = True
    settings: SelectionOptions

    def __init__(self, options: SelectionOptions, problem: Problem) -> None:
        super().__init__(options, problem)
        if problem.experts is None:
            raise UsageError(f"method {self.name!r} needs experts; make them with `python -m satm experts`")
        self.experts = problem.experts
        for label, members in enumerate(problem.members):
            if not 1 <= problem.ipc <= len(members):
                raise UsageError(
                    f"method {self.name!r} can choose 1 to {len(members)} images of class {label} "
                    f"({problem.data.class_names[label]}) of {problem.cell.dataset}, ipc is {problem.ipc}; use another "
                    "ipc"
                )

    def start(self) -> Synthetic:
        """Return the chosen images, sorted by class and in each class in the order of choice."""
        problem = self.problem
        weights = self.experts.snapshot(0, self.experts.epochs).to(problem.device)
        chosen = [
            members[self.pick(self._features(members, weights), problem.ipc, problem.generator("pick", label))]
            for label, members in enumerate(problem.members)
        ]
        return self.synthetic(*problem.real.batch(torch.cat(chosen).to(problem.device)))

    def pick(self, features: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Return `[count]` int64 on the CPU, which images of a class are chosen, all different.

        Args:
            features: `[m, F]` on the CPU, what the network's last linear layer sees of the images of one class.
            count: how many; at most m.
            generator: on the CPU, for this class.
        """
        raise TypeError(f"{type(self).__name__} must define pick()")

    @torch.no_grad()
    def _features(self, members: Tensor, weights: Tensor) -> Tensor:
        problem, found = self.problem, []
        for part in members.split(CHUNK):
            images, _ = problem.real.batch(part.to(problem.device))
            found.append(embed_flat(problem.module, weights.to(images), images).cpu())
        return torch.cat(found)
