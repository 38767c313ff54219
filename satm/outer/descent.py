"""Plain gradient descent."""

from torch import Tensor

from satm.outer.base import Oracle, OuterGradient


def descent(oracle: Oracle, images: Tensor, last: int | None = None) -> OuterGradient:
    """Return the hypergradient at the images as it is.

    Args:
        oracle: of this iteration.
        images: `[n, C, H, W]` the synthetic set.
        last: differentiated steps of the unroll; None: all.
    """
    found = oracle(images, last=last)
    return OuterGradient(found.loss, found.images, found.labels, found.step_size)
