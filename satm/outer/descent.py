"""Plain gradient descent."""

from torch import Tensor

from satm.outer.base import HypergradientFn, OuterGradient


def descent(oracle: HypergradientFn, images: Tensor, last: int | None = None) -> OuterGradient:
    """Return the hypergradient at the images.

    Args:
        oracle: hypergradient of this iteration.
        images: `[n, C, H, W]` synthetic set.
        last: number of differentiated steps of the unroll; None: all.
    """
    answer = oracle(images, last=last)
    return OuterGradient(answer.loss, answer.images, answer.labels, answer.step_size)
