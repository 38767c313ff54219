"""What a stage keeps to go on after a kill: the run of a distillation, the epochs of an expert."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from satm.distill import Best, Run, State
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
    tensors = {**_pack(run.now.synthetic, "now"), **_pack(run.safe.synthetic, "safe")}
    for name, state in (("now", run.now), ("safe", run.safe)):
        tensors[f"{name}.images_velocity"] = state.images_velocity.clone()
        tensors[f"{name}.step_size_velocity"] = state.step_size_velocity.clone()
    if run.best:
        tensors |= _pack(run.best.synthetic, "best")
    metadata = {
        "identity": identity,
        "backend": backend,
        "iterations": {"now": run.now.iteration, "safe": run.safe.iteration},
        "rates": {"lr_images": run.lr_images, "lr_step_size": run.lr_step_size},
        "attempt": run.attempt,
        "rows": run.rows,
        "best": {"accuracy": run.best.accuracy, "iteration": run.best.iteration} if run.best else None,
    }
    write_tensors(path, tensors, metadata)


def load_run(path: Path, device: torch.device) -> tuple[Run, dict[str, Any], str]:
    """Return the run, its identity and its backend.

    Raises:
        UsageError: the file is cut short or holds something else.
    """
    held, content = read_tensors(path, "checkpoint")
    values: dict[str, Any] = content
    tensors = {name: tensor.to(device) for name, tensor in held.items()}
    states = {
        name: State(
            values["iterations"][name],
            _unpack(tensors, name),
            tensors[f"{name}.images_velocity"],
            tensors[f"{name}.step_size_velocity"],
        )
        for name in ("now", "safe")
    }
    best = Best(synthetic=_unpack(tensors, "best"), **values["best"]) if values["best"] else None
    now, rates = states["now"], values["rates"]
    run = Run(now, states["safe"], now, **rates, attempt=values["attempt"], rows=values["rows"], best=best)
    return run, values["identity"], values["backend"]


def _pack(synthetic: Synthetic, name: str) -> dict[str, Tensor]:
    # Copies: states share the labels, and safetensors refuses tensors that share memory.
    return {f"{name}.{field}": getattr(synthetic, field).clone() for field in ("images", "labels", "step_size")}


def _unpack(tensors: Mapping[str, Tensor], name: str) -> Synthetic:
    return Synthetic(*(tensors[f"{name}.{field}"] for field in ("images", "labels", "step_size")))


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
