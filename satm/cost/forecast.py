"""What a whole campaign takes: jobs, hours, memory and disk, told before it starts. Nothing here imports torch.

The work of each job (`satm.cost.workload`) is multiplied with what its pieces took on a machine (`python -m satm bench
pace`).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas

from satm.config import Resolver
from satm.cost.workload import Shape, Share, shape, shares
from satm.errors import UsageError, short
from satm.tables.render import Grid
from satm.workflow.check import method_options
from satm.workflow.jobs import Job
from satm.workflow.rules import cell_of

STEP_WITH_GRAPH = 3.2
"""Inner steps that are differentiated through, in training steps of the same images, for iterations that were not
measured. On an H200 a step of the engine `mixed` took 17 ms (`python -m satm bench hypergradient`) and one of training
5.3 ms."""

KNOWN = ("measured", "estimated", "unknown")
"""How well a job's time is known: every piece was measured; some follow from training steps; some cannot be told."""


@dataclass
class Stage:
    """What the jobs of one rule take together.

    Args:
        jobs: how many.
        hours: of all of them.
        longest: hours of the longest one.
        longest_job: which it is, in words.
        memory: bytes that the largest one holds on the device, the real images it needs included.
        disk: bytes of their files.
        known: how many of the jobs are known how well, by `KNOWN`.
        too_large: pieces that did not fit into the measured machine's memory.
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
class Taken:
    """What something takes: seconds, bytes on the device, and whether it was measured."""

    seconds: float
    memory: float
    known: str


class Pace:
    """Seconds and memory of pieces on one machine.

    Args:
        rows: as `satm.results.columns.PACE` says.

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
                self._parameters.setdefault(_network(values["network"], values), int(group["parameters"].iloc[-1]))
                if kind == "step":
                    self._steps[_looks(values)] = group
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise UsageError(
                    f"the pace has a {short(kind)} of {short(key)}, which is no piece of a job; measure it again with "
                    "`python -m satm bench pace`"
                ) from error
        self.device = str(rows["device"].iloc[0])

    def of(self, share: Share) -> Taken | None:
        """Return what a share takes; None where nothing is known."""
        rows = self._rows.get((share.piece.kind, share.piece.key))
        if rows is None:
            return self._estimated(share)
        if rows["seconds"].isna().any():
            return Taken(math.nan, math.nan, "measured")
        amount = float(share.images or _option(share.piece.values, "inner_steps") or 0)
        return Taken(share.times * _at(rows, "seconds", amount), _at(rows, "peak_memory_bytes", amount), "measured")

    def parameters(self, network: Mapping[str, Any], seen: Shape) -> int | None:
        """Return the parameters of a network on images of a shape; None where no piece of it was measured."""
        return self._parameters.get(_network(network, vars(seen)))

    def _estimated(self, share: Share) -> Taken | None:
        """Return what an iteration takes by its inner steps, each so many training steps of the same images."""
        values = share.piece.values
        rows = self._steps.get(_looks(values))
        if share.piece.kind == "step" or rows is None or (steps := _option(values, "inner_steps")) is None:
            return None
        images = float(_option(values, "batch_size") or values["ipc"] * values["classes"])
        window = _option(values, "window")
        kept = float(window) if window else steps // (_option(values, "keep_divisor") or 1)
        before = (steps - kept) / 2 if window else steps - kept
        passes = (1 + (_option(values, "concurrent") or 0)) * (kept * STEP_WITH_GRAPH + before)
        passes += values["method"].get("monitor", 0) * steps / 3 / values.get("monitor_every", 1)
        once = _at(rows, "seconds", images)
        return Taken(share.times * passes * once, _at(rows, "peak_memory_bytes", images), "estimated")


def _option(values: Mapping[str, Any], name: str) -> Any:
    """Return an option of a piece's method; None where the method has none of that name."""
    return getattr(method_options(values["method"]), name, None)


def cost(resolver: Resolver, jobs: Sequence[Job], pace: Pace, at_once: bool) -> dict[str, Stage]:
    """Return what the jobs of a campaign take, by rule.

    Args:
        resolver: the campaign.
        jobs: all of them (`satm.workflow.jobs.jobs`).
        pace: of the machine.
        at_once: whether that machine trains networks at once where options leave it to the device.
    """
    found: dict[str, Stage] = {}
    for job in jobs:
        stage = found.setdefault(job.rule, Stage())
        stage.jobs += 1
        stage.disk += disk(resolver, job, pace)
        parts = shares(resolver, job, at_once)
        taken = [pace.of(share) for share in parts or ()]
        stage.known[_how(parts, taken)] += 1
        present = [each for each in taken if each is not None]
        for share, each in zip(parts or (), taken, strict=True):
            if each is not None and math.isnan(each.seconds):
                stage.too_large.add(share.piece.key)
        seconds = sum(each.seconds for each in present if not math.isnan(each.seconds))
        stage.hours += seconds / 3600
        if seconds / 3600 > stage.longest:
            stage.longest, stage.longest_job = seconds / 3600, str(job)
        held = max((each.memory for each in present if not math.isnan(each.memory)), default=0.0)
        stage.memory = max(stage.memory, held + (_real_images(resolver, job) if parts else 0.0))
    return found


def disk(resolver: Resolver, job: Job, pace: Pace) -> float:
    """Return bytes of the files that a job leaves, but for those of a few kilobytes."""
    names = job.wildcards
    if not hasattr(names, "dataset"):
        return 0.0
    seen = shape(resolver, names.dataset)
    if job.rule == "images":
        return float((seen.images + seen.tested) * seen.pixels)
    if job.rule == "zca":
        return 4.0 * (2 * seen.pixels**2 + seen.pixels)
    if job.rule == "experts_part":
        options = resolver.experts(names.experts, names.dataset)
        first, last = map(int, names.part.split("-"))
        size = pace.parameters(resolver.network(options.network, names.dataset), seen) or 0
        return 4.0 * (last - first + 1) * (options.epochs + 1) * size
    if job.rule == "distill":
        made = method_options(resolver.method(cell_of(names)))
        states = 1 + (getattr(made, "ema", None) is not None) + getattr(made, "snapshots", 0)
        rows = getattr(made, "iterations", 0)
        return 4.0 * states * int(names.ipc) * seen.classes * seen.pixels + 100.0 * rows
    return 0.0


def _how(parts: Sequence[Share] | None, taken: Sequence[Taken | None]) -> str:
    if parts is None or any(each is None for each in taken):
        return "unknown"
    return "estimated" if any(each is not None and each.known == "estimated" for each in taken) else "measured"


def _real_images(resolver: Resolver, job: Job) -> float:
    """Return bytes of the real images that a job holds on the device."""
    names = job.wildcards
    seen = shape(resolver, names.dataset)
    each = seen.pixels * (4 if resolver.dataset(names.dataset).zca else 1)
    trained = job.rule in ("experts_part", "full", "nas_real")
    return float(each * (seen.tested + (seen.images if trained else 0)))


def _network(network: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    """Return what the number of parameters depends on, as one text."""
    return json.dumps([network, *(seen[name] for name in ("channels", "size", "classes"))], sort_keys=True)


def _looks(values: Mapping[str, Any]) -> str:
    """Return what a training step of a distillation depends on but for its images, as one text."""
    names = ("network", "channels", "size", "classes", "augment")
    if values.get("together", 1) != 1 or values.get("sharpness_aware"):
        return ""
    return json.dumps({name: values[name] for name in names}, sort_keys=True)


def _at(rows: pandas.DataFrame, column: str, amount: float) -> float:
    """Return a column's value at an amount, on the line through the two nearest measured ones; never below zero."""
    if len(rows) == 1:
        return float(rows[column].iloc[0])
    amounts, values = rows["amount"].to_numpy(), rows[column].to_numpy()
    if amount <= amounts[0]:
        return float(values[0])
    right = min(len(amounts) - 1, max(1, int((amounts < amount).sum())))
    slope = (values[right] - values[right - 1]) / (amounts[right] - amounts[right - 1])
    return max(0.0, float(values[right] + slope * (amount - amounts[right])))


def cost_grid(title: str, found: Mapping[str, Stage], pace: Pace, start_seconds: float) -> Grid:
    """Return the table that people read: a line per rule that computes, and one of all.

    Args:
        title: above it.
        found: from `cost`.
        pace: of the machine.
        start_seconds: that each job takes before its first step, added to its time.
    """
    computing = {rule: stage for rule, stage in found.items() if stage.hours or stage.known["unknown"]}
    rest = {rule: stage for rule, stage in found.items() if rule not in computing}
    lines = []
    total = Stage()
    for rule, stage in (*computing.items(), ("the rest", _together(list(rest.values())))):
        begun = stage.jobs * start_seconds / 3600
        hours = stage.hours + begun if rule in computing else 0.0
        total.jobs, total.hours, total.disk = total.jobs + stage.jobs, total.hours + hours, total.disk + stage.disk
        total.longest, total.memory = max(total.longest, stage.longest), max(total.memory, stage.memory)
        lines.append([*_line(rule, stage, hours), _known(stage) if rule in computing else ""])
    lines.append([*_line("all", total, total.hours), ""])
    notes = [
        f"Hours of {pace.device}: what each piece of work took there on random images of the same shape "
        "(`python -m satm bench pace`), times how often it is done, each job alone on the device, and "
        f"{start_seconds:g} seconds for a job to begin.",
        "Estimated: iterations that were not measured there, by the training steps that they are made of "
        f"({STEP_WITH_GRAPH:g} for an inner step that is differentiated through). Unknown: not counted.",
        "Device memory: the largest job, with the real images that it keeps there. Host memory and time limits are "
        "what the workflow's rules ask for. Disk: images, whitening, experts, synthetic sets and metrics.",
    ]
    by_length = sorted((stage for stage in computing.values() if stage.longest), key=lambda stage: -stage.longest)[:3]
    if by_length:
        notes.append(
            f"The longest jobs: {'; '.join(f'{each.longest_job} {each.longest:.1f} h' for each in by_length)}."
        )
    if large := sum(len(stage.too_large) for stage in found.values()):
        notes.append(f"{large} pieces of work did not fit into the memory of that machine and are not counted.")
    return Grid(title, HEADINGS, lines, HEADINGS[:1] + HEADINGS[-1:], notes)


HEADINGS = (
    "rule",
    "jobs",
    "hours",
    "longest job (h)",
    "device memory (GB)",
    "disk (GB)",
    "how many jobs are known how",
)


def _line(rule: str, stage: Stage, hours: float) -> list[str]:
    numbers = [f"{hours:.1f}", f"{stage.longest:.1f}", f"{stage.memory / 1e9:.1f}", f"{stage.disk / 1e9:.1f}"]
    return [rule, str(stage.jobs), *(text if float(text) else "" for text in numbers)]


def _known(stage: Stage) -> str:
    return ", ".join(f"{count} {how}" for how, count in stage.known.items() if count)


def _together(stages: Sequence[Stage]) -> Stage:
    return Stage(sum(stage.jobs for stage in stages), disk=sum(stage.disk for stage in stages))
