"""The trajectory store: one shard per expert with all its snapshots, and a manifest of all shards.

A shard is a safetensors file with a tensor for each number of epochs, ``0``, ``1``, … (`[P]` float32, the weights); it
is read by memory map, one snapshot at a time. Buffers of the network, such as running statistics, are tensors of their
own, ``EPOCH/NAME``.

Shapes: P parameters.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from satm.config import Options, parse
from satm.errors import RunError, UsageError
from satm.params import buffer_names, unflatten
from satm.storage.files import AGAIN, expect, read_record, write_record
from satm.storage.identity import Identity, differing_fields, hash_file
from satm.storage.tensors import open_tensors, read_metadata, read_tensors, write_tensors

UNLIKELY = 0.01
"""Probability up to which a number of right answers is not put down to chance."""


def shard_name(index: int) -> str:
    """Return the file name of an expert's shard."""
    return f"expert-{index:03d}.safetensors"


def write_shard(
    folder: Path,
    index: int,
    snapshots: Sequence[Tensor],
    identity: Identity,
    test_accuracy: float,
    buffers: Sequence[Mapping[str, Tensor]] = (),
    device: str = "",
) -> None:
    """Write all snapshots of one expert, the last one's accuracy (a fraction of the test images), and the device.

    `buffers` are those of the network at each snapshot, by name.
    """
    tensors = {str(epoch): weights for epoch, weights in enumerate(snapshots)}
    for epoch, each in enumerate(buffers):
        tensors |= {f"{epoch}/{name}": tensor for name, tensor in each.items()}
    about = {"index": index, "identity": identity, "test_accuracy": test_accuracy, "device": device}
    write_tensors(folder / shard_name(index), tensors, about)


def shard_identity(folder: Path, index: int) -> Identity | None:
    """Return the identity of the expert in a shard; None without an intact shard of that index.

    All snapshots are read and compared with their hashes, because a shard with the right identity is kept.
    """
    path = folder / shard_name(index)
    try:
        tensors, metadata = read_tensors(path, "shard")
        return _checked(metadata, index, path)["identity"] if tensors else None
    except UsageError:
        return None


def describe_shard(folder: Path, index: int) -> dict[str, Any]:
    """Return the record of a shard for a manifest: file, index, snapshots, test accuracy, bytes and hash.

    Raises:
        UsageError: the shard is missing or broken.
    """
    path = folder / shard_name(index)
    with open_tensors(path, "shard") as file:
        count = sum(name.isdecimal() for name in file.keys())  # noqa: SIM118
        metadata = _checked(read_metadata(file, path, "shard"), index, path)
    about = {"file": path.name, "index": index, "snapshots": count, "test_accuracy": metadata["test_accuracy"]}
    about |= {"device": metadata.get("device", "")}
    return {**about, "bytes": path.stat().st_size, "sha256": hash_file(path)}


def _checked(metadata: Mapping[str, object], index: int, path: Path) -> dict[str, Any]:
    """Return a shard's metadata.

    Raises:
        UsageError: the metadata are of another expert, or of another kind of file.
    """
    content = expect(metadata, {"index": int, "identity": dict, "test_accuracy": float}, f"shard {path}")
    if content["index"] != index:
        raise UsageError(f"shard {path} holds expert {content['index']}, expected expert {index}; {AGAIN}")
    return content


class Shard(Options):
    """Record of a shard in a manifest; the accuracy is that of the last snapshot, length and hash are the file's.

    The hash is for other programs (`sha256sum`): each snapshot has its own in the shard, which is compared when it is
    read.
    """

    file: str
    index: int = Field(ge=0)
    snapshots: int = Field(ge=1)
    test_accuracy: float
    near_chance: float | None = None
    """Accuracy of the best constant prediction, if the expert's is not clearly above it; else None."""
    bytes: int
    sha256: str
    device: str = ""


def read_shards(records: Sequence[object], where: str, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Check and return the records of `describe_shard` for the shards of some experts.

    Raises:
        UsageError: a record is damaged, names a file that is not a shard, or belongs to another expert.
    """
    shards = [parse(Shard, cast(Mapping[str, Any], record), where) for record in records]
    for shard in shards:
        if shard.file != shard_name(shard.index):
            raise UsageError(f"{where}: file {shard.file!r} is not that of expert {shard.index}; {AGAIN}")
    if (listed := [shard.index for shard in shards]) != list(indices):
        raise UsageError(f"{where}: it lists the experts {listed}, expected {list(indices)}; {AGAIN}")
    return [shard.model_dump() for shard in shards]


def chance_level(accuracy: float, labels: Tensor) -> float | None:
    """Return the accuracy of the best constant prediction, if an expert's accuracy is not clearly above it; else None.

    `labels` are those of the test images, `[n]` int64. Clearly: so many right answers, or more, have a probability of
    at most `UNLIKELY` for a network that is right with the constant prediction's rate. NaN, of an expert that diverged,
    is not above anything.
    """
    from scipy.special import bdtrc

    chance = float(labels.bincount().max()) / len(labels)
    if chance == 1:
        return None
    right = 0 if math.isnan(accuracy) else round(accuracy * len(labels))
    return chance if bdtrc(right - 1, len(labels), chance) > UNLIKELY else None


def describe_near_chance(near: Sequence[Mapping[str, Any]], count: int) -> str:
    """Name the experts that are near chance, of `count`."""
    first = ", ".join(f"expert {shard['index']} {shard['test_accuracy']:.3f}" for shard in near[:5])
    more = f" and {len(near) - 5} more" if len(near) > 5 else ""
    return (
        f"{len(near)} of {count} experts with a test accuracy near chance, {near[0]['near_chance']:.3f} "
        f"({first}{more}); check data and labels, or train them longer or with another lr"
    )


def write_manifest(path: Path, identity: Identity, shards: Sequence[Mapping[str, Any]]) -> None:
    """Write the manifest of some shards, in the order of their indices."""
    write_record(path, {"format": 1, "identity": identity, "shards": sorted(shards, key=lambda shard: shard["index"])})


class TrajectoryStore:
    """Experts on disk; opening them checks the manifest, the length of each shard and an expected identity, if any.

    Raises:
        UsageError: the manifest is missing or broken; the identity differs (the message names the first field); a shard
            is missing or has another length than in the manifest.
    """

    def __init__(self, manifest: Path, expected: Identity | None = None) -> None:
        content = read_record(manifest, "manifest of experts", {"format": int, "identity": dict, "shards": list})
        if content["format"] != 1 or not content["shards"]:
            raise UsageError(f"{manifest} is not a manifest of experts in format 1; train the experts again")
        self.folder, self.identity = manifest.parent, content["identity"]
        if expected is not None and (difference := differing_fields(expected, self.identity)):
            raise UsageError(
                f"the experts in {self.folder} are not the ones asked for: {difference}; "
                "use the options they were trained with, or train them again"
            )
        self.shards = read_shards(content["shards"], f"manifest of experts {manifest}", range(len(content["shards"])))
        for shard in self.shards:
            path = self.folder / shard["file"]
            size = path.stat().st_size if path.is_file() else None
            if size != shard["bytes"]:
                state = "is missing" if size is None else f"has {size} bytes instead of {shard['bytes']}"
                raise UsageError(f"shard {path} {state}; train experts again, others are kept")

    def __len__(self) -> int:
        """Return the number of experts."""
        return len(self.shards)

    @property
    def near_chance(self) -> str | None:
        """Sentence that names the experts near chance; None if there are none, or an early manifest does not say."""
        near = [shard for shard in self.shards if shard["near_chance"] is not None]
        return describe_near_chance(near, len(self)) if near else None

    @property
    def epochs(self) -> int:
        """Epochs of the shortest expert; every expert has snapshots from 0 to this number."""
        return min(int(shard["snapshots"]) for shard in self.shards) - 1

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        """Return `[P]` float32 on the CPU, the weights of one expert after some epochs; reads only this snapshot.

        Raises:
            UsageError: the snapshot is missing, or the shard was changed or replaced.
            RunError: the weights are not finite.
        """
        path = self.folder / self.shards[expert]["file"]
        with open_tensors(path, "shard") as file:
            if str(epoch) not in file.keys():  # noqa: SIM118
                count = sum(name.isdecimal() for name in file.keys())  # noqa: SIM118
                raise UsageError(f"shard {path} has no snapshot {epoch}; it has {count}")
            weights = file.get_tensor(str(epoch)).clone()
            identity = _checked(read_metadata(file, path, "shard"), self.shards[expert]["index"], path)["identity"]
        if difference := differing_fields(self.identity, identity):
            raise UsageError(f"shard {path} holds another expert than the manifest says: {difference}; {AGAIN}")
        if not torch.isfinite(weights).all():
            raise RunError(f"{path}, epoch {epoch}: weights that are not finite; train with a lower lr")
        return weights

    def buffers(self, expert: int, epoch: int) -> dict[str, Tensor]:
        """Return the buffers of one expert's network after some epochs by name, on the CPU; most networks have none."""
        with open_tensors(self.folder / self.shards[expert]["file"], "shard") as file:
            names = [name for name in file.keys() if name.startswith(f"{epoch}/")]  # noqa: SIM118
            return {name.partition("/")[2]: file.get_tensor(name).clone() for name in names}

    def state(self, module: nn.Module, expert: int, epoch: int) -> dict[str, Tensor]:
        """Return weights and buffers of one expert by their names in its network, on the CPU; raises as `snapshot`.

        Raises:
            UsageError: the shard has other buffers than the network.
        """
        weights, buffers = unflatten(module, self.snapshot(expert, epoch)), self.buffers(expert, epoch)
        if different := sorted({*buffers} ^ {*buffer_names(module)}):
            raise UsageError(
                f"shard {self.folder / self.shards[expert]['file']} has {len(buffers)} buffers for epoch {epoch}, the "
                f"network has others: {different[0]}; train the experts again"
            )
        return weights | buffers

    def load(self, module: nn.Module, expert: int, epoch: int) -> None:
        """Make a network the expert after some epochs, in place; raises as `state`."""
        module.load_state_dict(self.state(module, expert, epoch), strict=False)
