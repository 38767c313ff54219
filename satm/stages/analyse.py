"""The stage `analyse`: measurements on synthetic sets and experts that are not accuracies."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch

from satm.analysis.bounds import measure_bounds
from satm.analysis.expert_sharpness import measure_expert_sharpness
from satm.analysis.sharpness import measure_sharpness
from satm.analysis.trajectory import measure_trajectory
from satm.analysis.variance import measure_variance
from satm.config import ANALYSES, REVISIONS, AnalyseOptions, Cell, Resolver
from satm.config.analysis import kept_steps
from satm.config.methods import MatchingOptions, MethodOptions, UnrolledOptions
from satm.data import Split
from satm.errors import UsageError
from satm.methods import resolve as resolve_method
from satm.methods.parts.matching import TrajectoryMatching
from satm.methods.parts.method import Method
from satm.methods.parts.problem import Synthetic
from satm.methods.parts.unrolled import UnrolledTraining
from satm.methods.satm import SatmOptions
from satm.networks.training import TrainingImages
from satm.results.columns import BOUNDS, EXPERT_SHARPNESS, SHARPNESS, TRAJECTORY, VARIANCE, Columns
from satm.results.distilled import DistilledDataset
from satm.seeds import make_generator
from satm.stages.inputs import Inputs
from satm.stages.job import Job

LOG = logging.getLogger("satm")

Row = Mapping[str, Any]
"""JSON values by column."""

M = TypeVar("M", bound=Method[Any])


@dataclass(frozen=True)
class Measurement:
    """A measurement that is ready to run."""

    steps: Iterable[Sequence[Row]]
    """Rows of one step after another, computed on iteration."""
    total: int
    """Number of steps."""
    shown: Sequence[str]
    """Columns shown in the progress."""
    identity: Mapping[str, Any]
    """Options and inputs that determine the measurement."""
    summary: Callable[[Sequence[Row]], str]
    """Returns the log's summary of all rows."""

    def run(self, job: Job) -> None:
        """Measure and write the rows, unless another process has done so."""
        with job:
            if job.done:
                return
            rows = list[Row]()
            with job.progress(self.total) as progress:
                for step in self.steps:
                    rows += step
                    values = [(name, step[-1].get(name)) for name in self.shown]
                    progress.step(", ".join(f"{name} {_text(value)}" for name, value in values if value is not None))
            job.write_rows(rows)
            LOG.info("%s; %d rows -> %s", self.summary(rows), len(rows), job.path)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class _Subject(Inputs):
    """A synthetic set to measure at, with its dataset and its method.

    Raises:
        UsageError: (on construction) the method is not of the family, or the images are missing or of other options.
    """

    def __init__(self, resolver: Resolver, cell: Cell, family: type[MethodOptions], device: torch.device) -> None:
        self.cell, (self.recipe, self.options) = cell, resolve_method(resolver.method(cell))
        if not isinstance(self.options, family):
            lack = "matches no trajectories" if family is MatchingOptions else "unrolls no training"
            raise UsageError(f"method {cell.method} {lack}, which this measurement needs; leave it out")
        super().__init__(resolver, cell.dataset, device)

    @cached_property
    def stored(self) -> tuple[DistilledDataset, str]:
        """The set and the hash of its file."""
        return self.distilled(self.cell)

    def synthetic(self, state: DistilledDataset | None = None) -> Synthetic:
        """Return the set, or a state of it, on the device."""
        state = self.stored[0] if state is None else state
        return Synthetic(state.images.to(self.device), state.labels.to(self.device), state.step_size.to(self.device))

    def own_method(self, kind: type[M], drawn_as: str | None = None, experts: str | None = None) -> M:
        """Return the set's method, which is of class `kind`.

        `drawn_as` replaces the method's name in seeds, so that all methods have the same random choices; `experts`
        replaces the experts that the method matched.
        """
        cell = self.cell._replace(method=drawn_as or self.cell.method)
        method, _ = self.method(self.recipe, self.options, cell, experts)
        assert isinstance(method, kind)
        return method

    def shared_rho(self) -> float:
        """Return the rho of the method `satm` in the cell, at which all methods are measured.

        Raises:
            UsageError: the campaign gives that name to another method.
        """
        _, shared = resolve_method(self.resolver.method(self.cell._replace(method="satm")))
        if not isinstance(shared, SatmOptions):
            raise UsageError("the rho of this measurement is that of the entry 'satm', another method here; rename it")
        return shared.rho


def _sharpness(subject: _Subject, options: AnalyseOptions) -> Measurement:
    """Measure the rise of the matching loss at the worst neighbour of a synthetic set.

    Every method of a cell is measured with the exact hypergradient, the same segments, batches and augmentation, and
    the rho of the method `satm` there.
    """
    rho, matching = subject.shared_rho(), subject.own_method(TrajectoryMatching, drawn_as="sharpness")
    measured = enumerate(measure_sharpness(matching, subject.synthetic(), rho, options.segments))
    steps = ([{"segment": index, "rho": rho, **row}] for index, row in measured)
    identity = {"experts": matching.experts.identity, "segments": options.segments, "rho": rho}

    def summary(rows: Sequence[Row]) -> str:
        return f"mean sharpness at rho {rho:g}: {sum(row['sharpness'] for row in rows) / len(rows):.6f}"

    return Measurement(steps, options.segments, ("loss", "sharpness"), identity, summary)


def _trajectory(subject: _Subject, options: AnalyseOptions) -> Measurement:
    """Measure the distance of networks trained on a synthetic set from the first experts, along their trajectories."""
    matching = subject.own_method(TrajectoryMatching, experts=options.experts)
    epochs, length = matching.experts.epochs, matching.options.expert_epochs
    starts = [start for start in options.starts if start < epochs]
    chosen = range(min(options.count, len(matching.experts)))
    rows = measure_trajectory(matching, subject.synthetic(), subject.images("test"), chosen, starts)
    identity = {"experts": matching.experts.identity, "count": len(chosen), "starts": starts}
    shown = ("kind", "expert", "start", "epoch", "accumulated", "evaluation_accuracy")

    def summary(rows: Sequence[Row]) -> str:
        worst = max(row["residual"] for row in rows if row["kind"] == "path" and row["epoch"] > epochs - length)
        return f"errors along {len(chosen)} experts, the parts add up to {worst:.1e}"

    total = len(chosen) * (epochs // length + len(starts))
    return Measurement(([row] for row in rows), total, shown, identity, summary)


def _variance(subject: _Subject, options: AnalyseOptions) -> Measurement:
    """Measure the variance of the hypergradient of unrolled training over real images, along its history.

    Raises:
        UsageError: the set was stored without its history.
    """
    stored, _ = subject.stored
    if (history := stored.history) is None:
        raise UsageError(
            f"the synthetic set of {subject.cell.method} was stored without its history; set snapshots above 0 for it "
            "and distil it again"
        )
    method = subject.own_method(UnrolledTraining)
    states = (stored.at(index) for index in range(len(history)))
    pairs = ((state.iteration, subject.synthetic(state)) for state in states)
    steps = ([row] for row in measure_variance(method, pairs, options.samples))
    identity = {"samples": options.samples, "network": subject.network(method.options.network)}
    summary = f"variance of the hypergradient at {len(history)} states"
    return Measurement(steps, len(history), ("iteration", "variance"), identity, lambda _: summary)


def _bounds(subject: _Subject, options: AnalyseOptions) -> Measurement:
    """Measure the errors of truncated hypergradients and reused trajectories at a synthetic set.

    With N inner steps the last ``int(N / divisor)`` are kept, for each of the divisors.
    """
    matching, segments, rho = subject.own_method(TrajectoryMatching), options.segments, subject.shared_rho()
    keeps = kept_steps(matching.options.inner_steps, options.divisors)
    rows = measure_bounds(matching, subject.synthetic(), rho, segments, keeps)
    identity = {"experts": matching.experts.identity, "segments": segments, "kept": keeps, "rho": rho}
    steps, shown, summary = ([row] for row in rows), ("quantity", "kept", "error"), f"errors of {segments} segments"
    return Measurement(steps, 2 * segments * len(keeps), shown, identity, lambda _: summary)


AT_SET: dict[str, tuple[type[MethodOptions], Columns, Callable[[_Subject, AnalyseOptions], Measurement]]] = {
    "sharpness": (MatchingOptions, SHARPNESS, _sharpness),
    "trajectory": (MatchingOptions, TRAJECTORY, _trajectory),
    "variance": (UnrolledOptions, VARIANCE, _variance),
    "bounds": (MatchingOptions, BOUNDS, _bounds),
}
"""Measurements at a synthetic set: the family of its method, the columns, and the function that prepares it."""


def make_measurement(resolver: Resolver, cell: Cell, what: str, options: AnalyseOptions, device: torch.device) -> None:
    """Run a measurement at a synthetic set and write its rows.

    Raises:
        UsageError: the measurement does not apply to the method, or a file is missing or of another run.
    """
    family, columns, prepare = AT_SET[what]
    subject = _Subject(resolver, cell, family, device)
    measurement = prepare(subject, options)
    settings, axes = {"method": subject.recipe.name, **subject.options.model_dump(mode="json")}, cell.axes
    used = options.model_dump(mode="json", include=set(ANALYSES[what]))
    own = {"options": settings, "measurement": used, **measurement.identity, **subject.distillations(cell)}
    identity = subject.identify("analyse", distilled=subject.stored[1], **own)
    steps = ([{**axes, **row} for row in step] for step in measurement.steps)
    job = Job(resolver, "analysis", {**axes, "what": what}, identity, columns, device, doubts=subject.doubts)
    replace(measurement, steps=steps).run(job)


def make_expert_sharpness(
    resolver: Resolver,
    dataset: str,
    options: AnalyseOptions,
    images: int,
    lengths: Sequence[float],
    device: torch.device,
) -> None:
    """Measure the rise of the training loss at the worst neighbours of experts' weights, after each epoch.

    The loss is over some training images, drawn at random, the same for all experts of a dataset; `lengths` are the
    distances of the neighbours.
    """
    experts, count = options.experts, options.count
    assert experts is not None
    for name, value in {"images": images, "rho": min(lengths, default=0)}.items():
        if not value > 0:
            raise UsageError(f"{name} must be above 0, got {value}; use a larger one")
    inputs = Inputs(resolver, dataset, device)
    data, store = inputs.data, inputs.experts(experts)
    module = inputs.module(resolver.experts(experts, dataset).network)
    chosen = torch.randperm(len(data.train), generator=make_generator("expert-sharpness", dataset))[:images]
    subset = Split(data.train.images[chosen], data.train.labels[chosen])
    real = TrainingImages.of(subset, inputs.preprocessor, device)
    names = {"dataset": dataset, "experts": experts}
    measured = measure_expert_sharpness(module, store, real, count, lengths)
    steps = ([{**names, **row} for row in rows] for rows in measured)
    about = {"experts": store.identity, "images": len(real), "count": count, "rho": list(lengths)}

    def summary(rows: Sequence[Row]) -> str:
        trained = {rho: [row["sharpness"] for row in rows if row["rho"] == rho and row["epoch"]] for rho in lengths}
        means = (f"{sum(values) / len(values):.6f} at rho {rho:g}" for rho, values in trained.items())
        return f"mean sharpness after training began: {', '.join(means)}"

    identity, total = {"revision": REVISIONS["analyse"], **about}, min(count, len(store)) * (store.epochs + 1)
    job = Job(resolver, "expert_sharpness", names, identity, EXPERT_SHARPNESS, device, doubts=inputs.doubts)
    Measurement(steps, total, ("expert", "epoch", "sharpness"), identity, summary).run(job)
