"""The stage `data`: decoded images and their whitening."""

import logging
from pathlib import Path

from satm.config import Resolver
from satm.data import fit_whitening, load_dataset, save_images, save_whitening
from satm.errors import UsageError
from satm.stages.common import stored_images

LOG = logging.getLogger("satm")


def make_images(resolver: Resolver, dataset: str) -> None:
    """Decode a dataset once and store it as uint8; the one of a step is part of the whole one, whose file serves it."""
    dataset = resolver.whole(dataset)
    data = load_dataset(dataset, resolver.dataset(dataset))
    path = Path(resolver.layout.images(dataset))
    save_images(path, data)
    LOG.info(
        "%s: %d training, %d validation and %d test images of %d classes, %d x %d x %d, hash %s -> %s",
        *(dataset, len(data.train), len(data.validation), len(data.test), data.classes),
        *(data.channels, data.size, data.size, data.hash[:12], path),
    )


def make_zca(resolver: Resolver, dataset: str) -> None:
    """Fit the ZCA whitening on the training images, for a step on those of the whole dataset, and store it."""
    dataset = resolver.whole(dataset)
    options = resolver.dataset(dataset)
    if not options.zca:
        raise UsageError(f"dataset {dataset} is not whitened; set zca: true in its options, or leave this step out")
    data = stored_images(resolver, dataset)
    whitening = fit_whitening(data.train.images, options.zca_eps, options.zca_per_image, options.zca_relative)
    path = Path(resolver.layout.zca(dataset))
    save_whitening(path, whitening, data.hash)
    LOG.info("ZCA of %d numbers, eps %g, hash %s -> %s", len(whitening.mean), whitening.eps, whitening.hash[:12], path)
