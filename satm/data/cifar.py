"""The CIFAR archives published by the authors, downloaded if they are missing.

The binary version is used: the one for Python consists of pickles, which run code when they are loaded. An archive's
SHA-256 is checked before anything is read, and it is read in place, without unpacking.
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

import numpy as np

from satm.config import DatasetOptions, data_path
from satm.config.source_files import holds_parquet
from satm.data.listing import Listing, Part, decoded_part
from satm.data.sources.parquet import parquet
from satm.errors import RunError, UsageError
from satm.run.progress import Progress
from satm.storage.files import atomic_path
from satm.storage.identity import hash_file

LOG = logging.getLogger("satm")

AUTHORS = "https://www.cs.toronto.edu/~kriz"
"""Folder of both archives."""

CHUNK = 2**20
"""Bytes downloaded at a time."""

TIMEOUT = 60.0
"""Seconds without an answer after which a download fails."""


@dataclass(frozen=True)
class Archive:
    """A published archive: address, size in bytes, hash, and the members with the images and the class names."""

    url: str
    size: int
    sha256: str
    train: Sequence[str]
    test: str
    names: str
    labels: int
    """Bytes before the pixels of an image; the last one is its class."""

    @property
    def name(self) -> str:
        """File name."""
        return self.url.rpartition("/")[2]


def list_cifar(options: DatasetOptions, archive: Archive) -> Listing:
    """List 32 x 32 images from image-parquet, else from the authors' archive, downloaded unless the folder has it.

    Raises:
        RunError: the archive cannot be downloaded or written, or the download is not the published file.
        UsageError: the archive in the folder is not the published one.
    """
    folder = data_path(options)
    if holds_parquet(folder):
        return parquet(options)
    path, source = folder / archive.name, options.source
    if not path.is_file():
        LOG.info("%s is not in %s: downloading it from its authors, %s", source, folder, archive.url)
        _download(path, source, archive)
    elif (actual := hash_file(path)) != archive.sha256:
        raise UsageError(
            f"{path} has the SHA-256 {actual}, expected {archive.sha256}: it was cut short or changed; delete it, and "
            "it is downloaded again"
        )
    with tarfile.open(path) as file:
        train = _read_part(file, archive.train, archive.labels, f"{folder} train")
        test = _read_part(file, [archive.test], archive.labels, f"{folder} test")
        return Listing(train, test, tuple(_read(file, archive.names).decode().split()), published=True)


def _download(path: Path, source: str, archive: Archive) -> None:
    digest, progress = hashlib.sha256(), Progress(f"{source}, MiB", math.ceil(archive.size / CHUNK))
    with atomic_path(path) as part, part.open("wb") as file, progress:
        for content in _receive(archive.url, path, source):
            digest.update(content)
            file.write(content)
            progress.step("")
        if (actual := digest.hexdigest()) != archive.sha256:
            raise RunError(
                f"{archive.url} is not the published file: got the SHA-256 {actual}, expected "
                f"{archive.sha256}; nothing was kept: start again"
            )


def _receive(url: str, path: Path, source: str) -> Iterator[bytes]:
    try:
        with contextlib.closing(urllib.request.urlopen(url, timeout=TIMEOUT)) as response:
            while content := response.read(CHUNK):
                yield content
    except (OSError, HTTPException) as error:
        text = " ".join(str(error).split())
        raise RunError(
            f"cannot download {source} to {path.parent} ({text}); connect to the network, or put the authors' "
            f"{path.name} or image-parquet files there, or set SATM_DATA to a folder that holds {source}"
        ) from error


def _read(archive: tarfile.TarFile, member: str) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # the archive's hash was checked
    with file:
        return file.read()


def _read_part(archive: tarfile.TarFile, members: Sequence[str], labels: int, where: str) -> Part:
    """List the images of some members; a record has the labels, then the red, green and blue pixels by rows."""
    content = b"".join(_read(archive, member) for member in members)
    records = np.frombuffer(content, np.uint8).reshape(-1, labels + 3 * 32 * 32)
    pixels = records[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return decoded_part(np.ascontiguousarray(pixels), records[:, labels - 1].tolist(), where)
