"""Stored states from which a killed stage resumes: of a distillation, an expert, networks in training, rows.

Files of tensors contain hashes of their content (`satm.storage.tensors`). A state that is written repeatedly has two
files, written in turn, so that the previous state can be used if the last one is damaged.
"""

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from satm.distill import Best, Outcome, Run, State
from satm.errors import RunError, UsageError, shortened
from satm.experts import Snapshot
from satm.methods.parts.problem import Synthetic
from satm.ops import choice
from satm.run import stopping
from satm.run.disk import patiently
from satm.run.lock import KEPT
from satm.storage.files import disk_is_full
from satm.storage.identity import Identity, differences
from satm.storage.tensors import TensorFile, open_tensors, read_metadata, write_tensors

LOG = logging.getLogger("satm")

Content = dict[str, Any]
"""JSON values by name."""

MOST = 8
"""Largest number of differences in a message."""

MEANINGS = {"data": "the dataset's images", "revision": "the version of the computation"}
"""What fields of an identity hold whose names do not say it."""


def _fits(expected: object, found: object, what: str) -> bool:
    """Return whether a stored state is of this run; a warning names everything in which it is of another one."""
    if not isinstance(found, Mapping):
        LOG.warning("the existing %s is of an earlier version; starting from the beginning", what)
        return False
    if (told := _differing(expected, found)) is None:
        return True
    LOG.warning("the existing %s belongs to another run (%s); starting from the beginning", what, told)
    return False


def _differing(expected: object, found: object) -> str | None:
    """Return everything in which a stored identity differs, as a text; None: in nothing."""
    if not (told := differences(expected, found)):
        return None
    told = [f"{MEANINGS[name]}, {each}" if (name := each.split(":")[0]) in MEANINGS else each for each in told]
    told = [shortened(each) for each in told]
    more = f" and {len(told) - MOST} more" if len(told) > MOST else ""
    return f"{'; '.join(told[:MOST])}{more}"


def _compare_backend(here: str, found: str) -> None:
    """Warn if a state was stored on another backend; those of earlier versions may not state theirs."""
    if here and found and here != found:
        text = "resuming with %s a run begun with %s: rounding will differ from that of an uninterrupted run"
        LOG.warning(text, here, found)


class Generations:
    """The last two states of one identity (JSON values), in two files whose names begin with `name`.

    `backend` is the device and the version of torch, empty if unknown. A process that loads a state uses the same
    operations as the one that stored it (`satm.ops.choice`).
    """

    def __init__(self, folder: Path, name: str, identity: object, backend: str = "") -> None:
        self.paths = [folder / f"{name}-{slot}.safetensors" for slot in (0, 1)]
        self.identity = json.loads(json.dumps(identity))  # in the form that is read back
        self.name, self.backend = name, backend
        self._last: int | None = None

    def save(self, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> bool:
        """Replace the older of the two states; return whether there was space on the disk.

        Without space the last state remains, and the calling run can continue.
        """
        if self._last is None:
            self._last = max((number for number, _ in self._numbered()), default=-1)
        number = self._last + 1
        try:
            about = {"identity": self.identity, "backend": self.backend, "operations": choice.made()}
            metadata = {**content, **about, "generation": number}
            write_tensors(self.paths[number % 2], tensors, metadata)
        except RunError as error:
            if not disk_is_full(error):
                raise
            LOG.warning("%s; continuing, the previous state is kept", error)
            return False
        self._last = number
        return True

    def load(self, which: object = None) -> tuple[dict[str, Tensor], Content] | None:
        """Return the last intact state if it is of `which`, else None; with a warning if it is of another run."""
        state = self.load_any()
        if (
            state is None
            or state[1].get("which") != which
            or not _fits(self.identity, state[1]["identity"], f"{self.name} state")
        ):
            return None
        _compare_backend(self.backend, state[1].get("backend", ""))
        choice.keep(state[1].get("operations", {}))
        return state

    def load_any(self) -> tuple[dict[str, Tensor], Content] | None:
        """Return the last intact state of any identity; None if there is none."""
        for _, path in sorted(self._numbered(), reverse=True):
            try:
                return _read(path, "generation")
            except UsageError as error:
                LOG.warning("%s; using the previous state", error)
        return None

    def _numbered(self) -> list[tuple[int, Path]]:
        """Return number and path of each existing state; a damaged one has the number -1."""
        numbered = []
        for path in filter(Path.is_file, self.paths):
            number = -1
            with contextlib.suppress(UsageError), open_tensors(path, "state") as file:
                number = int(_content(file, path, "generation")["generation"])
            numbered.append((number, path))
        return numbered


def _read(path: Path, name: str) -> tuple[dict[str, Tensor], Content]:
    """Return the tensors and the content of a state, checked against their hashes.

    Raises:
        UsageError: the file is missing, cut short, changed, or not a state with a value of this name.
    """
    with open_tensors(path, "state") as file:
        content = _content(file, path, name)
        return {each: file.get_tensor(each) for each in file.keys()}, content  # noqa: SIM118


def _content(file: TensorFile, path: Path, name: str) -> Content:
    content = read_metadata(file, path, "state")
    if not file.hashed or not {"identity", name} <= set(content):
        raise UsageError(f"state {path} is damaged: it lacks its hashes, identity or {name}")
    return content


def has_state(folder: Path) -> bool:
    """Return whether a stage has stored a state in a folder."""
    return any(_identities(folder))


def other_state(folder: Path, identity: Identity) -> str | None:
    """Return in what a state that a stage has stored in a folder belongs to another run; None: in nothing."""
    own = json.loads(json.dumps(identity))  # in the form that is read back
    return next(filter(None, (_differing(own, found) for found in _identities(folder))), None)


def _identities(folder: Path) -> Iterator[Identity]:
    """Yield the identity of the last intact state in a folder, and in each folder in it."""
    for place in (folder, *filter(Path.is_dir, folder.glob("*"))):
        files = sorted(place.glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in () if place.name == KEPT else files:
            with contextlib.suppress(UsageError), open_tensors(path, "state") as file:
                content = _content(file, path, "identity")
                if not {"generation", "loss"} & set(content):
                    continue  # another kind of file
                if isinstance(content["identity"], Mapping):  # else it is of an earlier version
                    yield content["identity"]
                break


class RunState:
    """The stored run of a distillation, in two generations; `backend` is its device and torch version."""

    def __init__(self, folder: Path, identity: Identity, backend: str) -> None:
        self._files = Generations(folder, "checkpoint", identity, backend)
        self._begun_with = 0

    def save(self, run: Run) -> bool:
        """Store a run between two iterations; return whether there was space on the disk."""
        best, states = run.best, {"now": run.now, "safe": run.safe, "recent": run.recent}
        whole: dict[str, object] = {**states, "best": best.outcome if best else None, "history": run.history}
        if run.recent is run.now:
            del whole["recent"]
        tensors = {place: tensor for name, part in whole.items() for place, tensor in _flat(part, name).items()}
        content = {
            "iterations": {name: state.iteration for name, state in states.items()},
            "rates": run.rates,
            "attempt": run.attempt,
            "rows": run.rows,
            "best": {"accuracy": best.accuracy, "iteration": best.outcome.iteration} if best else None,
        }
        done = self._files.save(tensors, content)
        if done and len(run.rows) > self._begun_with:
            stopping.saved()
        return done

    def load(self, device: torch.device) -> Run | None:
        """Return the run stored by an earlier process; None if there is none, or with a warning if it is another."""
        if (stored := self._files.load()) is None:
            return None
        tensors, values = stored
        tree = _nested({name: tensor.to(device) for name, tensor in tensors.items()})
        states = {name: _state(tree[name], done) for name, done in values["iterations"].items() if name in tree}
        now, best, rows = states["now"], values["best"], values["rows"]
        chosen = Best(best["accuracy"], _outcome(tree["best"], best["iteration"])) if best else None
        parts = {int(iteration): part for iteration, part in tree.get("history", {}).items()}
        history = {iteration: Synthetic(**parts[iteration]) for iteration in sorted(parts)}
        self._begun_with = len(rows)
        LOG.info("resuming after iteration %d", now.iteration)
        three = (now, states["safe"], states.get("recent", now))
        return Run(*three, values["rates"], attempt=values["attempt"], rows=rows, best=chosen, history=history)


Tree = dict[str, Any]
"""Tensors by nested names."""


def _state(tree: Tree, iteration: int) -> State:
    moments = {name: tree.get("moments", {}).get(name, {}) for name in tree["numbers"]}
    return State(iteration, tree["numbers"], moments, tree.get("method_state", {}), tree.get("average"))


def _outcome(tree: Tree, iteration: int) -> Outcome:
    raw = Synthetic(**tree["raw"]) if "raw" in tree else None
    return Outcome(iteration, Synthetic(**tree["synthetic"]), raw, tree.get("numbers", {}))


def _flat(tree: object, place: str) -> dict[str, Tensor]:
    """Return copies of the tensors in nested mappings and dataclasses, by names joined with a point.

    States share tensors, and safetensors refuses tensors that share memory.
    """
    if isinstance(tree, Tensor):
        return {place: tree.clone()}
    parts = vars(tree) if is_dataclass(tree) else tree if isinstance(tree, Mapping) else {}
    return {leaf: tensor for name, part in parts.items() for leaf, tensor in _flat(part, f"{place}.{name}").items()}


def _nested(tensors: Mapping[str, Tensor]) -> Tree:
    """Return the tree of tensors that `_flat` has flattened, without the branches that have no tensors."""
    tree: Tree = {}
    for name, tensor in tensors.items():
        *branches, leaf = name.split(".")
        here = tree
        for branch in branches:
            here = here.setdefault(branch, {})
        here[leaf] = tensor
    return tree


class ExpertState:
    """The snapshots of one expert so far, one file per epoch.

    The folder belongs to this expert alone; the state of an expert of another identity is deleted.
    """

    def __init__(self, folder: Path, identity: Identity, backend: str = "") -> None:
        self.folder, self.identity, self.backend = folder, identity, backend

    def save(self, snapshot: Snapshot) -> None:
        """Store a snapshot; on a full disk wait for space.

        Raises:
            RunError: there was no space for a while.
        """
        tensors = {"weights": snapshot.weights}
        tensors |= {} if snapshot.momentum is None else {"momentum": snapshot.momentum}
        tensors |= {f"buffer/{name}": buffer for name, buffer in snapshot.buffers.items()}
        # As text, because the loss at the start is NaN, which JSON does not know.
        about = {"identity": self.identity, "backend": self.backend, "operations": choice.made()}
        content = {**about, "loss": repr(snapshot.loss)}
        patiently(lambda: write_tensors(self._path(snapshot.epoch), tensors, content))
        stopping.saved()

    def load(self) -> Snapshot | None:
        """Return the last snapshot before the first gap; None if there is none of this expert."""
        last: Snapshot | None = None
        backend = ""
        while self._path(epoch := 0 if last is None else last.epoch + 1).is_file():
            try:
                tensors, content = _read(self._path(epoch), "loss")
            except UsageError as error:
                LOG.warning("%s; using the previous epoch", error)
                break
            if not _fits(self.identity, content["identity"], "state of an expert"):
                break
            backend = content.get("backend", "")
            choice.keep(content.get("operations", {}))
            last = _snapshot(epoch, tensors, content)
        if last is None:
            self.clear()
        _compare_backend(self.backend, backend)
        return last

    def snapshots(self) -> list[Snapshot]:
        """Return the snapshots of all epochs in order, without momentum.

        Raises:
            UsageError: a file was damaged since it was written.
        """
        count = len(list(self.folder.glob("epoch-*.safetensors")))
        return [replace(_snapshot(epoch, *_read(self._path(epoch), "loss")), momentum=None) for epoch in range(count)]

    def clear(self) -> None:
        """Delete all snapshots."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:04d}.safetensors"


def _snapshot(epoch: int, tensors: Mapping[str, Tensor], content: Content) -> Snapshot:
    buffers = {name.partition("/")[2]: tensor for name, tensor in tensors.items() if name.startswith("buffer/")}
    return Snapshot(epoch, tensors["weights"], tensors.get("momentum"), float(content["loss"]), buffers)


class NetworkState:
    """The state of networks while they are trained, one or several at once: weights, statistics, optimiser, generators.

    `which` tells the networks of a run apart, as JSON values.

    At least `every` seconds lie between two writes, which has no effect on the result.
    """

    def __init__(
        self, folder: Path, identity: object, which: object = None, backend: str = "", every: float = 60.0
    ) -> None:
        self.every, self._which = every, json.loads(json.dumps(which))  # in the form that is read back
        self._files = Generations(folder, "network", identity, backend)
        self._written = time.monotonic()

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """Return the number of completed epochs and the tensors after them; None if nothing of them is stored."""
        state = self._files.load(self._which)
        return (int(state[1]["epoch"]), state[0]) if state else None

    def save(self, epoch: int, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        """Store the state after some epochs, unless the last one is recent and no stop is requested."""
        if time.monotonic() - self._written < self.every and not stopping.stop_requested():
            return
        if self._files.save(tensors(), {"epoch": epoch, "which": self._which}):
            stopping.saved()
        self._written = time.monotonic()
