"""Real images, drawn at random: the baseline that every method must beat."""

from satm.methods.base import Method, register


@register("random")
class Random(Method):
    """Draw real training images of each class and keep them as they are.

    Composition: real images, hard labels; nothing is learned. The step size for training on them is an option.
    """
