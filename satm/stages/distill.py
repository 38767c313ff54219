"""The stage `distill`: synthetic sets."""

import logging
import time
from collections.abc import Mapping
from typing import Any

import torch

from satm.config import Cell, EvaluateOptions, Resolver
from satm.config.methods import IterativeOptions, MethodOptions
from satm.distill import Look, Outcome, Run, begin, distill
from satm.errors import UsageError
from satm.evaluation.networks import Task, evaluate
from satm.methods import Recipe
from satm.methods.parts.method import DOUBTS, Method
from satm.methods.parts.problem import Synthetic
from satm.networks.training import TrainingImages
from satm.results.columns import METRICS
from satm.results.distilled import DistilledDataset, History, save_distilled
from satm.run.machine import describe_backend, device_name
from satm.stages.checkpoint import RunState
from satm.stages.inputs import Inputs
from satm.stages.job import Job
from satm.workflow.asked import look_schedule

LOG = logging.getLogger("satm")


def make_distilled(
    resolver: Resolver, cell: Cell, recipe: Recipe, options: MethodOptions, device: torch.device, seconds: float
) -> None:
    """Make one synthetic set and its metrics; resume from a checkpoint of the same options if there is one.

    At least `seconds` lie between two checkpoints, which has no effect on the result.
    """
    inputs = Inputs(resolver, cell.dataset, device)
    method, network = inputs.method(recipe, options, cell)
    for subject, note in method.notes.items():
        LOG.log(logging.WARNING if subject == DOUBTS else logging.INFO, "%s: %s", subject.replace("_", "-"), note)
    resolved = {"method": recipe.name, **options.model_dump(mode="json")}
    resolved |= {"notes": dict(method.notes)} if method.notes else {}
    (look, schedule), experts = _look(inputs, method, network), method.problem.experts
    identity = inputs.identify(
        "distill",
        axes=list(cell),
        options=resolved,
        experts=None if experts is None else experts.identity,
        experts_count=None if experts is None else len(experts),
        network=inputs.network_identity(network),
        looks=schedule.model_dump(mode="json") if schedule else None,
    )
    stated = [method.notes[DOUBTS]] if DOUBTS in method.notes else []
    doubts = [*inputs.doubts, *(f"{cell.method} on {cell.dataset} at ipc {cell.ipc}: {doubt}" for doubt in stated)]
    with Job(resolver, "distill", cell.axes, identity, METRICS, device, doubts=doubts) as job:
        if job.done:
            return
        if method.iterative:
            state = RunState(job.folder, identity, describe_backend(device))
            run = state.load(device) or begin(method)
            result = _iterate(method, run, look, job, state, seconds)
            rows, history = run.rows, _history(run)
        else:
            result, rows, history = Outcome(0, method.start(), None, {}), [], None
        synthetic, raw = result.synthetic, result.raw
        distilled = DistilledDataset(
            images=synthetic.images.cpu(),
            labels=synthetic.labels.cpu(),
            step_size=synthetic.step_size.cpu(),
            preprocessing=inputs.preprocessor.identity,
            class_names=inputs.data.class_names,
            **cell.axes,
            options=resolved,
            iteration=result.iteration,
            selection=method.selection,
            whitening_path=inputs.whitening_path,
            average="raw" if raw is None else "ema",
            raw_images=None if raw is None else raw.images.cpu(),
            raw_labels=None if raw is None else raw.labels.cpu(),
            stored={name: tensor.cpu() for name, tensor in result.numbers.items()},
            history=history,
            device_name=device_name(device),
        )
        job.write_rows(rows)
        job.write(lambda: save_distilled(job.path, distilled))
        step_size, text = float(synthetic.step_size), "%d images of iteration %d (%s), step size %.3g -> %s"
        LOG.info(text, len(synthetic.images), result.iteration, method.selection, step_size, job.path)


def _history(run: Run) -> History | None:
    """Return the states of the set that were kept during the loop."""
    if not run.history:
        return None
    iterations, names = sorted(run.history), ("images", "labels", "step_size")
    states = [run.history[iteration] for iteration in iterations]
    parts = {name: torch.stack([getattr(state, name).cpu() for state in states]) for name in names}
    return History(torch.tensor(iterations), **parts)


def _iterate(
    method: Method[IterativeOptions], run: Run, look: Look | None, job: Job, state: RunState, seconds: float
) -> Outcome:
    """Run the loop with progress and checkpoints."""
    written = time.monotonic()

    def save(run: Run) -> None:
        job.check()
        state.save(run)

    def on_safe(run: Run) -> None:
        nonlocal written
        if time.monotonic() - written >= seconds:
            save(run)
            written = time.monotonic()

    with job.progress(method.options.iterations, run.now.iteration) as progress:

        def on_row(row: Mapping[str, Any]) -> None:
            if row["event"]:
                LOG.warning("%s", row["event"])
            for name in row.keys() & {"validation_accuracy", "test_accuracy"}:
                LOG.info("iteration %d: %s %.4f", row["iteration"], name.replace("_", " "), row[name])
            text = f"loss {row['loss']:.4f}, step size {row['step_size']:.4g}"
            progress.at(run.now.iteration, f"{text}, hypergradient norm {row['hypergradient_norm']:.3g}")

        return distill(method, run, look, on_row, on_safe, save)


def _look(inputs: Inputs, method: Method[MethodOptions], network: str) -> tuple[Look | None, EvaluateOptions | None]:
    """Return the function that measures the set's accuracy during the loop, and the options of its networks.

    The accuracy is the mean over some fresh networks. Both are None if the options ask for no measurement.

    Raises:
        UsageError: held-out images are needed and the dataset has none.
    """
    options, cell = method.options, method.problem.cell
    recipe = look_schedule(inputs.resolver, cell, options)
    if recipe is None or not isinstance(options, IterativeOptions):
        return None, None
    what = "watch" if options.selection == "last" else "selection"
    split = getattr(options, what)
    if not len(getattr(inputs.data, split)):
        raise UsageError(f"{what} 'validation' needs held-out images; set validation above 0 in dataset {cell.dataset}")
    real, values = inputs.images(split), inputs.network(network)
    # A choice at each look would cost more than the look; the finished set has one.
    schedule = recipe.model_copy(update={"lr": "learned"}) if recipe.lr == "searched" else recipe
    schedule = schedule.model_copy(update={"train_steps": tuple(sorted(schedule.train_steps)[-1:])})

    def look(synthetic: Synthetic, iteration: int) -> float:
        images = TrainingImages(synthetic.images, synthetic.labels)
        classes, step_size = inputs.data.classes, float(synthetic.step_size)
        task = Task(images, step_size, values, classes, schedule, inputs.augmentation)
        axes = [("look", *cell, iteration, repeat) for repeat in range(options.evaluate_networks)]
        return sum(score.accuracy for score in evaluate(task, real, axes)) / options.evaluate_networks

    return look, recipe
