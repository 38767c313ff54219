"""The stage `analyse`: measurements on synthetic sets and experts that are not accuracies."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from satm.analysis.bounds import kept_steps, measure_bounds
from satm.analysis.expert_sharpness import measure_expert_sharpness
from satm.analysis.sharpness import measure_sharpness
from satm.analysis.trajectory import measure_trajectory
from satm.analysis.variance import measure_variance
from satm.config import REVISIONS, Cell, Resolver, place_of
from satm.config.methods import MatchingOptions, MethodOptions, UnrolledOptions
from satm.data import Split
from satm.errors import UsageError
from satm.methods import resolve as resolve_method
from satm.methods.parts.matching import TrajectoryMatching
from satm.methods.parts.method import Method
from satm.methods.parts.problem import Synthetic
from satm.methods.parts.unrolled import UnrolledTraining
from satm.methods.satm import SatmOptions
from satm.networks import build
from satm.networks.training import TrainingImages
from satm.results.columns import BOUNDS, EXPERT_SHARPNESS, SHARPNESS, TRAJECTORY, VARIANCE, Columns
from satm.results.distilled import DistilledDataset
from satm.seeds import make_generator
from satm.stages.inputs import Inputs
from satm.stages.job import Job
from satm.storage.identity import Identity, hash_file

LOG = logging.getLogger("satm")

Row = dict[str, Any]
"""JSON values by column."""


def _measure(
    inputs: Inputs,
    place: Sequence[str],
    columns: Columns,
    path: Path,
    identity: Identity,
    steps: Iterable[Sequence[Row]],
    total: int,
    shown: Sequence[str],
) -> list[Row]:
    """Measure, and write the rows, unless another process has done so; return them, none where it has.

    Args:
        inputs: the dataset.
        place: what is measured, and the names of what it is measured at.
        columns: of the rows.
        path: of the file.
        identity: everything that makes the numbers what they are.
        steps: the rows of one step after another.
        total: number of steps.
        shown: columns that progress shows.
    """
    layout, device, what = inputs.resolver.layout, inputs.device, f"the measurement {place[0]}"
    with Job(layout, place, what, identity, path, columns=columns, device=device) as job:
        if job.made:
            return []
        rows = list[Row]()
        with job.progress(total) as progress:
            for some in steps:
                rows += some
                last = some[-1]
                progress.step(", ".join(f"{name} {_text(last[name])}" for name in shown if last.get(name) is not None))
        job.write_rows(rows)
        LOG.info("%d rows -> %s", len(rows), path)
    return rows


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


LACKS: dict[type[MethodOptions], str] = {
    MatchingOptions: "matches no trajectories",
    UnrolledOptions: "unrolls no training",
}
"""Why a method without such options is not measured."""

F = TypeVar("F", MatchingOptions, UnrolledOptions)
M = TypeVar("M", bound=Method[Any])


class _Subject(Inputs, Generic[F]):
    """A synthetic set to measure at, with its dataset and its method.

    Raises:
        UsageError: (on construction) the method is not one of the family whose options are given, or a file is missing
            or of another run.
    """

    def __init__(self, resolver: Resolver, cell: Cell, family: type[F], device: torch.device) -> None:
        self.cell = cell
        self.recipe, options = resolve_method(resolver.method(cell))
        if not isinstance(options, family):
            raise UsageError(f"method {cell.method} {LACKS[family]}, which this measures; leave it out")
        self.options: F = options
        super().__init__(resolver, cell.dataset, device)
        self.made, self._path = self.distilled(cell)

    def synthetic(self, made: DistilledDataset | None = None) -> Synthetic:
        """Return the set, or a state of it, on the device."""
        made = self.made if made is None else made
        return Synthetic(made.images.to(self.device), made.labels.to(self.device), made.step_size.to(self.device))

    def own_method(self, kind: type[M], drawn_as: str | None = None, experts: str | None = None) -> M:
        """Return the set's method.

        Args:
            kind: its class.
            drawn_as: stands for the method where random choices are drawn, so that all methods have the same.
            experts: those to match; None: those that the method matched.
        """
        cell = self.cell._replace(method=drawn_as or self.cell.method)
        made, _ = self.method(self.recipe, self.options, cell, experts)
        assert isinstance(made, kind)
        return made

    def measure(
        self, what: str, columns: Columns, rows: Iterable[Row], total: int, shown: Sequence[str], **identity: Any
    ) -> list[Row]:
        """Measure and write as `_measure`, a row each step; rows and file say of which set they are."""
        settings = self.options.model_dump(mode="json")
        identity = self.identify("analyse", distilled=hash_file(self._path), options=settings, **identity)
        path, place = (
            Path(self.resolver.layout.analysis(what, self.cell)),
            place_of("analysis", what=what, **self.cell.axes),
        )
        steps = ([{**self.cell.axes, **row}] for row in rows)
        return _measure(self, place, columns, path, identity, steps, total, shown)


def make_sharpness(resolver: Resolver, cell: Cell, segments: int, device: torch.device) -> None:
    """Measure how much the matching loss rises at the worst neighbour of a synthetic set.

    Every method of a cell is measured with the exact hypergradient, the same segments, batches and augmentation, and
    the rho of the method `satm` there.
    """
    _positive(segments=segments)
    rho = _shared_rho(resolver, cell)
    subject = _Subject(resolver, cell, MatchingOptions, device)
    matching = subject.own_method(TrajectoryMatching, drawn_as="sharpness")
    found = enumerate(measure_sharpness(matching, subject.synthetic(), rho, segments))
    rows = ({"segment": index, "rho": rho, **row} for index, row in found)
    about, shown = {"experts": matching.experts.identity, "segments": segments, "rho": rho}, ("loss", "sharpness")
    if made := subject.measure("sharpness", SHARPNESS, rows, segments, shown, **about):
        mean = sum(row["sharpness"] for row in made) / len(made)
        LOG.info("mean sharpness over %d segments, rho %g: %.6f", segments, rho, mean)


def make_trajectory(
    resolver: Resolver, cell: Cell, experts: str | None, count: int, starts: Sequence[int], device: torch.device
) -> None:
    """Measure how far networks trained on a synthetic set are from the first experts, along their whole path.

    Args:
        resolver: the campaign.
        cell: the set.
        experts: their name; None: those that the method matched.
        count: how many experts.
        starts: epochs at which networks are begun that go on to the last one; those beyond it are left out.
        device: where to compute.
    """
    _positive(count=count)
    subject = _Subject(resolver, cell, MatchingOptions, device)
    matching = subject.own_method(TrajectoryMatching, experts=experts)
    epochs, length = matching.experts.epochs, matching.options.expert_epochs
    begun = [start for start in starts if start < epochs]
    chosen = range(min(count, len(matching.experts)))
    rows = measure_trajectory(matching, subject.synthetic(), subject.images("test"), chosen, begun)
    total = len(chosen) * (epochs // length + len(begun))
    about = {"experts": matching.experts.identity, "count": len(chosen), "starts": begun}
    shown = ("kind", "expert", "start", "epoch", "accumulated", "evaluation_accuracy")
    if made := subject.measure("trajectory", TRAJECTORY, rows, total, shown, **about):
        last = [row for row in made if row["kind"] == "path" and row["epoch"] > epochs - length]
        worst = max(row["residual"] for row in last)
        LOG.info("errors along %d experts, the parts add up to %.1e", len(chosen), worst)


def make_variance(resolver: Resolver, cell: Cell, samples: int, device: torch.device) -> None:
    """Measure how much the hypergradient of unrolled training varies over real images, along its history.

    Raises:
        UsageError: the method is not one of unrolled training, or the set was stored without its history.
    """
    if samples < 2:
        raise UsageError(f"a variance needs at least 2 samples, got {samples}; use more")
    subject = _Subject(resolver, cell, UnrolledOptions, device)
    if (history := subject.made.history) is None:
        raise UsageError(
            f"the synthetic set of {cell.method} was stored without its history; set snapshots above 0 for it and "
            "distil it again"
        )
    method = subject.own_method(UnrolledTraining)
    kept = (subject.made.at(index) for index in range(len(history)))
    rows = measure_variance(method, ((state.iteration, subject.synthetic(state)) for state in kept), samples)
    about, shown = {"samples": samples, "network": subject.network(subject.options.network)}, ("iteration", "variance")
    if made := subject.measure("variance", VARIANCE, rows, len(history), shown, **about):
        LOG.info("variance of the hypergradient at %d states", len(made))


def make_bounds(resolver: Resolver, cell: Cell, segments: int, divisors: Sequence[int], device: torch.device) -> None:
    """Measure the errors of truncated hypergradients and reused trajectories at a synthetic set.

    With N inner steps the last ``int(N / divisor)`` are kept, for each of the divisors.
    """
    _positive(segments=segments)
    subject = _Subject(resolver, cell, MatchingOptions, device)
    matching = subject.own_method(TrajectoryMatching)
    rho, keeps = _shared_rho(resolver, cell), kept_steps(matching.options.inner_steps, divisors)
    rows = measure_bounds(matching, subject.synthetic(), rho, segments, keeps)
    about = {"experts": matching.experts.identity, "segments": segments, "kept": keeps, "rho": rho}
    if subject.measure("bounds", BOUNDS, rows, 2 * segments * len(keeps), ("quantity", "kept", "error"), **about):
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
    inputs = Inputs(resolver, dataset, device)
    data, store = inputs.data, inputs.experts(experts)
    network = inputs.network(resolver.experts(experts, dataset).network)
    module = build(network, data.channels, data.classes, data.size, seed=0).to(device)
    chosen = torch.randperm(len(data.train), generator=make_generator("expert-sharpness", dataset))[:images]
    subset = Split(data.train.images[chosen], data.train.labels[chosen])
    real = TrainingImages.of(subset, inputs.preprocessor, device)
    found = measure_expert_sharpness(module, store, real, count, lengths)
    steps = ([{"dataset": dataset, "experts": experts, **row} for row in rows] for rows in found)
    path = Path(resolver.layout.expert_sharpness(dataset, experts))
    about = {"experts": store.identity, "images": len(real), "count": count, "rho": list(lengths)}
    identity = {"revision": REVISIONS["analyse"], **about}
    total = min(count, len(store)) * (store.epochs + 1)
    place, shown = place_of("expert_sharpness", dataset=dataset, experts=experts), ("expert", "epoch", "sharpness")
    made = _measure(inputs, place, EXPERT_SHARPNESS, path, identity, steps, total, shown)
    for rho in lengths if made else ():
        values = [row["sharpness"] for row in made if row["rho"] == rho and row["epoch"]]
        LOG.info("mean sharpness after training began, rho %g: %.6f", rho, sum(values) / len(values))
