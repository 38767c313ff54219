"""How fast a machine is: seconds and memory of the pieces that the jobs of a campaign consist of.

Each piece is done by the code that does it in earnest, on random images and random experts of the right shape, so that
neither data nor trained networks are needed.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from satm.config import Cell, EvaluateOptions
from satm.config.methods import ClassMatchingOptions, MethodOptions
from satm.cost.workload import Piece
from satm.data import Augmentation, ImageData, Preprocessor, Split
from satm.distill import begin, distill
from satm.errors import UsageError
from satm.evaluation.networks import Task, train, train_together
from satm.experts import TrajectoryStore
from satm.methods import METHODS, Recipe, resolve
from satm.methods.parts.problem import Problem
from satm.networks import build
from satm.networks.training import TrainingImages
from satm.params import flatten
from satm.results.circumstances import run_metadata
from satm.results.columns import PACE
from satm.results.rows import read_rows, write_rows
from satm.run.machine import peak_memory, reset_peak
from satm.run.progress import Progress
from satm.seeds import make_generator

LOG = logging.getLogger("satm")

IMAGES = (8, 64, 256)
"""Images of the steps that are measured; what other steps take lies between or beyond."""

STEPS = (6, 12)
"""Inner steps of the iterations that are measured, where a method has more; what all take lies on the line through
both. Twice as many where an iteration keeps a small part of them."""

WATCHED_EVERY = 2
"""Iterations from one look at the monitored segments to the next in what is measured."""

EPOCHS = 1000
"""Epochs that the path of a random expert has."""

DIFFERENT = 1000
"""Random images that stand for all real ones, again and again."""


class RandomExperts(TrajectoryStore):
    """Experts whose weights are random: as long as real ones, and of no use."""

    def __init__(self, start: Tensor) -> None:
        self._start = start
        self._moved = 1e-3 * torch.randn(start.shape, generator=make_generator("pace", "experts"))

    def __len__(self) -> int:
        """Return the number of experts."""
        return 3

    @property
    def epochs(self) -> int:
        """Epochs of each."""
        return EPOCHS

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        """Return `[P]` weights on a straight line."""
        return self._start + epoch * self._moved


def measure_pace(wanted: list[Piece], path: Path, device: torch.device, seconds: float, progress: Progress) -> int:
    """Measure pieces and write a row of each measurement; those that the file has already are left out.

    The file is written anew after each piece, so that nothing is lost with the process.

    Args:
        wanted: the pieces, in the order in which they are measured.
        path: of the file, which may exist.
        device: where to compute.
        seconds: no further piece is begun after so many.
        progress: told of each piece.

    Returns:
        how many pieces the time did not suffice for.

    Raises:
        UsageError: the file is of another device.
    """
    metadata = run_metadata({}, device)
    rows: list[dict[str, Any]] = []
    if path.is_file():
        rows = [dict(row) for _, row in read_rows(path, PACE).iterrows()]
        if rows and rows[0]["device"] != metadata["device"]:
            there, here = rows[0]["device"], metadata["device"]
            raise UsageError(f"{path} was measured on {there}, this machine is {here}; name another file")
    known = {(row["kind"], row["key"]) for row in rows}
    until = time.monotonic() + seconds
    left = [piece for piece in wanted if (piece.kind, piece.key) not in known]
    progress.skip(len(wanted) - len(left))
    for done, piece in enumerate(left):
        if time.monotonic() > until:
            return len(left) - done
        rows += [{**row, "device": metadata["device"]} for row in _measured(piece, device)]
        write_rows(path, rows, PACE, metadata)
        progress.step(f"{piece.kind} {piece.key}")
    return 0


def _measured(piece: Piece, device: torch.device) -> list[dict[str, Any]]:
    """Return the rows of one piece; what does not fit into the memory has NaN in place of seconds."""
    common = {"kind": piece.kind, "key": piece.key}
    run = _steps if piece.kind == "step" else _iterations
    try:
        rows = run(piece.values, device)
    except torch.OutOfMemoryError:
        rows = [{"amount": 0, "seconds": None, "peak_memory_bytes": 0, "parameters": 0}]
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return [{**common, **row} for row in rows]


def _timed(run: Callable[[], object], device: torch.device) -> float:
    """Return seconds of a run, with those of the kernels that it has started."""
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _steps(values: Mapping[str, Any], device: torch.device) -> list[dict[str, Any]]:
    """Return rows of training steps: a step's seconds by its images."""
    together, classes, size = values["together"], values["classes"], values["size"]
    rows = []
    for count in IMAGES:
        generator = make_generator("pace", "images", count)
        images = torch.randn(count, values["channels"], size, size, generator=generator)
        labels = torch.arange(count) % classes
        data = TrainingImages(images.to(device), labels.to(device))

        def run(epochs: int, data: TrainingImages = data) -> None:
            options = EvaluateOptions(
                epochs=epochs, decay_epoch=None, lr=1e-4, flat_rho=0.01 if values["sharpness_aware"] else 0.0
            )
            augmentation = Augmentation(values["augment"], "image")
            task = Task(data, 1e-4, values["network"], classes, options, augmentation)
            axes = [("pace", repeat) for repeat in range(together)]
            if together > 1:
                train_together(task, axes)
            else:
                train(task, axes[0])

        reset_peak(device)
        few, more = 1, 4
        run(few)
        seconds = [_timed(partial(run, epochs), device) for epochs in (few, more)]
        module = build(values["network"], values["channels"], classes, size, 0)
        rows.append(
            {
                "amount": count,
                "seconds": max(0.0, seconds[1] - seconds[0]) / (more - few),
                "peak_memory_bytes": peak_memory(device),
                "parameters": sum(parameter.numel() for parameter in module.parameters()),
            }
        )
    return rows


def _iterations(values: Mapping[str, Any], device: torch.device) -> list[dict[str, Any]]:
    """Return rows of iterations: seconds by the number of inner steps, where a method can have fewer; else one row."""
    chosen = dict(values["method"])
    kind = METHODS[chosen["method"]]
    fields = kind.options.model_fields
    _, whole = resolve(chosen)
    amounts = [0]
    if "inner_steps" in fields and "window" not in fields and "milestones" not in fields:
        steps = getattr(whole, "inner_steps")  # noqa: B009 - just found among its fields
        few, more = (2 * count for count in STEPS) if getattr(whole, "keep_divisor", 1) > STEPS[0] // 2 else STEPS
        amounts = [steps] if steps <= more else [few, more]
    rows = []
    for amount in amounts:
        given = {**chosen, "iterations": max(1 + WATCHED_EVERY, chosen.get("blocks", 1))}
        given.pop("grow_from", None)  # what it grows to takes longest
        if amount:
            given["inner_steps"] = amount
        if "monitor" in given:
            given["monitor_every"] = WATCHED_EVERY
        _, options = resolve(given)
        seconds, peak, parameters = _iterated(kind, options, values, device)
        rows.append({"amount": amount, "seconds": seconds, "peak_memory_bytes": peak, "parameters": parameters})
    return rows


def _iterated(
    kind: Recipe, options: MethodOptions, values: Mapping[str, Any], device: torch.device
) -> tuple[float, int, int]:
    """Return seconds of an iteration after the first, the most memory that one held, and the network's parameters."""
    classes, size, channels = values["classes"], values["size"], values["channels"]
    real = getattr(options, "real_batch", 1)
    per_class = max(values["ipc"], real if isinstance(options, ClassMatchingOptions) else math.ceil(real / classes))
    labels = torch.arange(classes).repeat(per_class)
    generator = make_generator("pace", "real")
    few = torch.randint(0, 256, (DIFFERENT, channels, size, size), generator=generator, dtype=torch.uint8)
    split = Split(few[torch.arange(len(labels)) % DIFFERENT], labels)
    mean, std = (0.5,) * channels, (0.25,) * channels
    names = tuple(str(label) for label in range(classes))
    data = ImageData("random", split, split, split, names, mean, std, "random")
    made = partial(build, values["network"], channels, classes, size)
    start = flatten(made(0))
    problem = Problem(
        data,
        Preprocessor(mean, std, None),
        Augmentation(values["augment"], "image"),
        made,
        values["ipc"],
        device,
        Cell("random", values["ipc"], kind.name),
        RandomExperts(start) if kind.needs_experts else None,
    )
    # Experts that know nothing classify no image correctly, and a matching loss on a random path may be anything.
    quiet = {"init": "real"} if getattr(options, "init", None) == "correct" else {}
    unlimited = {"explode": math.inf, "skip_above": None, "ema": None}
    method = kind(options.model_copy(update={**quiet, **unlimited}), problem)
    rows: list[Mapping[str, Any]] = []
    distill(method, begin(method), None, rows.append, lambda run: None)
    plain, watched = (float(row["seconds"]) for row in rows[-2:])
    seconds = (plain + watched) / 2
    if "monitor_every" in values:
        seconds = plain + max(0.0, watched - plain) / values["monitor_every"]
    return seconds, max(int(row["peak_memory_bytes"]) for row in rows), len(start)
