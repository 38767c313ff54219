"""The stage `distill`: synthetic sets."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from satm.config import REVISIONS, Cell, Resolver
from satm.config.methods import IterativeOptions, MethodOptions
from satm.distill import Look, Made, Run, begin, distill
from satm.errors import UsageError
from satm.evaluation.networks import Task, evaluate
from satm.experts import differing_field
from satm.methods import Recipe
from satm.methods.parts.method import Method
from satm.methods.parts.problem import Synthetic
from satm.networks.training import TrainingImages
from satm.results.circumstances import run_metadata
from satm.results.columns import METRICS
from satm.results.distilled import DistilledDataset, History, save_distilled
from satm.results.rows import write_rows
from satm.run.lock import Lock, exclusive
from satm.run.machine import describe_backend
from satm.run.progress import Progress
from satm.stages.checkpoint import RunState
from satm.stages.common import Prepared, made_already, make_problem, open_experts, prepare
from satm.storage.files import patiently

LOG = logging.getLogger("satm")


def make_distilled(
    resolver: Resolver,
    cell: Cell,
    kind: Recipe,
    options: MethodOptions,
    device: torch.device,
    checkpoint_seconds: float,
) -> None:
    """Make one synthetic set and its metrics; go on from a checkpoint of the same options if there is one.

    At least `checkpoint_seconds` lie between two checkpoints, which has no effect on the result.
    """
    layout = resolver.layout
    prepared = prepare(resolver, cell.dataset)
    store, network, experts_identity = None, getattr(options, "network", "convnet"), None
    if kind.needs_experts:
        experts: str = getattr(options, "experts")  # noqa: B009 - every method that needs experts has the option
        store = open_experts(resolver, prepared, experts)
        network, experts_identity = resolver.experts(experts, cell.dataset).network, store.identity
    problem = make_problem(resolver, prepared, network, cell, device, store)
    made = kind(options, problem)
    look = _look(resolver, prepared, made, network, device) if made.iterative else None
    schedule = resolver.evaluation(cell, network) if look else None
    for subject, note in made.notes.items():
        LOG.info("%s: %s", subject.replace("_", "-"), note)
    resolved = {"method": kind.name, **options.model_dump(mode="json")}
    resolved |= {"notes": dict(made.notes)} if made.notes else {}
    identity = {
        "revision": REVISIONS["distill"],
        "axes": list(cell),
        "options": resolved,
        **prepared.identity,
        "experts": experts_identity,
        "network": resolver.network(network, cell.dataset),
        "looks": schedule.model_dump(mode="json") if schedule else None,
    }
    state = Path(layout.state("distill", *cell.place))
    path = Path(layout.distilled(cell))
    metrics = path.with_name("metrics.parquet")
    with exclusive(state, f"the synthetic set of {cell.method}") as lock:
        if made_already(lock, METRICS, identity, metrics, path):
            return
        if made.iterative:
            kept = RunState(state, identity, describe_backend(device))
            run = _resume(kept, device) or begin(made)
            found = _iterate(made, run, look, kept, lock, checkpoint_seconds)
            rows, way = run.rows, _history(run)
        else:
            found, rows, way = Made(0, made.start(), None, {}), [], None
        synthetic, raw = found.synthetic, found.raw
        whole = DistilledDataset(
            images=synthetic.images.cpu(),
            labels=synthetic.labels.cpu(),
            step_size=synthetic.step_size.cpu(),
            preprocessing=prepared.preprocessor.identity,
            class_names=prepared.data.class_names,
            **cell.axes,
            options=resolved,
            iteration=found.iteration,
            selection=made.selection,
            whitening_path=prepared.whitening_path,
            average="raw" if raw is None else "ema",
            raw_images=None if raw is None else raw.images.cpu(),
            raw_labels=None if raw is None else raw.labels.cpu(),
            stored={name: tensor.cpu() for name, tensor in found.numbers.items()},
            history=way,
        )
        lock.check()
        patiently(lambda: write_rows(metrics, rows, METRICS, run_metadata(identity, device)))
        patiently(lambda: save_distilled(path, whole))
        LOG.info(
            "%d images of iteration %d (%s), step size %.3g -> %s",
            *(len(synthetic.images), found.iteration, made.selection, float(synthetic.step_size), path),
        )
        lock.finished(metrics, path)


def _history(run: Run) -> History | None:
    """Return the states of the set that were kept on its way."""
    if not run.history:
        return None
    iterations = sorted(run.history)
    parts = {
        name: torch.stack([getattr(run.history[iteration], name).cpu() for iteration in iterations])
        for name in ("images", "labels", "step_size")
    }
    return History(torch.tensor(iterations), **parts)


def _resume(kept: RunState, device: torch.device) -> Run | None:
    """Return the run that an earlier process has kept; None if there is none, or one of other options."""
    if (held := kept.load(device)) is None:
        return None
    run, found, backend = held
    if difference := differing_field(kept.identity, found):
        LOG.warning("the checkpoint there belongs to another run (%s); starting anew", difference)
        return None
    if backend != kept.backend:
        LOG.warning("going on with %s what was begun with %s: not the same bytes as in one go", kept.backend, backend)
    LOG.info("going on after iteration %d", run.now.iteration)
    return run


def _iterate(
    method: Method[IterativeOptions],
    run: Run,
    look: Look | None,
    kept: RunState,
    lock: Lock,
    checkpoint_seconds: float,
) -> Made:
    """Run the loop with progress and checkpoints."""
    options = method.options
    written = time.monotonic()

    def on_safe(held: Run) -> None:
        nonlocal written
        if time.monotonic() - written >= checkpoint_seconds:
            on_stop(held)
            written = time.monotonic()

    def on_stop(held: Run) -> None:
        lock.check()
        kept.save(held)

    with Progress("distil", options.iterations, run.now.iteration) as progress:

        def on_row(row: Mapping[str, Any]) -> None:
            if row["event"]:
                LOG.warning("%s", row["event"])
            progress.at(
                run.now.iteration,
                f"loss {row['loss']:.4f}, step size {row['step_size']:.4g}, "
                f"hypergradient norm {row['hypergradient_norm']:.3g}",
            )

        return distill(method, run, look, on_row, on_safe, on_stop)


def _look(
    resolver: Resolver, prepared: Prepared, method: Method[IterativeOptions], network: str, device: torch.device
) -> Look | None:
    """Return how the loop looks at the accuracy of its set; None where nobody looks.

    Raises:
        UsageError: the looks are at held-out images and the dataset holds none out.
    """
    options = method.options
    images_of = options.selection if options.selection != "last" else options.watch
    if images_of is None:
        return None
    problem = method.problem
    cell = problem.cell
    split = prepared.data.validation if images_of == "validation" else prepared.data.test
    if not len(split):
        what = "watch" if options.selection == "last" else "selection"
        raise UsageError(f"{what} 'validation' needs held-out images; set validation above 0 in dataset {cell.dataset}")
    real = TrainingImages.of(split, prepared.preprocessor, device)
    schedule, values = resolver.evaluation(cell, network), resolver.network(network, cell.dataset)
    if schedule.lr == "searched":  # for the finished set; a search at each look would cost more than the looks
        schedule = schedule.model_copy(update={"lr": "learned"})

    def look(synthetic: Synthetic, iteration: int) -> float:
        images = TrainingImages(synthetic.images, synthetic.labels)
        step_size, classes = float(synthetic.step_size), prepared.data.classes
        task = Task(images, step_size, values, classes, schedule, prepared.augmentation)
        axes = [("look", *cell, iteration, repeat) for repeat in range(options.evaluate_networks)]
        total = sum(score.accuracy for score in evaluate(task, real, axes))
        LOG.info("iteration %d: %s accuracy %.4f", iteration, images_of, total / options.evaluate_networks)
        return total / options.evaluate_networks

    return look
