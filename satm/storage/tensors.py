"""Files of tensors, with hashes that reveal changes."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from satm.errors import UsageError
from satm.storage.files import AGAIN, atomic_path, require_file
from satm.storage.identity import hash_json

TENSOR_HASHES, METADATA_HASH = "tensors_sha256", "metadata_sha256"
"""Names of the hashes of a file's tensors, and of the hash of its metadata including these."""


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, object]) -> None:
    """Write tensors and metadata, JSON values by name, as a safetensors file, atomically, with hashes of all.

    The metadata are one JSON text with sorted keys, named ``satm``, because the format's own map of texts is written in
    an order that changes from run to run.
    """
    copies = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    content = json.loads(json.dumps(metadata))  # names that are numbers become texts, before hashing
    content[TENSOR_HASHES] = {name: hash_tensors(tensor) for name, tensor in copies.items()}
    content[METADATA_HASH] = hash_json(content)
    with atomic_path(path) as part:
        save_file(copies, part, metadata={"satm": json.dumps(content, sort_keys=True)})


def read_tensors(path: Path, what: str) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Return the tensors and the metadata of a file written by `write_tensors`.

    Raises:
        UsageError: the file is missing, cut short, changed, or not ours.
    """
    with open_tensors(path, what) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, read_metadata(file, path, what)  # noqa: SIM118


class TensorFile:
    """An open safetensors file that checks each tensor against its hash on reading.

    A file of an earlier version or of another program has no hashes and is not checked.

    Raises:
        UsageError: (on construction) the metadata are damaged or changed, or are those of other tensors.
    """

    def __init__(self, file: safe_open, path: Path, what: str) -> None:
        self._file, self._path, self._what = file, path, what
        self._hashes: dict[str, str] | None = None
        self.stated = self._stated((file.metadata() or {}).get("satm"))
        """The metadata that `write_tensors` stored, if any."""
        self.hashed = self._hashes is not None
        """Whether the file states a hash of each tensor."""

    def keys(self) -> list[str]:
        """Return the names of the tensors."""
        return list(self._file.keys())

    def get_tensor(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU.

        Raises:
            UsageError: its hash is not the stated one.
        """
        try:
            tensor: torch.Tensor = self._file.get_tensor(name)
        except (SafetensorError, ValueError, RuntimeError) as error:  # a type that torch lacks
            raise self._damaged(f"has a tensor {name!r} that cannot be read ({error})") from error
        if self._hashes is not None and hash_tensors(tensor) != self._hashes[name]:
            raise self._damaged(f"was changed: its tensor {name!r} does not have the hash that it states")
        return tensor

    def _stated(self, text: str | None) -> dict[str, object] | None:
        if text is None:
            return None
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"has damaged metadata ({error})") from error
        if not isinstance(content, dict):
            raise self._damaged(f"has damaged metadata (a {type(content).__name__})")
        stated = content.pop(METADATA_HASH, None)
        if stated is None and TENSOR_HASHES not in content:
            return content
        if stated != hash_json(content):
            raise self._damaged("was changed: its metadata do not have the hash that they state")
        self._hashes = content.pop(TENSOR_HASHES)
        if set(self._hashes) != set(self.keys()):
            raise self._damaged("was changed: it holds other tensors than it states")
        return content

    def _damaged(self, how: str) -> UsageError:
        return UsageError(f"{self._what} {self._path} {how}; {AGAIN}")


@contextlib.contextmanager
def open_tensors(path: Path, what: str) -> Iterator[TensorFile]:
    """Open a safetensors file by memory map, which reads only the requested tensors.

    Raises:
        UsageError: the file is missing or cut short, or its metadata were changed.
    """
    require_file(path, what)
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(
            f"{what} {path} is not a whole safetensors file ({error}); it was cut short or is something else: "
            "delete it and make it again"
        ) from error
    with file:
        yield TensorFile(file, path, what)


def read_metadata(file: TensorFile, path: Path, what: str) -> dict[str, object]:
    """Return the metadata that `write_tensors` stored.

    Raises:
        UsageError: there are none.
    """
    if file.stated is None:
        raise UsageError(f"{what} {path} was not written by satm (it has no 'satm' metadata); make it again")
    return dict(file.stated)


def hash_tensors(*tensors: torch.Tensor) -> str:
    """Return the SHA-256 of the tensors' types, shapes and bytes, in hexadecimal."""
    digest = hashlib.sha256()
    for tensor in tensors:
        copy = tensor.detach().to("cpu").contiguous()
        digest.update(f"{copy.dtype} {tuple(copy.shape)}".encode())
        digest.update(copy.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
