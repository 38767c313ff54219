"""Atomic writes, and records. Nothing here imports torch (`satm.storage.tensors` does)."""

import contextlib
import errno
import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from satm.errors import RunError, UsageError
from satm.storage.identity import hash_json

HASH = "sha256"
"""Name of the hash of all other values in a record."""

AGAIN = "delete it and make it again"

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a full disk."""

DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a folder that this process may not change."""


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` on success and is removed on any error.

    The content is flushed to the disk before the rename, so a crash leaves the old file or the new one, never half.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    with explain_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
        try:
            part.touch(exist_ok=False)  # with the permissions of an ordinary file, whatever the writer would set
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Check that a file can be written, before its content is computed; its folder is created.

    Raises:
        RunError: the folder cannot be created or written, or the file's path is a folder.
    """
    if path.is_dir():
        raise RunError(f"cannot write {path}: it is a folder; move it away")
    with explain_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


@contextlib.contextmanager
def explain_disk(path: Path) -> Iterator[None]:
    """Turn a disk fault into a `RunError` that names the path and the cause."""
    try:
        yield
    except OSError as error:
        advice = "check that the folder exists and can be written"
        if error.errno in FULL:
            advice = "free some space and start again, the run resumes where it stopped"
        elif blocks := [parent for parent in path.parents if os.path.lexists(parent) and not parent.is_dir()]:
            advice = f"{blocks[0]} is no folder, nor a link to one; remove it, or make the folder that it links to"
        elif error.errno in DENIED:
            advice = "name a folder that you may write to; results go below the one in which a command starts"
        raise RunError(f"cannot write {path}: {error.strerror or error}; {advice}") from error
    except SafetensorError as error:  # its writer wraps the system's error in another text
        raise RunError(f"cannot write {path}: {error}; free space or check the folder, then start again") from error


def write_record(path: Path, content: Mapping[str, object]) -> None:
    """Write JSON values by name, sorted, with their hash, atomically; `read_record` checks the hash."""
    values = json.loads(json.dumps(content))  # names that are numbers become texts, before hashing
    with atomic_path(path) as part:
        text = json.dumps({**values, HASH: hash_json(values)}, indent=2, sort_keys=True)
        part.write_text(text + "\n", encoding="utf-8")


def require_file(path: Path, what: str) -> None:
    """Raise a UsageError unless a file exists; `what` describes it in the message."""
    if path.is_dir():
        raise UsageError(f"{what} {path} is a folder; name the file in it")
    if not path.is_file():
        raise UsageError(f"{what} {path} does not exist; make it first")


def read_record(path: Path, what: str, fields: Mapping[str, type]) -> dict[str, Any]:
    """Return the values that `write_record` wrote, without the hash, which files of an earlier version lack.

    `what` describes the file in messages; `fields` has the type of each value, by name.

    Raises:
        UsageError: the file is missing, not a JSON object, has other fields, or was changed.
    """
    require_file(path, what)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what} {path} is not readable JSON ({error}); {AGAIN}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{what} {path} holds a {type(content).__name__}, expected a JSON object; make it again")
    stated = content.pop(HASH, None)
    if set(content) != set(fields):
        names, expected = (", ".join(map(repr, sorted(each))) or "nothing" for each in (content, fields))
        raise UsageError(f"{what} {path} holds {names}, expected {expected}: it is damaged or something else; {AGAIN}")
    if stated is not None and stated != hash_json(content):
        raise UsageError(f"{what} {path} was changed: it does not have the hash that it states; {AGAIN}")
    return expect(content, fields, f"{what} {path}")


def expect(content: Mapping[str, object], fields: Mapping[str, type], where: str) -> dict[str, Any]:
    """Check JSON values by name against the types in `fields`, and return them; `float` takes whole numbers too.

    Raises:
        UsageError: a value of the file `where` is missing or has another type.
    """
    for name, kind in fields.items():
        if name not in content:
            raise UsageError(f"{where} lacks {name}: it is damaged or of another version; {AGAIN}")
        kinds = (int, float) if kind is float else kind
        if not isinstance(value := content[name], kinds) or (isinstance(value, bool) and kind is not bool):
            raise UsageError(f"{where}: {name} is a {type(value).__name__}, expected a {kind.__name__}; {AGAIN}")
    return dict(content)


def disk_is_full(error: RunError) -> bool:
    """Return whether a failed write lacked space."""
    cause = error.__cause__
    if isinstance(cause, OSError):
        return cause.errno in FULL
    return isinstance(cause, SafetensorError) and "No space left" in str(cause)
