"""One file per source of images: a function that lists the images, registered under the file's name.

A new file is found without an import elsewhere, and its name, with `-` for `_`, can be a dataset's `source`.
"""

from collections.abc import Callable

from satm.config import DatasetOptions
from satm.data.listing import Listing
from satm.registry import Registry

DATASETS: Registry[Callable[[DatasetOptions], Listing]] = Registry("satm.data.sources")
"""Every source by name: a function from a dataset's options to its images."""
