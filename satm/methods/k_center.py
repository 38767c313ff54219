"""Greedy k-center.

Shapes: m images of one class, F features.
"""

import torch
from torch import Tensor

from satm.methods.base import register
from satm.methods.selection import Selection


@register("k-center")
class KCenter(Selection):
    """Choose images so that none of a class is far from a chosen one, greedily.

    The first is the one nearest to the mean of the class, each further one that which is farthest from all before.

    Composition: as `Selection`.

    Source: Sener and Savarese 2018, Algorithm 1 (greedy k-center), in each class; the start as in DC's comparison.
    """

    def pick(self, features: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Return the greedy centers in the order in which they are found; of equal ones the first."""
        newest = int((features - features.mean(0)).norm(dim=1).argmin())
        picked, far = [newest], torch.full((len(features),), torch.inf, dtype=features.dtype)
        while len(picked) < count:
            far = torch.minimum(far, (features - features[newest]).norm(dim=1))
            far[newest] = -1  # so that images that are all alike are not chosen twice
            newest = int(far.argmax())
            picked.append(newest)
        return torch.tensor(picked)
