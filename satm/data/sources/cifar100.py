"""The source `cifar100`."""

from satm.config import DatasetOptions
from satm.data.cifar import AUTHORS, Archive, list_cifar
from satm.data.listing import Listing
from satm.data.sources import DATASETS

ARCHIVE = Archive(
    f"{AUTHORS}/cifar-100-binary.tar.gz",
    168513733,
    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ["cifar-100-binary/train.bin"],
    "cifar-100-binary/test.bin",
    "cifar-100-binary/fine_label_names.txt",
    labels=2,  # the first one is one of 20 coarse classes
)


@DATASETS.named("cifar100")
def cifar100(options: DatasetOptions) -> Listing:
    """List CIFAR-100: 100 classes of 500 training and 100 test images."""
    return list_cifar(options, ARCHIVE)
