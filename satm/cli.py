"""The command line: `python -m satm STAGE --flags`.

The flags of a stage's options are made from their model, with the values that presets and campaign give as defaults,
so `--help` after `--dataset` and `--method` shows what will be used. A command imports its stage itself, so that none
waits for the libraries of the others.
"""

import argparse
import contextlib
import dataclasses
import io
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import tyro

from satm.analysis.expert_sharpness import LENGTHS
from satm.config import (
    ACCOUNTING,
    ANALYSES,
    OVERVIEW,
    Cell,
    Options,
    Resolver,
    SearchOptions,
    check_name,
    load_campaign,
    parse,
)
from satm.errors import RunError, UsageError, pick
from satm.methods import resolve as resolve_method
from satm.run import record as account
from satm.run import stopping
from satm.run.machine import choose_device, process_age
from satm.version import __version__

LOG = logging.getLogger("satm")

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Where:
    """Flags of every stage."""

    config: Annotated[Path | None, tyro.conf.arg(help="Campaign (YAML); decides where results go. None: `results/`.")]


@dataclasses.dataclass(frozen=True)
class Compute(Where):
    """Flags of every stage that computes."""

    device: Annotated[str, tyro.conf.arg(help="auto, cpu, cuda or cuda:N.")]
    threads: Annotated[int | None, tyro.conf.arg(help="CPU threads; None: as torch chooses.")]
    time_limit: Annotated[
        float | None,
        tyro.conf.arg(
            help="Minutes after which the run stops with its state saved; None: $SATM_TIME_LIMIT, or the SLURM job's."
        ),
    ]


Dataset = Annotated[str, tyro.conf.arg(help="Name of a dataset.")]
Ipc = Annotated[int, tyro.conf.arg(help="Images per class.")]
MethodName = Annotated[str, tyro.conf.arg(help="Name of a method.")]
Seed = Annotated[int, tyro.conf.arg(help="Seed of the distillation.")]


def data(arguments: Sequence[str]) -> None:
    """Decode a dataset once; fit its whitening if it is whitened."""
    from satm.stages.data import make_images, make_zca

    flags = _parse(
        "data",
        data.__doc__,
        Where,
        [
            ("dataset", Dataset),
            ("make", Annotated[Literal["all", "images", "zca"], tyro.conf.arg(help="Which of the two.")], "all"),
        ],
        arguments,
    )
    resolver = load_campaign(flags.config)
    options = resolver.dataset(flags.dataset)
    with _logged(resolver, "data", flags.dataset, flags.make):
        _show("data", flags, options)
        if flags.make != "zca":
            with _accounted(resolver, "data", flags.dataset, "images"):
                make_images(resolver, flags.dataset)
        if flags.make == "zca" or (flags.make == "all" and options.zca):
            with _accounted(resolver, "data", flags.dataset, "zca"):
                make_zca(resolver, flags.dataset)


def experts(arguments: Sequence[str]) -> None:
    """Train the experts of a dataset, all of them or one part; join the parts; or ask finished ones what is hard."""
    from satm.stages.experts import collect_experts, make_difficulty, make_experts

    known = _peek(arguments, config=None, dataset="digits", experts="sgd")
    resolver = load_campaign(known.config)
    recipe = resolver.experts(known.experts, known.dataset)
    part = Annotated[str | None, tyro.conf.arg(help="Train only experts FIRST-LAST; the manifest is left out.")]
    measure = Annotated[
        bool, tyro.conf.arg(help="Train nothing: measure how hard each image is for these, finished experts.")
    ]
    flags = _parse(
        "experts",
        experts.__doc__,
        Compute,
        [
            ("dataset", Dataset),
            ("experts", Annotated[str, tyro.conf.arg(help="Name of the experts.")], "sgd"),
            ("part", part, None),
            ("collect", Annotated[bool, tyro.conf.arg(help="Only join the parts into the manifest.")], False),
            ("measure_difficulty", measure, False),
        ],
        arguments,
        recipe,
    )
    resolver.dataset(flags.dataset)
    if sum((flags.collect, flags.measure_difficulty, flags.part is not None)) > 1:
        raise UsageError("--part, --collect and --measure-difficulty are three things to do; give one of them")
    todo = "manifest" if flags.collect else "difficulty" if flags.measure_difficulty else "all"
    kind = f"part-{flags.part}" if flags.part else todo
    with _logged(resolver, "experts", flags.dataset, flags.experts, kind):
        _show("experts", flags, flags.options)
        if flags.collect:
            collect_experts(resolver, flags.dataset, flags.experts, flags.options)
        elif flags.measure_difficulty:
            make_difficulty(resolver, flags.dataset, flags.experts, flags.options, _compute(flags))
        else:
            device = _compute(flags)
            make_experts(resolver, flags.dataset, flags.experts, flags.options, flags.part, device)


def distill(arguments: Sequence[str]) -> None:
    """Make one synthetic set."""
    from satm.stages.distill import make_distilled

    known = _peek(arguments, config=None, dataset="digits", ipc=1, method="mtt")
    resolver = load_campaign(known.config)
    kind, options = resolve_method(resolver.method(Cell(known.dataset, known.ipc, known.method)))
    between = Annotated[float, tyro.conf.arg(help="At least so long between two checkpoints; no effect on the result.")]
    fields = [*_cell(), ("checkpoint_seconds", between, 30.0)]
    flags = _parse("distill", distill.__doc__, Compute, fields, arguments, options)
    resolver.dataset(flags.dataset)
    cell = Cell(flags.dataset, flags.ipc, flags.method, flags.seed)
    with _logged(resolver, "distill", *cell.place):
        _show("distill", flags, flags.options)
        make_distilled(resolver, cell, kind, flags.options, _compute(flags), flags.checkpoint_seconds)


def evaluate(arguments: Sequence[str]) -> None:
    """Train fresh networks on a synthetic set, or on all real images, and test them on real images."""
    from satm.stages.evaluate import make_evaluation, make_full, make_variants

    asked = {"dataset": "digits", "ipc": 1, "method": "mtt", "what": "set", "recipe": "strong", "network": "convnet"}
    known = _peek(arguments, config=None, **asked)
    resolver = load_campaign(known.config)
    if known.what == "full":
        options = resolver.full(known.recipe, known.dataset, known.network)
    else:
        options = resolver.evaluation(Cell(known.dataset, known.ipc, known.method), known.network)
    what = Annotated[
        Literal["set", "variants", "full"],
        tyro.conf.arg(
            help="The set as it is; with hard and soft labels, with and without augmentation; or all real images."
        ),
    ]
    fields = [
        ("dataset", Dataset),
        ("what", what, "set"),
        ("ipc", Annotated[int | None, tyro.conf.arg(help="Images per class (set, variants).")], None),
        ("method", Annotated[str | None, tyro.conf.arg(help="Name of a method (set, variants).")], None),
        ("seed", Seed, 0),
        ("teacher", Annotated[str, tyro.conf.arg(help="Experts that give soft labels (variants).")], "sgd"),
        ("recipe", Annotated[Literal["experts", "strong"], tyro.conf.arg(help="How (full).")], "strong"),
        ("network", Annotated[str, tyro.conf.arg(help="Name of a network.")], "convnet"),
    ]
    flags = _parse("evaluate", evaluate.__doc__, Compute, fields, arguments, options)
    _suits(flags, EVALUATIONS)
    cell = Cell(flags.dataset, flags.ipc, flags.method, flags.seed)
    where = (flags.dataset, flags.recipe) if flags.what == "full" else cell.place
    with _logged(resolver, "evaluate" if flags.what == "set" else flags.what, *where, flags.network):
        _show("evaluate", flags, flags.options)
        if flags.what == "set":
            make_evaluation(resolver, cell, flags.network, flags.options, _compute(flags))
        elif flags.what == "variants":
            make_variants(resolver, cell, flags.network, flags.options, flags.teacher, _compute(flags))
        else:
            make_full(resolver, flags.dataset, flags.recipe, flags.network, flags.options, _compute(flags))


Uses = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
"""What a stage with `--what` can do: the flags that each needs beside the dataset, and those that it may have."""

EVALUATIONS: Uses = {
    "set": (("ipc", "method"), ("seed",)),
    "variants": (("ipc", "method"), ("seed", "teacher")),
    "full": ((), ("recipe",)),
}


def nas(arguments: Sequence[str]) -> None:
    """Train the candidates of an architecture search on a synthetic set, or on all real images, and test them."""
    from satm.stages.nas import make_real_search, make_search

    known, real = _peek(arguments, config=None, search=""), "--real" in arguments
    resolver = load_campaign(known.config)
    search = resolver.search(known.search)
    part = Annotated[str | None, tyro.conf.arg(help="Train only FIRST-LAST of the sample.")]
    sample = Annotated[int | None, tyro.conf.arg(help="Candidates, chosen at random; None: all that fit the images.")]
    width = Annotated[float, tyro.conf.arg(help="Times the width of every candidate.")]
    fields = [
        ("dataset", Dataset),
        ("search", Annotated[str, tyro.conf.arg(help="Name of a search.")]),
        ("real", Annotated[bool, tyro.conf.arg(help="On all real images, not on a synthetic set.")], False),
        ("ipc", Annotated[int | None, tyro.conf.arg(help="Images per class (synthetic set).")], None),
        ("method", Annotated[str | None, tyro.conf.arg(help="Name of a method (synthetic set).")], None),
        ("seed", Seed, 0),
        ("part", part, None),
        ("sample", sample, search.sample),
        ("sample_seed", Annotated[int, tyro.conf.arg(help="Another seed chooses others.")], search.sample_seed),
        ("width_factor", width, search.width_factor),
        ("per_job", Annotated[int, tyro.conf.arg(help="Candidates of a part.")], search.per_job),
    ]
    flags = _parse("nas", nas.__doc__, Compute, fields, arguments, search.real if real else search.proxy)
    if flags.real and (idle := [name for name in ("ipc", "method", "seed") if getattr(flags, name)]):
        raise UsageError(f"--{idle[0]} has no effect with --real; leave it out")
    if not flags.real and (flags.ipc is None or flags.method is None):
        raise UsageError("nas needs --ipc and --method of a synthetic set, or --real for all real images")
    chosen = {name: getattr(flags, name) for name in ("sample", "sample_seed", "width_factor", "per_job")}
    recipe = {"real" if flags.real else "proxy": flags.options.model_dump(exclude_defaults=True)}
    options = parse(SearchOptions, {**search.model_dump(), **chosen, **recipe}, f"search {flags.search}")
    cell = Cell(flags.dataset, flags.ipc, flags.method, flags.seed)
    place = (flags.dataset, "real") if flags.real else cell.place
    with _logged(resolver, "nas", *place, flags.search, f"part-{flags.part}" if flags.part else "all"):
        _show("nas", flags, flags.options)
        if flags.real:
            make_real_search(resolver, flags.dataset, flags.search, options, flags.part, _compute(flags))
        else:
            make_search(resolver, cell, flags.search, options, flags.part, _compute(flags))


def continual(arguments: Sequence[str]) -> None:
    """Learn the classes of a dataset step by step from a synthetic set, with new networks at each step."""
    from satm.stages.continual import make_continual

    known = _peek(arguments, config=None, dataset="digits", ipc=1, method="mtt", protocol="default")
    resolver = load_campaign(known.config)
    options = resolver.learning(known.protocol, Cell(known.dataset, known.ipc, known.method))
    protocol = Annotated[str, tyro.conf.arg(help="Name of a table of kind `continual` in the campaign.")]
    fields = [*_cell(), ("protocol", protocol, "default")]
    flags = _parse("continual", continual.__doc__, Compute, fields, arguments, options)
    cell = Cell(flags.dataset, flags.ipc, flags.method, flags.seed)
    with _logged(resolver, "continual", *cell.place, flags.protocol):
        _show("continual", flags, flags.options)
        make_continual(resolver, cell, flags.protocol, flags.options, _compute(flags))


MEASUREMENTS: Uses = {
    **dict.fromkeys(ANALYSES, (("ipc", "method"), ("seed",))),
    "expert-sharpness": ((), ("images", "rho")),
}


def analyse(arguments: Sequence[str]) -> None:
    """Measure properties other than accuracy: of a synthetic set, or of experts."""
    from satm.stages.analyse import make_bounds, make_expert_sharpness, make_sharpness, make_trajectory, make_variance

    known = _peek(arguments, config=None, dataset="digits", ipc=1, method="mtt")
    resolver = load_campaign(known.config)
    options = resolver.analysis(Cell(known.dataset, known.ipc, known.method))
    what = Annotated[
        Literal["sharpness", "trajectory", "variance", "bounds", "expert-sharpness"],
        tyro.conf.arg(
            help="Rise of the outer loss around a set; errors along the experts' path; variance of the hypergradient; "
            "errors of SATM's approximations; rise of the training loss around experts."
        ),
    ]
    fields = [
        ("dataset", Dataset),
        ("what", what, "sharpness"),
        ("ipc", Annotated[int | None, tyro.conf.arg(help="Images per class (of a set).")], None),
        ("method", Annotated[str | None, tyro.conf.arg(help="Name of a method (of a set).")], None),
        ("seed", Seed, 0),
        ("images", Annotated[int, tyro.conf.arg(help="Training images (expert-sharpness).")], 1000),
        ("rho", Annotated[tuple[float, ...], tyro.conf.arg(help="Lengths of the step (expert-sharpness).")], LENGTHS),
    ]
    flags = _parse("analyse", analyse.__doc__, Compute, fields, arguments, options)
    _suits(flags, MEASUREMENTS)
    used = ANALYSES.get(flags.what, ("experts", "count"))
    for name in type(options).model_fields:
        if name not in used and getattr(flags.options, name) != getattr(options, name):
            raise UsageError(f"--{name} has no effect with --what {flags.what}; leave it out")
    cell, how = Cell(flags.dataset, flags.ipc, flags.method, flags.seed), flags.options
    of_experts = flags.what == "expert-sharpness"
    if of_experts and how.experts is None:
        raise UsageError("--what expert-sharpness needs --experts, --experts is missing")
    place = (flags.dataset, how.experts) if of_experts else cell.place
    with _logged(resolver, flags.what, *place):
        _show("analyse", flags, how)
        device = _compute(flags)
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


def _suits(flags: Any, uses: Uses) -> None:
    """Check that the flags of a stage are those that what it shall do uses.

    Raises:
        UsageError: one is missing, or would be ignored.
    """
    needed, allowed = uses[flags.what]
    for name in needed:
        if getattr(flags, name) is None:
            raise UsageError(f"--what {flags.what} needs --{' and --'.join(needed)}, --{name} is missing")
    for name in {name for names in uses.values() for part in names for name in part} - {*needed, *allowed}:
        if getattr(flags, name) != type(flags).__dataclass_fields__[name].default:
            raise UsageError(f"--{name} has no effect with --what {flags.what}; leave it out")


Partial = Annotated[bool, tyro.conf.arg(help="Leave out what was not run yet, and say so.")]


def table(arguments: Sequence[str]) -> None:
    """Make a table of a campaign, as csv, Markdown and LaTeX."""
    from satm.stages.report import make_accounting, make_overview, make_table

    told = "Name of a table in the campaign; overview: what there is of all; accounting: what the jobs have taken."
    name = Annotated[str, tyro.conf.arg(help=told)]
    fields = [("name", name, "table2"), ("partial", Partial, False)]
    flags = _parse("table", table.__doc__, Where, fields, arguments)
    resolver = load_campaign(flags.config)
    with _logged(resolver, "table", flags.name):
        if flags.name == OVERVIEW:
            make_overview(resolver)
        elif flags.name == ACCOUNTING:
            make_accounting(resolver)
        else:
            make_table(resolver, flags.name, flags.partial)


def figure(arguments: Sequence[str]) -> None:
    """Draw a figure of a campaign, as png and pdf, and write the numbers that it shows as csv."""
    from satm.stages.report import make_figure

    name = Annotated[
        str, tyro.conf.arg(help="Name of a figure, of a protocol, synthetic-DATASET-ipc-N, or accounting.")
    ]
    flags = _parse("figure", figure.__doc__, Where, [("name", name), ("partial", Partial, False)], arguments)
    resolver = load_campaign(flags.config)
    with _logged(resolver, "figure", flags.name):
        make_figure(resolver, flags.name, flags.partial)


def cost(arguments: Sequence[str]) -> None:
    """Predict what a whole campaign takes: jobs, hours, memory and disk, from a measured pace."""
    from satm.stages.cost import PACE_FILE, predict_cost

    pace = Annotated[Path, tyro.conf.arg(help="File of `python -m satm bench pace`.")]
    start = Annotated[float, tyro.conf.arg(help="Seconds of each job before its first step.")]
    fields = [("pace", pace, PACE_FILE), ("start_seconds", start, 20.0)]
    flags = _parse("cost", cost.__doc__, Where, fields, arguments)
    if flags.config is None:
        raise UsageError("cost needs --config with a campaign, such as config/paper.yaml; got none")
    predict_cost(flags.config, flags.pace, flags.start_seconds)


def bench(arguments: Sequence[str]) -> None:
    """Compare implementations with one another in one run: time, memory, differences."""
    from satm.stages.bench import bench_evaluation, bench_hypergradient, bench_pace

    known: dict[str, Callable[..., None]] = {
        "hypergradient": bench_hypergradient,
        "evaluation": bench_evaluation,
        "pace": bench_pace,
    }
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"bench needs the name of a benchmark first, got nothing; known: {', '.join(known)}")
    chosen = pick(arguments[0], known, "benchmark")
    _tyro(chosen, f"bench {arguments[0]}", chosen.__doc__, arguments[1:])


STAGES: dict[str, Callable[[Sequence[str]], None]] = {
    "data": data,
    "experts": experts,
    "distill": distill,
    "evaluate": evaluate,
    "continual": continual,
    "nas": nas,
    "analyse": analyse,
    "table": table,
    "figure": figure,
    "cost": cost,
    "bench": bench,
}
"""Every stage by its name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage.

    Returns:
        0 done; 2 unusable input, told in one line; 1 a failure of the run or the machine, told in one line; 75 stopped,
        the same command goes on.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    logging.getLogger("satm").setLevel(logging.INFO)
    account.begun_before(process_age() if arguments is None else 0.0)
    logging.raiseExceptions = False  # on a full disk the files that matter say so, once and clearly
    try:
        if not given or given[0] in ("-h", "--help"):
            print(_overview())
            return 0 if given else 2
        if given[0] == "--version":
            print(f"satm {__version__}")
            return 0
        with stopping.on_signals(), stopping.unwrapped():
            pick(given[0], STAGES, "stage")(given[1:])
    except stopping.Stop as stop:
        return _stopped(stop)
    except UsageError as error:
        return _fail(error, 2)
    except RunError as error:
        return _fail(error, 1)
    except (MemoryError, torch.OutOfMemoryError):
        return _fail(RunError("the memory is used up; use fewer images a step, or a larger machine"), 1)
    except KeyboardInterrupt:  # outside of the main thread, or a moment before signals are watched
        print("satm: stopped; the same command goes on", file=sys.stderr)
        return stopping.AGAIN
    except OSError as error:
        return _fail(RunError(f"{error.strerror or error} ({error.filename}); check the disk and start again"), 1)
    except SystemExit as error:  # tyro after --help
        return int(error.code or 0)
    return 0


def _stopped(stop: stopping.Stop) -> int:
    """Say that a run was stopped and return the exit code; before its time limit it asks SLURM to run it again."""
    if stop.at_limit and not stop.saved:
        text = f"stopped by {stop}, which came before anything was saved; give it more time"
        return _fail(RunError(text), 1)
    if stop.at_limit and stopping.requeue():
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


def _cell() -> list[tuple[Any, ...]]:
    """Return the flags that name a synthetic set."""
    return [("dataset", Dataset), ("ipc", Ipc), ("method", MethodName), ("seed", Seed, 0)]


def _peek(arguments: Sequence[str], **axes: Any) -> argparse.Namespace:
    """Return the flags that decide the defaults of the others, before those are known."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, default in axes.items():
        parser.add_argument(f"--{name}", default=default, type=Path if name == "config" else type(default))
    try:
        return parser.parse_known_args(list(arguments))[0]
    except argparse.ArgumentError as error:
        raise UsageError(f"{error}; see --help") from error


def _parse(
    stage: str,
    description: str | None,
    base: type[Where],
    fields: Sequence[tuple[Any, ...]],
    arguments: Sequence[str],
    options: Options | None = None,
) -> Any:
    """Return the flags of a stage as an object; the options are its field `options`."""
    made = [(*field[:2], dataclasses.field(default=field[2])) if len(field) > 2 else field for field in fields]
    common: dict[str, Any] = {"config": None, "device": "auto", "threads": None, "time_limit": None}
    inherited = [
        (field.name, field.type, dataclasses.field(default=common[field.name])) for field in dataclasses.fields(base)
    ]
    held: list[Any] = []
    if options is not None:
        held = [("options", Annotated[type(options), tyro.conf.OmitArgPrefixes], dataclasses.field(default=options))]
    flags = dataclasses.make_dataclass(stage, [*made, *inherited, *held], frozen=True, kw_only=True)
    return _tyro(flags, stage, description, arguments)


def _tyro(target: Callable[..., T], stage: str, description: str | None, arguments: Sequence[str]) -> T:
    """Parse flags; a mistake becomes one line instead of tyro's box."""
    if "-h" in arguments or "--help" in arguments:
        return tyro.cli(target, prog=f"python -m satm {stage}", description=description, args=list(arguments))
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(target, prog=f"python -m satm {stage}", description=description, args=list(arguments))
    except SystemExit as error:
        if not told.getvalue():
            raise
        raise UsageError(_one_line(told.getvalue())) from error


def _one_line(box: str) -> str:
    """Return what tyro says in its box as one line: the mistake and the nearest flag."""
    lines = [line.strip(" │─╭╮╰╯") for line in box.splitlines()]
    body = [line for line in lines[1:] if line and not line.startswith("For full helptext")]
    text = " ".join(body)
    text = re.sub(r"For further information visit \S+", "", text)
    text = re.sub(r"\[type=\w+, input_value=(.*?), input_type=\w+\]", r"(got \1)", text)
    text = re.sub(r"Error parsing options: \d+ validation errors? for \w+", "unusable option:", text)
    text = re.sub(r"Missing from python -m satm [\w ]+:", "missing:", text)
    text = re.sub(r"python -m satm [\w ]+ --help", "", text)
    text = text.split("Argument helptext")[0]
    return f"{' '.join(text.split())}; see --help"


def _compute(flags: Any) -> torch.device:
    """Return the device, with the threads and the time limit set."""
    if flags.threads is not None:
        if flags.threads < 1:
            raise UsageError(f"threads must be at least 1, got {flags.threads}")
        torch.set_num_threads(flags.threads)
    device = choose_device(flags.device)
    account.computes_on(device)
    if (seconds := stopping.limit(flags.time_limit)) is not None:
        LOG.info("this run may take %.3g minutes; before they are over it stops with its state saved", seconds / 60)
    return device


def _show(stage: str, flags: Any, options: Options | None = None) -> None:
    """Log the resolved options before any work."""
    named = {field.name: getattr(flags, field.name) for field in dataclasses.fields(flags) if field.name != "options"}
    LOG.info("satm %s %s", __version__, stage)
    for name, value in {**named, **(options.model_dump(mode="json") if options else {})}.items():
        LOG.info("  %s: %s", name.replace("_", "-"), value)


@contextlib.contextmanager
def _logged(resolver: Resolver, *parts: str) -> Iterator[None]:
    """Log to the standard output and to the run's log file, unless the output is that file already; keep its account.

    The file is continued: a run that goes on, or is refused because another process is at work, erases no earlier one.

    Raises:
        UsageError: a part is no name: given on the command line it could lead anywhere.
    """
    for part in parts:  # before a folder is made of it
        try:
            check_name(part)
        except ValueError as error:
            raise UsageError(f"{error}; correct it") from error
    path = Path(resolver.layout.log(*parts))
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if not (path.is_file() and os.path.samestat(os.fstat(1), path.stat())):
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(path))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        LOG.addHandler(handler)
    try:
        with _accounted(resolver, *parts):
            yield
    except (UsageError, RunError) as error:  # the terminal is told by `main`
        LOG.removeHandler(handlers[0])
        LOG.error("error: %s", error)
        raise
    except stopping.Stop as stop:
        LOG.removeHandler(handlers[0])
        LOG.warning("stopped by %s", stop)
        raise
    finally:
        for handler in handlers:
            LOG.removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()


def _accounted(resolver: Resolver, *parts: str) -> contextlib.AbstractContextManager[None]:
    """Record what the work of one job takes, beside its log."""
    return account.account(Path(resolver.layout.account(*parts)))
