"""Cost of a campaign so far: hours, memory, queue and attempts by rule and by cell of its tables.

The numbers come from accounts in the jobs' results or beside their logs, else from Snakemake's benchmarks. Unknown
values stay empty. `satm.cost.forecast` predicts the cost before a start.
"""

import contextlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas
import pyarrow
from pyarrow import parquet

from satm.config import ACCOUNTING, Cell, Layout
from satm.results.rows import METADATA_KEY
from satm.run.record import Attempt, find_record
from satm.tables.render import Grid, in_numbers
from satm.workflow.campaigns import Campaigns
from satm.workflow.graph import Graph, Job
from satm.workflow.jobs import jobs
from satm.workflow.rules import RULES

Source = Literal["account", "benchmark", ""]
"""Source of a job's numbers: its own account, Snakemake's benchmark, or none."""

WITHOUT_DEVICE = ("images", "zca", "experts", "overview", "table", "figure")
"""Rules that compute on CPUs alone."""

STAGES = {"experts": "experts", "distill": "distillation"}
"""Columns of hours of a cell by the stage of a rule; all others are evaluation."""

COLUMNS = [
    *("part", "rule", "table", "dataset", "ipc", "method", "planned", "done", "unfinished", "unknown"),
    *("gpu_hours", "cpu_hours", "run_hours", "queue_hours", "longest_hours", "longest_job"),
    *("experts_hours", "distillation_hours", "evaluation_hours", "peak_device_gb", "peak_host_gb"),
    *("attempts", "devices", "experts"),
]
"""Columns of the frame. part: `rule`, `all`, or `cell` of a table. planned, done, unfinished: numbers of jobs; unknown:
number of done ones without numbers. Hours of a cell include its share of experts."""


@dataclass(frozen=True, eq=False)
class Spent:
    """Cost of one job; None: unknown.

    `run` is the seconds of all attempts, `cpu` those of all CPUs in sum, `gpu` the run time multiplied by the number of
    GPUs. `queue` has the seconds that each SLURM job waited, by its number and start; `devices` the seconds on GPUs, or
    else on all CPUs, by name (empty: unknown). Bytes are peaks of one GPU and of main memory.
    """

    job: Job
    done: bool
    source: Source = ""
    attempts: int | None = None
    run: float | None = None
    cpu: float | None = None
    gpu: float | None = None
    queue: Mapping[tuple[str, str], float] = field(default_factory=dict)
    devices: Mapping[str, float] = field(default_factory=dict)
    device_bytes: float | None = None
    host_bytes: float | None = None


def spent(campaigns: Campaigns, root: str) -> list[Spent]:
    """Return the cost of every job of a campaign, except the accounting itself, in the order of the workflow.

    Raises:
        UsageError: the campaign that writes below `root` is unusable.
    """
    order = list(RULES)
    planned = sorted(jobs(campaigns, root), key=lambda job: order.index(job.rule))
    return [of_job(job) for job in planned if job.rule != "accounting" and ("figure", ACCOUNTING) not in job.names]


def of_job(job: Job) -> Spent:
    """Return the cost of a job from its files."""
    outputs, layout = job.outputs, Layout(job.wildcards.root)
    done = all(path.is_file() for path in outputs)
    rows = next((path for path in outputs if path.suffix == ".parquet"), None)
    metadata = _metadata(rows) if done and rows is not None else {}
    attempts = []
    with contextlib.suppress(TypeError, ValueError):
        attempts = [Attempt.of(each) for each in metadata.get("accounting", [])]
    if not attempts and (record := find_record(Path(layout.account(*job.place)))) is not None:
        attempts = record.attempts
    if attempts:
        return _of_attempts(job, done, attempts)
    if done and (numbers := _benchmark(Path(layout.benchmark(*job.place)))) is not None:
        device = "cpu" if job.rule in WITHOUT_DEVICE else str(metadata.get("device", ""))
        on_gpu = device not in ("", "cpu")
        run, cpu = numbers["s"], numbers.get("cpu_time")
        return Spent(
            *(job, done, "benchmark", None, run, cpu),
            gpu=run if on_gpu else 0.0 if device else None,
            devices={device: run if on_gpu or cpu is None else cpu},
            device_bytes=_peak(rows) if on_gpu and rows is not None else None,
            host_bytes=numbers["max_rss"] * 2**20 if "max_rss" in numbers else None,
        )
    return Spent(job, done)


def _of_attempts(job: Job, done: bool, attempts: Sequence[Attempt]) -> Spent:
    queue: dict[tuple[str, str], float] = {}
    devices: dict[str, float] = {}
    ended: dict[str, str] = {}
    for each in attempts:
        on_cpus = each.seconds if each.cpu_seconds is None else each.cpu_seconds
        used = (each.seconds or 0.0) * each.gpus if each.gpus else on_cpus or 0.0
        devices[each.device] = devices.get(each.device, 0.0) + used
        if each.slurm is None:
            continue
        name, started = str(each.slurm.get("job")), str(each.slurm.get("started"))
        if (waited := _waited(each.slurm, ended.get(name, ""))) is not None:
            queue.setdefault((name, started), waited)
        ended[name] = each.ended
    return Spent(
        *(job, done, "account", len(attempts)),
        run=_total(each.seconds for each in attempts),
        cpu=_total(each.cpu_seconds for each in attempts),
        gpu=_total(None if each.seconds is None else each.seconds * each.gpus for each in attempts),
        queue=queue,
        devices=devices,
        device_bytes=max((each.peak_device_bytes for each in attempts if each.gpus), default=None),
        host_bytes=max((each.peak_host_bytes for each in attempts if each.peak_host_bytes), default=None),
    )


def _waited(slurm: Mapping[str, str | None], ended: str) -> float | None:
    """Return the seconds that a SLURM job waited: since it was submitted, or if it ran before, since it `ended`."""
    submitted, started = slurm.get("submitted"), slurm.get("started")
    if not submitted or not started:
        return None
    try:
        since = max(datetime.fromisoformat(each) for each in (submitted, ended) if each)
        return max(0.0, (datetime.fromisoformat(started) - since).total_seconds())
    except (ValueError, TypeError):  # no times, or some with a zone and others without
        return None


def _metadata(path: Path) -> dict[str, Any]:
    """Return the circumstances in a parquet file; empty for a broken file, which its table reports."""
    with contextlib.suppress(pyarrow.ArrowException, OSError, KeyError, ValueError, RecursionError):
        with path.open("rb") as file:
            content = json.loads((parquet.read_schema(file).metadata or {})[METADATA_KEY])
        return content if isinstance(content, dict) else {}
    return {}


def _peak(path: Path) -> float | None:
    """Return the peak memory over the rows of a file."""
    with contextlib.suppress(pyarrow.ArrowException, OSError):
        with path.open("rb") as file:
            table = parquet.read_table(file, columns=["peak_memory_bytes"], partitioning=None).to_pandas()
        peak = table.get("peak_memory_bytes", pandas.Series(dtype=float)).max()
        return None if pandas.isna(peak) else float(peak)
    return None


def _benchmark(path: Path) -> dict[str, float] | None:
    """Return the numbers of a Snakemake benchmark by column; None if its seconds are missing.

    Snakemake writes words in place of numbers that it could not measure, for example for very short jobs.
    """
    try:
        last = pandas.read_csv(path, sep="\t", dtype=str, index_col=False).iloc[-1]
    except (OSError, ValueError, IndexError):
        return None
    numbers = pandas.to_numeric(last, errors="coerce")
    known = {str(name): float(number) for name, number in numbers.items() if math.isfinite(number)}
    return known if "s" in known else None


class Accounting(NamedTuple):
    """Cost of a campaign, by rule and by cell of its tables."""

    frame: pandas.DataFrame
    """A row per rule, one of all, and one per cell of each table; columns `COLUMNS`."""
    rules: Grid
    cells: Grid


def accounting(campaigns: Campaigns, root: str) -> Accounting:
    """Return the cost of a campaign so far; raises as `spent`."""
    every = spent(campaigns, root)
    by_rule = itertools.groupby(every, key=lambda one: one.job.rule)
    rows = [{"part": "rule", "rule": rule, **_row(list(some))} for rule, some in by_rule]
    rows.append({"part": "all", "rule": "all", **_row(every)})
    cells = _cell_rows(campaigns, root, {one.job: one for one in every})
    frame = pandas.DataFrame([*rows, *cells], columns=COLUMNS).astype({"ipc": "Int64", "attempts": "Int64"})
    of_rules, of_cells = frame[frame["part"] != "cell"], frame[frame["part"] == "cell"]
    in_cells = [column for column in HEADINGS if column not in OF_RULES]
    unit = HOURS if of_rules["run_hours"].iloc[-1] >= IN_HOURS else MINUTES
    return Accounting(
        frame,
        _grid(f"{root}: cost of its jobs", of_rules, list(HEADINGS), _rule_notes(every, unit), unit),
        _grid(f"{root}: cost of the cells of its tables", of_cells, in_cells, CELL_NOTES, unit),
    )


def _row(some: Sequence[Spent], weights: Mapping[Job, float] | None = None) -> dict[str, Any]:
    """Return the total cost of some jobs; `weights` are the fractions of jobs' times that count, 1 if missing."""
    part = weights or {}

    def hours(name: str) -> float:
        times = ((one.job, getattr(one, name)) for one in some)
        return _hours(None if time is None else time * part.get(job, 1.0) for job, time in times)

    def peak(name: str) -> float:
        return max((size for one in some if (size := getattr(one, name))), default=math.nan) / 1e9

    longest = max((one for one in some if one.run), key=lambda one: one.run or 0.0, default=None)
    queue = {key: seconds * part.get(one.job, 1.0) for one in some for key, seconds in one.queue.items()}
    return {
        "planned": len(some),
        "done": sum(one.done for one in some),
        "unfinished": sum(not one.done and one.source != "" for one in some),
        "unknown": sum(one.done and one.source == "" for one in some),
        **{f"{name}_hours": hours(name) for name in ("gpu", "cpu", "run")},
        "queue_hours": _hours(queue.values()),
        "longest_hours": _hours([longest.run] if longest else []),
        "longest_job": str(longest.job) if longest else "",
        **{f"peak_{name}_gb": peak(f"{name}_bytes") for name in ("device", "host")},
        "attempts": _total(one.attempts for one in some),
        "devices": ", ".join(dict.fromkeys(device for one in some for device in one.devices if device)),
    }


def _total(values: Iterable[float | None]) -> float | None:
    """Return the sum of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _hours(seconds: Iterable[float | None]) -> float:
    """Return the sum of the known seconds in hours; NaN if there are none."""
    total = _total(seconds)
    return math.nan if total is None else total / 3600


def _cell_rows(campaigns: Campaigns, root: str, costs: Mapping[Job, Spent]) -> list[dict[str, Any]]:
    """Return a row per cell of each table; cells that need the same experts share their cost equally."""
    resolver, graph = campaigns.of(root), Graph(campaigns)
    behind: dict[tuple[str, Cell], set[Job]] = {}
    users: dict[Job, set[Cell]] = {}
    for name, table in resolver.campaign.tables.items():
        for path in dict.fromkeys(table.files(resolver.layout, name)):
            if (cell := _cell(graph.maker(path))) is not None:
                behind.setdefault((name, cell), set()).update(needs := graph.behind([path]))
                for job in needs:
                    if RULES[job.rule].stage == "experts":
                        users.setdefault(job, set()).add(cell)
    rows = []
    for (name, (dataset, ipc, method, _)), needs in behind.items():
        shares = {job: 1 / len(users[job]) for job in needs if job in users}
        own = [costs[job] for job in sorted(needs) if job.rule not in ("images", "zca")]
        row = {"part": "cell", "table": name, "dataset": dataset, "ipc": ipc, "method": method, **_row(own, shares)}
        for stage in ("experts", "distillation", "evaluation"):
            some = [one for one in own if STAGES.get(RULES[one.job.rule].stage, "evaluation") == stage]
            row[f"{stage}_hours"] = _row(some, shares)["run_hours"]
        rows.append(row | {"experts": _describe_experts({job: users[job] for job in shares})})
    return rows


def _cell(job: Job) -> Cell | None:
    """Return the cell of a job, without its seed; None for a job of a whole dataset."""
    names = dict(job.names)
    if job.rule in ("full", "nas_real"):
        return Cell(names["dataset"], 0, f"full-{names['recipe']}" if job.rule == "full" else "real")
    return Cell(names["dataset"], int(names["ipc"]), names["method"]) if "method" in names else None


def _describe_experts(users: Mapping[Job, Collection[Cell]]) -> str:
    """Return the names of experts and how many cells share them."""
    counts: dict[str, int] = {}
    for job, cells in users.items():
        name = job.wildcards.experts
        counts[name] = max(counts.get(name, 0), len(cells))
    shared = {name: f", shared by {count} cells" if count > 1 else "" for name, count in sorted(counts.items())}
    return "; ".join(f"{name}{text}" for name, text in shared.items())


HEADINGS = {
    **{"rule": "rule", "table": "table", "dataset": "dataset", "ipc": "IPC", "method": "method", "jobs": "jobs"},
    **{"gpu_hours": "GPU {0}", "cpu_hours": "CPU {0}", "run_hours": "run ({1})", "experts_hours": "experts ({1})"},
    **{"distillation_hours": "distillation ({1})", "evaluation_hours": "evaluation ({1})"},
    **{"queue_hours": "queue ({1})", "longest_hours": "longest job ({1})", "peak_device_gb": "device memory (GB)"},
    **{"peak_host_gb": "host memory (GB)", "attempts": "attempts", "devices": "device", "experts": "which experts"},
}
"""Headings by column of the frame (`jobs`: done and planned), with names of a unit of time to fill in."""

OF_RULES = {"rule", "gpu_hours", "cpu_hours", "run_hours", "longest_hours", "attempts"}
"""Columns that the table of cells lacks."""

TEXTS = ("rule", "table", "dataset", "method", "devices", "experts")
"""Columns of text."""

Unit = tuple[str, str, int]
"""Long and short name of a unit of time, and the number of units in an hour."""

HOURS, MINUTES = ("hours", "h", 1), ("minutes", "min", 60)

IN_HOURS = 10.0
"""Total running time, in hours, from which times are shown in hours; below in minutes."""

CELL_NOTES = (
    "All times are running times. Experts: the time of the experts that a cell needs, divided by the number of cells "
    "in all tables that need them (last column). Evaluation: all training and measurements on the sets of the cell for "
    "this table. A cell of several tables is counted in each of them; images and whitening are not counted.",
)


def _grid(title: str, frame: pandas.DataFrame, names: Sequence[str], notes: Sequence[str], unit: Unit) -> Grid:
    """Return a table for people, without empty columns."""
    columns = {name: [_text(name, row, unit) for row in frame.to_dict("records")] for name in names}
    shown = {name: texts for name, texts in columns.items() if any(texts) or name == names[0]}
    headings = {name: HEADINGS[name].format(*unit) for name in shown}
    lines = [list(line) for line in zip(*shown.values(), strict=True)]
    return Grid(title, list(headings.values()), lines, [headings[name] for name in TEXTS if name in shown], notes)


def _text(column: str, row: Mapping[Any, Any], unit: Unit) -> str:
    if column == "jobs":
        return f"{row['done']} of {row['planned']}"
    value = row[column]
    if pandas.isna(value) or (column == "gpu_hours" and value == 0):
        return ""
    if column == "ipc":
        return str(value) if value else "all"
    if column.endswith("_hours"):
        return number(value * unit[2])
    return number(value) if isinstance(value, float) else str(value)


def number(value: float, digits: int = 3) -> str:
    """Return a number with this many significant digits, but with all digits before the point."""
    return f"{value:.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def _rule_notes(every: Sequence[Spent], unit: Unit) -> list[str]:
    done = [one for one in every if one.done]
    sources = Counter(one.source for one in done)
    known = f"Finished jobs with a record: {sources['account']} of {len(done)}"
    if sources["benchmark"]:
        known += f"; with Snakemake's benchmark only (their last attempt, without the queue): {sources['benchmark']}"
    if sources[""]:
        rules = Counter(one.job.rule for one in done if one.source == "")
        counts = ", ".join(f"{count} {rule}" for rule, count in rules.items())
        known += f"; unknown and not counted: {sources['']} ({counts})"
    notes = [
        "Run: from the start of a job's process to its end, over all attempts since its files were last made. GPU: "
        "that time multiplied by the GPUs that the job computes on. CPU: time of all processors in sum. Queue: from "
        "submission to start, each SLURM job once. Device memory: tensors of PyTorch on a GPU; host memory: of the "
        "process; 1 GB is 10^9 bytes. Empty: unknown or none.",
        f"{known}.",
    ]
    if unfinished := sum(not one.done and one.source != "" for one in every):
        notes.append(f"Unfinished, counted until last seen: {in_numbers([unfinished], 'job')}.")
    hours = {one.job: one.run / 3600 for one in every if one.run}
    if longest := sorted(hours, key=lambda job: -hours[job])[:3]:
        texts = [f"{job} {number(hours[job] * unit[2])} {unit[1]}" for job in longest]
        notes.append(f"The longest jobs: {'; '.join(texts)}.")
    if any(RULES[one.job.rule].gathers for one in every):
        notes.append("The overview, tables and figures are counted if they existed when this table was made.")
    return notes
