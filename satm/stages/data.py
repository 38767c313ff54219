"""The stage `data`: decoded images and their whitening."""

import logging
import os
from pathlib import Path

from satm.config import Resolver
from satm.config.source_files import source_state
from satm.data import fit_whitening, load_dataset, load_images, load_whitening, save_images, save_whitening
from satm.data.images import numbered
from satm.errors import UsageError
from satm.stages.fit import check_images
from satm.stages.inputs import stored_images
from satm.stages.job import account_of, may_replace
from satm.workflow.asked import of_images, wildcards

LOG = logging.getLogger("satm")


def make_images(resolver: Resolver, dataset: str) -> None:
    """Decode a dataset once and store it as uint8; the classes of a step are read from the whole dataset's file."""
    whole = resolver.whole(dataset)
    options = resolver.dataset(whole)
    with account_of(resolver.layout, "images", dataset=dataset):
        source = source_state(options)  # before they are read: files that change meanwhile count as changed
        data = load_dataset(whole, options)
        check_images(resolver, data)
        path = Path(resolver.layout.images(whole))
        before = path.stat() if path.is_file() else None
        if before and not may_replace(resolver) and load_images(path).hash != data.hash:
            raise UsageError(
                f"{path} exists and the images are others now; add --overwrite to replace it, and what was made with "
                "these images is to be made again"
            )
        stated = {"options": of_images(resolver, wildcards({"dataset": whole}))["options"].values, "source": source}
        save_images(path, data, {name: value for name, value in stated.items() if value})
        if before:  # what depends on them is compared by their hash; a later time would repeat it all the same
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        for note in data.notes:
            LOG.info("%s: %s", whole, note)
        for doubt in data.doubts:
            LOG.warning("%s: %s", whole, doubt)
        LOG.info(
            "%s: %d training, %d validation and %d test images of %d classes, %d x %d x %d, hash %s -> %s",
            *(whole, len(data.train), len(data.validation), len(data.test), data.classes),
            *(data.channels, data.size, data.size, data.hash[:12], path),
        )
        LOG.info("%s: classes %s", whole, numbered(data.class_names))


def make_zca(resolver: Resolver, dataset: str) -> None:
    """Fit and store the ZCA whitening of the training images; a step uses that of the whole dataset."""
    whole = resolver.whole(dataset)
    options = resolver.dataset(whole)
    if not options.zca:
        raise UsageError(f"dataset {whole} is not whitened; set zca: true in its options, or leave this step out")
    with account_of(resolver.layout, "zca", dataset=dataset):
        data = stored_images(resolver, whole)
        whitening = fit_whitening(data.train.images, options.zca_eps, options.zca_per_image, options.zca_relative)
        path = Path(resolver.layout.zca(whole))
        if path.is_file() and not may_replace(resolver) and load_whitening(path).hash != whitening.hash:
            raise UsageError(
                f"{path} exists and the whitening is another one now; add --overwrite to replace it, and what was made "
                "with it is to be made again"
            )
        save_whitening(path, whitening, data.hash)
        size, eps, sha256 = len(whitening.mean), whitening.eps, whitening.hash[:12]
        LOG.info("ZCA of %d numbers, eps %g, hash %s -> %s", size, eps, sha256, path)
