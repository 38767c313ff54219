"""The command line: `python -m satm STAGE --flags`.

A command imports its stage itself, so that none waits for the libraries of the others.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from satm.analysis.expert_sharpness import LENGTHS
from satm.config import ACCOUNTING, ANALYSES, OVERVIEW, Cell, SearchOptions, load_campaign, parse, place_of
from satm.errors import RunError, UsageError, pick
from satm.flags import (
    CELL,
    COMPUTE,
    DATASET,
    IPC,
    METHOD,
    SEED,
    WHERE,
    Uses,
    call_with_flags,
    check_uses,
    command,
    flag,
    open_device,
    optional,
    parse_flags,
    peek,
    show,
)
from satm.methods import resolve as resolve_method
from satm.run import record, stopping
from satm.run.machine import process_age
from satm.version import __version__


def data(arguments: Sequence[str]) -> None:
    """Decode a dataset once; fit its whitening if it is whitened."""
    from satm.stages.data import make_images, make_zca

    make = flag("make", Literal["all", "images", "zca"], "Which of the two.", "all")
    flags = parse_flags(data, [DATASET, make, *WHERE], arguments)
    resolver = load_campaign(flags.config)
    options = resolver.dataset(flags.dataset)
    with command(resolver, *place_of("data" if flags.make == "all" else flags.make, dataset=flags.dataset)):
        show(flags, options)
        if flags.make != "zca":
            make_images(resolver, flags.dataset)
        if flags.make == "zca" or (flags.make == "all" and options.zca):
            make_zca(resolver, flags.dataset)


def experts(arguments: Sequence[str]) -> None:
    """Train the experts of a dataset, all of them or one part; join the parts; or ask finished ones what is hard."""
    from satm.stages.experts import collect_experts, make_difficulty, make_experts

    known = peek(arguments, dataset="digits", experts="sgd")
    resolver = load_campaign(known.config)
    recipe = resolver.experts(known.experts, known.dataset)
    measure = "Train nothing: measure how hard each image is for these, finished experts."
    fields = [
        DATASET,
        flag("experts", str, "Name of the experts.", "sgd"),
        flag("part", str | None, "Train only experts FIRST-LAST; the manifest is left out.", None),
        flag("collect", bool, "Only join the parts into the manifest.", False),
        flag("measure_difficulty", bool, measure, False),
    ]
    flags = parse_flags(experts, [*fields, *COMPUTE], arguments, recipe)
    resolver.dataset(flags.dataset)
    if sum((flags.collect, flags.measure_difficulty, flags.part is not None)) > 1:
        raise UsageError("--part, --collect and --measure-difficulty are three things to do; give one of them")
    rule = "experts" if flags.collect else "difficulty" if flags.measure_difficulty else "experts_part"
    with command(resolver, *place_of(rule, dataset=flags.dataset, experts=flags.experts, part=flags.part)):
        show(flags, flags.options)
        asked = (resolver, flags.dataset, flags.experts, flags.options)
        if flags.collect:
            collect_experts(*asked)
        elif flags.measure_difficulty:
            make_difficulty(*asked, open_device(flags))
        else:
            make_experts(*asked, flags.part, open_device(flags))


def distill(arguments: Sequence[str]) -> None:
    """Make one synthetic set."""
    from satm.stages.distill import make_distilled

    known = peek(arguments, dataset="digits", ipc=1, method="mtt")
    resolver = load_campaign(known.config)
    kind, options = resolve_method(resolver.method(Cell(known.dataset, known.ipc, known.method)))
    between = "At least so long between two checkpoints; no effect on the result."
    fields = [*CELL, flag("checkpoint_seconds", float, between, 30.0)]
    flags = parse_flags(distill, [*fields, *COMPUTE], arguments, options)
    resolver.dataset(flags.dataset)
    cell = _cell(flags)
    with command(resolver, *place_of("distill", **cell.axes)):
        show(flags, flags.options)
        make_distilled(resolver, cell, kind, flags.options, open_device(flags), flags.checkpoint_seconds)


EVALUATIONS: Uses = {
    "set": (("ipc", "method"), ("seed",)),
    "variants": (("ipc", "method"), ("seed", "teacher")),
    "full": ((), ("recipe",)),
}


def evaluate(arguments: Sequence[str]) -> None:
    """Train fresh networks on a synthetic set, or on all real images, and test them on real images."""
    from satm.stages.evaluate import make_evaluation, make_full, make_variants

    named = {"dataset": "digits", "ipc": 1, "method": "mtt", "network": "convnet"}
    known = peek(arguments, **named, what="set", recipe="strong")
    resolver = load_campaign(known.config)
    if known.what == "full":
        options = resolver.full(known.recipe, known.dataset, known.network)
    else:
        options = resolver.evaluation(Cell(known.dataset, known.ipc, known.method), known.network)
    what = "The set as it is; with hard and soft labels, with and without augmentation; or all real images."
    fields = [
        DATASET,
        flag("what", Literal["set", "variants", "full"], what, "set"),
        *(optional(each, "set, variants") for each in (IPC, METHOD)),
        SEED,
        flag("teacher", str, "Experts that give soft labels (variants).", "sgd"),
        flag("recipe", Literal["experts", "strong"], "How (full).", "strong"),
        flag("network", str, "Name of a network.", "convnet"),
    ]
    flags = parse_flags(evaluate, [*fields, *COMPUTE], arguments, options)
    check_uses(flags, EVALUATIONS)
    cell = _cell(flags)
    rule = "evaluate" if flags.what == "set" else flags.what
    with command(resolver, *place_of(rule, **cell.axes, recipe=flags.recipe, network=flags.network)):
        show(flags, flags.options)
        device, how = open_device(flags), (flags.network, flags.options)
        if flags.what == "set":
            make_evaluation(resolver, cell, *how, device)
        elif flags.what == "variants":
            make_variants(resolver, cell, *how, flags.teacher, device)
        else:
            make_full(resolver, flags.dataset, flags.recipe, *how, device)


def nas(arguments: Sequence[str]) -> None:
    """Train the candidates of an architecture search on a synthetic set, or on all real images, and test them."""
    from satm.stages.nas import make_real_search, make_search

    known, real = peek(arguments, search=""), "--real" in arguments
    resolver = load_campaign(known.config)
    search = resolver.search(known.search)
    fields = [
        DATASET,
        flag("search", str, "Name of a search."),
        flag("real", bool, "On all real images, not on a synthetic set.", False),
        *(optional(each, "synthetic set") for each in (IPC, METHOD)),
        SEED,
        flag("part", str | None, "Train only FIRST-LAST of the sample.", None),
        flag("sample", int | None, "Candidates, chosen at random; None: all that fit the images.", search.sample),
        flag("sample_seed", int, "Another seed chooses others.", search.sample_seed),
        flag("width_factor", float, "Times the width of every candidate.", search.width_factor),
        flag("per_job", int, "Candidates of a part.", search.per_job),
    ]
    flags = parse_flags(nas, [*fields, *COMPUTE], arguments, search.real if real else search.proxy)
    if flags.real and (idle := [name for name in ("ipc", "method", "seed") if getattr(flags, name)]):
        raise UsageError(f"--{idle[0]} has no effect with --real; leave it out")
    if not flags.real and (flags.ipc is None or flags.method is None):
        raise UsageError("nas needs --ipc and --method of a synthetic set, or --real for all real images")
    chosen = {name: getattr(flags, name) for name in ("sample", "sample_seed", "width_factor", "per_job")}
    recipe = {"real" if flags.real else "proxy": flags.options.model_dump(exclude_defaults=True)}
    options = parse(SearchOptions, {**search.model_dump(), **chosen, **recipe}, f"search {flags.search}")
    cell = _cell(flags)
    place = place_of("nas_real" if flags.real else "nas", **cell.axes, search=flags.search, part=flags.part)
    with command(resolver, *place):
        show(flags, flags.options)
        how = (flags.search, options, flags.part, open_device(flags))
        if flags.real:
            make_real_search(resolver, flags.dataset, *how)
        else:
            make_search(resolver, cell, *how)


def continual(arguments: Sequence[str]) -> None:
    """Learn the classes of a dataset step by step from a synthetic set, with new networks at each step."""
    from satm.stages.continual import make_continual

    known = peek(arguments, dataset="digits", ipc=1, method="mtt", protocol="default")
    resolver = load_campaign(known.config)
    options = resolver.learning(known.protocol, Cell(known.dataset, known.ipc, known.method))
    protocol = flag("protocol", str, "Name of a table of kind `continual` in the campaign.", "default")
    flags = parse_flags(continual, [*CELL, protocol, *COMPUTE], arguments, options)
    cell = _cell(flags)
    with command(resolver, *place_of("continual", **cell.axes, protocol=flags.protocol)):
        show(flags, flags.options)
        make_continual(resolver, cell, flags.protocol, flags.options, open_device(flags))


MEASUREMENTS: Uses = {
    **dict.fromkeys(ANALYSES, (("ipc", "method"), ("seed",))),
    "expert-sharpness": ((), ("images", "rho")),
}


def analyse(arguments: Sequence[str]) -> None:
    """Measure properties other than accuracy: of a synthetic set, or of experts."""
    from satm.stages.analyse import make_bounds, make_expert_sharpness, make_sharpness, make_trajectory, make_variance

    known = peek(arguments, dataset="digits", ipc=1, method="mtt")
    resolver = load_campaign(known.config)
    options = resolver.analysis(Cell(known.dataset, known.ipc, known.method))
    kinds = Literal["sharpness", "trajectory", "variance", "bounds", "expert-sharpness"]
    what = (
        "Rise of the outer loss around a set; errors along the experts' path; variance of the hypergradient; "
        "errors of SATM's approximations; rise of the training loss around experts."
    )
    fields = [
        DATASET,
        flag("what", kinds, what, "sharpness"),
        *(optional(each, "of a set") for each in (IPC, METHOD)),
        SEED,
        flag("images", int, "Training images (expert-sharpness).", 1000),
        flag("rho", tuple[float, ...], "Lengths of the step (expert-sharpness).", LENGTHS),
    ]
    flags = parse_flags(analyse, [*fields, *COMPUTE], arguments, options)
    check_uses(flags, MEASUREMENTS)
    used = ANALYSES.get(flags.what, ("experts", "count"))
    for name in type(options).model_fields:
        if name not in used and getattr(flags.options, name) != getattr(options, name):
            raise UsageError(f"--{name} has no effect with --what {flags.what}; leave it out")
    cell, how = _cell(flags), flags.options
    place = place_of("analysis", what=flags.what, **cell.axes)
    if flags.what == "expert-sharpness":
        if how.experts is None:
            raise UsageError("--what expert-sharpness needs --experts, --experts is missing")
        place = place_of("expert_sharpness", dataset=flags.dataset, experts=how.experts)
    with command(resolver, *place):
        show(flags, how)
        device = open_device(flags)
        if flags.what == "sharpness":
            make_sharpness(resolver, cell, how.segments, device)
        elif flags.what == "trajectory":
            make_trajectory(resolver, cell, how.experts, how.count, how.starts, device)
        elif flags.what == "variance":
            make_variance(resolver, cell, how.samples, device)
        elif flags.what == "bounds":
            make_bounds(resolver, cell, how.segments, how.divisors, device)
        else:
            chosen = (how.experts, flags.images, how.count, flags.rho)
            make_expert_sharpness(resolver, flags.dataset, *chosen, device)


PARTIAL = flag("partial", bool, "Leave out what was not run yet, and say so.", False)


def table(arguments: Sequence[str]) -> None:
    """Make a table of a campaign, as csv, Markdown and LaTeX."""
    from satm.stages.report import make_accounting, make_overview, make_table

    told = "Name of a table in the campaign; overview: what there is of all; accounting: what the jobs have taken."
    flags = parse_flags(table, [flag("name", str, told, "table2"), PARTIAL, *WHERE], arguments)
    resolver = load_campaign(flags.config)
    with command(resolver, *place_of("table", table=flags.name)):
        if flags.name == OVERVIEW:
            make_overview(resolver)
        elif flags.name == ACCOUNTING:
            make_accounting(resolver)
        else:
            make_table(resolver, flags.name, flags.partial)


def figure(arguments: Sequence[str]) -> None:
    """Draw a figure of a campaign, as png and pdf, and write the numbers that it shows as csv."""
    from satm.stages.report import make_figure

    told = "Name of a figure, of a protocol, synthetic-DATASET-ipc-N, or accounting."
    flags = parse_flags(figure, [flag("name", str, told), PARTIAL, *WHERE], arguments)
    resolver = load_campaign(flags.config)
    with command(resolver, *place_of("figure", figure=flags.name)):
        make_figure(resolver, flags.name, flags.partial)


def cost(arguments: Sequence[str]) -> None:
    """Predict what a whole campaign takes: jobs, hours, memory and disk, from a measured pace."""
    from satm.stages.cost import PACE_FILE, predict_cost

    pace = flag("pace", Path, "File of `python -m satm bench pace`.", PACE_FILE)
    start = flag("start_seconds", float, "Seconds of each job before its first step.", 20.0)
    flags = parse_flags(cost, [pace, start, *WHERE], arguments)
    if flags.config is None:
        raise UsageError("cost needs --config with a campaign, such as config/paper.yaml; got none")
    predict_cost(flags.config, flags.pace, flags.start_seconds)


def bench(arguments: Sequence[str]) -> None:
    """Compare implementations with one another in one run: time, memory, differences."""
    from satm.stages.bench import bench_evaluation, bench_hypergradient, bench_pace

    known: dict[str, Callable[..., None]]
    known = {"hypergradient": bench_hypergradient, "evaluation": bench_evaluation, "pace": bench_pace}
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"bench needs the name of a benchmark first, got nothing; known: {', '.join(known)}")
    chosen = pick(arguments[0], known, "benchmark")
    call_with_flags(chosen, f"bench {arguments[0]}", chosen.__doc__, arguments[1:])


STAGES: dict[str, Callable[[Sequence[str]], None]] = {
    stage.__name__: stage
    for stage in (data, experts, distill, evaluate, continual, nas, analyse, table, figure, cost, bench)
}
"""Every stage by its name."""

STATELESS = ("data", "table", "figure", "cost", "bench")
"""Stages that keep no state: a signal ends them at once."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage.

    Returns:
        0 done; 2 unusable input, told in one line; 1 a failure of the run or the machine, told in one line; 75 stopped,
        the same command goes on.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    logging.getLogger("satm").setLevel(logging.INFO)
    record.begun_before(process_age() if arguments is None else 0.0)
    logging.raiseExceptions = False  # on a full disk the files that matter say so, once and clearly
    try:
        if not given or given[0] in ("-h", "--help"):
            print(_overview())
            return 0 if given else 2
        if given[0] == "--version":
            print(f"satm {__version__}")
            return 0
        with stopping.on_signals():
            stage = pick(given[0], STAGES, "stage")
            with stopping.interruptible() if given[0] in STATELESS else contextlib.nullcontext():
                stage(given[1:])
    except stopping.Stop as stop:
        return _stopped(stop)
    except UsageError as error:
        return _fail(error, 2)
    except RunError as error:
        return _fail(error, 1)
    except (MemoryError, torch.OutOfMemoryError):
        return _fail(RunError("the memory is used up; use fewer images a step, or a larger machine"), 1)
    except KeyboardInterrupt:  # a second one, or one a moment before signals are watched
        print("satm: stopped; the same command goes on", file=sys.stderr)
        return stopping.AGAIN
    except OSError as error:
        return _fail(RunError(f"{error.strerror or error} ({error.filename}); check the disk and start again"), 1)
    except SystemExit as error:  # tyro after --help
        return int(error.code or 0)
    return 0


def _stopped(stop: stopping.Stop) -> int:
    """Say that a run was stopped and return the exit code; before its time limit it asks SLURM to run it again."""
    request = stop.request
    if request.at_limit and not request.saved:
        text = f"stopped by {stop}, which came before anything was saved; give it more time"
        return _fail(RunError(text), 1)
    if request.at_limit and stopping.requeue():
        print(f"satm: stopped by {stop}; it is saved, and goes on when SLURM runs this job again", file=sys.stderr)
        time.sleep(stopping.MARGIN)  # SLURM ends the job, and would take an exit for the end of its work
    else:
        print(f"satm: stopped by {stop}; what was done is saved, the same command goes on", file=sys.stderr)
    return stopping.AGAIN


def _fail(error: Exception, code: int) -> int:
    """Print an error as one line and return the exit code."""
    print(f"satm: error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _overview() -> str:
    lines = [f"  {name:10} {(stage.__doc__ or '').splitlines()[0]}" for name, stage in STAGES.items()]
    usage = ["usage: python -m satm STAGE [flags]", "", *lines]
    return "\n".join([*usage, "", "python -m satm STAGE --help lists the flags of a stage."])


def _cell(flags: Any) -> Cell:
    return Cell(flags.dataset, flags.ipc, flags.method, flags.seed)
