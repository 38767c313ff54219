"""The columns of every kind of result file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow


@dataclass(frozen=True)
class Columns:
    """The columns of one kind of parquet file, in order."""

    what: str
    """Kind of file, for messages."""
    fields: Mapping[str, type]
    """Type by name: str, int or float."""
    key: tuple[str, ...]
    """Columns that identify a row: no two rows of a run agree in all of them."""
    optional: frozenset[str] = frozenset()
    """Columns whose values may be missing."""
    extra: bool = False
    """Allow further float columns, in name order, whose values may be missing."""
    since: Mapping[str, object] = field(default_factory=dict)
    """Columns that files of earlier versions lack, with the value of all their rows."""

    def schema(self, rows: Sequence[Mapping[str, Any]]) -> pyarrow.Schema:
        """Return the typed columns of `rows`.

        Raises:
            ValueError: a row has an unknown column or lacks a value.
        """
        unknown = sorted(set().union(*rows) - set(self.fields))
        if unknown and not self.extra:
            raise ValueError(f"{self.what} has no columns {unknown}; it has {list(self.fields)}")
        for name in set(self.fields) - self.optional:
            if any(row.get(name) is None for row in rows):
                raise ValueError(f"{self.what} has a row without {name!r}")
        types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
        fixed = [(name, types[kind]) for name, kind in self.fields.items()]
        return pyarrow.schema(fixed + [(name, pyarrow.float64()) for name in unknown])


def _fields(declaration: str) -> dict[str, type]:
    """Return type by name from a declaration such as `"epochs int, loss float"`."""
    types = {"str": str, "int": int, "float": float}
    return {name: types[kind] for name, kind in map(str.split, declaration.split(","))}


CELL = _fields("dataset str, ipc int, method str, seed int")
"""Columns that identify a synthetic set."""

COST = _fields("seconds float, peak_memory_bytes int")
"""Columns for the cost of a training or an iteration."""

EVALUATION = Columns(
    "evaluation",
    CELL
    | _fields("network str, repeat int, labels str, split str, selection str, average str, labelled str")
    | _fields("augmented str, step_size str, rate float, accuracy float, loss float, epochs int, train_steps float")
    | COST,
    key=(*CELL, "network", "repeat", "split", "average", "labels", "labelled", "augmented"),
    optional=frozenset({"rate", "train_steps"}),
    since={"average": "raw", "labelled": "own", "augmented": "", "step_size": "", "rate": None, "train_steps": None},
)
"""One row per network trained on a synthetic set.

labels: hard or soft. split: real images that `accuracy` (a fraction) and `loss` are measured on. selection: how the
iteration of the synthetic set was chosen: last, validation or test. average: raw, or ema for an exponential moving
average over the iterations, which has rows of both, each with its own network per repeat. labelled: source of the
labels: own (the set's), class (of each image) or teacher (experts). augmented: yes or no. step_size: learned with the
set, searched on other real images, or fixed; rate: its value. epochs: passes over the set, of train_steps steps
together. Files of earlier versions lack augmented, step_size, rate and train_steps.
"""

NAS = Columns(
    "accuracies of an architecture search",
    CELL
    | _fields("search str, candidate int, width int, depth int, norm str, activation str, pooling str, repeat int")
    | _fields("split str, accuracy float, loss float, epochs int")
    | COST,
    key=(*CELL, "search", "candidate", "repeat"),
)
"""One row per trained candidate and repeat; ipc 0 and method `real` for training on all real images.

candidate: index in `satm.evaluation.search.candidates`; width to pooling are its options. split: real images that
`accuracy` (a fraction) and `loss` (NaN where training diverged) are measured on.
"""

METRICS = Columns(
    "metrics",
    _fields("iteration int, attempt int, event str, loss float, step_size float, hypergradient_norm float")
    | _fields("sharpness float")
    | COST,
    key=("iteration", "attempt"),
    optional=frozenset({"loss", "step_size", "hypergradient_norm", "sharpness"}),
    extra=True,
)
"""One row per iteration of a distillation. attempt: number of rollbacks before; event: rollback or skip, else empty."""

CONTINUAL = Columns(
    "continual learning",
    CELL
    | _fields("network str, protocol str, sets str, labels str, split str, selection str, average str, step_size str")
    | _fields("order int, repeat int, step int, classes_seen int, label int, learned_at int, images int")
    | _fields("accuracy float, rate float")
    | COST,
    key=(*CELL, "protocol", "average", "order", "repeat", "step", "label"),
)
"""One row per network and class that it has seen.

protocol: its name. sets: sliced or per-step. order: of the classes, from 0. step: from 1. label: the class in the whole
dataset. learned_at: the step that introduced it. images: real images of this class in `split`; accuracy: the fraction
of them classified correctly among all classes seen. labels, selection, average, step_size and rate as in an evaluation.
seconds and peak_memory_bytes: of this network, the same in all its rows.
"""

SHARPNESS = Columns(
    "sharpness",
    CELL | _fields("segment int, rho float, loss float, perturbed_loss float, sharpness float"),
    key=(*CELL, "segment"),
)
"""One row per expert segment: matching loss at a synthetic set, at its worst neighbour at distance rho; difference."""

EXPERT_SHARPNESS = Columns(
    "sharpness of experts",
    _fields("dataset str, experts str, expert int, epoch int, rho float, loss float, perturbed_loss float")
    | _fields("sharpness float"),
    key=("dataset", "experts", "expert", "epoch", "rho"),
)
"""One row per expert snapshot and rho: training loss there, at the worst neighbour at distance rho; difference."""

_PATH_ONLY = _fields(
    "distillation_accuracy float, distillation_loss float, expert_accuracy float, expert_loss float, "
    "accumulated float, matching float, initialisation float, residual float"
)

TRAJECTORY = Columns(
    "errors along the experts' trajectories",
    CELL
    | _fields("kind str, expert int, start int, epoch int, steps int, evaluation_accuracy float, evaluation_loss float")
    | _PATH_ONLY,
    key=(*CELL, "kind", "expert", "start", "epoch"),
    optional=frozenset(_PATH_ONLY),
)
"""One row per expert and segment of its trajectory (kind `path`), or per epoch at which a network starts (kind
`restart`, without the optional columns).

start, epoch: epochs of the expert at which the segment or network starts and ends; steps: training steps between them.
accuracy (a fraction) and loss on the test images at the end: of the network trained on the synthetic set alone
(evaluation), of one started at the expert's weights (distillation), and of the expert. accumulated, matching,
initialisation: norms of these errors (`satm.analysis.trajectory`); residual: rounding error of their sum, relative to
the accumulated error.
"""

VARIANCE = Columns(
    "variance of the hypergradient",
    CELL | _fields("iteration int, samples int, variance float, norm float"),
    key=(*CELL, "iteration"),
)
"""One row per stored state of a synthetic set. iteration: outer steps before it; samples: single real images;
variance: normalised (`satm.analysis.variance`); norm: of the mean gradient."""

BOUNDS = Columns(
    "errors of SATM's approximations",
    CELL
    | _fields("quantity str, segment int, steps int, kept int, error float, relative float, bound float")
    | _fields("lowest_curvature float, highest_curvature float, step_size float, rho float, gradient float"),
    key=(*CELL, "quantity", "segment", "kept"),
    optional=frozenset({"bound", "lowest_curvature", "highest_curvature"}),
)
"""One row per quantity, expert segment and number of kept steps (`satm.analysis.bounds.measure_bounds`)."""

BENCH = Columns(
    "benchmark",
    _fields("kind str, way str, of str, value int, seconds float, times_as_fast float")
    | _fields("peak_memory_bytes int, predicted_memory_bytes int"),
    key=("way", "value"),
    optional=frozenset({"times_as_fast", "peak_memory_bytes", "predicted_memory_bytes"}),
)
"""One row per way, and in a scaling per size (`satm.benchmarks`).

of, value: what is scaled and its size; empty and 0 in a comparison. seconds: median of the rounds, in a scaling their
minimum. times_as_fast: median ratio to the first way of a comparison. peak_memory_bytes: rise of the peak of a process
of its own. predicted_memory_bytes: this rise as predicted before the run.
"""

PACE = Columns(
    "measured pace",
    _fields("kind str, key str, amount int") | COST | _fields("parameters int, device str"),
    key=("kind", "key", "amount"),
    optional=frozenset({"seconds"}),
)
"""One row per measured piece of work (`satm.cost.workload.Piece`), identified by kind and key.

amount: images per step, or inner steps per iteration; 0: the number in the options. seconds: time of one step or
iteration; missing if the work does not fit into memory. parameters: number of the network's. device: measured device.
"""
