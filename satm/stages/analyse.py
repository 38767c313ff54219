"""The stage `analyse`: measurements on synthetic sets and experts that are not accuracies."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from satm.analysis.bounds import measure_bounds
from satm.analysis.expert_sharpness import measure_expert_sharpness
from satm.analysis.sharpness import measure_sharpness
from satm.analysis.trajectory import follow, restart
from satm.analysis.variance import gradient_variance
from satm.config import Resolver
from satm.data import Split
from satm.errors import UsageError
from satm.methods import Synthetic
from satm.methods import resolve as resolve_method
from satm.methods.matching import TrajectoryMatching
from satm.methods.matching_options import MatchingOptions
from satm.methods.satm import SatmOptions
from satm.methods.unrolled import UnrolledTraining
from satm.methods.unrolled_options import UnrolledOptions
from satm.networks import build
from satm.params import load_flat
from satm.progress import Progress
from satm.results import (
    BOUNDS,
    EXPERT_SHARPNESS,
    SHARPNESS,
    TRAJECTORY,
    VARIANCE,
    run_metadata,
    write_rows,
)
from satm.seeds import make_generator
from satm.stages.common import Prepared, make_problem, open_distilled, open_experts, prepare
from satm.training import TrainingImages, measure

LOG = logging.getLogger("satm")


def make_sharpness(
    resolver: Resolver, dataset: str, ipc: int, method: str, seed: int, segments: int, device: torch.device
) -> None:
    """Measure how much the matching loss rises at the worst neighbour of a synthetic set.

    Every method of a cell is measured with the exact hypergradient, the same segments, batches and augmentation, and
    the rho of the method `satm` there.
    """
    layout = resolver.layout
    prepared = prepare(resolver, dataset)
    _, options = resolve_method(resolver.method(method, dataset, ipc))
    if not isinstance(options, MatchingOptions):
        raise UsageError(f"sharpness is that of a matching loss, which method {method} has not; leave it out")
    rho = _shared_rho(resolver, dataset, ipc)
    distilled, _ = open_distilled(resolver, prepared, ipc, method, seed)
    store = open_experts(resolver, prepared, options.experts)
    network = resolver.experts(options.experts, dataset).network
    problem = make_problem(resolver, prepared, network, ipc, device, (dataset, ipc, "sharpness", seed), store)
    synthetic = Synthetic(distilled.images.to(device), distilled.labels.to(device), distilled.step_size.to(device))
    matching = TrajectoryMatching(options, problem)
    rows = []
    with Progress("sharpness", segments) as progress:
        for index, found in enumerate(measure_sharpness(matching, synthetic, rho, segments)):
            axes: dict[str, Any] = {"dataset": dataset, "ipc": ipc, "method": method, "seed": seed}
            rows.append({**axes, "segment": index, "rho": rho, **found})
            progress.step(f"loss {found['loss']:.4f}, sharpness {found['sharpness']:.5f}")
    path = Path(layout.analysis("sharpness", dataset, ipc, method, seed))
    write_rows(path, rows, SHARPNESS, run_metadata({"options": options.model_dump(mode="json")}, device))
    mean = sum(row["sharpness"] for row in rows) / len(rows)
    LOG.info("mean sharpness over %d segments, rho %g: %.6f -> %s", segments, rho, mean, path)


def make_trajectory(
    resolver: Resolver,
    dataset: str,
    ipc: int,
    method: str,
    seed: int,
    experts: str | None,
    count: int,
    starts: Sequence[int],
    device: torch.device,
) -> None:
    """Measure how far networks trained on a synthetic set are from experts, along their whole path.

    Args:
        resolver: the campaign.
        dataset: of the set, and so the next three.
        ipc: images per class.
        method: its name.
        seed: of the distillation.
        experts: their name; None: those that the method matched.
        count: how many experts, the first ones.
        starts: epochs at which networks are begun that go on to the last one; those beyond it are left out.
        device: where to compute.
    """
    _positive(count=count)
    cell = (dataset, ipc, method, seed)
    matching, synthetic, prepared = _matching(resolver, cell, experts, device)
    real = TrainingImages.of(prepared.data.test, prepared.preprocessor, device)
    module = matching.problem.build(0).to(device)

    def test(weights: Tensor) -> tuple[float, float]:
        load_flat(module, weights)
        return measure(module, real)

    epochs, length = matching.experts.epochs, matching.settings.expert_epochs
    begun = [start for start in starts if start < epochs]
    chosen = range(min(count, len(matching.experts)))
    rows: list[dict[str, Any]] = []
    axes = dict(zip(("dataset", "ipc", "method", "seed"), cell, strict=True))
    with Progress("trajectory", len(chosen) * (epochs // length + len(begun))) as progress:
        for expert in chosen:
            for found in follow(matching, synthetic, expert, test):
                rows.append({**axes, "kind": "path", "expert": expert, "steps": matching.settings.inner_steps, **found})
                progress.step(f"expert {expert} epoch {found['epoch']}: accumulated error {found['accumulated']:.4g}")
            for found in restart(matching, synthetic, expert, begun, test):
                rows.append({**axes, "kind": "restart", "expert": expert, **found})
                progress.step(f"begun at epoch {found['start']}: test accuracy {found['evaluation_accuracy']:.4f}")
    path = Path(resolver.layout.analysis("trajectory", *cell))
    about = {"options": matching.settings.model_dump(mode="json"), "experts": matching.experts.identity}
    write_rows(path, rows, TRAJECTORY, run_metadata({**about, "count": len(chosen)}, device))
    last = [row for row in rows if row["kind"] == "path" and row["epoch"] > epochs - length]
    worst = max(row["residual"] for row in last)
    LOG.info("errors along %d experts, the parts add up to %.1e -> %s", len(chosen), worst, path)


def make_variance(
    resolver: Resolver, dataset: str, ipc: int, method: str, seed: int, samples: int, device: torch.device
) -> None:
    """Measure how much the hypergradient of unrolled training varies over real images, along its history.

    Raises:
        UsageError: the method is not one of unrolled training, or the set was stored without its history.
    """
    if samples < 2:
        raise UsageError(f"a variance needs at least 2 samples, got {samples}; use more")
    prepared = prepare(resolver, dataset)
    kind, options = resolve_method(resolver.method(method, dataset, ipc))
    if not isinstance(options, UnrolledOptions):
        raise UsageError(f"variance is that of unrolled training, method {method} is another; leave it out")
    distilled, _ = open_distilled(resolver, prepared, ipc, method, seed)
    if distilled.history is None:
        raise UsageError(
            f"the synthetic set of {method} was stored without its history; set snapshots above 0 for it and distil "
            "it again"
        )
    cell = (dataset, ipc, method, seed)
    problem = make_problem(resolver, prepared, options.network, ipc, device, cell, None)
    made = kind(options, problem)
    assert isinstance(made, UnrolledTraining)
    axes = dict(zip(("dataset", "ipc", "method", "seed"), cell, strict=True))
    rows: list[dict[str, Any]] = []
    with Progress("variance", len(distilled.history)) as progress:
        for place in range(len(distilled.history)):
            state = distilled.at(place)
            synthetic = Synthetic(state.images.to(device), state.labels.to(device), state.step_size.to(device))
            found = gradient_variance(made, synthetic, state.iteration, samples)
            rows.append({**axes, "iteration": state.iteration, "samples": min(samples, made.batch), **found})
            progress.step(f"iteration {state.iteration}: normalised variance {found['variance']:.4g}")
    path = Path(resolver.layout.analysis("variance", *cell))
    write_rows(path, rows, VARIANCE, run_metadata({"options": options.model_dump(mode="json")}, device))
    LOG.info("variance of the hypergradient at %d states -> %s", len(rows), path)


def make_bounds(
    resolver: Resolver,
    dataset: str,
    ipc: int,
    method: str,
    seed: int,
    segments: int,
    divisors: Sequence[int],
    device: torch.device,
) -> None:
    """Measure the errors of truncated hypergradients and reused trajectories at a synthetic set.

    Args:
        resolver: the campaign.
        dataset: of the set, and so the next three.
        ipc: images per class.
        method: its name.
        seed: of the distillation.
        segments: expert segments.
        divisors: the last ``int(N / divisor)`` of N inner steps are kept.
        device: where to compute.
    """
    _positive(segments=segments)
    cell = (dataset, ipc, method, seed)
    matching, synthetic, _ = _matching(resolver, cell, None, device)
    steps = matching.settings.inner_steps
    keeps = sorted({steps // divisor for divisor in divisors if divisor > 1 and steps // divisor})
    if not keeps:
        raise UsageError(f"the divisors {list(divisors)} of {steps} inner steps keep no part of them; use 2 or more")
    axes = dict(zip(("dataset", "ipc", "method", "seed"), cell, strict=True))
    rows: list[dict[str, Any]] = []
    with Progress("bounds", segments * len(keeps) * 2) as progress:
        for found in measure_bounds(matching, synthetic, _shared_rho(resolver, dataset, ipc), segments, keeps):
            rows.append({**axes, **found})
            progress.step(f"{found['quantity']}, {found['kept']} of {steps} steps kept: error {found['error']:.4g}")
    path = Path(resolver.layout.analysis("bounds", *cell))
    write_rows(path, rows, BOUNDS, run_metadata({"options": matching.settings.model_dump(mode="json")}, device))
    LOG.info("errors of %d segments -> %s", segments, path)


def _matching(
    resolver: Resolver, cell: tuple[str, int, str, int], experts: str | None, device: torch.device
) -> tuple[TrajectoryMatching, Synthetic, Prepared]:
    """Return the matching of a synthetic set's method, the set, and its dataset.

    Raises:
        UsageError: the method matches no trajectories, or a file is missing or of another run.
    """
    dataset, ipc, method, seed = cell
    prepared = prepare(resolver, dataset)
    _, options = resolve_method(resolver.method(method, dataset, ipc))
    if not isinstance(options, MatchingOptions):
        raise UsageError(f"method {method} matches no trajectories, which this measures; leave it out")
    distilled, _ = open_distilled(resolver, prepared, ipc, method, seed)
    name = options.experts if experts is None else experts
    store = open_experts(resolver, prepared, name)
    network = resolver.experts(name, dataset).network
    problem = make_problem(resolver, prepared, network, ipc, device, cell, store)
    synthetic = Synthetic(distilled.images.to(device), distilled.labels.to(device), distilled.step_size.to(device))
    return TrajectoryMatching(options, problem), synthetic, prepared


def _shared_rho(resolver: Resolver, dataset: str, ipc: int) -> float:
    """Return the rho of the method `satm` in a cell, at which all methods are measured.

    Raises:
        UsageError: that name means another method.
    """
    _, shared = resolve_method(resolver.method("satm", dataset, ipc))
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
    rows: list[dict[str, Any]] = []
    with Progress("sharpness", min(count, len(store)) * (store.epochs + 1)) as progress:
        for found in measure_expert_sharpness(module, store, real, count, lengths):
            rows += [{"dataset": dataset, "experts": experts, **values} for values in found]
            last = rows[-1]
            progress.step(f"expert {last['expert']} epoch {last['epoch']}: sharpness {last['sharpness']:.5f}")
    path = Path(resolver.layout.expert_sharpness(dataset, experts))
    options = {"experts": store.identity, "images": len(real), "count": count, "rho": list(lengths)}
    write_rows(path, rows, EXPERT_SHARPNESS, run_metadata(options, device))
    for rho in lengths:
        values = [row["sharpness"] for row in rows if row["rho"] == rho and row["epoch"]]
        LOG.info("mean sharpness after training began, rho %g: %.6f", rho, sum(values) / len(values))
    LOG.info("%d rows -> %s", len(rows), path)
