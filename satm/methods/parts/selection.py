"""Selection of training images by their features in an expert.

Shapes: m images of one class, F features.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from satm.config.methods import SelectionOptions
from satm.errors import UsageError
from satm.methods.parts.init import CHUNK, expert_outputs
from satm.methods.parts.method import Method
from satm.methods.parts.problem import Problem, Synthetic
from satm.methods.recipe import Recipe


class Selection(Method[SelectionOptions]):
    """Choose training images class by class, by their features in a trained network.

    A recipe's code is ``pick(features, count, generator) -> indices``. The features, `[m, F]`, are the inputs of the
    network's last linear layer for the images of one class; the indices, `[count]` int64 on the CPU, are distinct rows
    of them. The count is at most m; the generator, on the CPU, is for this class.

    Raises:
        UsageError: (on construction) no experts, or a class with fewer images than `ipc`.
    """

    def __init__(self, recipe: Recipe, options: SelectionOptions, problem: Problem) -> None:
        super().__init__(recipe, options, problem)
        assert problem.experts is not None  # or refused
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
        expert = self.experts.state(problem.expert_module, 0, self.experts.epochs)
        chosen = [
            members[self.recipe.code(self._features(members, expert), problem.ipc, problem.generator("pick", label))]
            for label, members in enumerate(problem.members)
        ]
        return self.synthetic(*problem.real.batch(torch.cat(chosen).to(problem.device)))

    def _features(self, members: Tensor, expert: Mapping[str, Tensor]) -> Tensor:
        problem = self.problem
        parts = (problem.real.batch(part.to(problem.device))[0] for part in members.split(CHUNK))
        return torch.cat([expert_outputs(problem, expert, images, embed=True).cpu() for images in parts])
