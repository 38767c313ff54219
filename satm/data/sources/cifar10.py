"""The source `cifar10`."""

from satm.config import DatasetOptions
from satm.data.cifar import AUTHORS, Archive, list_cifar
from satm.data.listing import Listing
from satm.data.sources import DATASETS

ARCHIVE = Archive(
    f"{AUTHORS}/cifar-10-binary.tar.gz",
    170052171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    [f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)],
    "cifar-10-batches-bin/test_batch.bin",
    "cifar-10-batches-bin/batches.meta.txt",
    labels=1,
)


@DATASETS.named("cifar10")
def cifar10(options: DatasetOptions) -> Listing:
    """List CIFAR-10: 10 classes of 5,000 training and 1,000 test images."""
    return list_cifar(options, ARCHIVE)
