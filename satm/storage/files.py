"""Writes that are whole or absent, and records. Nothing here imports torch (`satm.storage.tensors` does)."""

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from satm.errors import RunError, UsageError
from satm.storage.identity import hash_json

HASH = "sha256"
"""Name under which a record states the hash of all others."""

AGAIN = "delete it and make it again"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it replaces `path`, on any error it is removed.

    The content is flushed to the disk before the rename, so a crash leaves the old file or the new one, never half.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    with explain_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
        try:
            part.touch(exist_ok=False)  # with the rights of an ordinary file, whatever the writer would give it
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
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
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what} {path} is not readable JSON ({error}); delete it and make it again") from error
    if not isinstance(content, dict):
        raise UsageError(f"{what} {path} holds a {type(content).__name__}, expected a JSON object; make it again")
    return content


def write_record(path: Path, content: Mapping[str, object]) -> None:
    """Write JSON values by name with the hash of them all, atomically; `read_record` compares it."""
    held = json.loads(json.dumps(content))  # numbers as names become texts here, before the hash is taken
    write_json(path, {**held, HASH: hash_json(held)})


def read_record(path: Path, what: str, fields: Mapping[str, type]) -> dict[str, Any]:
    """Return what `write_record` wrote. A file of an earlier version, which has no hash, is read too.

    `what` is the word for the file in messages; `fields` are all names that it must hold, with the type of each value.

    Raises:
        UsageError: the file is missing, is no such object, or was changed.
    """
    content: dict[str, Any] = read_json(path, what)
    stated = content.pop(HASH, None)
    if set(content) != set(fields):
        raise UsageError(
            f"{what} {path} holds {_listed(content)}, expected {_listed(fields)}: it is damaged or something else; "
            "delete it and make it again"
        )
    if stated is not None and stated != hash_json(content):
        raise UsageError(f"{what} {path} was changed: it does not have the hash that it states; {AGAIN}")
    return expect(content, fields, f"{what} {path}")


def expect(content: Mapping[str, object], fields: Mapping[str, type], where: str) -> dict[str, Any]:
    """Return JSON values by name, compared with the types in `fields`; `float` takes whole numbers too.

    Raises:
        UsageError: one is missing or of another type; `where` says in the message what they are of.
    """
    for name, kind in fields.items():
        if name not in content:
            raise UsageError(f"{where} says nothing of {name}: it is damaged or of another version; {AGAIN}")
        wanted = (int, float) if kind is float else kind
        if not isinstance(value := content[name], wanted) or (isinstance(value, bool) and kind is not bool):
            raise UsageError(f"{where}: {name} is a {type(value).__name__}, expected a {kind.__name__}; {AGAIN}")
    return dict(content)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names))) or "nothing"


def disk_is_full(error: RunError) -> bool:
    """Say whether a failed write lacked space."""
    cause = error.__cause__
    if isinstance(cause, OSError):
        return cause.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(cause, SafetensorError) and "No space left" in str(cause)
