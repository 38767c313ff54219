"""Linear parameterisation: images that are weighted sums of a few learned ones.

Shapes: n synthetic images of C x H x W, K classes, m basis images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from satm.methods.parts.parameterisation import Numbers, Parameterisation


@dataclass(frozen=True)
class Linear(Parameterisation):
    """`images = weights @ basis`, both learned.

    Args:
        basis: number of basis images, m.
        classes: number of classes, K; the initial images are sorted by class, with the same number of each.

    Source: Deng and Russakovsky 2022 (Remember the past), combined with RaT-BPTT in RaT-BPTT Figure 4.
    Differs: there each class has weights over a shared basis, and labels are computed in the same way; here each image
        has its own weights and the label that it would have without a basis. The initialisation is ours.
    """

    basis: int
    classes: int

    def split(self, images: Tensor) -> Numbers:
        """Return `basis` `[m, C, H, W]` and `weights` `[n, m]` whose images approximate `[n, C, H, W]` ones, n >= m.

        The basis is m of the images: the first of each class, then the second of each and so on, in the images' order.
        Every other image becomes its least-squares approximation in the basis, rescaled to its original norm, so that
        no image starts fainter than without a basis. With m = n the weights are the identity.
        """
        count, flat = len(images), images.detach().flatten(1).double().cpu()
        order = torch.arange(count).view(self.classes, -1).t().flatten()
        chosen = order[: self.basis].sort().values
        weights = flat @ torch.linalg.pinv(flat[chosen])
        norms = (weights @ flat[chosen]).norm(dim=1)
        weights *= torch.where(norms > 0, flat.norm(dim=1) / norms, 1)[:, None]
        weights[chosen] = torch.eye(self.basis, dtype=torch.float64)
        return {"basis": images[chosen.to(images.device)], "weights": weights.to(images)}

    def join(self, numbers: Numbers) -> Tensor:
        """Return `[n, C, H, W]` the weighted sums."""
        images: Tensor = torch.tensordot(numbers["weights"], numbers["basis"], 1)
        return images

    def pull(self, numbers: Numbers, gradient: Tensor) -> Numbers:
        """Return the gradients of `basis` and `weights`, given that of the images."""
        basis = torch.tensordot(numbers["weights"].t(), gradient, 1)
        return {"basis": basis, "weights": gradient.flatten(1) @ numbers["basis"].flatten(1).t()}
