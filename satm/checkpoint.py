"""What a stage keeps to go on after a kill: the run of a distillation, the epochs of an expert, a tested network."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from satm.distill import Best, Made, Run, State
from satm.errors import UsageError
from satm.experts import Snapshot
from satm.files import read_tensors, write_tensors
from satm.methods import Synthetic


def save_run(path: Path, run: Run, identity: Mapping[str, Any], backend: str) -> None:
    """Write the run of a distillation; `run.now` is its recent state when the loop offers it.

    Args:
        path: where to.
        run: as given to `on_safe` of `satm.distill.distill`.
        identity: JSON values that say what the run is.
        backend: what it is computed with.
    """
    tensors: dict[str, Tensor] = {}
    for name, state in (("now", run.now), ("safe", run.safe)):
        tensors |= _flat(_state_tree(state), name)
    if run.best:
        tensors |= _flat(_made_tree(run.best.made), "best")
    tensors |= _flat({str(iteration): vars(held) for iteration, held in run.history.items()}, "history")
    metadata = {
        "identity": identity,
        "backend": backend,
        "iterations": {"now": run.now.iteration, "safe": run.safe.iteration},
        "rates": run.rates,
        "attempt": run.attempt,
        "rows": run.rows,
        "best": {"accuracy": run.best.accuracy, "iteration": run.best.made.iteration} if run.best else None,
    }
    write_tensors(path, tensors, metadata)


def load_run(path: Path, device: torch.device) -> tuple[Run, dict[str, Any], str]:
    """Return the run, its identity and its backend.

    Raises:
        UsageError: the file is cut short or holds something else.
    """
    held, content = read_tensors(path, "checkpoint")
    values: dict[str, Any] = content
    tree = _nested({name: tensor.to(device) for name, tensor in held.items()})
    now, safe = (_state(tree[name], values["iterations"][name]) for name in ("now", "safe"))
    best = values["best"]
    chosen = Best(best["accuracy"], _made(tree["best"], best["iteration"])) if best else None
    states = {int(iteration): parts for iteration, parts in tree.get("history", {}).items()}
    history = {iteration: Synthetic(**states[iteration]) for iteration in sorted(states)}
    rates, attempt, rows = (values[name] for name in ("rates", "attempt", "rows"))
    run = Run(now, safe, now, rates, attempt=attempt, rows=rows, best=chosen, history=history)
    return run, values["identity"], values["backend"]


Tree = dict[str, Any]
"""Tensors by nested names."""


def _state_tree(state: State) -> Tree:
    return {
        "numbers": state.numbers,
        "moments": state.moments,
        "memory": state.memory,
        **({} if state.average is None else {"average": state.average}),
    }


def _state(tree: Tree, iteration: int) -> State:
    moments = {name: tree.get("moments", {}).get(name, {}) for name in tree["numbers"]}
    return State(iteration, tree["numbers"], moments, tree.get("memory", {}), tree.get("average"))


def _made_tree(made: Made) -> Tree:
    parts = {"synthetic": vars(made.synthetic), "numbers": made.numbers}
    return {**parts, **({} if made.raw is None else {"raw": vars(made.raw)})}


def _made(tree: Tree, iteration: int) -> Made:
    raw = Synthetic(**tree["raw"]) if "raw" in tree else None
    return Made(iteration, Synthetic(**tree["synthetic"]), raw, tree.get("numbers", {}))


def _flat(tree: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """Return the tensors of a tree by names joined with a point, each a copy.

    States share tensors, and safetensors refuses tensors that share memory.
    """
    found: dict[str, Tensor] = {}
    for name, held in tree.items():
        place = f"{prefix}.{name}"
        found |= {place: held.clone()} if isinstance(held, Tensor) else _flat(held, place)
    return found


def _nested(tensors: Mapping[str, Tensor]) -> Tree:
    """Return the tree that `_flat` was given; branches without tensors are gone."""
    tree: Tree = {}
    for name, tensor in tensors.items():
        *branches, leaf = name.split(".")
        here = tree
        for branch in branches:
            here = here.setdefault(branch, {})
        here[leaf] = tensor
    return tree


class ExpertState:
    """The epochs of one expert that are trained already, one file each, so that an epoch costs one snapshot to keep.

    Args:
        folder: of this expert alone.
        identity: JSON values that say what the expert is; the state of another one is dropped.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity = identity

    def save(self, snapshot: Snapshot) -> None:
        """Keep a snapshot."""
        tensors = {"weights": snapshot.weights}
        if snapshot.momentum is not None:
            tensors["momentum"] = snapshot.momentum
        write_tensors(self._path(snapshot.epoch), tensors, {"identity": self.identity, "loss": snapshot.loss})

    def load(self) -> Snapshot | None:
        """Return the last snapshot of an unbroken row from the start; None if there is none of this expert."""
        epoch = 0
        while self._path(epoch).is_file():
            epoch += 1
        while epoch:
            epoch -= 1
            try:
                tensors, metadata = read_tensors(self._path(epoch), "state of an expert")
            except UsageError:  # a broken file of a crashed machine: the epoch before it serves
                continue
            if metadata["identity"] != self.identity:
                break
            return Snapshot(epoch, tensors["weights"], tensors.get("momentum"), float(str(metadata["loss"])))
        self.clear()
        return None

    def snapshots(self) -> list[Tensor]:
        """Return `[P]` weights of all epochs in order."""
        count = len(list(self.folder.glob("epoch-*.safetensors")))
        return [read_tensors(self._path(epoch), "state of an expert")[0]["weights"] for epoch in range(count)]

    def clear(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:04d}.safetensors"


class NetworkState:
    """The state of one network while it is trained: weights, statistics, optimiser, random generator.

    Args:
        path: of its file.
        identity: JSON values that say what is trained; the state of something else is dropped.
        every: at least so many seconds lie between two writes, which has no effect on the result.
    """

    def __init__(self, path: Path, identity: object, every: float = 60.0) -> None:
        self.path = path
        self.identity = identity
        self.every = every
        self._written = time.monotonic()

    def load(self, module: nn.Module, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> int:
        """Bring all three to the state that was kept; return its epochs, 0 where there is none of this network."""
        if not self.path.is_file():
            return 0
        try:
            tensors, metadata = read_tensors(self.path, "state of a network")
        except UsageError:  # a broken file of a crashed machine: the beginning serves
            return 0
        if metadata["identity"] != self.identity:
            return 0
        parts: dict[str, dict[str, Tensor]] = {"module": {}, "optimiser": {}}
        for name, tensor in tensors.items():
            part, _, place = name.partition("/")
            if part in parts:
                parts[part][place] = tensor
        module.load_state_dict(parts["module"])
        moments: dict[int, dict[str, Tensor]] = {}
        for place, tensor in parts["optimiser"].items():
            index, _, moment = place.partition("/")
            moments.setdefault(int(index), {})[moment] = tensor
        optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
        generator.set_state(tensors["generator"])
        return int(str(metadata["epoch"]))

    def save(self, epoch: int, module: nn.Module, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """Keep the state after so many epochs, unless the last one was kept a moment ago."""
        if time.monotonic() - self._written < self.every:
            return
        tensors = {f"module/{name}": held for name, held in module.state_dict().items()}
        for index, moments in optimiser.state_dict()["state"].items():
            named = {name: held for name, held in moments.items() if isinstance(held, Tensor)}
            tensors |= {f"optimiser/{index}/{name}": held for name, held in named.items()}
        tensors["generator"] = generator.get_state()
        write_tensors(self.path, tensors, {"identity": self.identity, "epoch": epoch})
        self._written = time.monotonic()
