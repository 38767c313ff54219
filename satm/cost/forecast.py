"""Forecast of a campaign: jobs, hours, memory and disk, before it starts. Nothing here imports torch.

The work of each job (`satm.cost.workload`) is multiplied by a machine's pace (`python -m satm bench pace`).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas

from satm.config import Resolver, canonical
from satm.config.base import numbers
from satm.cost.workload import Shape, Share, shape, shares
from satm.errors import UsageError, short
from satm.tables.render import Grid
from satm.workflow.asked import cell_of
from satm.workflow.graph import Job
from satm.workflow.options import method_options

STEP_WITH_GRAPH = 3.2
"""Cost of a differentiated inner step in training steps on the same images, for iterations that were not measured. On
an H200 a step of the engine `mixed` took 17 ms (`python -m satm bench hypergradient`) and one of training 5.3 ms."""

KNOWN = ("measured", "estimated", "unknown")
"""Confidence in a job's time: every piece was measured; some follow from training steps; some are unknown."""


@dataclass
class Stage:
    """Predicted cost of the jobs of one rule.

    `hours` is the sum over all jobs, `longest` that of the longest job; `memory` is the largest device memory of a job
    in bytes, with its real images; `disk` is the bytes of all files. `known` counts jobs by confidence, `too_large` has
    the pieces that did not fit into the machine's memory.
    """

    jobs: int = 0
    hours: float = 0.0
    longest: float = 0.0
    longest_job: str = ""
    memory: float = 0.0
    disk: float = 0.0
    known: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KNOWN, 0))
    too_large: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Estimate:
    """Predicted cost of some work: seconds, bytes on the device (NaN if it does not fit), and the confidence."""

    seconds: float
    memory: float
    known: str


class Pace:
    """Seconds and memory of pieces on one machine, from rows as in `satm.results.columns.PACE`.

    Raises:
        UsageError: a row's key is damaged.
    """

    def __init__(self, rows: pandas.DataFrame) -> None:
        self._rows = {key: group.sort_values("amount") for key, group in rows.groupby(["kind", "key"])}
        self._steps = {}
        self._parameters: dict[str, int] = {}
        for (kind, key), group in self._rows.items():
            try:
                values = json.loads(str(key))
                self._parameters.setdefault(_text(values), int(group["parameters"].iloc[-1]))
                if kind == "step" and values.get("together", 1) == 1 and not values.get("sharpness_aware"):
                    self._steps[_text(values, "augment")] = group
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise UsageError(
                    f"the pace has a {short(kind)} of {short(key)}, which is not a piece of a job; measure it again "
                    "with `python -m satm bench pace`"
                ) from error
        self.device = str(rows["device"].iloc[0])

    def of(self, share: Share) -> Estimate | None:
        """Return the cost of a share; None if it is unknown."""
        rows = self._rows.get((share.piece.kind, share.piece.key))
        if rows is None:
            return None if share.piece.kind == "step" else self._estimated(share.piece.values, share.times)
        if rows["seconds"].isna().any():
            return Estimate(math.nan, math.nan, "measured")
        amount = float(share.images or _option(share.piece.values, "inner_steps") or 0)
        return Estimate(share.times * _at(rows, "seconds", amount), _at(rows, "peak_memory_bytes", amount), "measured")

    def parameters(self, network: Mapping[str, Any], seen: Shape) -> int | None:
        """Return the number of a network's parameters on images of a shape; None if no piece of it was measured."""
        return self._parameters.get(_text(seen.key(network)))

    def _estimated(self, values: Mapping[str, Any], times: float) -> Estimate | None:
        """Estimate iterations by their inner steps, in training steps on the same images."""
        rows, steps = self._steps.get(_text(values, "augment")), _option(values, "inner_steps")
        if rows is None or steps is None:
            return None
        images = float(_option(values, "batch_size") or values["ipc"] * values["classes"])
        window = _option(values, "window")
        kept = float(window) if window else steps // (_option(values, "keep_divisor") or 1)
        before = (steps - kept) / 2 if window else steps - kept
        passes = (1 + (_option(values, "concurrent") or 0)) * (kept * STEP_WITH_GRAPH + before)
        passes += values["method"].get("monitor", 0) * steps / 3 / values.get("monitor_every", 1)
        once = _at(rows, "seconds", images)
        return Estimate(times * passes * once, _at(rows, "peak_memory_bytes", images), "estimated")


def _option(values: Mapping[str, Any], name: str) -> Any:
    """Return an option of a piece's method; None if the method lacks it."""
    return getattr(method_options(values["method"]), name, None)


def _text(values: Mapping[str, Any], *more: str) -> str:
    """Return the network of a piece and the shape of its images as one text."""
    return canonical({name: values[name] for name in ("network", "channels", "size", "classes", *more)})


def cost(resolver: Resolver, jobs: Sequence[Job], pace: Pace, at_once: bool) -> dict[str, Stage]:
    """Return the predicted cost of a campaign's jobs by rule; `at_once` as in `satm.cost.workload.shares`."""
    stages: dict[str, Stage] = {}
    for job in jobs:
        stage, parts = stages.setdefault(job.rule, Stage()), shares(resolver, job, at_once)
        estimates = [pace.of(share) for share in parts or ()]
        fitting = [each for each in estimates if each is not None and not math.isnan(each.seconds)]
        large = zip(parts or (), estimates, strict=True)
        stage.too_large |= {share.piece.key for share, each in large if each is not None and math.isnan(each.seconds)}
        stage.known[_confidence(parts, estimates)] += 1
        hours = sum(each.seconds for each in fitting) / 3600
        if hours > stage.longest:
            stage.longest, stage.longest_job = hours, str(job)
        memory = max((each.memory for each in fitting), default=0.0) + (_real_images(resolver, job) if parts else 0.0)
        stage.memory = max(stage.memory, memory)
        stage.jobs += 1
        stage.hours += hours
        stage.disk += disk(resolver, job, pace)
    return stages


def disk(resolver: Resolver, job: Job, pace: Pace) -> float:
    """Return bytes of the files that a job leaves, except those of a few kilobytes."""
    names = job.wildcards
    if job.rule not in ("images", "zca", "experts_part", "distill"):
        return 0.0
    seen = shape(resolver, names.dataset)
    if job.rule == "images":
        return float((seen.images + seen.test_images) * seen.pixels)
    if job.rule == "zca":
        return 4.0 * (2 * seen.pixels**2 + seen.pixels)
    if job.rule == "experts_part":
        recipe = resolver.experts(names.experts, names.dataset)
        size = pace.parameters(resolver.network(recipe.network, names.dataset), seen) or 0
        return 4.0 * len(numbers(names.part)) * (recipe.epochs + 1) * size
    options = method_options(resolver.method(cell_of(names)))
    states = 1 + (getattr(options, "ema", None) is not None) + getattr(options, "snapshots", 0)
    return 4.0 * states * int(names.ipc) * seen.classes * seen.pixels + 100.0 * getattr(options, "iterations", 0)


def _confidence(parts: Sequence[Share] | None, estimates: Sequence[Estimate | None]) -> str:
    if parts is None or None in estimates:
        return "unknown"
    return "estimated" if any(each is not None and each.known == "estimated" for each in estimates) else "measured"


def _real_images(resolver: Resolver, job: Job) -> float:
    """Return bytes of the real images that a job keeps on the device."""
    names = job.wildcards
    seen = shape(resolver, names.dataset)
    each = seen.pixels * (4 if resolver.dataset(names.dataset).zca else 1)
    trained = job.rule in ("experts_part", "full", "nas_real")
    return float(each * (seen.test_images + (seen.images if trained else 0)))


def _at(rows: pandas.DataFrame, column: str, amount: float) -> float:
    """Return a column's value at an amount, on the line through the two nearest measured ones; never below zero."""
    amounts, values = rows["amount"].to_numpy(), rows[column].to_numpy()
    if len(rows) == 1 or amount <= amounts[0]:
        return float(values[0])
    right = min(len(amounts) - 1, max(1, int((amounts < amount).sum())))
    slope = (values[right] - values[right - 1]) / (amounts[right] - amounts[right - 1])
    return max(0.0, float(values[right] + slope * (amount - amounts[right])))


HEADINGS = (
    *("rule", "jobs", "hours", "longest job (h)", "device memory (GB)", "disk (GB)"),
    "confidence (jobs)",
)


def cost_grid(title: str, stages: Mapping[str, Stage], pace: Pace, start_seconds: float) -> Grid:
    """Return the forecast as a table: a line per rule that computes, and the total.

    `start_seconds` is the time of a job before its first step, which is added to each job.
    """
    computing = {rule: stage for rule, stage in stages.items() if stage.hours or stage.known["unknown"]}
    hours = {rule: stage.hours + stage.jobs * start_seconds / 3600 for rule, stage in computing.items()}
    rest = [stage for rule, stage in stages.items() if rule not in computing]
    total = Stage(
        sum(stage.jobs for stage in stages.values()),
        longest=max((stage.longest for stage in computing.values()), default=0.0),
        memory=max((stage.memory for stage in computing.values()), default=0.0),
        disk=sum(stage.disk for stage in stages.values()),
    )
    lines = [_line(rule, stage, hours[rule]) for rule, stage in computing.items()]
    lines.append(_line("the rest", Stage(sum(stage.jobs for stage in rest), disk=sum(stage.disk for stage in rest)), 0))
    lines.append(_line("all", total, sum(hours.values())))
    notes = [
        f"Hours on {pace.device}: the measured time of each piece of work on random images of the same shape "
        "(`python -m satm bench pace`), times its repetitions, with each job alone on the device, plus "
        f"{start_seconds:g} seconds for a job to begin.",
        "Estimated: iterations that were not measured, from the time of training steps "
        f"({STEP_WITH_GRAPH:g} for each differentiated inner step). Unknown: not counted.",
        "Device memory: that of the largest job, with its real images. Host memory and time limits are set in the "
        "workflow's rules. Disk: images, whitening, experts, synthetic sets and metrics.",
    ]
    longest = sorted((stage for stage in computing.values() if stage.longest), key=lambda stage: -stage.longest)[:3]
    if longest:
        jobs = "; ".join(f"{stage.longest_job} {stage.longest:.1f} h" for stage in longest)
        notes.append(f"The longest jobs: {jobs}.")
    if large := sum(len(stage.too_large) for stage in stages.values()):
        notes.append(f"Pieces of work that did not fit into the memory of that machine, and are not counted: {large}.")
    return Grid(title, HEADINGS, lines, HEADINGS[:1] + HEADINGS[-1:], notes)


def _line(rule: str, stage: Stage, hours: float) -> list[str]:
    amounts = [f"{amount:.1f}" for amount in (hours, stage.longest, stage.memory / 1e9, stage.disk / 1e9)]
    confidence = ", ".join(f"{count} {known}" for known, count in stage.known.items() if count)
    return [rule, str(stage.jobs), *(text if float(text) else "" for text in amounts), confidence]
