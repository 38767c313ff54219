"""Writes that are whole or absent."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from satm.errors import RunError, UsageError

LOG = logging.getLogger("satm")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it replaces `path`, on any error it is removed.

    The content is flushed to the disk before the rename, so a crash leaves the old file or the new one, never half.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    with explain_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        part = Path(name)
        try:
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            part.chmod(0o666 & ~umask)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def explain_disk(path: Path) -> Iterator[None]:
    """Turn the faults of a disk into a `RunError` that names the path and the cause."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; {_disk_advice(error)}") from error
    except SafetensorError as error:  # its writer wraps the system's error in a text of its own
        raise RunError(f"cannot write {path}: {error}; free space or check the folder, then start again") from error


def _disk_advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space and start again, the run resumes where it was"
    return "check that the folder exists and can be written"


def write_json(path: Path, content: object) -> None:
    """Write JSON with sorted keys, atomically."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_json(path: Path, what: str) -> dict[str, object]:
    """Return the object in a JSON file.

    Raises:
        UsageError: the file is missing, or is not a JSON object (half-written, or another kind of file).
    """
    if not path.is_file():
        raise UsageError(f"{what} {path} does not exist; make it first")
    try:
        content = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise UsageError(f"{what} {path} is not readable JSON ({error}); delete it and make it again") from error
    if not isinstance(content, dict):
        raise UsageError(f"{what} {path} holds a {type(content).__name__}, expected a JSON object; make it again")
    return content


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, object]) -> None:
    """Write a safetensors file atomically.

    Args:
        path: where to.
        tensors: by name; they are copied to the CPU and made contiguous.
        metadata: JSON values by name; stored as one JSON text under ``satm``. One text with sorted keys, because the
            format's own map of texts is written in an order that changes from run to run.
    """
    held = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as part:
        save_file(held, part, metadata={"satm": json.dumps(metadata, sort_keys=True)})


def read_tensors(path: Path, what: str) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Return the tensors and the metadata of a file written by `write_tensors`.

    Raises:
        UsageError: the file is missing, cut short, or not ours.
    """
    with open_tensors(path, what) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, read_metadata(file, path, what)  # noqa: SIM118


@contextlib.contextmanager
def open_tensors(path: Path, what: str) -> Iterator[safe_open]:
    """Open a safetensors file by memory map, so that reading one tensor does not read the others.

    Raises:
        UsageError: the file is missing or cut short.
    """
    if not path.is_file():
        raise UsageError(f"{what} {path} does not exist; make it first")
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(
            f"{what} {path} is not a whole safetensors file ({error}); it was cut short or is something else: "
            "delete it and make it again"
        ) from error
    with file:
        yield file


def read_metadata(file: safe_open, path: Path, what: str) -> dict[str, object]:
    """Return the metadata that `write_tensors` stored.

    Raises:
        UsageError: there is none, or it was damaged.
    """
    text = (file.metadata() or {}).get("satm")
    if text is None:
        raise UsageError(f"{what} {path} was not written by satm (it carries no 'satm' metadata); make it again")
    try:
        content: dict[str, object] = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{what} {path} has damaged metadata ({error}); delete it and make it again") from error
    return content


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_text(text: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def hash_tensors(*tensors: torch.Tensor) -> str:
    """Return the SHA-256 of the tensors' types, shapes and bytes, in hexadecimal."""
    digest = hashlib.sha256()
    for tensor in tensors:
        held = tensor.detach().to("cpu").contiguous()
        digest.update(f"{held.dtype} {tuple(held.shape)}".encode())
        digest.update(held.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


SPACE_WAIT = 600.0
"""Seconds that a finished result waits for space on a full disk."""


def patiently(write: Callable[[], object]) -> None:
    """Write a finished result; on a full disk try again until there is space, so that what was computed is not lost.

    Raises:
        RunError: there is none after `SPACE_WAIT`, or the fault is another one.
    """
    until, told = time.monotonic() + SPACE_WAIT, False
    while True:
        try:
            write()
            return
        except RunError as error:
            if not disk_is_full(error) or time.monotonic() > until:
                raise
            if not told:
                LOG.warning("%s; trying again for %g s", error, SPACE_WAIT)
                told = True
            time.sleep(min(5.0, SPACE_WAIT / 10))


def disk_is_full(error: RunError) -> bool:
    """Say whether a failed write lacked space."""
    cause = error.__cause__
    if isinstance(cause, OSError):
        return cause.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(cause, SafetensorError) and "No space left" in str(cause)
