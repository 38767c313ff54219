"""The stages: each reads the files of the one before it and writes its own. The only place that joins both worlds.

A function here does what one command does, by names; `satm.cli` turns flags into these calls.
"""

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from satm import checkpoint, tables
from satm.analysis.sharpness import measure_sharpness
from satm.config import EvaluateOptions, ExpertsOptions, Resolver, parse, parts
from satm.data import (
    Augmentation,
    ImageData,
    Preprocessor,
    fit_whitening,
    load_dataset,
    load_images,
    load_whitening,
    save_images,
    save_whitening,
)
from satm.distill import Look, Run, begin, distill
from satm.errors import UsageError
from satm.evaluate import evaluate
from satm.experts import (
    TrajectoryStore,
    describe_shard,
    differing_field,
    shard_identity,
    train_expert,
    write_manifest,
    write_shard,
)
from satm.figures import synthetic_grid
from satm.files import exclusive, hash_file, read_json, write_json
from satm.machine import describe_backend
from satm.methods import IterativeMethod, IterativeOptions, Method, MethodOptions, Problem, Synthetic
from satm.methods import resolve as resolve_method
from satm.methods.matching import MatchingOptions, TrajectoryMatching
from satm.methods.satm import SatmOptions
from satm.networks import build
from satm.networks import resolve as resolve_network
from satm.params import load_flat
from satm.progress import Progress
from satm.results import (
    EVALUATION,
    METRICS,
    SHARPNESS,
    DistilledDataset,
    load_distilled,
    run_metadata,
    save_distilled,
    write_rows,
)
from satm.seeds import derive_seed
from satm.training import TrainingImages, measure

LOG = logging.getLogger("satm")


@dataclass(frozen=True)
class Prepared:
    """A dataset ready for training: raw images, the way into the space of training, and the augmentation."""

    data: ImageData
    preprocessor: Preprocessor
    augmentation: Augmentation
    whitening_path: Path | None


def make_images(resolver: Resolver, dataset: str) -> None:
    """Decode a dataset once and store it as uint8."""
    data = load_dataset(dataset, resolver.dataset(dataset))
    path = Path(resolver.layout.images(dataset))
    save_images(path, data)
    LOG.info(
        "%s: %d training, %d validation and %d test images of %d classes, %d x %d x %d, hash %s -> %s",
        *(dataset, len(data.train), len(data.validation), len(data.test), data.classes),
        *(data.channels, data.size, data.size, data.hash[:12], path),
    )


def make_zca(resolver: Resolver, dataset: str) -> None:
    """Fit the ZCA whitening on the training images and store it."""
    options = resolver.dataset(dataset)
    if not options.zca:
        raise UsageError(f"dataset {dataset} is not whitened; set zca: true in its options, or leave this step out")
    whitening = fit_whitening(_images(resolver, dataset).train.images, options.zca_eps)
    path = Path(resolver.layout.zca(dataset))
    save_whitening(path, whitening)
    LOG.info("ZCA of %d numbers, eps %g, hash %s -> %s", len(whitening.mean), whitening.eps, whitening.hash[:12], path)


def make_experts(
    resolver: Resolver, dataset: str, experts: str, options: ExpertsOptions, part: str | None, device: torch.device
) -> None:
    """Train experts; without a part all of them, and then the manifest. Whole experts of the same recipe are kept."""
    prepared = prepare(resolver, dataset)
    identity = expert_identity(resolver, prepared, experts, options)
    network = resolver.network(options.network, dataset)
    known = parts(options)
    if part is not None and part not in known:
        raise UsageError(f"unknown part {part!r} of experts {experts}; known: {', '.join(known)}")
    for name in known if part is None else [part]:
        folder = Path(resolver.layout.experts(dataset, experts))
        state = Path(resolver.layout.state("experts", dataset, experts, f"part-{name}"))
        with exclusive(state, f"part {name} of experts {experts}"):
            first, last = (int(number) for number in name.split("-"))
            indices = range(first, last + 1)
            shards = _train_part(prepared, options, network, identity, folder, state, indices, device)
            path = Path(resolver.layout.experts_part(dataset, experts, name))
            write_json(path, {"identity": identity, "shards": shards})
            shutil.rmtree(state)
    if part is None:
        collect_experts(resolver, dataset, experts, options)


def collect_experts(resolver: Resolver, dataset: str, experts: str, options: ExpertsOptions) -> None:
    """Join the parts of a trajectory store into its manifest."""
    prepared = prepare(resolver, dataset)
    identity = expert_identity(resolver, prepared, experts, options)
    shards: list[Mapping[str, Any]] = []
    for part in parts(options):
        path = Path(resolver.layout.experts_part(dataset, experts, part))
        content: dict[str, Any] = read_json(path, "part of experts")
        if difference := differing_field(identity, content["identity"]):
            raise UsageError(f"{path} holds other experts: {difference}; make that part again")
        shards += content["shards"]
    path = Path(resolver.layout.manifest(dataset, experts))
    write_manifest(path, identity, shards)
    accuracies = [float(shard["test_accuracy"]) for shard in shards]
    mean = sum(accuracies) / len(accuracies)
    LOG.info("%d experts of %d epochs, mean test accuracy %.4f -> %s", len(shards), options.epochs, mean, path)


def make_distilled(
    resolver: Resolver,
    dataset: str,
    ipc: int,
    method: str,
    seed: int,
    kind: type[Method],
    options: MethodOptions,
    device: torch.device,
    checkpoint_seconds: float,
) -> None:
    """Make one synthetic set and its metrics; go on from a checkpoint of the same options if there is one.

    At least `checkpoint_seconds` lie between two checkpoints, which has no effect on the result.
    """
    layout = resolver.layout
    prepared = prepare(resolver, dataset)
    store, network, experts_identity = None, "convnet", None
    if isinstance(options, MatchingOptions):
        store = open_experts(resolver, prepared, options.experts)
        network, experts_identity = resolver.experts(options.experts, dataset).network, store.identity
    problem = _problem(resolver, prepared, network, ipc, device, (dataset, ipc, method, seed), store)
    made = kind(options, problem)
    look = _look(resolver, prepared, made, network, device) if isinstance(made, IterativeMethod) else None
    schedule = resolver.evaluation(method, dataset, ipc) if look else None
    resolved = {"method": kind.name, **options.model_dump(mode="json")}
    identity = {
        "axes": list(problem.axes),
        "options": resolved,
        "data": prepared.data.hash,
        "preprocessing": prepared.preprocessor.identity,
        "experts": experts_identity,
        "augmentation": [prepared.augmentation.strategy, prepared.augmentation.share],
        "looks": schedule.model_dump(mode="json") if schedule else None,
    }
    state = Path(layout.state("distill", dataset, f"ipc-{ipc}", method, f"seed-{seed}"))
    with exclusive(state, f"the synthetic set of {method}"):
        if isinstance(made, IterativeMethod):
            run = _resume(state, identity, device) or begin(made)
            synthetic = _iterate(made, run, look, state, identity, device, checkpoint_seconds)
        else:
            synthetic, run = made.start(), None
        chosen = run.best.iteration if run and run.best else run.now.iteration if run else 0
        selection = options.selection if isinstance(options, IterativeOptions) else "last"
        path = Path(layout.distilled(dataset, ipc, method, seed))
        metadata = run_metadata(identity, device)
        write_rows(path.with_name("metrics.parquet"), run.rows if run else [], METRICS, metadata)
        save_distilled(
            path,
            DistilledDataset(
                images=synthetic.images.cpu(),
                labels=synthetic.labels.cpu(),
                step_size=synthetic.step_size.cpu(),
                preprocessing=prepared.preprocessor.identity,
                class_names=prepared.data.class_names,
                dataset=dataset,
                ipc=ipc,
                method=method,
                seed=seed,
                options=resolved,
                iteration=chosen,
                selection=selection,
                whitening_path=prepared.whitening_path,
            ),
        )
        LOG.info(
            "%d images of iteration %d (%s), step size %.3g -> %s",
            *(len(synthetic.images), chosen, selection, float(synthetic.step_size), path),
        )
        shutil.rmtree(state)


def make_evaluation(
    resolver: Resolver,
    dataset: str,
    ipc: int,
    method: str,
    seed: int,
    network: str,
    options: EvaluateOptions,
    device: torch.device,
) -> None:
    """Train fresh networks on a synthetic set and write one row each; rows that are there already are kept."""
    layout = resolver.layout
    prepared = prepare(resolver, dataset)
    path = _distilled(resolver, dataset, ipc, method, seed)
    distilled = load_distilled(path)
    if difference := differing_field(prepared.preprocessor.identity, dict(distilled.preprocessing)):
        raise UsageError(
            f"{path} was made for images prepared in another way: {difference}; distil again, or use the dataset's "
            "options that it was made with"
        )
    values = resolver.network(network, dataset)
    split = getattr(prepared.data, options.split)
    if not len(split):
        raise UsageError(f"dataset {dataset} holds out no {options.split} images; set its option validation above 0")
    identity = {
        "distilled": hash_file(path),
        "options": options.model_dump(mode="json"),
        "network": values,
        "data": prepared.data.hash,
    }
    state = Path(layout.state("evaluate", dataset, f"ipc-{ipc}", method, f"seed-{seed}", network))
    with exclusive(state, f"the evaluation of {method}"):
        rows: list[dict[str, Any]] = []
        held = state / "rows.json"
        if held.is_file():
            content: dict[str, Any] = read_json(held, "state of an evaluation")
            rows = content["rows"] if content["identity"] == identity else []
        real = TrainingImages.of(split, prepared.preprocessor, device)
        synthetic = TrainingImages(distilled.images.to(device), distilled.labels.to(device))
        with Progress("evaluate", options.repeats, len(rows)) as progress:
            for repeat in range(len(rows), options.repeats):
                axes = (dataset, ipc, method, seed, network, repeat, options.network_seed)
                score = evaluate(
                    synthetic,
                    float(distilled.step_size),
                    real,
                    values,
                    prepared.data.classes,
                    options,
                    prepared.augmentation,
                    axes,
                )
                rows.append(
                    {
                        "dataset": dataset,
                        "ipc": ipc,
                        "method": method,
                        "seed": seed,
                        "network": network,
                        "repeat": repeat,
                        "labels": "soft" if distilled.labels.is_floating_point() else "hard",
                        "split": options.split,
                        "selection": distilled.selection,
                        "accuracy": score.accuracy,
                        "loss": score.loss,
                        "epochs": options.epochs,
                        "seconds": score.seconds,
                        "peak_memory_bytes": score.peak_memory_bytes,
                    }
                )
                write_json(held, {"identity": identity, "rows": rows})
                progress.step(f"network {repeat}: {options.split} accuracy {score.accuracy:.4f}")
        target = Path(layout.evaluation(dataset, ipc, method, seed, network))
        write_rows(target, rows, EVALUATION, run_metadata(identity, device))
        mean = sum(row["accuracy"] for row in rows) / len(rows)
        LOG.info("mean %s accuracy of %d networks %.4f -> %s", options.split, len(rows), mean, target)
        shutil.rmtree(state)


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
    distilled = load_distilled(_distilled(resolver, dataset, ipc, method, seed))
    store = open_experts(resolver, prepared, options.experts)
    network = resolver.experts(options.experts, dataset).network
    problem = _problem(resolver, prepared, network, ipc, device, (dataset, ipc, "sharpness", seed), store)
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


def make_table(resolver: Resolver, name: str) -> None:
    """Write a results table as csv, md and tex and show it."""
    frame, paired = tables.write_table(resolver, name)
    tables.show_table(Progress.console(), frame, paired)


def make_synthetic_figure(resolver: Resolver, dataset: str, ipc: int) -> None:
    """Draw the synthetic images of all methods that a table of the campaign compares, the first seed of each."""
    chosen = resolver.pictured(dataset, ipc)
    if not chosen:
        raise UsageError(f"no table of {resolver.path or 'the built-in campaign'} holds {dataset} at ipc {ipc}")
    sets = {method: load_distilled(_distilled(resolver, dataset, ipc, method, seed)) for method, seed in chosen}
    path = Path(resolver.layout.synthetic(dataset, ipc))
    synthetic_grid(sets, path, f"{dataset}, {ipc} image{'s' if ipc > 1 else ''} per class, seed {chosen[0][1]}")
    LOG.info("picture of %s -> %s", ", ".join(sets), path)


def prepare(resolver: Resolver, dataset: str) -> Prepared:
    """Return a dataset from its stored images and, if it is whitened, its stored whitening."""
    options = resolver.dataset(dataset)
    data = _images(resolver, dataset)
    path = Path(resolver.layout.zca(dataset)) if options.zca else None
    if path is not None and not path.is_file():
        raise UsageError(f"the whitening {path} does not exist; make it with {_data_command(resolver, dataset)}")
    whitening = load_whitening(path) if path else None
    if whitening is not None and whitening.eps != options.zca_eps:
        raise UsageError(f"{path} was made with eps {whitening.eps:g}, zca_eps is {options.zca_eps:g}; make it again")
    preprocessor = Preprocessor(data.mean, data.std, whitening)
    return Prepared(data, preprocessor, Augmentation(options.augment, options.augment_share), path)


def expert_identity(resolver: Resolver, prepared: Prepared, experts: str, options: ExpertsOptions) -> dict[str, Any]:
    """Return everything that makes experts the ones they are; their number and grouping into jobs does not."""
    network, settings = resolve_network(resolver.network(options.network, prepared.data.name))
    augmentation = prepared.augmentation
    return {
        "dataset": prepared.data.name,
        "data": prepared.data.hash,
        "preprocessing": prepared.preprocessor.identity,
        "augmentation": [augmentation.strategy, augmentation.share] if options.augment else None,
        "network": {"network": network, **settings.model_dump(mode="json")},
        "experts": experts,
        "recipe": options.model_dump(mode="json", exclude={"network", "count", "per_job"}),
    }


def open_experts(resolver: Resolver, prepared: Prepared, experts: str) -> TrajectoryStore:
    """Return the trajectory store of some experts, checked against what the campaign says they are."""
    dataset = prepared.data.name
    options = resolver.experts(experts, dataset)
    path = Path(resolver.layout.manifest(dataset, experts))
    if not path.is_file():
        raise UsageError(
            f"the experts {experts} of {dataset} do not exist ({path}); make them with `python -m satm experts "
            f"--dataset {dataset} --experts {experts}{_config_flag(resolver)}`"
        )
    store = TrajectoryStore(path, expert_identity(resolver, prepared, experts, options))
    if len(store) != options.count:
        raise UsageError(f"{path} lists {len(store)} experts, count is {options.count}; make the experts again")
    return store


def _images(resolver: Resolver, dataset: str) -> ImageData:
    path = Path(resolver.layout.images(dataset))
    resolver.dataset(dataset)
    if not path.is_file():
        raise UsageError(f"the images {path} do not exist; make them with {_data_command(resolver, dataset)}")
    return load_images(path)


def _distilled(resolver: Resolver, dataset: str, ipc: int, method: str, seed: int) -> Path:
    path = Path(resolver.layout.distilled(dataset, ipc, method, seed))
    if not path.is_file():
        raise UsageError(
            f"the synthetic set {path} does not exist; make it with `python -m satm distill --dataset {dataset} "
            f"--ipc {ipc} --method {method} --seed {seed}{_config_flag(resolver)}`"
        )
    return path


def _data_command(resolver: Resolver, dataset: str) -> str:
    return f"`python -m satm data --dataset {dataset}{_config_flag(resolver)}`"


def _config_flag(resolver: Resolver) -> str:
    return f" --config {resolver.path}" if resolver.path else ""


def _problem(
    resolver: Resolver,
    prepared: Prepared,
    network: str,
    ipc: int,
    device: torch.device,
    axes: tuple[str, int, str, int],
    store: TrajectoryStore | None,
) -> Problem:
    """Return what a method may use, on a device."""
    data = prepared.data
    module = build(resolver.network(network, data.name), data.channels, data.classes, data.size, seed=0).to(device)
    return Problem(data, prepared.preprocessor, prepared.augmentation, module, ipc, device, axes, store)


def _train_part(
    prepared: Prepared,
    options: ExpertsOptions,
    network: Mapping[str, Any],
    identity: Mapping[str, Any],
    folder: Path,
    state: Path,
    indices: range,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Train the experts of one part that are not there yet; return the records of all."""
    data = prepared.data
    missing = []
    for index in indices:
        found = shard_identity(folder, index)
        if found is not None and (difference := differing_field(identity, found)):
            LOG.info("expert %d there is another one and is replaced: %s", index, difference)
        if found != identity:
            missing.append(index)
    if missing:
        real = TrainingImages.of(data.train, prepared.preprocessor, device)
        test = TrainingImages.of(data.test, prepared.preprocessor, device)
        augmentation = prepared.augmentation if options.augment else Augmentation("", "image")
        with Progress("experts", len(missing) * options.epochs) as progress:
            for index in missing:
                axes = ("experts", data.name, identity["experts"], options.seed, index)
                module = build(network, data.channels, data.classes, data.size, derive_seed("network", *axes))
                module.to(device)
                held = checkpoint.ExpertState(state / f"expert-{index:03d}", identity)
                after = held.load()
                progress.skip(after.epoch if after else 0)
                for snapshot in train_expert(module, real, options, augmentation, axes, after):
                    held.save(snapshot)
                    if snapshot.epoch:
                        text = f"expert {index} epoch {snapshot.epoch}/{options.epochs}: loss {snapshot.loss:.4f}"
                        if snapshot.epoch % 5 == 0 and snapshot.epoch < options.epochs:
                            text += f", test accuracy {measure(module, test)[0]:.4f}"
                        progress.step(text)
                load_flat(module, held.snapshots()[-1].to(device))
                accuracy, _ = measure(module, test)
                LOG.info("expert %d: test accuracy %.4f after %d epochs", index, accuracy, options.epochs)
                write_shard(folder, index, held.snapshots(), identity, accuracy)
                held.clear()
    return [describe_shard(folder, index) for index in indices]


def _resume(state: Path, identity: Mapping[str, Any], device: torch.device) -> Run | None:
    """Return the run in a checkpoint; None if there is none, or one of other options."""
    path = state / "checkpoint.safetensors"
    if not path.is_file():
        return None
    run, found, backend = checkpoint.load_run(path, device)
    if difference := differing_field(identity, found):
        LOG.warning("the checkpoint there belongs to another run (%s); starting anew", difference)
        return None
    if backend != (here := describe_backend(device)):
        LOG.warning("going on with %s what was begun with %s: not the same bytes as in one go", here, backend)
    LOG.info("going on after iteration %d", run.now.iteration)
    return run


def _iterate(
    method: IterativeMethod,
    run: Run,
    look: Look | None,
    state: Path,
    identity: Mapping[str, Any],
    device: torch.device,
    checkpoint_seconds: float,
) -> Synthetic:
    """Run the loop with progress and checkpoints."""
    options: IterativeOptions = method.settings
    written = time.monotonic()
    backend = describe_backend(device)

    def on_safe(held: Run) -> None:
        nonlocal written
        if time.monotonic() - written >= checkpoint_seconds:
            checkpoint.save_run(state / "checkpoint.safetensors", held, identity, backend)
            written = time.monotonic()

    with Progress("distil", options.iterations, run.now.iteration) as progress:

        def on_row(row: Mapping[str, Any]) -> None:
            if row["event"]:
                LOG.warning("%s", row["event"])
            progress.at(
                run.now.iteration,
                f"loss {row['loss']:.4f}, step size {row['step_size']:.4g}, "
                f"hypergradient norm {row['hypergradient_norm']:.3g}",
            )

        return distill(method, run, look, on_row, on_safe)


def _look(
    resolver: Resolver, prepared: Prepared, method: IterativeMethod, network: str, device: torch.device
) -> Look | None:
    """Return how the loop looks at the accuracy of its set; None where the last one is kept.

    Raises:
        UsageError: the set is to be chosen on held-out images and the dataset holds none out.
    """
    options: IterativeOptions = method.settings
    if options.selection == "last":
        return None
    problem = method.problem
    dataset, ipc, name, seed = problem.axes
    split = prepared.data.validation if options.selection == "validation" else prepared.data.test
    if not len(split):
        raise UsageError(f"selection 'validation' needs held-out images; set validation above 0 in dataset {dataset}")
    real = TrainingImages.of(split, prepared.preprocessor, device)
    schedule, values = resolver.evaluation(name, dataset, ipc), resolver.network(network, dataset)

    def look(synthetic: Synthetic, iteration: int) -> float:
        images = TrainingImages(synthetic.images, synthetic.labels)
        total = 0.0
        for repeat in range(options.evaluate_networks):
            axes = ("look", dataset, ipc, name, seed, iteration, repeat)
            total += evaluate(
                images,
                float(synthetic.step_size),
                real,
                values,
                prepared.data.classes,
                schedule,
                prepared.augmentation,
                axes,
            ).accuracy
        LOG.info("iteration %d: %s accuracy %.4f", iteration, options.selection, total / options.evaluate_networks)
        return total / options.evaluate_networks

    return look


def _without_method(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "method"}
