"""Variance of the hypergradient over the real images of its outer loss.

Shapes: n synthetic images of C x H x W.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from satm.config.methods import UnrolledOptions
from satm.methods.parts.problem import Synthetic
from satm.methods.parts.unrolled import UnrolledTraining
from satm.outer import NO_STATE


def normalised_variance(gradients: Tensor) -> float:
    """Return ``mean_i(var_s(g_si)) / |mean_s(g_s)|^2`` of gradients g, `[s, m]`, over at least 2 samples s.

    The variance is the unbiased one.

    Source: RaT-BPTT C.4, after Faghri et al. 2020.
    Differs: the paper does not say which norm it divides by; here it is that of the samples' mean, their gradient.
    """
    mean = gradients.mean(0)
    return float(gradients.var(0).mean() / mean.square().sum())


def gradient_variance(
    method: UnrolledTraining[UnrolledOptions], synthetic: Synthetic, iteration: int, samples: int
) -> dict[str, float]:
    """Return the normalised variance of the image hypergradient over single real images, and the norm of their mean.

    Network, window, batches and augmentation are those of the iteration, as if the method's state were fresh; each
    sample is the loss on one real image, of the first ones in the iteration's batch.
    """
    problem = method.problem
    images, labels = method.real_images(iteration, problem.generator("iteration", iteration))
    gradients = []
    for image, label in zip(images[:samples].split(1), labels[:samples].split(1), strict=True):
        # The same generator each time: draws of batches and augmentation are those of the iteration.
        generator = problem.generator("variance", iteration)
        gradients.append(method.unroll(synthetic, iteration, NO_STATE, image, label, generator).images.flatten())
    stacked = torch.stack(gradients)
    return {"variance": normalised_variance(stacked), "norm": float(stacked.mean(0).norm())}


def measure_variance(
    method: UnrolledTraining[UnrolledOptions], states: Iterable[tuple[int, Synthetic]], samples: int
) -> Iterator[dict[str, float | int]]:
    """Yield `gradient_variance` at each state of a set, given as completed iterations and the set after them."""
    for iteration, synthetic in states:
        row = gradient_variance(method, synthetic, iteration, samples)
        yield {"iteration": iteration, "samples": min(samples, method.batch), **row}
