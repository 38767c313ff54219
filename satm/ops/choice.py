"""The choice between operations of our own and PyTorch's for a network: whichever is faster, measured once.

A choice is for a network, a size of batch, a number of threads, a machine, and versions of PyTorch and of the
operations. The first process measures it and writes it into the user's cache folder, from which later ones read it, so
that they compute the same bytes. A stored state of a run has the choices that the run was begun with, and a resumed run
keeps them.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from satm.errors import pick
from satm.ops.agreement import disagreement
from satm.ops.build import FOLDER, cache_folders, processor
from satm.ops.fuse import fused, is_fused

LOG = logging.getLogger("satm")

OPERATIONS = "SATM_OPERATIONS"
"""Environment variable: `own` or `plain` operations for every network; `measured` (default) chooses for each."""

ROUNDS = 4
"""Measurements of each way, after one that is not counted."""

ENOUGH = 2.0
"""Seconds after which no further round of measurements begins."""

OWN, PLAIN, MEASURED = "own", "plain", "measured"

AGREES = "_agrees_for_shapes"
"""Attribute of a network that the pass made: whether it computes the same as the original, by the input's shape."""

_measured: list[str] = []

_choices: dict[str, str] = {}
"""Choices that this process has made, read or taken over, by key."""

_keys: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], str]] = WeakKeyDictionary()
"""Keys of networks."""


def own(module: nn.Module, images: Tensor) -> nn.Module:
    """Return the network with operations of our own, or itself.

    The network itself is used if the environment asks for PyTorch's operations, if the pass changes nothing, or if what
    it made does not compute the same (`satm.ops.agreement`), which the log says.

    Args:
        module: the network.
        images: `[n, ...]`, an example of its input.

    Raises:
        UsageError: the environment variable has an unknown value.
    """
    if _asked() == PLAIN or is_fused(module):
        return module
    made, shape = fused(module), tuple(images.shape[1:])
    if made is module:
        return module
    verdicts: dict[tuple[int, ...], bool] = vars(made).setdefault(AGREES, {})
    if shape not in verdicts:
        reason = disagreement(made, module, images)
        verdicts[shape] = reason is None
        if reason:
            LOG.info("PyTorch's operations are used for this network, because those of satm do not suit it: %s", reason)
    return made if verdicts[shape] else module


def fastest(
    module: nn.Module, size: tuple[object, ...], images: Tensor, work: Callable[[nn.Module], object]
) -> nn.Module:
    """Return a network that computes the same with the operations that are faster.

    Args:
        module: the network.
        size: the kind of work in words, and the shapes and types that its time depends on.
        images: `[n, ...]`, an example of its input, on the device where it runs.
        work: the work, of which one call is measured; it must not change the network.

    Raises:
        UsageError: the environment variable has an unknown value.
    """
    made, device = own(module, images), images.device
    if made is module or _asked() != MEASURED:
        return made
    keys, here = _keys.setdefault(module, {}), (*size, str(device), torch.get_num_threads())
    if here not in keys:
        keys[here] = _key(module, here, device)
    key = keys[here]
    if key not in _choices and (stored := _read(key)) is not None:
        _choices[key] = stored
    if key not in _choices:
        _choices[key] = _write(key, _measure({OWN: made, PLAIN: module}, str(size[0]), device, work))
        _measured.append(key)
    return made if _choices[key] == OWN else module


def _asked() -> str:
    value = os.environ.get(OPERATIONS) or MEASURED
    pick(value, dict.fromkeys((OWN, PLAIN, MEASURED)), f"value of {OPERATIONS}")
    return value


def measured() -> int:
    """Return the number of choices that this process has measured itself."""
    return len(_measured)


def made() -> dict[str, str]:
    """Return the choices of this process, for a stored state."""
    return dict(_choices)


def keep(stored: Mapping[str, str]) -> None:
    """Take over the choices of a stored state."""
    _choices.update(stored)


def _measure(
    ways: Mapping[str, nn.Module], what: str, device: torch.device, work: Callable[[nn.Module], object]
) -> str:
    """Return the way whose fastest run is faster; random generators are left as they are."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    began = time.perf_counter()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for turn in range(1 + ROUNDS):
            if turn > 1 and time.perf_counter() - began > ENOUGH:
                break
            for way, network in ways.items():
                started = time.perf_counter()
                work(network)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if turn:
                    seconds[way].append(time.perf_counter() - started)
    best = {way: min(measured) for way, measured in seconds.items()}
    faster = min(best, key=lambda way: best[way])
    slower = OWN if faster == PLAIN else PLAIN
    names = {OWN: "the operations of satm", PLAIN: "PyTorch's operations"}
    LOG.info(
        "%s: %s, %.2f times as fast as %s (measured once for this network, size and machine; SATM_OPERATIONS chooses)",
        *(what, names[faster], best[slower] / best[faster], names[slower]),
    )
    return faster


def _key(module: nn.Module, here: tuple[object, ...], device: torch.device) -> str:
    """Return a name for what a choice is for."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    shapes = [(name, tuple(each.shape), each.dtype) for name, each in module.named_parameters()]
    about = [type(module).__qualname__, repr(module), shapes, here, kind, torch.__version__, _version()]
    return hashlib.sha256(repr(about).encode()).hexdigest()[:32]


@functools.cache
def _version() -> str:
    """Return a hash of the operations."""
    files = sorted(path for path in FOLDER.iterdir() if path.suffix in (".py", ".cpp", ".h"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _folders() -> list[Path]:
    return [folder / "choices" for folder in cache_folders()]


def _read(key: str) -> str | None:
    """Return a choice that another process has written."""
    for folder in _folders():
        with contextlib.suppress(OSError, ValueError):
            if (stored := json.loads((folder / key).read_text("utf-8"))) in (OWN, PLAIN):
                return str(stored)
    return None


def _write(key: str, choice: str) -> str:
    """Write a choice and return it, or the one that another process was first to write."""
    for folder in _folders():
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=folder, encoding="utf-8") as file:
                file.write(json.dumps(choice))
                file.flush()
                with contextlib.suppress(FileExistsError):
                    os.link(file.name, folder / key)
                if _read(key) is None:  # the file that is there is damaged
                    (folder / key).unlink()
                    os.link(file.name, folder / key)
            return _read(key) or choice
    return choice
