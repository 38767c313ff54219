"""The kinds of rows: which columns each has, and what they say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow


@dataclass(frozen=True)
class Columns:
    """The columns of one kind of parquet file, in their order."""

    what: str
    """The word for the file in messages."""
    fields: Mapping[str, type]
    """Type by name: str, int or float."""
    key: tuple[str, ...]
    """Columns that together say what a row is about: no two rows of a run agree in all of them."""
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


CELL = {"dataset": str, "ipc": int, "method": str, "seed": int}
"""Columns that name a synthetic set."""

EVALUATION = Columns(
    "evaluation",
    {
        **CELL,
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
    key=(*CELL, "network", "repeat", "split", "average", "labels", "labelled", "augmented"),
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
        **CELL,
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
    key=(*CELL, "search", "candidate", "repeat"),
)
"""One row per trained candidate and repeat; ipc 0 and method `real` where it was trained on all real images. candidate:
its place in `satm.evaluation.search.candidates`, which the five options after it spell out; split: where `accuracy` (a
fraction) and `loss` (NaN where training diverged) were measured; seconds and peak_memory_bytes of this training."""

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
    key=("iteration", "attempt"),
    optional=frozenset({"loss", "step_size", "hypergradient_norm", "sharpness"}),
    extra=True,
)
"""One row per iteration of a distillation. attempt: raised when the loop went back to a good state; event: what
happened, mostly empty; seconds of this iteration."""

CONTINUAL = Columns(
    "continual learning",
    {
        **CELL,
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
    key=(*CELL, "protocol", "average", "order", "repeat", "step", "label"),
)
"""One row per network and class that it has seen. protocol: its name; sets: sliced or per-step; order: of the classes,
from 0; step: from 1; label: the class, in the whole dataset; learned_at: the step that brought it; images: real images
of this class in `split`, and accuracy, a fraction, on them among all classes seen; labels, selection, average,
step_size and rate as in an evaluation; seconds and peak_memory_bytes of this network, the same in all its rows."""

SHARPNESS = Columns(
    "sharpness",
    {
        **CELL,
        "segment": int,
        "rho": float,
        "loss": float,
        "perturbed_loss": float,
        "sharpness": float,
    },
    key=(*CELL, "segment"),
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
    key=("dataset", "experts", "expert", "epoch", "rho"),
)
"""One row per snapshot of an expert and length rho: the training loss at its weights, at their worst neighbour in
distance rho, and the difference."""

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
    key=(*CELL, "kind", "expert", "start", "epoch"),
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
    key=(*CELL, "iteration"),
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
    key=(*CELL, "quantity", "segment", "kept"),
    optional=frozenset({"bound", "lowest_curvature", "highest_curvature"}),
)
"""One row per quantity, expert segment and number of kept steps (`satm.analysis.bounds.measure_bounds`)."""

PACE = Columns(
    "measured pace",
    {
        "kind": str,
        "key": str,
        "amount": int,
        "seconds": float,
        "peak_memory_bytes": int,
        "parameters": int,
        "device": str,
    },
    key=("kind", "key", "amount"),
    optional=frozenset({"seconds"}),
)
"""One row per measurement of a piece of work (`satm.cost.workload.Piece`). kind and key: which; amount: images of a
step, or inner steps of an iteration, 0: as many as its options say; seconds: of one of them, missing where it does not
fit into the memory; parameters: of the network; device: that measured."""
