"""CIFAR from the archives that its authors publish, downloaded where they are not there yet.

It is their binary version: the one for Python is made of pickles, which run what they say when they are loaded. An
archive is compared with its SHA-256 before anything is read, and read where it is; nothing is unpacked.
"""

import contextlib
import hashlib
import logging
import math
import tarfile
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from satm.errors import RunError, UsageError
from satm.run.progress import Progress
from satm.storage.files import atomic_path, hash_file

LOG = logging.getLogger("satm")

FROM = "https://www.cs.toronto.edu/~kriz"
"""Where the authors publish both."""

CHUNK = 2**20
"""Bytes that are downloaded at once."""

PATIENCE = 60.0
"""Seconds without an answer after which a download is given up."""


@dataclass(frozen=True)
class Published:
    """An archive as it is published.

    Args:
        name: of the file.
        size: in bytes.
        sha256: of the file, in hexadecimal.
        train: its files of training images.
        test: its file of test images.
        names: its file of the names of the classes.
        labels: bytes before the pixels of an image; the last one is its class.
    """

    name: str
    size: int
    sha256: str
    train: Sequence[str]
    test: str
    names: str
    labels: int


PUBLISHED = {
    "cifar10": Published(
        "cifar-10-binary.tar.gz",
        170052171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        [f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)],
        "cifar-10-batches-bin/test_batch.bin",
        "cifar-10-batches-bin/batches.meta.txt",
        labels=1,
    ),
    "cifar100": Published(
        "cifar-100-binary.tar.gz",
        168513733,
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ["cifar-100-binary/train.bin"],
        "cifar-100-binary/test.bin",
        "cifar-100-binary/fine_label_names.txt",
        labels=2,  # the first one is of 20 coarse classes
    ),
}

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Cifar:
    """What an archive holds: pixels `[n, 32, 32, 3]`, raw, the labels of both parts, and the classes by label."""

    train: Pixels
    train_labels: list[int]
    test: Pixels
    test_labels: list[int]
    class_names: tuple[str, ...]


def read_cifar(folder: Path, source: str) -> Cifar:
    """Return CIFAR-10 or CIFAR-100; its archive is downloaded into a folder that does not hold it.

    Args:
        folder: of the archive.
        source: `cifar10` or `cifar100`.

    Raises:
        RunError: it cannot be downloaded or written, or something else was sent.
        UsageError: the archive in the folder is not the published one.
    """
    published = PUBLISHED[source]
    path = folder / published.name
    if not path.is_file():
        LOG.info("%s is not in %s: downloading it from its authors, %s/%s", source, folder, FROM, published.name)
        _download(path, source, published)
    elif (found := hash_file(path)) != published.sha256:
        raise UsageError(
            f"{path} has the SHA-256 {found}, expected {published.sha256}: it was cut short or changed; delete it, and "
            "it is downloaded again"
        )
    with tarfile.open(path) as archive:
        train = np.concatenate([_records(archive, name, published.labels) for name in published.train])
        test = _records(archive, published.test, published.labels)
        names = tuple(_content(archive, published.names).decode().split())
    return Cifar(*_split(train, published.labels), *_split(test, published.labels), names)


def _download(path: Path, source: str, published: Published) -> None:
    digest = hashlib.sha256()
    with (
        atomic_path(path) as part,
        part.open("wb") as file,
        Progress(f"{source}, MiB", math.ceil(published.size / CHUNK)) as progress,
    ):
        for content in _sent(path, source):
            digest.update(content)
            file.write(content)
            progress.step("")
        if (found := digest.hexdigest()) != published.sha256:
            raise RunError(
                f"{FROM}/{path.name} sent something else: got the SHA-256 {found}, expected {published.sha256}; "
                "nothing of it was kept, start again"
            )


def _sent(path: Path, source: str) -> Iterator[bytes]:
    try:
        with contextlib.closing(urllib.request.urlopen(f"{FROM}/{path.name}", timeout=PATIENCE)) as response:
            while content := response.read(CHUNK):
                yield content
    except (OSError, HTTPException) as error:
        text = " ".join(str(error).split())
        raise RunError(
            f"cannot get {source} into {path.parent} ({text}); connect to the network, or put {path.name} of its "
            f"authors or image-parquet files there, or set SATM_DATA to a folder that holds {source}"
        ) from error


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    with cast(Any, archive.extractfile(name)) as file:
        return bytes(file.read())


def _records(archive: tarfile.TarFile, name: str, labels: int) -> Pixels:
    """Return `[n, labels + 3072]`: the labels of each image, then its red, green and blue pixels by rows."""
    return np.frombuffer(_content(archive, name), np.uint8).reshape(-1, labels + 3 * 32 * 32)


def _split(records: Pixels, labels: int) -> tuple[Pixels, list[int]]:
    pixels = records[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels), records[:, labels - 1].tolist()
