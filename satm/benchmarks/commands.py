"""The benchmarks as commands: `python -m satm bench NAME`. Nothing here imports torch before a benchmark runs."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro

from satm.benchmarks.cases import SETTINGS, Evaluation, Experts, Matching, Measuring
from satm.errors import pick

Precision = Literal["float32", "float64", "tf32", "bfloat16"]

USUAL = Measuring()

OUT = Path("results/bench")
"""Folder of the parquet files."""


def bench_hypergradient(
    case: Annotated[Matching, tyro.conf.OmitArgPrefixes],
    ways: tuple[str, ...] = ("mtt-loop", "tesla-loop", "reverse", "mixed", "mixed:0", "tesla"),
    how: Annotated[Measuring, tyro.conf.OmitArgPrefixes] = USUAL,
    precision: Precision = "float32",
    difference: bool = True,
    out: Path = OUT / "hypergradient.parquet",
) -> None:
    """Compare ways to compute a hypergradient: seconds, peak memory, and how far their results lie apart.

    The ways take turns; a ratio is the median over the rounds of the first way's seconds over this one's. Memory is the
    rise of the peak of a process of its own. Differences are ``|a - b| / |b|`` over the images' gradient.

    Args:
        case: the problem.
        ways: `mtt-loop` and `tesla-loop` are the published loops, the others engines; `mixed:S` keeps the graphs of the
            last S steps, and `mixed` those of as many as fit into the memory.
        how: how it is measured.
        precision: of the timed runs; `tf32` and `bfloat16` round the operands of products.
        difference: also compare the results in float64 with those of the first way.
        out: parquet file to write.
    """
    from satm.benchmarks.measure import Setting, compare, differences

    setting = Setting.of("hypergradient", case, precision, how.device, how.threads)
    compare(setting, ways, how, out)
    if difference:
        differences(setting, ways)


def bench_distill(
    case: Annotated[Matching, tyro.conf.OmitArgPrefixes],
    ways: tuple[str, ...] = ("mtt-loop", "tesla-loop", "mtt", "satm", "tesla"),
    how: Annotated[Measuring, tyro.conf.OmitArgPrefixes] = USUAL,
    out: Path = OUT / "distill.parquet",
) -> None:
    """Compare outer iterations of methods, with everything that belongs to them, with those of the published loops.

    Args:
        case: the problem.
        ways: `mtt-loop` and `tesla-loop` are the published loops, the others names of methods, with their presets'
            share of differentiated steps.
        how: how it is measured.
        out: parquet file to write.
    """
    from satm.benchmarks.measure import Setting, compare

    compare(Setting.of("distill", case, "float32", how.device, how.threads), ways, how, out)


def bench_experts(
    case: Annotated[Experts, tyro.conf.OmitArgPrefixes],
    ways: tuple[str, ...] = ("published", "ours"),
    how: Annotated[Measuring, tyro.conf.OmitArgPrefixes] = USUAL,
    out: Path = OUT / "experts.parquet",
) -> None:
    """Compare an epoch of experts' training with one of the published loop, which uses a data loader.

    Args:
        case: the networks and their images.
        ways: `published` and `ours` train the experts one after another, `at once` with stacked weights.
        how: how it is measured.
        out: parquet file to write.
    """
    from satm.benchmarks.measure import Setting, compare

    compare(Setting.of("experts", case, "float32", how.device, how.threads), ways, how, out)


def bench_evaluate(
    case: Annotated[Evaluation, tyro.conf.OmitArgPrefixes],
    ways: tuple[str, ...] = ("published", "one by one", "at once"),
    how: Annotated[Measuring, tyro.conf.OmitArgPrefixes] = USUAL,
    out: Path = OUT / "evaluate.parquet",
) -> None:
    """Compare training the networks of one evaluation with the published loop, which trains one after another.

    Args:
        case: the networks and the synthetic set.
        ways: `published`, `one by one` or `at once`, with stacked weights.
        how: how it is measured.
        out: parquet file to write.
    """
    from satm.benchmarks.measure import Setting, compare

    compare(Setting.of("evaluate", case, "float32", how.device, how.threads), ways, how, out)


def bench_scaling(
    case: Annotated[Matching, tyro.conf.OmitArgPrefixes],
    of: Literal["steps", "kept", "ipc", "width", "concurrent"] = "steps",
    values: tuple[int, ...] = (10, 20, 40),
    ways: tuple[str, ...] = ("mtt-loop", "reverse", "mixed:0"),
    rounds: int = 2,
    device: str = "auto",
    threads: int | None = None,
    out: Path = OUT / "scaling.parquet",
) -> None:
    """Measure how seconds and memory of a hypergradient grow with one size of the problem, and print the slopes.

    Args:
        case: the problem, of which one size changes.
        of: `steps`: inner steps (N). `kept`: differentiated steps at the end. `ipc`: images per class. `width`:
            filters. `concurrent`: segments that are matched at once (K).
        values: sizes.
        ways: as in `bench hypergradient`.
        rounds: measurements at each size, of which the fastest counts.
        device: auto, cpu, cuda or cuda:N.
        threads: CPU threads; None: torch's choice.
        out: parquet file to write.
    """
    from satm.benchmarks.measure import Setting, scaling

    scaling(Setting.of("hypergradient", case, "float32", device, threads), of, values, ways, rounds, out)


def bench_all(
    only: tuple[str, ...] = tuple(SETTINGS),
    how: Annotated[Measuring, tyro.conf.OmitArgPrefixes] = USUAL,
    out: Path = OUT / "all",
) -> None:
    """Compare with the published loops in all settings that the documentation gives figures for.

    The same command goes on where it stopped: settings whose file exists are only shown.

    Args:
        only: names of settings.
        how: how it is measured.
        out: folder; it gets a subfolder named after the device, with a parquet file per setting. Remove a file to
            measure that setting again.
    """
    from satm.benchmarks.measure import Setting, compare, show
    from satm.run.machine import choose_device, device_name

    settings = {name: pick(name, SETTINGS, "setting") for name in only}
    out /= re.sub(r"[^\w.-]+", "-", device_name(choose_device(how.device, how.threads)))
    for name, (kind, case, ways) in settings.items():
        if not (out / f"{name}.parquet").exists():
            setting = Setting.of(kind, case, "float32", how.device, how.threads)
            compare(setting, ways, how, out / f"{name}.parquet")
    show({name: out / f"{name}.parquet" for name in only})


def bench_pace(
    config: Path, out: Path, seconds: float = 3600.0, device: str = "auto", threads: int | None = None
) -> None:
    """Measure how long the pieces of a campaign's jobs take on this machine; `python -m satm cost` reads the file.

    Random images and random experts of the right shape stand in for the real ones. Pieces that are already in the file
    are skipped, so the same command resumes where it stopped.

    Args:
        config: the campaign.
        out: parquet file to write.
        seconds: seconds after which no new piece is started; the shortest pieces come first.
        device: auto, cpu, cuda or cuda:N.
        threads: CPU threads; None: torch's choice.
    """
    from satm.config import root_of
    from satm.cost.calibrate import measure_pace
    from satm.cost.workload import pieces
    from satm.run.machine import choose_device, describe_backend
    from satm.run.progress import Progress
    from satm.workflow.jobs import campaigns_of, jobs

    place, campaigns, root = choose_device(device, threads), campaigns_of(config), root_of(config)
    work = pieces(campaigns.of(root), jobs(campaigns, root), at_once=place.type == "cuda")
    with Progress("pace", len(work)) as progress:
        left = measure_pace(work, out, place, seconds, progress)
    console = Progress.console()
    console.print(f"{len(work) - left} of {len(work)} pieces of {config} are measured on {describe_backend(place)}")
    if left:
        console.print(f"{left} are left; run the same command to measure them")


BENCHMARKS: dict[str, Callable[..., None]] = {
    "hypergradient": bench_hypergradient,
    "distill": bench_distill,
    "experts": bench_experts,
    "evaluate": bench_evaluate,
    "scaling": bench_scaling,
    "all": bench_all,
    "pace": bench_pace,
}
"""All benchmarks by name."""
