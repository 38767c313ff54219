"""The command line: `python -m satm STAGE --flags`.

The flags of a stage's options are made from their model, with the values that presets and campaign give as defaults,
so `--help` after `--dataset` and `--method` shows what will be used.
"""

import argparse
import contextlib
import dataclasses
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import tyro

import satm
from satm import stages
from satm.analysis.expert_sharpness import LENGTHS
from satm.bench import bench_hypergradient
from satm.config import Options, Resolver, load_campaign
from satm.errors import RunError, UsageError, pick
from satm.machine import choose_device
from satm.methods import resolve as resolve_method

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


Dataset = Annotated[str, tyro.conf.arg(help="Name of a dataset.")]
Ipc = Annotated[int, tyro.conf.arg(help="Images per class.")]
MethodName = Annotated[str, tyro.conf.arg(help="Name of a method.")]
Seed = Annotated[int, tyro.conf.arg(help="Seed of the distillation.")]


def data(arguments: Sequence[str]) -> None:
    """Decode a dataset once; fit its whitening if it is whitened."""
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
            stages.make_images(resolver, flags.dataset)
        if flags.make == "zca" or (flags.make == "all" and options.zca):
            stages.make_zca(resolver, flags.dataset)


def experts(arguments: Sequence[str]) -> None:
    """Train the experts of a dataset, all of them or one part; join the parts; or ask finished ones what is hard."""
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
            stages.collect_experts(resolver, flags.dataset, flags.experts, flags.options)
        elif flags.measure_difficulty:
            stages.make_difficulty(resolver, flags.dataset, flags.experts, flags.options, _compute(flags))
        else:
            device = _compute(flags)
            stages.make_experts(resolver, flags.dataset, flags.experts, flags.options, flags.part, device)


def distill(arguments: Sequence[str]) -> None:
    """Make one synthetic set."""
    known = _peek(arguments, config=None, dataset="digits", ipc=1, method="mtt")
    resolver = load_campaign(known.config)
    kind, options = resolve_method(resolver.method(known.method, known.dataset, known.ipc))
    between = Annotated[float, tyro.conf.arg(help="At least so long between two checkpoints; no effect on the result.")]
    fields = [*_cell(), ("checkpoint_seconds", between, 30.0)]
    flags = _parse("distill", distill.__doc__, Compute, fields, arguments, options)
    resolver.dataset(flags.dataset)
    cell = (flags.dataset, flags.ipc, flags.method, flags.seed)
    with _logged(resolver, "distill", flags.dataset, f"ipc-{flags.ipc}", flags.method, f"seed-{flags.seed}"):
        _show("distill", flags, flags.options)
        stages.make_distilled(resolver, *cell, kind, flags.options, _compute(flags), flags.checkpoint_seconds)


def evaluate(arguments: Sequence[str]) -> None:
    """Train fresh networks on a synthetic set and test them on real images."""
    known = _peek(arguments, config=None, dataset="digits", ipc=1, method="mtt")
    resolver = load_campaign(known.config)
    options = resolver.evaluation(known.method, known.dataset, known.ipc)
    network = Annotated[str, tyro.conf.arg(help="Name of a network.")]
    fields = [*_cell(), ("network", network, "convnet")]
    flags = _parse("evaluate", evaluate.__doc__, Compute, fields, arguments, options)
    cell = (flags.dataset, flags.ipc, flags.method, flags.seed)
    where = (flags.dataset, f"ipc-{flags.ipc}", flags.method, f"seed-{flags.seed}", flags.network)
    with _logged(resolver, "evaluate", *where):
        _show("evaluate", flags, flags.options)
        stages.make_evaluation(resolver, *cell, flags.network, flags.options, _compute(flags))


ANALYSES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sharpness": (("ipc", "method"), ("seed", "segments")),
    "expert-sharpness": (("experts",), ("images", "count", "rho")),
}
"""What `analyse` can measure: the flags that it needs beside the dataset, and those that it may have."""


def analyse(arguments: Sequence[str]) -> None:
    """Measure properties other than accuracy: of a synthetic set, or of experts."""
    what = Annotated[Literal["sharpness", "expert-sharpness"], tyro.conf.arg(help="What to measure.")]
    fields = [
        ("dataset", Dataset),
        ("what", what, "sharpness"),
        ("ipc", Annotated[int | None, tyro.conf.arg(help="Images per class (sharpness).")], None),
        ("method", Annotated[str | None, tyro.conf.arg(help="Name of a method (sharpness).")], None),
        ("seed", Seed, 0),
        ("segments", Annotated[int, tyro.conf.arg(help="Expert segments to average over (sharpness).")], 20),
        ("experts", Annotated[str | None, tyro.conf.arg(help="Name of the experts (expert-sharpness).")], None),
        ("images", Annotated[int, tyro.conf.arg(help="Training images (expert-sharpness).")], 1000),
        ("count", Annotated[int, tyro.conf.arg(help="Experts, the first ones (expert-sharpness).")], 5),
        ("rho", Annotated[tuple[float, ...], tyro.conf.arg(help="Lengths of the step (expert-sharpness).")], LENGTHS),
    ]
    flags = _parse("analyse", analyse.__doc__, Compute, fields, arguments)
    _suits(flags)
    resolver = load_campaign(flags.config)
    if flags.what == "expert-sharpness":
        with _logged(resolver, flags.what, flags.dataset, flags.experts):
            _show("analyse", flags)
            stages.make_expert_sharpness(
                resolver, flags.dataset, flags.experts, flags.images, flags.count, flags.rho, _compute(flags)
            )
        return
    cell = (flags.dataset, flags.ipc, flags.method, flags.seed)
    with _logged(resolver, flags.what, flags.dataset, f"ipc-{flags.ipc}", flags.method, f"seed-{flags.seed}"):
        _show("analyse", flags)
        stages.make_sharpness(resolver, *cell, flags.segments, _compute(flags))


def _suits(flags: Any) -> None:
    """Check that the flags of `analyse` are those that its measurement uses.

    Raises:
        UsageError: one is missing, or would be ignored.
    """
    needed, allowed = ANALYSES[flags.what]
    for name in needed:
        if getattr(flags, name) is None:
            raise UsageError(f"--what {flags.what} needs --{' and --'.join(needed)}, --{name} is missing")
    for name in {name for names in ANALYSES.values() for part in names for name in part} - {*needed, *allowed}:
        if getattr(flags, name) != type(flags).__dataclass_fields__[name].default:
            raise UsageError(f"--{name} has no effect with --what {flags.what}; leave it out")


def table(arguments: Sequence[str]) -> None:
    """Make a results table of a campaign, as csv, Markdown and LaTeX."""
    name = Annotated[str, tyro.conf.arg(help="Name of a table in the campaign.")]
    flags = _parse("table", table.__doc__, Where, [("name", name, "table2")], arguments)
    resolver = load_campaign(flags.config)
    with _logged(resolver, "table", flags.name):
        stages.make_table(resolver, flags.name)


def figure(arguments: Sequence[str]) -> None:
    """Draw the synthetic images of the methods in a campaign's tables."""
    name = Annotated[Literal["synthetic"], tyro.conf.arg(help="Which picture.")]
    flags = _parse("figure", figure.__doc__, Where, [("name", name, "synthetic"), *_cell()[:2]], arguments)
    resolver = load_campaign(flags.config)
    with _logged(resolver, "figure", f"synthetic-{flags.dataset}-ipc-{flags.ipc}"):
        stages.make_synthetic_figure(resolver, flags.dataset, flags.ipc)


def bench(arguments: Sequence[str]) -> None:
    """Compare implementations with one another in one run: time, memory, differences."""
    if not arguments or arguments[0] != "hypergradient":
        found = "nothing" if not arguments or arguments[0].startswith("-") else repr(arguments[0])
        raise UsageError(f"bench needs the name of a benchmark first, got {found}; known: hypergradient")
    _tyro(bench_hypergradient, "bench hypergradient", bench_hypergradient.__doc__, arguments[1:])


STAGES: dict[str, Callable[[Sequence[str]], None]] = {
    "data": data,
    "experts": experts,
    "distill": distill,
    "evaluate": evaluate,
    "analyse": analyse,
    "table": table,
    "figure": figure,
    "bench": bench,
}
"""Every stage by its name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage.

    Returns:
        0 done; 2 unusable input, told in one line; 1 a failure of the run or the machine, told in one line.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    logging.getLogger("satm").setLevel(logging.INFO)
    logging.raiseExceptions = False  # on a full disk the files that matter say so, once and clearly
    try:
        if not given or given[0] in ("-h", "--help"):
            print(_overview())
            return 0 if given else 2
        if given[0] == "--version":
            print(f"satm {satm.__version__}")
            return 0
        pick(given[0], STAGES, "stage")(given[1:])
    except UsageError as error:
        return _fail(error, 2)
    except RunError as error:
        return _fail(error, 1)
    except (MemoryError, torch.OutOfMemoryError):
        return _fail(RunError("the memory is used up; use fewer images a step, or a larger machine"), 1)
    except OSError as error:
        return _fail(RunError(f"{error.strerror or error} ({error.filename}); check the disk and start again"), 1)
    except KeyboardInterrupt:
        return _fail(RunError("stopped; start the same command again to go on"), 1)
    except SystemExit as error:  # tyro after --help
        return int(error.code or 0)
    return 0


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
    common: dict[str, Any] = {"config": None, "device": "auto", "threads": None}
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
    """Return the device, with the threads set."""
    if flags.threads is not None:
        if flags.threads < 1:
            raise UsageError(f"threads must be at least 1, got {flags.threads}")
        torch.set_num_threads(flags.threads)
    return choose_device(flags.device)


def _show(stage: str, flags: Any, options: Options | None = None) -> None:
    """Log the resolved options before any work."""
    named = {field.name: getattr(flags, field.name) for field in dataclasses.fields(flags) if field.name != "options"}
    LOG.info("satm %s %s", satm.__version__, stage)
    for name, value in {**named, **(options.model_dump(mode="json") if options else {})}.items():
        LOG.info("  %s: %s", name.replace("_", "-"), value)


@contextlib.contextmanager
def _logged(resolver: Resolver, *parts: str) -> Iterator[None]:
    """Log to the standard output and to the run's log file, unless the output is that file already.

    The file is continued: a run that goes on, or is refused because another process is at work, erases no earlier one.
    """
    path = Path(resolver.layout.log(*parts))
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if not (path.is_file() and os.path.samestat(os.fstat(1), path.stat())):
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(path))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        LOG.addHandler(handler)
    try:
        yield
    except (UsageError, RunError) as error:  # the terminal is told by `main`
        LOG.removeHandler(handlers[0])
        LOG.error("error: %s", error)
        raise
    finally:
        for handler in handlers:
            LOG.removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()
