"""The command line: `python -m satm STAGE --flags`.

A command imports its stage after it has read its flags, so that `--help` and refusals do not wait for torch.
"""

import contextlib
import inspect
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from satm.config import (
    ACCOUNTING,
    ANALYSES,
    OVERVIEW,
    RHOS,
    Cell,
    SearchOptions,
    load_campaign,
    lost_options,
    parse,
    place_of,
)
from satm.errors import RunError, UsageError, memory_errors, pick
from satm.flags import (
    CELL,
    DATASET,
    OVERWRITE,
    call_with_flags,
    check_uses,
    command,
    flag,
    open_device,
    optional_cell,
    parse_flags,
    peek,
    place_results,
)
from satm.methods import resolve as resolve_method
from satm.run import record, slurm, stopping
from satm.run.log import complain, mend_streams
from satm.run.machine import process_age
from satm.version import __version__
from satm.workflow.asked import TEACHER

LOG = logging.getLogger("satm")

IMAGES = 1000
"""Training images on which the sharpness of experts is measured."""

AXES: dict[str, Any] = {"dataset": "digits", "ipc": 1, "method": "mtt", "seed": 0}
"""The synthetic set whose options `--help` shows if the command line names none."""


def data(arguments: Sequence[str]) -> None:
    """Decode a dataset once; fit its whitening if it is whitened."""
    make = flag("make", Literal["all", "images", "zca"], "Decoded images, the whitening, or both.", "all")
    flags = parse_flags(data, [DATASET, make, OVERWRITE], arguments)
    resolver = load_campaign(flags.config)
    resolver.overwrite = flags.overwrite
    options = resolver.dataset(flags.dataset)
    with command(resolver, "data" if flags.make == "all" else flags.make, flags, options):
        from satm.stages.data import make_images, make_zca

        if doubt := lost_options(options):
            LOG.warning("%s %s", flags.dataset, doubt)
        if flags.make != "zca":
            make_images(resolver, flags.dataset)
        if flags.make == "zca" or (flags.make == "all" and options.zca):
            make_zca(resolver, flags.dataset)


def experts(arguments: Sequence[str]) -> None:
    """Train experts, join their parts, or measure the difficulty of images for trained ones."""
    known, resolver = peek(arguments, dataset="digits", experts="sgd")
    recipe = resolver.experts(known.experts, known.dataset)
    measure = "Do not train; measure the difficulty of each image for these experts, which must be trained."
    fields = [
        DATASET,
        flag("experts", str, "Name of the experts.", "sgd"),
        flag("part", str | None, "Train only experts FIRST-LAST; no manifest is written.", None),
        flag("collect", bool, "Only join the parts into the manifest.", False),
        flag("measure_difficulty", bool, measure, False),
    ]
    flags = parse_flags(experts, fields, arguments, recipe)
    resolver.dataset(flags.dataset)
    if sum((flags.collect, flags.measure_difficulty, flags.part is not None)) > 1:
        raise UsageError("--part, --collect and --measure-difficulty exclude each other; give one of them")
    rule = "experts" if flags.collect else "difficulty" if flags.measure_difficulty else "experts_part"
    trains = not (flags.collect or flags.measure_difficulty)
    place = place_of("experts", dataset=flags.dataset, experts=flags.experts) if trains else ()
    resolver, options = place_results(resolver, flags, recipe, *place), flags.options
    if not trains and options == recipe:
        options = resolver.experts(flags.experts, flags.dataset)  # those that a run by hand trained
    with command(resolver, rule, flags, options):
        from satm.stages.experts import collect_experts, make_difficulty, make_experts

        which = (resolver, flags.dataset, flags.experts, options)
        if flags.collect:
            collect_experts(*which)
        elif flags.measure_difficulty:
            make_difficulty(*which, open_device(flags))
        else:
            make_experts(*which, flags.part, open_device(flags))


def distill(arguments: Sequence[str]) -> None:
    """Make one synthetic set."""
    known, resolver = peek(arguments, **AXES)
    recipe, options = resolve_method(resolver.method(_cell(known)))
    between = "Minimum seconds between two checkpoints; no effect on the result."
    fields = [*CELL, flag("checkpoint_seconds", float, between, 30.0)]
    flags = parse_flags(distill, fields, arguments, options)
    resolver.dataset(flags.dataset)
    resolver = place_results(resolver, flags, options, *place_of("distill", **_cell(flags).axes))
    with command(resolver, "distill", flags, flags.options):
        from satm.stages.distill import make_distilled

        device = open_device(flags)
        make_distilled(resolver, _cell(flags), recipe, flags.options, device, flags.checkpoint_seconds)


def evaluate(arguments: Sequence[str]) -> None:
    """Train fresh networks on a synthetic set, or on all real images, and test them on real images."""
    known, resolver = peek(arguments, **AXES, network="convnet", what="set", recipe="strong")
    if known.what == "full":
        options = resolver.full(known.recipe, known.dataset, known.network)
    else:
        options = resolver.evaluation(_cell(known), known.network)
    what = "The synthetic set; the set with hard and soft labels, with and without augmentation; or all real images."
    fields = [
        DATASET,
        flag("what", Literal["set", "variants", "full"], what, "set"),
        *optional_cell("set, variants"),
        flag("teacher", str, "Experts that give soft labels (variants).", TEACHER),
        flag("recipe", Literal["experts", "strong"], "Training recipe (full).", "strong"),
        flag("network", str, "Name of a network.", "convnet"),
    ]
    flags = parse_flags(evaluate, fields, arguments, options)
    of_set = ("ipc", "method")
    uses = {"set": (of_set, ("seed",)), "variants": (of_set, ("seed", "teacher")), "full": ((), ("recipe",))}
    check_uses(flags, uses)
    resolver = place_results(resolver, flags, options, further={"teacher": TEACHER})
    with command(resolver, "evaluate" if flags.what == "set" else flags.what, flags, flags.options):
        from satm.stages.evaluate import make_evaluation

        cell = Cell(flags.dataset, 0, f"full-{flags.recipe}") if flags.what == "full" else _cell(flags)
        teacher = flags.teacher if flags.what == "variants" else None
        make_evaluation(resolver, cell, flags.network, flags.options, teacher, open_device(flags))


def nas(arguments: Sequence[str]) -> None:
    """Train the candidates of an architecture search on a synthetic set, or on all real images, and test them."""
    known, resolver = peek(arguments, search="")
    search, real = resolver.search(known.search), "--real" in arguments
    fields = [
        DATASET,
        flag("search", str, "Name of a table of kind `search`."),
        flag("real", bool, "Train on all real images instead of a synthetic set.", False),
        *optional_cell("synthetic set"),
        flag("part", str | None, "Train only FIRST-LAST of the sample.", None),
        flag("sample", int | None, "Candidates, chosen at random; None: all that fit the images.", search.sample),
        flag("sample_seed", int, "Seed of that choice.", search.sample_seed),
        flag("width_factor", float, "Factor on the width of every candidate.", search.width_factor),
        flag("per_job", int, "Candidates per job.", search.per_job),
    ]
    flags = parse_flags(nas, fields, arguments, search.real if real else search.proxy)
    if flags.real and (idle := [name for name in ("ipc", "method", "seed") if getattr(flags, name)]):
        raise UsageError(f"--{idle[0]} has no effect with --real; leave it out")
    if not flags.real and (flags.ipc is None or flags.method is None):
        raise UsageError("nas needs --ipc and --method of a synthetic set, or --real for all real images")
    chosen = {name: getattr(flags, name) for name in ("sample", "sample_seed", "width_factor", "per_job")}
    chosen["real" if flags.real else "proxy"] = flags.options.model_dump(exclude_defaults=True)
    options = parse(SearchOptions, {**search.model_dump(), **chosen}, f"search {flags.search}")
    further = {name: getattr(search, name) for name in ("sample", "sample_seed", "width_factor", "per_job")}
    resolver = place_results(resolver, flags, search.real if flags.real else search.proxy, further=further)
    with command(resolver, "nas_real" if flags.real else "nas", flags, flags.options):
        from satm.stages.nas import make_search

        cell = Cell(flags.dataset, 0, "real") if flags.real else _cell(flags)
        make_search(resolver, cell, flags.search, options, flags.part, open_device(flags))


def continual(arguments: Sequence[str]) -> None:
    """Learn the classes of a dataset step by step from a synthetic set, with new networks at each step."""
    known, resolver = peek(arguments, **AXES, protocol="default")
    options = resolver.learning(known.protocol, _cell(known))
    protocol = flag("protocol", str, "Name of a table of kind `continual` in the campaign.", "default")
    flags = parse_flags(continual, [*CELL, protocol], arguments, options)
    resolver = place_results(resolver, flags, options)
    with command(resolver, "continual", flags, flags.options):
        from satm.stages.continual import make_continual

        make_continual(resolver, _cell(flags), flags.protocol, flags.options, open_device(flags))


def analyse(arguments: Sequence[str]) -> None:
    """Measure properties other than accuracy: of a synthetic set, or of experts."""
    known, resolver = peek(arguments, **AXES)
    defaults = resolver.analysis(_cell(known))
    what = (
        "Rise of the outer loss around a set; errors along the experts' trajectories; variance of the hypergradient; "
        "errors of SATM's approximations; rise of the training loss around experts."
    )
    kinds = Literal["sharpness", "trajectory", "variance", "bounds", "expert-sharpness"]
    fields = [
        DATASET,
        flag("what", kinds, what, "sharpness"),
        *optional_cell("of a set"),
        flag("images", int, "Training images (expert-sharpness).", IMAGES),
        flag("rho", tuple[float, ...], "Lengths of the step (expert-sharpness).", RHOS),
    ]
    flags = parse_flags(analyse, fields, arguments, defaults)
    at_set = dict.fromkeys(ANALYSES, (("ipc", "method"), ("seed",)))
    check_uses(flags, {**at_set, "expert-sharpness": ((), ("images", "rho"))})
    used = ANALYSES.get(flags.what, ("experts", "count"))
    for name in type(defaults).model_fields:
        if name not in used and getattr(flags.options, name) != getattr(defaults, name):
            raise UsageError(f"--{name} has no effect with --what {flags.what}; leave it out")
    on_experts, options = flags.what == "expert-sharpness", flags.options
    if on_experts and options.experts is None:
        raise UsageError("--what expert-sharpness needs --experts, got none; name the experts")
    further: dict[str, object] = {"images": IMAGES, "rho": RHOS} if on_experts else {}
    usual = defaults.model_copy(update={"experts": options.experts}) if on_experts else defaults
    resolver = place_results(resolver, flags, usual, further=further)
    with command(resolver, "expert_sharpness" if on_experts else "analysis", flags, options, experts=options.experts):
        from satm.stages.analyse import make_expert_sharpness, make_measurement

        device = open_device(flags)
        if on_experts:
            make_expert_sharpness(resolver, flags.dataset, options, flags.images, flags.rho, device)
        else:
            make_measurement(resolver, _cell(flags), flags.what, options, device)


PARTIAL = flag("partial", bool, "Leave out missing results, with a note.", False)


def table(arguments: Sequence[str]) -> None:
    """Make a table of a campaign, as csv, Markdown and LaTeX."""
    text = "Name of a table in the campaign; overview: progress of all tables; accounting: cost of the jobs so far."
    flags = parse_flags(table, [flag("name", str, text, "table2"), PARTIAL], arguments)
    resolver = load_campaign(flags.config)
    with command(resolver, "table", flags, table=flags.name):
        from satm.stages.report import make_accounting, make_overview, make_table

        if flags.name == OVERVIEW:
            make_overview(resolver)
        elif flags.name == ACCOUNTING:
            make_accounting(resolver)
        else:
            make_table(resolver, flags.name, flags.partial)


def figure(arguments: Sequence[str]) -> None:
    """Draw a figure of a campaign, as png and pdf, and write the numbers that it shows as csv."""
    text = "Name of a figure, of a protocol, synthetic-DATASET-ipc-N, or accounting."
    flags = parse_flags(figure, [flag("name", str, text), PARTIAL], arguments)
    resolver = load_campaign(flags.config)
    with command(resolver, "figure", flags, figure=flags.name):
        from satm.stages.report import make_figure

        make_figure(resolver, flags.name, flags.partial)


def cost(arguments: Sequence[str]) -> None:
    """Predict the cost of a whole campaign, from measurements on a machine: jobs, hours, memory, disk."""
    from satm.stages.report import PACE_FILE, predict_cost

    pace = flag("pace", Path, "File of `python -m satm bench pace`.", PACE_FILE)
    start = flag("start_seconds", float, "Seconds of each job before its first step.", 20.0)
    flags = parse_flags(cost, [pace, start], arguments)
    if flags.config is None:
        raise UsageError("cost needs --config with a campaign; got none")
    predict_cost(flags.config, flags.pace, flags.start_seconds)


def explain(arguments: Sequence[str]) -> None:
    """Say what a table or figure, such as results/table2.csv, is made with: options, their defaults and sources."""
    from satm.workflow.explain import ONLY, print_options

    target, *rest = arguments or [""]
    helps = target in ("-h", "--help")
    if not helps and (not target or target.startswith("-")):
        raise UsageError(
            f"explain needs a table or figure first, got {target or 'nothing'}; give one, such as results/table2.csv"
        )
    flags = parse_flags(explain, [flag(*each, None) for each in ONLY], [target] if helps else rest)
    print_options(target, flags.config, {name: getattr(flags, name) for name, *_ in ONLY})


def bench(arguments: Sequence[str]) -> None:
    """Compare implementations in one run: time, memory, differences."""
    from satm.benchmarks.commands import BENCHMARKS

    name, *rest = arguments or [""]
    if name in ("-h", "--help"):
        return print(_usage("bench BENCHMARK", BENCHMARKS))
    if not name or name.startswith("-"):
        raise UsageError(f"bench needs the name of a benchmark first, got nothing; known: {', '.join(BENCHMARKS)}")
    chosen = pick(name, BENCHMARKS, "benchmark")
    about, _, _ = inspect.cleandoc(chosen.__doc__ or "").partition("\n\nArgs:")  # each flag has its own text
    call_with_flags(chosen, f"bench {name}", about, rest)


STAGES: dict[str, Callable[[Sequence[str]], None]] = {
    stage.__name__: stage
    for stage in (data, experts, distill, evaluate, continual, nas, analyse, table, figure, cost, explain, bench)
}
"""Every stage by its name."""

STATELESS = ("data", "table", "figure", "cost", "explain", "bench")
"""Stages that keep no state: a signal ends them at once."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage.

    Returns:
        Exit code: 0: done; 2: unusable input; 1: a failure of the run or the machine; both after a line of
        explanation, or a line for each of several problems; 75: stopped, the same command resumes.
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    logging.getLogger("satm").setLevel(logging.INFO)
    mend_streams()
    record.begun_before(process_age() if arguments is None else 0.0)
    logging.raiseExceptions = False  # on a full disk, writing the results raises one clear error
    try:
        if name in ("", "-h", "--help"):
            print(_usage("STAGE", STAGES))
            return 0 if name else 2
        if name == "--version":
            print(f"satm {__version__}")
            return 0
        with stopping.on_signals():
            stage = pick(name, STAGES, "stage")
            with stopping.interruptible() if name in STATELESS else contextlib.nullcontext():
                stage(rest)
    except stopping.Stop as stop:
        return _stopped(stop)
    except UsageError as error:
        return _fail(error.listed, 2)
    except RunError as error:
        return _fail(str(error))
    except memory_errors():
        return _fail("out of memory; use fewer images per step, or a larger machine")
    except KeyboardInterrupt:  # a second one, or one before the signal handlers are installed
        print("satm: stopped; run the same command to resume", file=sys.stderr)
        return stopping.AGAIN
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(str(RunError(f"{error.strerror or error} ({error.filename}); check the disk and start again")))
    except SystemExit as error:  # tyro after --help
        return int(error.code or 0)
    return 0


def _stopped(stop: stopping.Stop) -> int:
    """Report that a run was stopped and return the exit code; at a time limit, ask SLURM to run the job again."""
    request = stop.request
    if request.at_limit and not request.saved:
        return _fail(f"stopped by {stop} before anything was saved; give it more time")
    if request.at_limit and slurm.requeue():
        print(
            f"satm: stopped by {stop}; its state is saved, and it resumes when SLURM runs this job again",
            file=sys.stderr,
        )
        time.sleep(stopping.MARGIN)  # SLURM ends the job, and would take an exit for its completion
    else:
        print(f"satm: stopped by {stop}; its state is saved; run the same command to resume", file=sys.stderr)
    return stopping.AGAIN


def _fail(text: str, code: int = 1) -> int:
    """Print an error and return the exit code."""
    complain(f"satm: error: {text}")
    return code


def _usage(what: str, known: Mapping[str, Callable[..., None]]) -> str:
    """Return the usage message, with a line for each command."""
    width = max(map(len, known))
    lines = [f"  {name:{width}}  {(command.__doc__ or '').splitlines()[0]}" for name, command in known.items()]
    last = f"python -m satm {what} --help lists its flags."
    return "\n".join([f"usage: python -m satm {what} [flags]", "", *lines, "", last])


def _cell(flags: Any) -> Cell:
    """Return the cell that the flags name; the stages take ipc 0 for all real images, which no flag can ask for."""
    if flags.ipc < 1:
        raise UsageError(f"--ipc must be at least 1, got {flags.ipc}")
    return Cell(flags.dataset, flags.ipc, flags.method, flags.seed)
