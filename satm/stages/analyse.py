"""The stage `analyse`: measurements on synthetic sets that are not accuracies."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from satm.analysis.sharpness import measure_sharpness
from satm.config import Resolver, parse
from satm.errors import UsageError
from satm.methods import Synthetic
from satm.methods import resolve as resolve_method
from satm.methods.matching import MatchingOptions, TrajectoryMatching
from satm.methods.satm import SatmOptions
from satm.progress import Progress
from satm.results import SHARPNESS, load_distilled, run_metadata, write_rows
from satm.stages.common import distilled_path, make_problem, open_experts, prepare

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
    rho = parse(SatmOptions, _without_method(resolver.method("satm", dataset, ipc)), "method satm").rho
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


def _without_method(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "method"}
