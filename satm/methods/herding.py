"""Herding.

Shapes: m images of one class, F features.
"""

import torch
from torch import Tensor

from satm.methods.base import register
from satm.methods.selection import Selection


@register("herding")
class Herding(Selection):
    """Choose images one after another so that the mean of the chosen ones stays as near as possible to the class's.

    Composition: as `Selection`.

    Source: Welling 2009; as iCaRL (Rebuffi et al. 2017), Algorithm 4, which DC's comparison takes over.
    """

    def pick(self, features: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Return the chosen images in their order; of equally good ones the first."""
        target, total = features.mean(0), torch.zeros_like(features[0])
        picked: list[int] = []
        for number in range(1, count + 1):
            distances = ((total + features) / number - target).norm(dim=1)
            distances[picked] = torch.inf
            picked.append(int(distances.argmin()))
            total = total + features[picked[-1]]
        return torch.tensor(picked)
