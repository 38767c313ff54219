"""Stored states from which a killed stage goes on: of a distillation, an expert, networks in training, rows.

Files of tensors carry the hashes of their content (`satm.storage.tensors`). A state that is written again and again has
two files that are written in turn, so that the state before serves where the last one is damaged.
"""

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from satm.distill import Best, Outcome, Run, State
from satm.errors import RunError, UsageError
from satm.experts import Snapshot
from satm.methods.parts.problem import Synthetic
from satm.run import stopping
from satm.run.disk import patiently
from satm.storage.files import disk_is_full
from satm.storage.identity import Identity, differing_field
from satm.storage.tensors import TensorFile, open_tensors, read_metadata, write_tensors

LOG = logging.getLogger("satm")

Content = dict[str, Any]
"""JSON values by name."""


class Generations:
    """The last state of an identity (JSON values) and the one before it, in two files whose names begin alike."""

    def __init__(self, folder: Path, name: str, identity: object) -> None:
        self.paths = [folder / f"{name}-{slot}.safetensors" for slot in (0, 1)]
        self.identity = json.loads(json.dumps(identity))  # as it will be read
        self._last: int | None = None

    def save(self, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> bool:
        """Write a state in place of the one before the last; return whether there was space for it.

        Without space the state before stays, and the run that calls can go on.
        """
        if self._last is None:
            self._last = max((number for number, _ in self._numbered()), default=-1)
        number = self._last + 1
        try:
            metadata = {**content, "identity": self.identity, "generation": number}
            write_tensors(self.paths[number % 2], tensors, metadata)
        except RunError as error:
            if not disk_is_full(error):
                raise
            LOG.warning("%s; going on, the state before this one is kept", error)
            return False
        self._last = number
        return True

    def load(self) -> tuple[dict[str, Tensor], Content] | None:
        """Return the last state that is whole; None where there is none, or one of another identity."""
        state = self.load_any()
        return state if state and state[1]["identity"] == self.identity else None

    def load_any(self) -> tuple[dict[str, Tensor], Content] | None:
        """Return the last state that is whole, of whatever identity; None where there is none."""
        for _, path in sorted(self._numbered(), reverse=True):
            try:
                return _read(path, "generation")
            except UsageError as error:
                LOG.warning("%s; the state before it serves", error)
        return None

    def _numbered(self) -> list[tuple[int, Path]]:
        """Return the numbers of the states that are there; a damaged one has the lowest."""
        numbered = []
        for path in filter(Path.is_file, self.paths):
            number = -1
            with contextlib.suppress(UsageError), open_tensors(path, "state") as file:
                number = int(_content(file, path, "generation")["generation"])
            numbered.append((number, path))
        return numbered


def _read(path: Path, name: str) -> tuple[dict[str, Tensor], Content]:
    """Return the tensors and the content of a state, compared with their hashes.

    Raises:
        UsageError: the file is missing, cut short, changed, or not a state with a value of this name.
    """
    with open_tensors(path, "state") as file:
        content = _content(file, path, name)
        return {each: file.get_tensor(each) for each in file.keys()}, content  # noqa: SIM118


def _content(file: TensorFile, path: Path, name: str) -> Content:
    content = read_metadata(file, path, "state")
    if not file.hashed or not {"identity", name} <= set(content):
        raise UsageError(f"state {path} is damaged: it does not state its hashes, identity and {name}")
    return content


class RunState:
    """The run of a distillation, in two generations; the backend says what it is computed with."""

    def __init__(self, folder: Path, identity: Identity, backend: str) -> None:
        self.backend = backend
        self._files = Generations(folder, "checkpoint", identity)
        self._begun_with = 0

    def save(self, run: Run) -> bool:
        """Keep a run between two iterations; say whether there was space for it."""
        best, states = run.best, {"now": run.now, "safe": run.safe, "recent": run.recent}
        whole: dict[str, object] = {**states, "best": best.outcome if best else None, "history": run.history}
        if run.recent is run.now:
            del whole["recent"]
        tensors = {place: tensor for name, part in whole.items() for place, tensor in _flat(part, name).items()}
        content = {
            "backend": self.backend,
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
        """Return the run that an earlier process has kept; None where there is none, or one of other options."""
        if (stored := self._files.load_any()) is None:
            return None
        tensors, values = stored
        if difference := differing_field(self._files.identity, values["identity"]):
            LOG.warning("the checkpoint there belongs to another run (%s); starting from the beginning", difference)
            return None
        if (backend := values["backend"]) != self.backend:
            text = "going on with %s what was begun with %s: not the same bytes as in one go"
            LOG.warning(text, self.backend, backend)
        tree = _nested({name: tensor.to(device) for name, tensor in tensors.items()})
        states = {name: _state(tree[name], done) for name, done in values["iterations"].items() if name in tree}
        now, best, rows = states["now"], values["best"], values["rows"]
        chosen = Best(best["accuracy"], _outcome(tree["best"], best["iteration"])) if best else None
        parts = {int(iteration): part for iteration, part in tree.get("history", {}).items()}
        history = {iteration: Synthetic(**parts[iteration]) for iteration in sorted(parts)}
        self._begun_with = len(rows)
        LOG.info("going on after iteration %d", now.iteration)
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
    """Return the tensors in nested mappings and dataclasses by names joined with a point, each a copy.

    States share tensors, and safetensors refuses tensors that share memory.
    """
    if isinstance(tree, Tensor):
        return {place: tree.clone()}
    parts = vars(tree) if is_dataclass(tree) else tree if isinstance(tree, Mapping) else {}
    return {leaf: tensor for name, part in parts.items() for leaf, tensor in _flat(part, f"{place}.{name}").items()}


def _nested(tensors: Mapping[str, Tensor]) -> Tree:
    """Return the tree of tensors from which `_flat` made names; branches without tensors are gone."""
    tree: Tree = {}
    for name, tensor in tensors.items():
        *branches, leaf = name.split(".")
        here = tree
        for branch in branches:
            here = here.setdefault(branch, {})
        here[leaf] = tensor
    return tree


class ExpertState:
    """The epochs of one expert so far, one file each, so that an epoch costs one snapshot to keep.

    The folder is of this expert alone; the state of an expert of another identity is dropped.
    """

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.folder, self.identity = folder, identity

    def save(self, snapshot: Snapshot) -> None:
        """Keep a snapshot, without which there is no expert.

        Raises:
            RunError: there was no space on the disk for a while.
        """
        tensors = {"weights": snapshot.weights}
        tensors |= {} if snapshot.momentum is None else {"momentum": snapshot.momentum}
        # As a text, for the loss of the start is NaN, which JSON does not know.
        content = {"identity": self.identity, "loss": repr(snapshot.loss)}
        patiently(lambda: write_tensors(self._path(snapshot.epoch), tensors, content))
        stopping.saved()

    def load(self) -> Snapshot | None:
        """Return the last snapshot of an unbroken row from the start; None if there is none of this expert."""
        last: Snapshot | None = None
        while self._path(epoch := 0 if last is None else last.epoch + 1).is_file():
            try:
                tensors, content = _read(self._path(epoch), "loss")
            except UsageError as error:
                LOG.warning("%s; the epoch before it serves", error)
                break
            if content["identity"] != self.identity:
                break
            last = Snapshot(epoch, tensors["weights"], tensors.get("momentum"), float(content["loss"]))
        if last is None:
            self.clear()
        return last

    def snapshots(self) -> list[Tensor]:
        """Return `[P]` weights of all epochs in order.

        Raises:
            UsageError: a file was damaged since it was written.
        """
        count = len(list(self.folder.glob("epoch-*.safetensors")))
        return [_read(self._path(epoch), "loss")[0]["weights"] for epoch in range(count)]

    def clear(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:04d}.safetensors"


class NetworkState:
    """The state of networks while they are trained, one or several at once: weights, statistics, optimiser, generators.

    At least `every` seconds lie between two writes, which has no effect on the result.
    """

    def __init__(self, folder: Path, identity: object, every: float = 60.0) -> None:
        self.every = every
        self._files = Generations(folder, "network", identity)
        self._written = time.monotonic()

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """Return the epochs that are done and the tensors that were kept then; None where nothing is of these."""
        state = self._files.load()
        return (int(state[1]["epoch"]), state[0]) if state else None

    def save(self, epoch: int, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        """Keep the state after some epochs, unless the last one was kept a moment ago and no stop is requested."""
        if time.monotonic() - self._written < self.every and not stopping.stop_requested():
            return
        if self._files.save(tensors(), {"epoch": epoch}):
            stopping.saved()
        self._written = time.monotonic()
