"""What runs leave behind: tidy rows as parquet with the run's circumstances, and synthetic sets as safetensors.

Shapes: n synthetic images of C channels, H times W pixels; K classes.
"""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pandas
import pyarrow
import torch
from pyarrow import parquet
from torch import Tensor
from torch.utils.data import Dataset

import satm
from satm.data.images import Preprocessor
from satm.data.whitening import Whitening, load_whitening
from satm.errors import UsageError
from satm.files import atomic_path, read_tensors, write_tensors

METADATA_KEY = b"satm"
"""Under which a parquet schema holds the run's circumstances, as one JSON text."""


def run_metadata(options: Mapping[str, Any], device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return the circumstances of a run: resolved options, commit, versions, device, host and time (UTC).

    Args:
        options: the resolved options, JSON values.
        device: where the run computes.
    """
    kind = torch.device(device)
    return {
        "options": dict(options),
        "commit": _commit(),
        "versions": {"satm": satm.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": torch.cuda.get_device_name(kind) if kind.type == "cuda" else kind.type,
        "host": platform.node(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """Return the checkout's commit, with `-dirty` when tracked files differ from it; None outside a checkout."""
    root = Path(satm.__file__).parent.parent
    # An installed package may lie inside the checkout of another project, whose commit would mislead.
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@dataclass(frozen=True)
class Columns:
    """The columns of one kind of parquet file, in their order."""

    what: str
    """The word for the file in messages."""
    fields: Mapping[str, type]
    """Type by name: str, int or float."""
    optional: frozenset[str] = frozenset()
    """Columns whose values may be missing."""
    extra: bool = False
    """Allow further float columns, in name order, whose values may be missing."""
    since: Mapping[str, object] = field(default_factory=dict)
    """Columns that files of earlier versions lack, with the value that holds for all their rows."""

    def schema(self, rows: Sequence[Mapping[str, Any]]) -> pyarrow.Schema:
        """Return the typed columns that hold `rows`.

        Raises:
            ValueError: a row has a column too many or too few.
        """
        found = set().union(*rows)
        unknown = sorted(found - set(self.fields))
        if unknown and not self.extra:
            raise ValueError(f"{self.what} has no columns {unknown}; it has {list(self.fields)}")
        for name in set(self.fields) - self.optional:
            if any(row.get(name) is None for row in rows):
                raise ValueError(f"{self.what} has a row without {name!r}")
        types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
        fixed = [(name, types[kind]) for name, kind in self.fields.items()]
        return pyarrow.schema(fixed + [(name, pyarrow.float64()) for name in unknown])


EVALUATION = Columns(
    "evaluation",
    {
        "dataset": str,
        "ipc": int,
        "method": str,
        "seed": int,
        "network": str,
        "repeat": int,
        "labels": str,
        "split": str,
        "selection": str,
        "average": str,
        "labelled": str,
        "augmented": str,
        "step_size": str,
        "rate": float,
        "accuracy": float,
        "loss": float,
        "epochs": int,
        "seconds": float,
        "peak_memory_bytes": int,
    },
    optional=frozenset({"rate"}),
    since={"average": "raw", "labelled": "own", "augmented": "", "step_size": "", "rate": None},
)
"""One row per network trained on a synthetic set. labels: hard or soft; split: where `accuracy` (a fraction) and `loss`
were measured; selection: last, validation or test, how the synthetic set was chosen; average: raw, or ema where the set
is an exponential moving average over the iterations (then there are rows of both, a network of each repeat on either);
labelled: whose labels they are, own of the set, class of each image, teacher for those of experts; augmented: yes, no;
step_size: where the step size comes from, learned with the set, searched on other real images, or fixed; rate: that
number (the last three are empty in files of earlier versions); seconds and peak_memory_bytes of this training."""

NAS = Columns(
    "accuracies of an architecture search",
    {
        "dataset": str,
        "ipc": int,
        "method": str,
        "seed": int,
        "search": str,
        "candidate": int,
        "width": int,
        "depth": int,
        "norm": str,
        "activation": str,
        "pooling": str,
        "repeat": int,
        "split": str,
        "accuracy": float,
        "loss": float,
        "epochs": int,
        "seconds": float,
        "peak_memory_bytes": int,
    },
)
"""One row per trained candidate and repeat; ipc 0 and method `real` where it was trained on all real images. candidate:
its place in `satm.nas.candidates`, which the five options after it spell out; split: where `accuracy` (a fraction) and
`loss` (NaN where training diverged) were measured; seconds and peak_memory_bytes of this training."""

METRICS = Columns(
    "metrics",
    {
        "iteration": int,
        "attempt": int,
        "event": str,
        "loss": float,
        "step_size": float,
        "hypergradient_norm": float,
        "sharpness": float,
        "seconds": float,
        "peak_memory_bytes": int,
    },
    optional=frozenset({"loss", "step_size", "hypergradient_norm", "sharpness"}),
    extra=True,
)
"""One row per iteration of a distillation. attempt: raised when the loop went back to a good state; event: what
happened, mostly empty; seconds of this iteration."""

CONTINUAL = Columns(
    "continual learning",
    {
        "dataset": str,
        "ipc": int,
        "method": str,
        "seed": int,
        "network": str,
        "protocol": str,
        "sets": str,
        "labels": str,
        "split": str,
        "selection": str,
        "average": str,
        "step_size": str,
        "order": int,
        "repeat": int,
        "step": int,
        "classes_seen": int,
        "label": int,
        "learned_at": int,
        "images": int,
        "accuracy": float,
        "rate": float,
        "seconds": float,
        "peak_memory_bytes": int,
    },
)
"""One row per network and class that it has seen. protocol: its name; sets: sliced or per-step; order: of the classes,
from 0; step: from 1; label: the class, in the whole dataset; learned_at: the step that brought it; images: real images
of this class in `split`, and accuracy, a fraction, on them among all classes seen; labels, selection, average,
step_size and rate as in an evaluation; seconds and peak_memory_bytes of this network, the same in all its rows."""

SHARPNESS = Columns(
    "sharpness",
    {
        "dataset": str,
        "ipc": int,
        "method": str,
        "seed": int,
        "segment": int,
        "rho": float,
        "loss": float,
        "perturbed_loss": float,
        "sharpness": float,
    },
)
"""One row per expert segment: the matching loss at a synthetic set, at its worst neighbour in distance rho, and the
difference."""

EXPERT_SHARPNESS = Columns(
    "sharpness of experts",
    {
        "dataset": str,
        "experts": str,
        "expert": int,
        "epoch": int,
        "rho": float,
        "loss": float,
        "perturbed_loss": float,
        "sharpness": float,
    },
)
"""One row per snapshot of an expert and length rho: the training loss at its weights, at their worst neighbour in
distance rho, and the difference."""


CELL = {"dataset": str, "ipc": int, "method": str, "seed": int}
"""Columns that name a synthetic set."""

TRAJECTORY = Columns(
    "errors along the experts' path",
    {
        **CELL,
        "kind": str,
        "expert": int,
        "start": int,
        "epoch": int,
        "steps": int,
        **{
            f"{name}_{number}": float
            for name in ("evaluation", "distillation", "expert")
            for number in ("accuracy", "loss")
        },
        **dict.fromkeys(("accumulated", "matching", "initialisation", "residual"), float),
    },
    optional=frozenset(
        {
            *("distillation_accuracy", "distillation_loss", "expert_accuracy", "expert_loss"),
            *("accumulated", "matching", "initialisation", "residual"),
        }
    ),
)
"""One row per expert and segment of its path (kind `path`), or per epoch that a network was begun at (kind `restart`,
without the optional columns). start and epoch: of the expert, where the segment or the network begins and ends; steps:
made between them; accuracy (a fraction) and loss on the tested images at the end: of the network trained on the
synthetic set alone (evaluation), of one that began where the expert was (distillation), of the expert; accumulated,
matching, initialisation: norms of these errors (`satm.analysis.trajectory`); residual: what they do not add up to,
relative to the accumulated error."""

VARIANCE = Columns(
    "variance of the hypergradient",
    {**CELL, "iteration": int, "samples": int, "variance": float, "norm": float},
)
"""One row per state of a synthetic set on its way. iteration: outer steps done before; samples: single real images;
variance: normalised (`satm.analysis.variance`); norm: of the mean gradient."""

BOUNDS = Columns(
    "errors of SATM's approximations",
    {
        **CELL,
        "quantity": str,
        "segment": int,
        "steps": int,
        "kept": int,
        "error": float,
        "relative": float,
        "bound": float,
        "lowest_curvature": float,
        "highest_curvature": float,
        "step_size": float,
        "rho": float,
        "gradient": float,
    },
    optional=frozenset({"bound", "lowest_curvature", "highest_curvature"}),
)
"""One row per quantity, expert segment and number of kept steps (`satm.analysis.bounds.measure_bounds`)."""


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Columns, metadata: Mapping[str, Any]) -> None:
    """Write rows as parquet, atomically.

    Args:
        path: where to.
        rows: values by column; equal rows give equal bytes of the columns.
        columns: the columns of this kind of file; no rows give a file with the fixed columns.
        metadata: JSON values (`run_metadata`).

    Raises:
        ValueError: a row has a column too many or too few.
        RunError: the disk is full or the folder cannot be written.
    """
    schema = columns.schema(rows).with_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    table = pyarrow.Table.from_pylist([dict(row) for row in rows], schema=schema)
    with atomic_path(path) as part:
        parquet.write_table(table, part)


def read_rows(path: Path, columns: Columns) -> pandas.DataFrame:
    """Return the rows of a file written by `write_rows`; a missing optional number is NaN.

    A column that came with a later version (`Columns.since`) is filled in where the file lacks it.

    Raises:
        UsageError: the file is missing, cut short, or of another kind.
    """
    expected = columns.schema([])
    table = _completed(_read_table(path, columns), columns, expected)
    found = [name for name in table.column_names if name in columns.fields]
    if found != expected.names or (not columns.extra and len(table.column_names) != len(found)):
        raise UsageError(
            f"{columns.what} {path} has the columns {', '.join(table.column_names)}, expected "
            f"{', '.join(expected.names)}; delete it and make it again"
        )
    wrong = [field.name for field in expected if table.schema.field(field.name).type != field.type]
    if wrong:
        raise UsageError(
            f"{columns.what} {path} holds another type in {', '.join(wrong)} than expected; delete it and make it again"
        )
    frame: pandas.DataFrame = table.to_pandas()
    return frame


def _completed(table: pyarrow.Table, columns: Columns, expected: pyarrow.Schema) -> pyarrow.Table:
    """Return the table of an earlier version with the columns that have come since; any other one as it is."""
    absent = [name for name in expected.names if name in columns.since and name not in table.column_names]
    if table.column_names[: len(expected) - len(absent)] != [name for name in expected.names if name not in absent]:
        return table
    for name in absent:
        values = pyarrow.array([columns.since[name]] * len(table), expected.field(name).type)
        table = table.add_column(expected.get_field_index(name), expected.field(name), values)
    return table


def read_rows_metadata(path: Path, columns: Columns) -> dict[str, Any]:
    """Return the circumstances of the run that wrote the file.

    Raises:
        UsageError: the file is missing, cut short, or was not written by `write_rows`.
    """
    content: dict[str, Any] = json.loads(_read_table(path, columns).schema.metadata[METADATA_KEY])
    return content


def _read_table(path: Path, columns: Columns) -> pyarrow.Table:
    if not path.is_file():
        raise UsageError(f"{columns.what} {path} does not exist; make it first")
    try:
        table = parquet.read_table(path, partitioning=None)
    except (pyarrow.ArrowException, OSError) as error:
        text = " ".join(str(error).split())
        raise UsageError(
            f"{columns.what} {path} is not a whole parquet file ({text}); delete it and make it again"
        ) from error
    if METADATA_KEY not in (table.schema.metadata or {}):
        raise UsageError(
            f"{columns.what} {path} was not written by satm (it carries no 'satm' metadata); make it again"
        )
    return table


RAW_PARTS = ("raw_images", "raw_labels")
"""Tensors of a synthetic set's file that are there beside an average only."""

STORED = "stored."
"""Begins the name of a tensor that images are computed from, in a synthetic set's file."""

HISTORY = "history."
"""Begins the name of a tensor of the set on its way, in a synthetic set's file."""


@dataclass(frozen=True, eq=False)
class History:
    """States of a synthetic set on its way, s of them; raw ones, where the set itself is an average."""

    iterations: Tensor
    """`[s]` int64, outer steps done before each state, ascending; the first is 0, the start."""
    images: Tensor
    """`[s, n, C, H, W]` float32 in the space of the set's images."""
    labels: Tensor
    """`[s, n]` int64 or `[s, n, K]` float32, like the set's labels."""
    step_size: Tensor
    """`[s]` float32."""

    def __len__(self) -> int:
        return len(self.iterations)


@dataclass(frozen=True, eq=False)
class DistilledDataset(Dataset[tuple[Tensor, Tensor]]):
    """A synthetic set, ready to train networks on; its items are (image, label)."""

    images: Tensor
    """`[n, C, H, W]` float32 in the space that networks are trained in: normalised, or whitened."""
    labels: Tensor
    """`[n]` int64 classes, or `[n, K]` float32 logits of soft labels (`satm.training.soft_cross_entropy`)."""
    step_size: Tensor
    """`[]` float32, SGD's step size that belongs to the images."""
    preprocessing: Mapping[str, Any]
    """Which map leads from pixels to `images`: `satm.data.Preprocessor.identity`."""
    class_names: tuple[str, ...]
    """By label."""
    dataset: str
    """Name of the real dataset."""
    ipc: int
    """Images per class."""
    method: str
    """Name of the method."""
    seed: int
    """Seed of the distillation."""
    options: Mapping[str, Any]
    """Resolved options of the distillation, JSON values."""
    iteration: int
    """Iterations that led to this set."""
    selection: str
    """Which iteration this is: `last`, or the best on `validation` or `test` images."""
    whitening_path: Path | None = None
    """File of the whitening, where there is one."""
    average: str = "raw"
    """What images and labels are: `raw`, those of one iteration, or `ema`, an exponential moving average over them."""
    raw_images: Tensor | None = None
    """Beside an average: the images `[n, C, H, W]` of the iteration itself, in the same space."""
    raw_labels: Tensor | None = None
    """Beside an average: the labels of the iteration itself, like `labels`; None: they are `labels`."""
    stored: Mapping[str, Tensor] = field(default_factory=dict)
    """What the images of the iteration (not an average of them) are computed from, by name, such as basis images and
    their weights; empty where they are numbers of their own."""
    history: History | None = None
    """The set on its way, where the distillation's option `snapshots` kept it."""

    def __post_init__(self) -> None:
        """Check that the parts fit together.

        Raises:
            UsageError: a shape, a type or a label does not fit.
        """
        if self.average not in ("raw", "ema"):
            raise UsageError(f"the images of a synthetic set are raw or ema, got average {self.average!r}")
        if self.average == "raw" and (self.raw_images is not None or self.raw_labels is not None):
            raise UsageError("raw_images and raw_labels stand beside an average, got average 'raw'; leave them out")
        for one, other in ((self.raw_images, self.images), (self.raw_labels, self.labels)):
            if one is not None and (one.shape != other.shape or one.dtype != other.dtype):
                raise UsageError(
                    f"the raw part beside an average must be like it, {other.dtype} {tuple(other.shape)}, got "
                    f"{one.dtype} {tuple(one.shape)}"
                )
        if self.images.ndim != 4 or self.images.dtype != torch.float32:
            raise UsageError(
                f"a synthetic set needs float32 images [n, C, H, W], got {self.images.dtype} {tuple(self.images.shape)}"
            )
        count, classes = len(self.images), len(self.class_names)
        hard = self.labels.dtype == torch.int64 and self.labels.shape == (count,)
        soft = self.labels.dtype == torch.float32 and self.labels.shape == (count, classes)
        if not hard and not soft:
            raise UsageError(
                f"a synthetic set of {count} images and {classes} classes needs labels int64 [{count}] or "
                f"float32 [{count}, {classes}], got {self.labels.dtype} {tuple(self.labels.shape)}"
            )
        if hard and count and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < classes:
            raise UsageError(
                f"the labels of a synthetic set of {classes} classes must be 0 to {classes - 1}, "
                f"got {int(self.labels.min())} to {int(self.labels.max())}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    @property
    def classes(self) -> Tensor:
        """`[n]` int64, the class of each image; of soft labels the largest."""
        return self.labels if self.labels.ndim == 1 else self.labels.argmax(1)

    @property
    def stored_numbers(self) -> int:
        """How many numbers the set is made of, to compare sets at an equal budget.

        Counted are `stored`, or without it (and for an average, which is not computed from it) the numbers of the
        images; and, where labels are soft, their logits. Not counted are integer labels, which follow from the order of
        the images, the step size, and what stands beside an average.
        """
        computed = self.average == "raw" and self.stored
        count = sum(tensor.numel() for tensor in self.stored.values()) if computed else self.images.numel()
        return count + (self.labels.numel() if self.labels.is_floating_point() else 0)

    def first(self, ipc: int) -> "DistilledDataset":
        """Return the set of the first so many images of each class; `stored` is kept whole.

        Of a set that is good in every prefix (boosted distillation) it is a set for a smaller budget.

        Raises:
            UsageError: there are fewer images, or the images are not sorted by class with as many of each.
        """
        classes = len(self.class_names)
        each, rest = divmod(len(self), classes)
        order = torch.arange(classes).repeat_interleave(each)
        if rest or (self.labels.ndim == 1 and not torch.equal(self.labels.cpu(), order)):
            raise UsageError(
                f"the first images of each class can be taken where images are sorted by class with as many of each, "
                f"which these {len(self)} images of {classes} classes are not"
            )
        if not 1 <= ipc <= each:
            raise UsageError(
                f"the synthetic set has {each} images of each class, asked for the first {ipc}; ask for 1 to {each}"
            )
        chosen = (torch.arange(classes)[:, None] * each + torch.arange(ipc)).reshape(-1).to(self.images.device)
        parts = ("images", "labels", *RAW_PARTS)
        held: dict[str, Any] = {part: whole[chosen] for part in parts if (whole := getattr(self, part)) is not None}
        if (way := self.history) is not None:
            held["history"] = replace(way, images=way.images[:, chosen], labels=way.labels[:, chosen])
        return replace(self, ipc=ipc, **held)

    def unaveraged(self) -> "DistilledDataset":
        """Return the raw set that stands beside an average; a raw set as it is.

        Raises:
            UsageError: the set is an average and its raw images were not kept.
        """
        if self.average == "raw":
            return self
        if self.raw_images is None:
            raise UsageError("the synthetic set is an average whose raw images were not kept; distil it again")
        labels = self.labels if self.raw_labels is None else self.raw_labels
        return replace(self, images=self.raw_images, labels=labels, average="raw", raw_images=None, raw_labels=None)

    def at(self, place: int) -> "DistilledDataset":
        """Return the raw set at one of the states of its history, counted from 0, the start.

        Raises:
            UsageError: the history was not kept, or has fewer states.
        """
        if self.history is None:
            raise UsageError(
                f"the synthetic set of {self.method} was stored without its history; distil it with snapshots above 0"
            )
        if not 0 <= place < len(self.history):
            raise UsageError(f"the history has the states 0 to {len(self.history) - 1}, asked for {place}")
        way = self.history
        return replace(
            self,
            images=way.images[place],
            labels=way.labels[place],
            step_size=way.step_size[place],
            iteration=int(way.iterations[place]),
            average="raw",
            raw_images=None,
            raw_labels=None,
            stored={},
            history=None,
        )

    def pixels(self, whitening: Whitening | None = None, clip: bool = True) -> Tensor:
        """Return `[n, C, H, W]` float32 images in [0, 1] for looking at.

        Args:
            whitening: the one that the images were made with; None: read from `whitening_path`. It is not part of a
                synthetic set's file, which would grow from some KiB to 76 MB (CIFAR-10).
            clip: clamp what lies beyond; without, it shows how much does.

        Raises:
            UsageError: the whitening's file is missing or broken, or it is not the one that the images were made with.
        """
        if self.preprocessing["whitening_hash"] is not None and whitening is None:
            whitening = load_whitening(self._found_whitening())
        return Preprocessor.from_identity(self.preprocessing, whitening).to_pixels(self.images, clip)

    def _found_whitening(self) -> Path:
        if self.whitening_path is None or not self.whitening_path.is_file():
            raise UsageError(
                f"the images are whitened and the whitening is not at {self.whitening_path}; make it with "
                f"`python -m satm data --dataset {self.dataset} --make zca`, or give pixels() the whitening"
            )
        return self.whitening_path


def save_distilled(path: Path, data: DistilledDataset) -> None:
    """Write a synthetic set as safetensors, atomically. Equal sets give equal bytes: no time, no host.

    The whitening's path is stored relative to `path`, so that a tree of results can be moved as a whole.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    whitening = data.whitening_path
    fields = ("class_names", "dataset", "ipc", "method", "seed", "iteration", "selection", "average")
    metadata = {
        "kind": "distilled",
        **{field: getattr(data, field) for field in fields},
        "preprocessing": dict(data.preprocessing),
        "options": dict(data.options),
        "whitening_path": os.path.relpath(whitening.resolve(), path.parent.resolve()) if whitening else None,
        "versions": {"satm": satm.__version__, "torch": torch.__version__},
    }
    tensors = {"images": data.images, "labels": data.labels, "step_size": data.step_size.detach().float().reshape(())}
    extras = {name: getattr(data, name) for name in RAW_PARTS}
    extras |= {f"{STORED}{name}": tensor for name, tensor in data.stored.items()}
    extras |= {f"{HISTORY}{name}": tensor for name, tensor in vars(data.history).items()} if data.history else {}
    # The format refuses tensors that share memory, as raw and averaged labels may.
    tensors |= {name: tensor.clone() for name, tensor in extras.items() if tensor is not None}
    write_tensors(path, tensors, metadata)


def load_distilled(path: Path | str) -> DistilledDataset:
    """Return the synthetic set in a file that `save_distilled` wrote.

    Raises:
        UsageError: the file is missing, cut short or holds something else.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path, "synthetic set")
    stored = {name.removeprefix(STORED): tensors.pop(name) for name in sorted(tensors) if name.startswith(STORED)}
    way = {name.removeprefix(HISTORY): tensors.pop(name) for name in sorted(tensors) if name.startswith(HISTORY)}
    if metadata.get("kind") != "distilled" or set(tensors) - set(RAW_PARTS) != {"images", "labels", "step_size"}:
        kind = metadata.get("kind", "something else")
        raise UsageError(f"{path} holds {kind}, expected a synthetic set; give a distilled.safetensors")
    wanted = {*DistilledDataset.__dataclass_fields__} - {*tensors, *RAW_PARTS, "stored", "average", "history"}
    if missing := sorted(wanted - set(metadata)):
        raise UsageError(
            f"{path} says nothing of {', '.join(missing)}: it is damaged or of another version; make it again"
        )
    values: dict[str, Any] = {**metadata, **tensors, "class_names": tuple(cast(list[str], metadata["class_names"]))}
    values["stored"] = stored
    values["history"] = History(**way) if way else None
    if values["whitening_path"] is not None:
        values["whitening_path"] = (path.parent.resolve() / values["whitening_path"]).resolve()
    return DistilledDataset(**{name: value for name, value in values.items() if name not in ("kind", "versions")})
