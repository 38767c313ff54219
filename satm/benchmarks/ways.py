"""The ways of each benchmark to solve a case, all on the same random values."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from ruamel.yaml import YAML
from torch import Tensor, nn

from satm.benchmarks import reference
from satm.benchmarks.cases import Evaluation, Experts, Matching
from satm.config import EvaluateOptions
from satm.cost.calibrate import random_problem
from satm.data import Augmentation
from satm.distill import begin, distill
from satm.errors import pick
from satm.evaluation.networks import Axes, Task, train, train_together
from satm.methods import METHODS, resolve
from satm.networks import build
from satm.networks.training import TrainingImages, train_epoch
from satm.ops import products_of
from satm.ops.precision import ROUNDINGS, Precision
from satm.params import flatten
from satm.seeds import derive_seed, make_generator
from satm.unroll import ENGINES, hypergradient
from satm.unroll.batches import mini_batches

Found = reference.Found
"""What a way returns; zeros where there is no such gradient."""

STRATEGY = "color_crop_cutout_flip_scale_rotate"

LOOPS = {"mtt-loop": reference.mtt, "tesla-loop": reference.tesla}

STEP_SIZE = 0.01


def ways_of(kind: str, case: object, precision: str, device: torch.device, way: str) -> Callable[[], Found]:
    """Return a way of a benchmark of some kind to solve a case."""
    dtype = torch.float64 if precision == "float64" else torch.float32
    products = precision if precision in ROUNDINGS else "float32"
    make: dict[str, Callable[..., Callable[[], Found]]] = {
        "hypergradient": partial(matching_way, precision=cast(Precision, products)),
        "distill": distill_way,
        "experts": expert_way,
        "evaluate": evaluation_way,
    }
    return make[kind](case, dtype, device, way)


def matching_problems(case: Matching, dtype: torch.dtype, device: torch.device) -> list[reference.Matching]:
    """Return the segments of a case, which share images, batches and augmentation; random values of any precision."""
    generator = make_generator("bench")
    count = case.classes * case.ipc
    images = torch.randn((count, 3, case.size, case.size), generator=generator, dtype=torch.float64).to(device, dtype)
    labels = (torch.arange(count) % case.classes).to(device)
    module = build(case.network, 3, case.classes, case.size, derive_seed("bench")).double()
    start = flatten(module)
    batches = mini_batches(count, case.batch, case.steps, generator, device) or [torch.arange(count, device=device)] * (
        case.steps
    )
    strategy = STRATEGY if case.augment else ""
    augment = Augmentation(strategy, "image").per_step(generator, [len(batch) for batch in batches], case.size, device)
    module.to(device, dtype)
    problems = []
    for _ in range(case.concurrent):
        noise = torch.randn(start.shape, generator=generator, dtype=torch.float64)
        begin_at, target = start.to(device, dtype), (start + 0.01 * noise).to(device, dtype)
        problems.append(reference.Matching(module, images, labels, begin_at, target, STEP_SIZE, batches, augment))
    return problems


def matching_way(
    case: Matching, dtype: torch.dtype, device: torch.device, way: str, precision: Precision = "float32"
) -> Callable[[], Found]:
    """Return a published loop or an engine, `NAME` or `mixed:S`, on the segments of a case; gradients are summed."""
    problems = matching_problems(case, dtype, device)
    engine, _, stored = way.partition(":")
    if way not in LOOPS:
        pick(engine, {**LOOPS, **ENGINES}, "way")

    def one(problem: reference.Matching) -> Found:
        if way in LOOPS:
            with products_of(precision, device):
                return LOOPS[way](problem)

        def objective(weights: Tensor) -> Tensor:
            return (weights - problem.target).square().sum() / (problem.start - problem.target).square().sum()

        every = case.batch is None or case.batch >= len(problem.images)
        found = hypergradient(
            problem.module,
            problem.images,
            problem.labels,
            problem.step_size,
            objective,
            steps=case.steps,
            last=case.kept,
            start=problem.start,
            batches=None if every else problem.batches,
            augment=problem.augment if case.augment else None,
            engine=engine,
            precision=precision,
            stored=int(stored) if stored else None,
        )
        return found.loss, found.images, found.step_size

    def run() -> Found:
        parts = zip(*map(one, problems), strict=True)
        loss, images, step_size = (torch.stack(part).sum(0) for part in parts)
        return loss, images, step_size

    return run


def distill_way(case: Matching, dtype: torch.dtype, device: torch.device, way: str) -> Callable[[], Found]:
    """Return an outer iteration of a method, or of a published loop with the same network and sizes."""
    if way in LOOPS:
        (problem,) = matching_problems(replace(case, concurrent=1), dtype, device)
        momentum = torch.zeros_like(problem.images)

        def loop() -> Found:
            with products_of("float32", device):
                found = LOOPS[way](problem)
            problem.images.sub_(momentum.mul_(0.5).add_(found[1]))
            return found

        return loop
    recipe = pick(way, METHODS, "method")
    given = {"inner_steps": case.steps, "batch_size": case.batch, "augment": case.augment, "iterations": 1}
    _, options = resolve({"method": way, **given, "init": "real", "lr_images": 1e-6})
    options = options.model_copy(update={"explode": float("inf"), "skip_above": None})  # of random experts
    if case.kept is not None:
        options = options.model_copy(update={"keep_divisor": max(1, case.steps // case.kept)})
    random = random_problem(recipe, case.network, (3, case.size, case.classes), case.ipc, case.ipc, STRATEGY, device)
    method = recipe(options, random)

    def iteration() -> Found:
        made = distill(method, begin(method), None, lambda row: None, lambda run: None).synthetic
        zero = torch.zeros((), device=device)
        return zero, made.images, zero

    return iteration


def real_images(case: Experts, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return random training images, as they are in the space of training, with labels, on the CPU."""
    images = torch.randn((case.images, 3, case.size, case.size), generator=make_generator("bench", "experts"))
    return images, torch.arange(case.images) % case.classes


def expert_way(case: Experts, dtype: torch.dtype, device: torch.device, way: str) -> Callable[[], Found]:
    """Return an epoch of each expert: `published`, `ours` or `at once`."""
    pick(way, {"published": None, "ours": None, "at once": None}, "way")
    images, labels = real_images(case, device)
    augmentation = Augmentation(STRATEGY if case.augment else "", "image")
    module = build(case.network, 3, case.classes, case.size, derive_seed("bench")).to(device)
    data = TrainingImages(images.to(device), labels.to(device))
    optimiser = torch.optim.SGD(module.parameters(), lr=STEP_SIZE)
    recipe = EvaluateOptions(epochs=1, decay_epoch=None, lr=STEP_SIZE, momentum=0, batch_size=case.batch)
    task = Task(data, STEP_SIZE, case.network, case.classes, recipe, augmentation)

    def epoch() -> Found:
        zero = torch.zeros((), device=device)
        if way == "at once":
            train_together(task, [("bench", number) for number in range(case.networks)])
            return zero, zero, zero
        loss = 0.0
        for _ in range(case.networks):
            generator = make_generator("bench", "epoch")
            if way == "published":
                loss = reference.train_epochs(module, images, labels, 1, augmentation, generator, batch_size=case.batch)
            else:
                loss = train_epoch(module, optimiser, data, case.batch, augmentation, generator)
        return torch.tensor(loss), zero, zero

    return epoch


def evaluation_way(case: Evaluation, dtype: torch.dtype, device: torch.device, way: str) -> Callable[[], Found]:
    """Return the training of all networks, `published`, `one by one` or `at once`."""
    pick(way, {"published": None, "one by one": None, "at once": None}, "way")
    pairs = (option.partition("=") for option in case.options)
    values = {"network": case.network} | {name: YAML(typ="safe", pure=True).load(text) for name, _, text in pairs}
    labels = torch.arange(case.classes).repeat_interleave(case.ipc)
    images = torch.randn((len(labels), 3, case.size, case.size), generator=make_generator("bench", "evaluation"))
    recipe = EvaluateOptions(epochs=case.epochs, decay_epoch=None, lr=STEP_SIZE)
    augmentation, data = Augmentation(STRATEGY, "image"), TrainingImages(images.to(device), labels.to(device))
    task = Task(data, STEP_SIZE, values, case.classes, recipe, augmentation)
    axes: list[Axes] = [("bench", repeat) for repeat in range(case.networks)]
    published = partial(
        reference.train_epochs,
        images=images,
        labels=labels,
        epochs=case.epochs,
        augmentation=augmentation,
        batch_size=recipe.batch_size,
        lr=STEP_SIZE,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )

    def networks() -> Sequence[nn.Module]:
        if way == "at once":
            return train_together(task, axes)
        if way == "one by one":
            return [train(task, one) for one in axes]
        modules = [task.fresh(one) for one in axes]
        for module, one in zip(modules, axes, strict=True):
            published(module, generator=make_generator("evaluate", *one))
        return modules

    def run() -> Found:
        ends = torch.stack([flatten(module) for module in networks()])
        zero = torch.zeros((), device=device)
        return zero, ends, zero

    return run
