"""How much the hypergradient depends on the real images that its loss is measured on.

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
    """Return the mean variance of a gradient's entries over samples, divided by the squared norm of their mean.

    ``mean_i(var_s(g_si)) / |mean_s(g_s)|^2``, the variance being the unbiased one over the samples.

    Args:
        gradients: `[s, m]`, s at least 2.

    Source: RaT-BPTT C.4, after Faghri et al. 2020.
    Differs: the paper does not say which norm it divides by; here it is that of the samples' mean, their gradient.
    """
    mean = gradients.mean(0)
    return float(gradients.var(0).mean() / mean.square().sum())


def gradient_variance(
    method: UnrolledTraining[UnrolledOptions], synthetic: Synthetic, iteration: int, samples: int
) -> dict[str, float]:
    """Return the normalised variance of the image hypergradient over single real images, and the norm of their mean.

    Network, window, batches and augmentation are those of the iteration; each sample is the loss on one real image.

    Args:
        method: of unrolled training.
        synthetic: the set at that iteration.
        iteration: outer steps done before; a window that depends on the method's state is where it begins.
        samples: real images, the first ones of the iteration's batch.
    """
    problem = method.problem
    images, labels = method.real_images(iteration, problem.generator("iteration", iteration))
    found = [gradient.flatten() for gradient in _each(method, synthetic, iteration, images[:samples], labels[:samples])]
    gradients = torch.stack(found)
    return {"variance": normalised_variance(gradients), "norm": float(gradients.mean(0).norm())}


def measure_variance(
    method: UnrolledTraining[UnrolledOptions], states: Iterable[tuple[int, Synthetic]], samples: int
) -> Iterator[dict[str, float | int]]:
    """Yield `gradient_variance` at one state of a set after another: the iterations done and the set there."""
    for iteration, synthetic in states:
        found = gradient_variance(method, synthetic, iteration, samples)
        yield {"iteration": iteration, "samples": min(samples, method.batch), **found}


def _each(
    method: UnrolledTraining[UnrolledOptions], synthetic: Synthetic, iteration: int, images: Tensor, labels: Tensor
) -> Iterator[Tensor]:
    for index in range(len(images)):
        # The same generator each time: draws of batches and augmentation are those of the iteration.
        generator = method.problem.generator("variance", iteration)
        part = (images[index : index + 1], labels[index : index + 1])
        yield method.unroll(synthetic, iteration, NO_STATE, part, generator).images
