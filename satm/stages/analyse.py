"""The stage `analyse`: measurements on synthetic sets and experts that are not accuracies."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from satm.analysis.bounds import measure_bounds
from satm.analysis.expert_sharpness import measure_expert_sharpness
from satm.analysis.sharpness import measure_sharpness
from satm.analysis.trajectory import follow, restart
from satm.analysis.variance import gradient_variance
from satm.config import REVISIONS, Cell, Resolver
from satm.config.methods import MatchingOptions, MethodOptions, UnrolledOptions
from satm.data import Split
from satm.errors import UsageError
from satm.methods import resolve as resolve_method
from satm.methods.parts.matching import TrajectoryMatching
from satm.methods.parts.problem import Synthetic
from satm.methods.parts.unrolled import UnrolledTraining
from satm.methods.satm import SatmOptions
from satm.networks import build
from satm.networks.training import TrainingImages, measure
from satm.params import load_flat
from satm.results.circumstances import run_metadata
from satm.results.columns import BOUNDS, EXPERT_SHARPNESS, SHARPNESS, TRAJECTORY, VARIANCE, Columns
from satm.results.rows import write_rows
from satm.run.lock import exclusive
from satm.run.progress import Progress
from satm.seeds import make_generator
from satm.stages.common import Prepared, made_already, make_problem, open_distilled, open_experts, prepare
from satm.storage.files import hash_file, patiently

LOG = logging.getLogger("satm")

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class _Measurement:
    """One file of measurements and what it is of.

    Args:
        what: is measured; the first part of the run's state, of which the others follow in `place`.
        place: see `what`.
        columns: of the file.
        path: of the file.
        about: everything that makes the numbers what they are, besides the stage's revision.
    """

    what: str
    place: tuple[str, ...]
    columns: Columns
    path: Path
    about: Mapping[str, Any]

    def make(self, resolver: Resolver, found: Iterable[tuple[Rows, str]], total: int, device: torch.device) -> Rows:
        """Measure, and write the rows, unless another process has done so; return them, none where it has.

        Args:
            resolver: the campaign.
            found: the rows of one step after another, and what there is to say about them.
            total: how many steps.
            device: where they are measured.
        """
        identity = {"revision": REVISIONS["analyse"], **self.about}
        rows: Rows = []
        with exclusive(Path(resolver.layout.state(self.what, *self.place)), f"the measurement {self.what}") as lock:
            if made_already(lock, self.columns, identity, self.path):
                return []
            with Progress(self.what, total) as progress:
                for some, text in found:
                    rows += some
                    progress.step(text)
            lock.check()
            patiently(lambda: write_rows(self.path, rows, self.columns, run_metadata(identity, device)))
            LOG.info("%d rows -> %s", len(rows), self.path)
            lock.finished(self.path)
        return rows


LACKS: dict[type[MethodOptions], str] = {
    MatchingOptions: "matches no trajectories",
    UnrolledOptions: "unrolls no training",
}
"""Why a method without such options is not measured."""

F = TypeVar("F", MatchingOptions, UnrolledOptions)


class _At(Generic[F]):
    """A synthetic set to measure at, with its dataset and its method."""

    def __init__(self, resolver: Resolver, cell: Cell, family: type[F], device: torch.device) -> None:
        """Read them.

        Raises:
            UsageError: the method is not one of the family whose options are given, or a file is missing or of another
                run.
        """
        self.resolver, self.cell, self.device = resolver, cell, device
        self.kind, options = resolve_method(resolver.method(cell))
        if not isinstance(options, family):
            raise UsageError(f"method {cell.method} {LACKS[family]}, which this measures; leave it out")
        self.options: F = options
        self.prepared: Prepared = prepare(resolver, cell.dataset)
        self.distilled, self._path = open_distilled(resolver, self.prepared, cell)

    @property
    def synthetic(self) -> Synthetic:
        """The set on the device."""
        made = self.distilled
        return Synthetic(made.images.to(self.device), made.labels.to(self.device), made.step_size.to(self.device))

    def make(
        self, what: str, columns: Columns, found: Iterable[tuple[Rows, str]], total: int, about: Mapping[str, Any]
    ) -> Rows:
        """Measure and write, as `_Measurement.make`; rows and file say of which set they are."""
        identity = {
            "distilled": hash_file(self._path),
            **self.prepared.identity,
            "options": self.options.model_dump(mode="json"),
            **about,
        }
        path = Path(self.resolver.layout.analysis(what, self.cell))
        told = (([{**self.cell.axes, **row} for row in rows], text) for rows, text in found)
        return _Measurement(what, self.cell.place, columns, path, identity).make(
            self.resolver, told, total, self.device
        )


def _matching(
    at: _At[MatchingOptions], experts: str | None = None, drawn_as: str | None = None
) -> TrajectoryMatching[MatchingOptions]:
    """Return the matching of a set's method.

    Args:
        at: the set.
        experts: those to match; None: those that the method matched.
        drawn_as: stands for the method where random choices are drawn, so that all methods have the same.

    Raises:
        UsageError: the experts are missing or others.
    """
    name = at.options.experts if experts is None else experts
    store = open_experts(at.resolver, at.prepared, name)
    network = at.resolver.experts(name, at.cell.dataset).network
    cell = at.cell._replace(method=drawn_as or at.cell.method)
    problem = make_problem(at.resolver, at.prepared, network, cell, at.device, store)
    return TrajectoryMatching(at.kind, at.options, problem)


def make_sharpness(resolver: Resolver, cell: Cell, segments: int, device: torch.device) -> None:
    """Measure how much the matching loss rises at the worst neighbour of a synthetic set.

    Every method of a cell is measured with the exact hypergradient, the same segments, batches and augmentation, and
    the rho of the method `satm` there.
    """
    _positive(segments=segments)
    rho = _shared_rho(resolver, cell)
    at = _At(resolver, cell, MatchingOptions, device)
    matching, synthetic = _matching(at, drawn_as="sharpness"), at.synthetic

    def measured() -> Iterator[tuple[Rows, str]]:
        for index, found in enumerate(measure_sharpness(matching, synthetic, rho, segments)):
            text = f"loss {found['loss']:.4f}, sharpness {found['sharpness']:.5f}"
            yield [{"segment": index, "rho": rho, **found}], text

    about = {"experts": matching.experts.identity, "segments": segments, "rho": rho}
    if rows := at.make("sharpness", SHARPNESS, measured(), segments, about):
        mean = sum(row["sharpness"] for row in rows) / len(rows)
        LOG.info("mean sharpness over %d segments, rho %g: %.6f", segments, rho, mean)


def make_trajectory(
    resolver: Resolver,
    cell: Cell,
    experts: str | None,
    count: int,
    starts: Sequence[int],
    device: torch.device,
) -> None:
    """Measure how far networks trained on a synthetic set are from experts, along their whole path.

    Args:
        resolver: the campaign.
        cell: the set.
        experts: their name; None: those that the method matched.
        count: how many experts, the first ones.
        starts: epochs at which networks are begun that go on to the last one; those beyond it are left out.
        device: where to compute.
    """
    _positive(count=count)
    at = _At(resolver, cell, MatchingOptions, device)
    matching, synthetic = _matching(at, experts), at.synthetic
    real = TrainingImages.of(at.prepared.data.test, at.prepared.preprocessor, device)
    module = matching.problem.build(0).to(device)

    def test(weights: Tensor) -> tuple[float, float]:
        load_flat(module, weights)
        return measure(module, real)

    epochs, length = matching.experts.epochs, matching.options.expert_epochs
    begun = [start for start in starts if start < epochs]
    chosen = range(min(count, len(matching.experts)))

    def measured() -> Iterator[tuple[Rows, str]]:
        for expert in chosen:
            for found in follow(matching, synthetic, expert, test):
                row = {"kind": "path", "expert": expert, "steps": matching.options.inner_steps, **found}
                yield [row], f"expert {expert} epoch {found['epoch']}: accumulated error {found['accumulated']:.4g}"
            for found in restart(matching, synthetic, expert, begun, test):
                text = f"begun at epoch {found['start']}: test accuracy {found['evaluation_accuracy']:.4f}"
                yield [{"kind": "restart", "expert": expert, **found}], text

    about = {"experts": matching.experts.identity, "count": len(chosen), "starts": begun}
    total = len(chosen) * (epochs // length + len(begun))
    if rows := at.make("trajectory", TRAJECTORY, measured(), total, about):
        last = [row for row in rows if row["kind"] == "path" and row["epoch"] > epochs - length]
        worst = max(row["residual"] for row in last)
        LOG.info("errors along %d experts, the parts add up to %.1e", len(chosen), worst)


def make_variance(resolver: Resolver, cell: Cell, samples: int, device: torch.device) -> None:
    """Measure how much the hypergradient of unrolled training varies over real images, along its history.

    Raises:
        UsageError: the method is not one of unrolled training, or the set was stored without its history.
    """
    if samples < 2:
        raise UsageError(f"a variance needs at least 2 samples, got {samples}; use more")
    at = _At(resolver, cell, UnrolledOptions, device)
    distilled = at.distilled
    if (history := distilled.history) is None:
        raise UsageError(
            f"the synthetic set of {cell.method} was stored without its history; set snapshots above 0 for it and "
            "distil it again"
        )
    problem = make_problem(resolver, at.prepared, at.options.network, cell, device, None)
    made = at.kind(at.options, problem)
    assert isinstance(made, UnrolledTraining)

    def measured() -> Iterator[tuple[Rows, str]]:
        for place in range(len(history)):
            state = distilled.at(place)
            synthetic = Synthetic(state.images.to(device), state.labels.to(device), state.step_size.to(device))
            found = gradient_variance(made, synthetic, state.iteration, samples)
            row = {"iteration": state.iteration, "samples": min(samples, made.batch), **found}
            yield [row], f"iteration {state.iteration}: normalised variance {found['variance']:.4g}"

    about = {"samples": samples, "network": resolver.network(at.options.network, cell.dataset)}
    if rows := at.make("variance", VARIANCE, measured(), len(history), about):
        LOG.info("variance of the hypergradient at %d states", len(rows))


def make_bounds(
    resolver: Resolver,
    cell: Cell,
    segments: int,
    divisors: Sequence[int],
    device: torch.device,
) -> None:
    """Measure the errors of truncated hypergradients and reused trajectories at a synthetic set.

    Args:
        resolver: the campaign.
        cell: the set.
        segments: expert segments.
        divisors: the last ``int(N / divisor)`` of N inner steps are kept.
        device: where to compute.
    """
    _positive(segments=segments)
    at = _At(resolver, cell, MatchingOptions, device)
    matching, synthetic = _matching(at), at.synthetic
    steps, rho = matching.options.inner_steps, _shared_rho(resolver, cell)
    keeps = sorted({steps // divisor for divisor in divisors if divisor > 1 and steps // divisor})
    if not keeps:
        raise UsageError(f"the divisors {list(divisors)} of {steps} inner steps keep no part of them; use 2 or more")

    def measured() -> Iterator[tuple[Rows, str]]:
        for found in measure_bounds(matching, synthetic, rho, segments, keeps):
            yield [found], f"{found['quantity']}, {found['kept']} of {steps} steps kept: error {found['error']:.4g}"

    about = {"experts": matching.experts.identity, "segments": segments, "kept": keeps, "rho": rho}
    if at.make("bounds", BOUNDS, measured(), segments * len(keeps) * 2, about):
        LOG.info("errors of %d segments", segments)


def _shared_rho(resolver: Resolver, cell: Cell) -> float:
    """Return the rho of the method `satm` in a cell, at which all methods are measured.

    Raises:
        UsageError: that name means another method.
    """
    _, shared = resolve_method(resolver.method(cell._replace(method="satm")))
    if not isinstance(shared, SatmOptions):
        raise UsageError("the rho of this measurement is that of the entry 'satm', another method here; rename it")
    return shared.rho


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise UsageError(f"{name} must be above 0, got {value}; use a larger one")


def make_expert_sharpness(
    resolver: Resolver,
    dataset: str,
    experts: str,
    images: int,
    count: int,
    lengths: Sequence[float],
    device: torch.device,
) -> None:
    """Measure how much the training loss rises at the worst neighbours of experts' weights, after each epoch.

    Args:
        resolver: the campaign.
        dataset: its name.
        experts: their name.
        images: how many training images, drawn at random, the same for all experts of a dataset.
        count: how many experts, the first ones.
        lengths: of the steps to the neighbours.
        device: where to compute.
    """
    _positive(images=images, count=count, rho=min(lengths, default=0))
    prepared = prepare(resolver, dataset)
    data = prepared.data
    store = open_experts(resolver, prepared, experts)
    network = resolver.network(resolver.experts(experts, dataset).network, dataset)
    module = build(network, data.channels, data.classes, data.size, seed=0).to(device)
    chosen = torch.randperm(len(data.train), generator=make_generator("expert-sharpness", dataset))[:images]
    subset = Split(data.train.images[chosen], data.train.labels[chosen])
    real = TrainingImages.of(subset, prepared.preprocessor, device)

    def measured() -> Iterator[tuple[Rows, str]]:
        for found in measure_expert_sharpness(module, store, real, count, lengths):
            rows = [{"dataset": dataset, "experts": experts, **values} for values in found]
            last = rows[-1]
            yield rows, f"expert {last['expert']} epoch {last['epoch']}: sharpness {last['sharpness']:.5f}"

    path = Path(resolver.layout.expert_sharpness(dataset, experts))
    about = {"experts": store.identity, "images": len(real), "count": count, "rho": list(lengths)}
    whole = _Measurement("expert-sharpness", (dataset, experts), EXPERT_SHARPNESS, path, about)
    found = whole.make(resolver, measured(), min(count, len(store)) * (store.epochs + 1), device)
    for rho in lengths if found else ():
        values = [row["sharpness"] for row in found if row["rho"] == rho and row["epoch"]]
        LOG.info("mean sharpness after training began, rho %g: %.6f", rho, sum(values) / len(values))
