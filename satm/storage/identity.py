"""Hashes, and the fields in which two identities differ.

Nothing here imports torch; `satm.storage.tensors` hashes tensors.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from satm.errors import some

Identity = Mapping[str, Any]
"""Everything that determines a result, as JSON values: options, revision, hashes of its inputs."""

ROUNDING = 1e-12
"""Relative difference up to which two numbers of an identity count as equal."""

MOST = 5
"""Largest number of differences in a message."""


def differences(expected: object, found: object, path: str = "") -> list[str]:
    """Return every field in which two trees of JSON values differ, with both values.

    Rounding differences count as equal, because processors add in different orders.
    """
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        places = [(key, f"{path}.{key}" if path else str(key)) for key in sorted({*expected, *found})]
        return [each for key, place in places for each in differences(expected.get(key), found.get(key), place)]
    if _equal(expected, found):
        return []
    if _is_hash(expected) and _is_hash(found):
        return [f"{path}: expected {expected[:8]}…, found {found[:8]}…"]
    texts = [_shortened(value) for value in (expected, found)]
    if texts[0] == texts[1]:
        texts = [repr(expected), repr(found)]
    return [f"{path}: expected {texts[0]}, found {texts[1]}"]


def differing_fields(expected: object, found: object) -> str | None:
    """Return the `differences` for a message; None if there are none."""
    return described(differences(expected, found))


def described(found: Sequence[str]) -> str | None:
    """Return differences for a message, the first ones if there are many; None if there are none."""
    return some(found, most=MOST, between="; ") if found else None


def _shortened(value: object) -> str:
    """Return a value for a message, lists of numbers to six digits."""
    if isinstance(value, list | tuple) and all(isinstance(each, float) for each in value):
        return f"[{', '.join(f'{each:.6g}' for each in value)}]"
    return repr(value)


def _is_hash(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _equal(expected: object, found: object) -> bool:
    if isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        return len(expected) == len(found) and all(map(_equal, expected, found))
    if isinstance(expected, float) and isinstance(found, float):
        return math.isclose(expected, found, rel_tol=ROUNDING)
    return expected == found


def hash_json(content: object) -> str:
    """Return the SHA-256 of JSON values, in hexadecimal; it does not depend on the order of names."""
    return hash_bytes(json.dumps(content, sort_keys=True).encode())


def hash_bytes(content: bytes) -> str:
    """Return the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_path(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of all files in a folder, in hexadecimal."""
    if not path.is_dir():
        return hash_file(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return hash_json({file.relative_to(path).as_posix(): hash_file(file) for file in files})
