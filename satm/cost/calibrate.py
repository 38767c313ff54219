"""Seconds and memory of the pieces of a campaign's jobs on this machine.

The jobs' own code runs each piece on random images and experts of the right shape, without real ones.
"""

import math
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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
from satm.params import flatten, stored_buffers
from satm.results.circumstances import run_metadata
from satm.results.columns import PACE
from satm.results.rows import read_rows, write_rows
from satm.run.machine import peak_memory, reset_peak
from satm.run.progress import Progress
from satm.seeds import make_generator

IMAGES = (8, 64, 256)
"""Batch sizes of the measured training steps; others are interpolated or extrapolated."""

STEPS = (6, 12)
"""Measured inner steps, to extrapolate from; twice as many if an iteration differentiates a small part of them."""

MONITOR_EVERY = 2
"""Measured iterations between two measurements of the monitored segments."""

EPOCHS = 1000
"""Epochs of a random expert."""

DIFFERENT = 1000
"""Number of different random images, repeated in place of all real ones."""


class RandomExperts(TrajectoryStore):
    """Stand-ins for experts, of the same size: random weights on straight lines."""

    def __init__(self, module: nn.Module) -> None:
        self._start, self._buffers = flatten(module), stored_buffers(module)
        self.shards = []
        self._direction = 1e-3 * torch.randn(self._start.shape, generator=make_generator("pace", "experts"))

    def __len__(self) -> int:
        """Return the number of experts."""
        return 3

    @property
    def epochs(self) -> int:
        """Epochs of each expert."""
        return EPOCHS

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        """Return `[P]` weights."""
        return self._start + epoch * self._direction

    def buffers(self, expert: int, epoch: int) -> dict[str, Tensor]:
        """Return those of a new network."""
        return self._buffers


def measure_pace(pieces: list[Piece], path: Path, device: torch.device, seconds: float, progress: Progress) -> int:
    """Measure the pieces that a file lacks, in order, and write their rows; return the number of remaining pieces.

    The file is rewritten after each piece, so a killed process loses nothing. After `seconds` no further piece begins.

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
    left = [piece for piece in pieces if (piece.kind, piece.key) not in known]
    progress.skip(len(pieces) - len(left))
    for index, piece in enumerate(left):
        if time.monotonic() > until:
            return len(left) - index
        common = {"kind": piece.kind, "key": piece.key, "device": metadata["device"]}
        rows += [{**common, **row} for row in _measurements(piece, device)]
        write_rows(path, rows, PACE, metadata)
        progress.step(f"{piece.kind} {piece.key}")
    return 0


def _measurements(piece: Piece, device: torch.device) -> list[dict[str, Any]]:
    """Return the rows of one piece; seconds are None if it does not fit into the memory."""
    try:
        rows = list((_steps if piece.kind == "step" else _iterations)(piece.values, device))
    except torch.OutOfMemoryError:
        rows = [_row(0, None, 0, 0)]
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return rows


def _row(amount: int, seconds: float | None, peak: int, parameters: int) -> dict[str, Any]:
    return {"amount": amount, "seconds": seconds, "peak_memory_bytes": peak, "parameters": parameters}


def _steps(values: Mapping[str, Any], device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield the rows of a training step: its seconds by batch size."""
    together, classes, size = values["together"], values["classes"], values["size"]
    axes = [("pace", repeat) for repeat in range(together)]
    rho = 0.01 if values["sharpness_aware"] else 0.0
    for count in IMAGES:
        generator = make_generator("pace", "images", count)
        images = torch.randn(count, values["channels"], size, size, generator=generator)
        data = TrainingImages(images.to(device), (torch.arange(count) % classes).to(device))
        reset_peak(device)
        seconds = []
        for epochs in (1, 1, 4):  # the first is a warm-up
            options = EvaluateOptions(epochs=epochs, decay_epoch=None, lr=1e-4, flat_rho=rho)
            task = Task(data, 1e-4, values["network"], classes, options, Augmentation(values["augment"], "image"))
            started = time.perf_counter()
            if together > 1:
                train_together(task, axes)
            else:
                train(task, axes[0])
            if device.type == "cuda":  # wait for the kernels
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
        module = build(values["network"], values["channels"], classes, size, 0)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        yield _row(count, max(0.0, seconds[2] - seconds[1]) / 3, peak_memory(device), parameters)


def _iterations(values: Mapping[str, Any], device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield the rows of an iteration: its seconds by inner steps if a method can have fewer, else one row."""
    method = dict(values["method"])
    kind = METHODS[method["method"]]
    fields = kind.options.model_fields
    _, whole = resolve(method)
    amounts = [0]
    if "inner_steps" in fields and "window" not in fields and "milestones" not in fields:
        steps = getattr(whole, "inner_steps")  # noqa: B009 - just found among its fields
        few, more = (2 * count for count in STEPS) if getattr(whole, "keep_divisor", 1) > STEPS[0] // 2 else STEPS
        amounts = [steps] if steps <= more else [few, more]
    for amount in amounts:
        measured = {**method, "iterations": max(1 + MONITOR_EVERY, method.get("blocks", 1))}
        measured.pop("grow_from", None)  # the final size takes longest
        if amount:
            measured["inner_steps"] = amount
        if "monitor" in measured:
            measured["monitor_every"] = MONITOR_EVERY
        _, options = resolve(measured)
        yield _row(amount, *_iteration(kind, options, values, device))


def _iteration(
    kind: Recipe, options: MethodOptions, values: Mapping[str, Any], device: torch.device
) -> tuple[float, int, int]:
    """Return seconds of an iteration after the first, the peak memory, and the network's parameters."""
    classes = values["classes"]
    real = getattr(options, "real_batch", 1)
    per_class = max(values["ipc"], real if isinstance(options, ClassMatchingOptions) else math.ceil(real / classes))
    shape = (values["channels"], values["size"], classes)
    problem = random_problem(kind, values["network"], shape, values["ipc"], per_class, values["augment"], device)
    # Random experts classify no image correctly, and a matching loss on a random trajectory may be anything.
    init = {"init": "real"} if getattr(options, "init", None) == "correct" else {}
    unlimited = {"explode": math.inf, "skip_above": None, "ema": None}
    method = kind(options.model_copy(update={**init, **unlimited}), problem)
    rows: list[Mapping[str, Any]] = []
    distill(method, begin(method), None, rows.append, lambda run: None)
    plain, monitored = (float(row["seconds"]) for row in rows[-2:])
    seconds = (plain + monitored) / 2
    if "monitor_every" in values:
        seconds = plain + max(0.0, monitored - plain) / values["monitor_every"]
    return seconds, max(int(row["peak_memory_bytes"]) for row in rows), len(flatten(problem.module))


def random_problem(
    kind: Recipe,
    network: Mapping[str, object],
    shape: tuple[int, int, int],
    ipc: int,
    per_class: int,
    augment: str,
    device: torch.device,
) -> Problem:
    """Return a problem of a method with random images and random experts.

    Args:
        kind: the method.
        network: name and options of the network.
        shape: channels, height and width, and classes of the images.
        ipc: synthetic images per class.
        per_class: real images per class.
        augment: strategy of augmentation.
        device: device of the tensors.
    """
    channels, size, classes = shape
    labels = torch.arange(classes).repeat(per_class)
    generator = make_generator("pace", "real")
    few = torch.randint(0, 256, (DIFFERENT, channels, size, size), generator=generator, dtype=torch.uint8)
    split = Split(few[torch.arange(len(labels)) % DIFFERENT], labels)
    mean, std = (0.5,) * channels, (0.25,) * channels
    names = tuple(str(label) for label in range(classes))
    fresh = partial(build, network, channels, classes, size)
    return Problem(
        ImageData("random", split, split, split, names, mean, std, "random"),
        Preprocessor(mean, std, None),
        Augmentation(augment, "image"),
        fresh,
        ipc,
        device,
        Cell("random", ipc, kind.name),
        RandomExperts(fresh(0)) if kind.needs_experts else None,
    )
