"""The stage `analyse`: measurements on synthetic sets and experts that are not accuracies."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from satm.analysis.expert_sharpness import measure_expert_sharpness
from satm.analysis.sharpness import measure_sharpness
from satm.config import Resolver
from satm.data import Split
from satm.errors import UsageError
from satm.methods import Synthetic
from satm.methods import resolve as resolve_method
from satm.methods.matching import TrajectoryMatching
from satm.methods.matching_options import MatchingOptions
from satm.methods.satm import SatmOptions
from satm.networks import build
from satm.progress import Progress
from satm.results import EXPERT_SHARPNESS, SHARPNESS, load_distilled, run_metadata, write_rows
from satm.seeds import make_generator
from satm.stages.common import distilled_path, make_problem, open_experts, prepare
from satm.training import TrainingImages

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
    _, shared = resolve_method(resolver.method("satm", dataset, ipc))
    if not isinstance(shared, SatmOptions):
        raise UsageError("the rho of sharpness is that of the entry 'satm', which is another method here; rename it")
    rho = shared.rho
    distilled = load_distilled(distilled_path(resolver, dataset, ipc, method, seed))
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
    path = Path(layout.sharpness(dataset, ipc, method, seed))
    write_rows(path, rows, SHARPNESS, run_metadata({"options": options.model_dump(mode="json")}, device))
    mean = sum(row["sharpness"] for row in rows) / len(rows)
    LOG.info("mean sharpness over %d segments, rho %g: %.6f -> %s", segments, rho, mean, path)


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
    for name, value in (("images", images), ("count", count), ("rho", min(lengths, default=0))):
        if not value > 0:
            raise UsageError(f"{name} must be above 0, got {value}; use a larger one")
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
