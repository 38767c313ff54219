"""What a campaign has taken so far: hours, memory, queue and attempts by rule and by cell of its tables.

Jobs leave accounts in their results and beside their logs; where there is none, Snakemake's benchmarks count. What is
not known stays empty. `satm.cost.forecast` tells before a start what a campaign will take.
"""

import contextlib
import csv
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
from satm.workflow.jobs import Graph, Job, jobs
from satm.workflow.rules import RULES

Source = Literal["account", "benchmark", ""]
"""How a job is known: by its own account, by Snakemake's benchmark, or not at all."""

WITHOUT_DEVICE = ("images", "zca", "experts", "overview", "table", "figure")
"""Rules that compute on processors alone."""

COLUMNS = [
    *("part", "rule", "table", "dataset", "ipc", "method", "planned", "done", "unfinished", "unknown"),
    *("gpu_hours", "cpu_hours", "run_hours", "queue_hours", "longest_hours", "longest_job"),
    *("experts_hours", "distillation_hours", "evaluation_hours", "peak_device_gb", "peak_host_gb"),
    *("attempts", "devices", "experts"),
]
"""Columns of the frame. part: `rule`, `all`, or `cell` of a table; planned, done, unfinished, unknown: numbers of jobs,
the last of those that are done and of which nothing is known; hours of a cell hold its share of experts."""


@dataclass(frozen=True, eq=False)
class Spent:
    """What one job has taken.

    Args:
        job: which.
        done: whether its files are there.
        source: how that is known.
        attempts: how many; None: not known, and so wherever there is a None.
        run: seconds of all attempts.
        cpu: seconds of all processors.
        gpu: seconds times GPUs; 0 on processors.
        queue: seconds in the queue of each SLURM job that there was, by its number and start.
        devices: seconds of each device, of the GPUs or of all processors, by its name, empty where that is not known.
        device_bytes: most that was held on a GPU.
        host_bytes: most that was held in main memory.
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
    """Return what every job of a campaign has taken, in the order of the workflow; of this account's own jobs nothing.

    Args:
        campaigns: those that are known.
        root: folder of the campaign.

    Raises:
        UsageError: the campaign cannot be used as it is.
    """
    order = list(RULES)
    planned = sorted(jobs(campaigns, root), key=lambda job: order.index(job.rule))
    return [of_job(job) for job in planned if job.rule != "accounting" and ("figure", ACCOUNTING) not in job.names]


def of_job(job: Job) -> Spent:
    """Return what a job has taken, from the files that it left behind."""
    made, layout = job.outputs, Layout(job.wildcards.root)
    done = all(path.is_file() for path in made)
    carrier = next((path for path in made if path.suffix == ".parquet"), None)
    carried = _metadata(carrier) if done and carrier is not None else {}
    attempts = []
    with contextlib.suppress(TypeError, ValueError):
        attempts = [Attempt.of(each) for each in carried.get("accounting", [])]
    if not attempts and (record := find_record(Path(layout.account(*job.place)))) is not None:
        attempts = record.attempts
    if attempts:
        return _of_attempts(job, done, attempts)
    if done and (held := _benchmark(Path(layout.benchmark(*job.place)))) is not None:
        device = "cpu" if job.rule in WITHOUT_DEVICE else str(carried.get("device", ""))
        on_gpu = device not in ("", "cpu")
        cpu = held.get("cpu_time")
        return Spent(
            *(job, done, "benchmark", None, held["s"], cpu),
            gpu=held["s"] if on_gpu else 0.0 if device else None,
            devices={device: held["s"] if on_gpu or cpu is None else cpu},
            device_bytes=_peak(carrier) if on_gpu and carrier is not None else None,
            host_bytes=held["max_rss"] * 2**20 if "max_rss" in held else None,
        )
    return Spent(job, done)


def _of_attempts(job: Job, done: bool, attempts: Sequence[Attempt]) -> Spent:
    queue: dict[tuple[str, str], float] = {}
    devices: dict[str, float] = {}
    ended: dict[str, str] = {}
    for each in attempts:
        alone = each.seconds if each.cpu_seconds is None else each.cpu_seconds
        used = (each.seconds or 0.0) * each.gpus if each.gpus else alone or 0.0
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
    """Return the circumstances that a parquet file carries; nothing where it is broken, which its table tells."""
    with contextlib.suppress(pyarrow.ArrowException, OSError, KeyError, ValueError, RecursionError):
        content = json.loads((parquet.read_schema(path).metadata or {})[METADATA_KEY])
        return content if isinstance(content, dict) else {}
    return {}


def _peak(path: Path) -> float | None:
    """Return the most memory that a row tells of."""
    with contextlib.suppress(pyarrow.ArrowException, OSError):
        table = parquet.read_table(path, columns=["peak_memory_bytes"], partitioning=None).to_pandas()
        found = table.get("peak_memory_bytes", pandas.Series(dtype=float)).max()
        return None if pandas.isna(found) else float(found)
    return None


def _benchmark(path: Path) -> dict[str, float] | None:
    """Return the numbers of a benchmark of Snakemake, by its columns; None where its seconds are not there.

    It writes words instead of what it could not measure, as of jobs that end at once.
    """
    try:
        lines = list(csv.DictReader(path.read_text().splitlines(), delimiter="\t"))
    except (OSError, UnicodeDecodeError):
        return None
    found: dict[str, float] = {}
    for name, text in (lines[-1] if lines else {}).items():
        with contextlib.suppress(TypeError, ValueError):
            found[name] = float(text)
    found = {name: value for name, value in found.items() if math.isfinite(value)}
    return found if "s" in found else None


class Accounting(NamedTuple):
    """What a campaign has taken, by rule and by cell of its tables."""

    frame: pandas.DataFrame
    """A row per rule, one of all, and one per cell of each table; columns `COLUMNS`."""
    rules: Grid
    cells: Grid


def accounting(campaigns: Campaigns, root: str) -> Accounting:
    """Return what the jobs of a campaign have taken so far; arguments and errors are those of `spent`."""
    found = spent(campaigns, root)
    rules = [each for each in RULES if any(one.job.rule == each for one in found)]
    rows = [{"part": "rule", "rule": rule, **_row([one for one in found if one.job.rule == rule])} for rule in rules]
    rows.append({"part": "all", "rule": "all", **_row(found)})
    cells = _cell_rows(campaigns, root, {one.job: one for one in found})
    frame = pandas.DataFrame([*rows, *cells], columns=COLUMNS).astype({"ipc": "Int64", "attempts": "Int64"})
    of_rules, of_cells = frame[frame["part"] != "cell"], frame[frame["part"] == "cell"]
    unit = HOURS if of_rules["run_hours"].iloc[-1] >= IN_HOURS else MINUTES
    return Accounting(
        frame,
        _grid(f"{root}: what its jobs took", of_rules, OF_RULES, _rule_notes(found, unit), unit),
        _grid(f"{root}: what the cells of its tables took", of_cells, OF_CELLS, CELL_NOTES, unit),
    )


def _row(found: Sequence[Spent], weights: Mapping[Job, float] | None = None) -> dict[str, Any]:
    """Return what some jobs have taken together; `weights` is the part of a job's time that counts, if not all."""
    part = weights or {}

    def hours(name: str) -> float:
        known = ((one.job, getattr(one, name)) for one in found)
        return _hours(None if value is None else value * part.get(job, 1.0) for job, value in known)

    longest = max((one for one in found if one.run), key=lambda one: one.run or 0.0, default=None)
    queue = {key: seconds * part.get(one.job, 1.0) for one in found for key, seconds in one.queue.items()}
    return {
        "planned": len(found),
        "done": sum(one.done for one in found),
        "unfinished": sum(not one.done and one.source != "" for one in found),
        "unknown": sum(one.done and one.source == "" for one in found),
        "gpu_hours": hours("gpu"),
        "cpu_hours": hours("cpu"),
        "run_hours": hours("run"),
        "queue_hours": _hours(queue.values()),
        "longest_hours": _hours([longest.run] if longest else []),
        "longest_job": str(longest.job) if longest else "",
        "peak_device_gb": max((one.device_bytes for one in found if one.device_bytes), default=math.nan) / 1e9,
        "peak_host_gb": max((one.host_bytes for one in found if one.host_bytes), default=math.nan) / 1e9,
        "attempts": _total(one.attempts for one in found),
        "devices": ", ".join(dict.fromkeys(device for one in found for device in one.devices if device)),
    }


def _total(values: Iterable[float | None]) -> float | None:
    """Return the sum of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _hours(seconds: Iterable[float | None]) -> float:
    """Return the sum of known seconds in hours; NaN where none is known."""
    found = _total(seconds)
    return math.nan if found is None else found / 3600


def _cell_rows(campaigns: Campaigns, root: str, found: Mapping[Job, Spent]) -> list[dict[str, Any]]:
    """Return a row per cell of each table; experts that several cells need count in equal shares."""
    resolver, graph = campaigns.of(root), Graph(campaigns)
    behind: dict[tuple[str, Cell], set[Job]] = {}
    for name, table in resolver.campaign.tables.items():
        for path in dict.fromkeys(table.files(resolver.layout, name)):
            if (cell := _cell(graph.maker(path))) is not None:
                behind.setdefault((name, cell), set()).update(graph.behind([path]))
    users: dict[Job, set[Cell]] = {}
    for (_, cell), needed in behind.items():
        for job in needed:
            if RULES[job.rule].stage == "experts":
                users.setdefault(job, set()).add(cell)
    rows = []
    for (name, (dataset, ipc, method, _)), needed in behind.items():
        shared = {job: 1 / len(users[job]) for job in needed if job in users}
        own = [found[job] for job in sorted(needed) if job.rule not in ("images", "zca")]
        times = {
            "experts_hours": [one for one in own if one.job in shared],
            "distillation_hours": [one for one in own if one.job.rule == "distill"],
            "evaluation_hours": [one for one in own if one.job not in shared and one.job.rule != "distill"],
        }
        rows.append(
            {
                **{"part": "cell", "table": name, "dataset": dataset, "ipc": ipc, "method": method},
                **_row(own, shared),
                **{column: _row(some, shared)["run_hours"] for column, some in times.items()},
                "experts": _experts_in_words({job: users[job] for job in shared}),
            }
        )
    return rows


def _cell(job: Job) -> Cell | None:
    """Return the cell that a job is about, whatever its seed; None for one of a whole dataset."""
    names = dict(job.names)
    if job.rule == "full":
        return Cell(names["dataset"], 0, f"full-{names['recipe']}")
    if job.rule == "nas_real":
        return Cell(names["dataset"], 0, "real")
    return Cell(names["dataset"], int(names["ipc"]), names["method"]) if "method" in names else None


def _experts_in_words(users: Mapping[Job, Collection[Cell]]) -> str:
    """Return the names of experts and how many cells share them."""
    found: dict[str, int] = {}
    for job, cells in users.items():
        name = dict(job.names)["experts"]
        found[name] = max(found.get(name, 0), len(cells))
    shared = {name: f", shared by {count} cells" if count > 1 else "" for name, count in sorted(found.items())}
    return "; ".join(f"{name}{text}" for name, text in shared.items())


OF_RULES = {
    **{"rule": "rule", "jobs": "jobs", "gpu_hours": "GPU {long}", "cpu_hours": "CPU {long}"},
    **{"run_hours": "run ({short})", "queue_hours": "queue ({short})", "longest_hours": "longest job ({short})"},
    **{"peak_device_gb": "device memory (GB)", "peak_host_gb": "host memory (GB)"},
    **{"attempts": "attempts", "devices": "device"},
}
"""Headings of the table of rules, by column of the frame; `jobs` is made of two; units of time are put in."""

Unit = tuple[int, dict[str, str]]
"""How many of a unit of time are an hour, and its `long` and `short` name."""

HOURS: Unit = (1, {"long": "hours", "short": "h"})
MINUTES: Unit = (60, {"long": "minutes", "short": "min"})

IN_HOURS = 10.0
"""From so many hours of running on times are told in hours, below in minutes."""

OF_CELLS = {
    **{"table": "table", "dataset": "dataset", "ipc": "IPC", "method": "method", "jobs": "jobs"},
    **{"experts_hours": "experts ({short})", "distillation_hours": "distillation ({short})"},
    **{"evaluation_hours": "evaluation ({short})", "queue_hours": "queue ({short})"},
    **{"peak_device_gb": "device memory (GB)", "peak_host_gb": "host memory (GB)"},
    **{"devices": "device", "experts": "which experts"},
}

TEXTS = ("rule", "table", "dataset", "method", "devices", "experts")
"""Columns that are no numbers."""

CELL_NOTES = (
    "Times of running. Experts: the cell's share of those that it needs, their time divided by the number of cells of "
    "all tables that need them, which stands in the last column. Evaluation: all that is trained and measured on the "
    "sets of the cell for this table. A cell of several tables stands in each of them; images and whitening in none.",
)


def _grid(title: str, frame: pandas.DataFrame, headings: Mapping[str, str], notes: Sequence[str], unit: Unit) -> Grid:
    """Return a table for people, without columns that say nothing."""
    columns = {name: [_text(name, row, unit[0]) for row in frame.to_dict("records")] for name in headings}
    shown = [name for name, texts in columns.items() if any(texts)] or list(headings)[:1]
    lines = [list(line) for line in zip(*(columns[name] for name in shown), strict=True)]
    told = {name: headings[name].format(**unit[1]) for name in shown}
    return Grid(title, list(told.values()), lines, [told[name] for name in TEXTS if name in told], notes)


def _text(column: str, row: Mapping[Any, Any], times: int) -> str:
    if column == "jobs":
        return f"{row['done']} of {row['planned']}"
    value = row[column]
    if pandas.isna(value) or (column == "gpu_hours" and value == 0):
        return ""
    if column == "ipc":
        return str(value) if value else "all"
    if column.endswith("_hours"):
        return number(value * times)
    return number(value) if isinstance(value, float) else str(value)


def number(value: float, digits: int = 3) -> str:
    """Return a number to so many digits, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def _rule_notes(found: Sequence[Spent], unit: Unit) -> list[str]:
    done = [one for one in found if one.done]
    known = Counter(one.source for one in done)
    notes = [
        "Run: from the start of a job's process to its end, over all attempts since its files were last made. GPU: "
        "that time multiplied by the GPUs that the job computes on. CPU: time of all processors in sum. Queue: from "
        "submission to start, each SLURM job once. Device memory: tensors of PyTorch on a GPU; host memory: of the "
        "process; 1 GB is 10^9 bytes. What is empty is not known, or there was none."
    ]
    told = [f"Finished jobs that left an account of their own: {known['account']} of {len(done)}"]
    if known["benchmark"]:
        told.append(f"known by Snakemake's benchmark alone, their last attempt and no queue: {known['benchmark']}")
    if known[""]:
        rules = Counter(one.job.rule for one in done if one.source == "")
        named = ", ".join(f"{count} {rule}" for rule, count in rules.items())
        told.append(f"not known and not counted: {known['']} ({named})")
    notes.append("; ".join(told) + ".")
    if begun := sum(not one.done and one.source != "" for one in found):
        notes.append(f"Begun and not ended, counted until last seen: {in_numbers([begun], 'job')}.")
    longest = sorted((one for one in found if one.run), key=lambda one: -(one.run or 0.0))[:3]
    if longest:
        told = [f"{one.job} {number((one.run or 0.0) * unit[0] / 3600)} {unit[1]['short']}" for one in longest]
        notes.append(f"The longest jobs: {'; '.join(told)}.")
    if any(RULES[one.job.rule].gathers for one in found):
        notes.append("Overview, tables and figures: those that were there when this was made.")
    return notes
