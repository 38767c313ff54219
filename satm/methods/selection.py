"""Baselines that every method must beat: unchanged real images, drawn at random or chosen by an expert's features.

Composition of `random`: experts none; init real; labels hard; segments none; objective none; estimator none; step size
fixed; outer none.

`herding`: as `random`, experts sgd.
`k-center`: as `random`, experts sgd.

The step size for training on them is an option. Herding chooses images one after another so that the mean of the chosen
ones stays as close as possible to that of the class. K-center starts with the image nearest to the mean of the class;
each further one is the farthest from all before, so that no image of the class is far from a chosen one.

Source: herding: Welling 2009; as iCaRL (Rebuffi et al. 2017), Algorithm 4, which DC's comparison takes over. K-center:
    Sener and Savarese 2018, Algorithm 1 (greedy), in each class; the start as in DC's comparison.

Shapes: m images of one class, F features.
"""

from typing import TYPE_CHECKING

from satm.config.methods import MethodOptions, SelectionOptions
from satm.methods.recipe import CHOSEN_BY_EXPERTS, SELECTED, recipe

if TYPE_CHECKING:
    from torch import Generator, Tensor


def herding(features: "Tensor", count: int, generator: "Generator") -> "Tensor":
    """Return `[count]` int64, the chosen rows of `[m, F]` features in their order; ties are broken by index."""
    import torch

    target, total = features.mean(0), torch.zeros_like(features[0])
    rows: list[int] = []
    for number in range(1, count + 1):
        distances = ((total + features) / number - target).norm(dim=1)
        distances[rows] = torch.inf
        rows.append(int(distances.argmin()))
        total = total + features[rows[-1]]
    return torch.tensor(rows)


def k_center(features: "Tensor", count: int, generator: "Generator") -> "Tensor":
    """Return `[count]` int64, the greedy centers among `[m, F]` features in their order; ties are broken by index."""
    import torch

    newest = int((features - features.mean(0)).norm(dim=1).argmin())
    rows, far = [newest], torch.full((len(features),), torch.inf, dtype=features.dtype)
    while len(rows) < count:
        far = torch.minimum(far, (features - features[newest]).norm(dim=1))
        far[newest] = -1  # not chosen again, even among identical images
        newest = int(far.argmax())
        rows.append(newest)
    return torch.tensor(rows)


recipe("random", SELECTED, MethodOptions)
recipe("herding", CHOSEN_BY_EXPERTS, SelectionOptions, herding)
recipe("k-center", CHOSEN_BY_EXPERTS, SelectionOptions, k_center)
