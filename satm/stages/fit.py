"""Whether the jobs of a campaign fit the images of a dataset, once they are read, and networks one batch of them."""

from collections.abc import Mapping
from typing import Any

import torch

from satm.config import Contents, Resolver
from satm.data import ImageData
from satm.errors import UsageError, refuse
from satm.networks import build
from satm.workflow.fit import Fit
from satm.workflow.graph import Job, Single


def check_images(resolver: Resolver, data: ImageData) -> None:
    """Refuse a campaign whose jobs on a dataset do not fit its images; `data` is the whole dataset.

    Raises:
        UsageError: one line with all that is wrong: too few images of a class, one class only, a class without test
            images where they are needed, a network that the images do not fit, and more (`satm.workflow.fit`).
    """
    names = (("dataset", data.name), ("root", resolver.layout.root))
    jobs = [job for job in Single(resolver).jobs() if _whole(resolver, job) == data.name]
    contents = contents_of(data)
    fit = Fit(resolver, lambda _: contents, network_problem)
    refuse(fit.problems([Job("images", names), *jobs]), str(resolver.path or ""))


def _whole(resolver: Resolver, job: Job) -> str | None:
    """Return the dataset of a job, for a step the whole one; None for tables and figures."""
    name: str | None = getattr(job.wildcards, "dataset", None)
    return name and resolver.whole(name)


def contents_of(data: ImageData) -> Contents:
    """Return what is known of images that were read."""
    train, test = (tuple(split.labels.bincount(minlength=data.classes).tolist()) for split in (data.train, data.test))
    return Contents(data.channels, data.size, data.classes, train, test, data.class_names)


def network_problem(network: Mapping[str, Any], contents: Contents, batch: int | None) -> str | None:
    """Return why a network cannot be trained on images; `batch`: number of images in its smallest batch.

    The network is built and called without values (on the device `meta`), which takes no time.
    """
    assert contents.channels is not None and contents.size is not None and contents.classes is not None
    name, count = network["network"], batch or 2
    try:
        with torch.device("meta"):
            module = build(network, contents.channels, contents.classes, contents.size, 0).train()
            module(torch.empty(count, contents.channels, contents.size, contents.size))
    except UsageError as error:
        return str(error).removeprefix(f"network {name}: ")
    except (ValueError, RuntimeError) as error:
        shape = f"{contents.channels} x {contents.size} x {contents.size}"
        return f"{name} cannot be trained on a batch of {count} images of {shape} ({error}); change one of them"
    return None
