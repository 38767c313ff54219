"""Shared parts of the commands: flags, declared in one line each and parsed by tyro, the log, and the device.

The flags of a stage's options come from their model, with the values of presets and campaign as defaults, so `--help`
after `--dataset` and `--method` shows the values that will be used.
"""

import argparse
import contextlib
import copy
import dataclasses
import io
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from satm.config import UNNAMED, ByHand, Options, Resolver, check_name, load_campaign, place_of
from satm.errors import UsageError, nearest
from satm.run.log import logged
from satm.run.machine import choose_device, describe_backend
from satm.run.record import account, computes_on
from satm.run.stopping import limit
from satm.version import __version__

if TYPE_CHECKING:
    import torch

LOG = logging.getLogger("satm")

T = TypeVar("T")

Flag = tuple[str, Any] | tuple[str, Any, Any]
"""Name, type and, unless the flag is required, `dataclasses.field` with its default."""


def flag(name: str, kind: Any, text: str, *default: Any) -> Flag:
    """Return a flag of a type, with its text in `--help`, and a default unless it is required."""
    return (name, Annotated[kind, tyro.conf.arg(help=text)], *(dataclasses.field(default=value) for value in default))


CAMPAIGN = "Campaign (YAML), which determines the results folder. None: the presets, with results in results/hand/."
CONFIG = flag("config", Path | None, CAMPAIGN, None)
"""Flag of every stage."""

TIME_LIMIT = "Minutes after which the run stops with its state saved; None: $SATM_TIME_LIMIT, or the SLURM job's."

RUN = (
    "Name of a run by hand, for results below results/hand/; it also reads those of its earlier commands. None: the "
    "campaign's results, or if an option differs from the campaign, a run by hand with the campaign's name."
)

OVERWRITE = flag("overwrite", bool, "Replace a finished result.", False)

COMPUTE = [
    flag("run", str | None, RUN, None),
    OVERWRITE,
    flag("device", str, "auto, cpu, cuda or cuda:N; auto: $SATM_DEVICE, or a GPU if there is one.", "auto"),
    flag("gpus", int, "GPUs that the workflow gave to this run; above 0, auto does not fall back to the CPU.", 0),
    flag("threads", int | None, "CPU threads; None: torch's choice.", None),
    flag("time_limit", float | None, TIME_LIMIT, None),
]
"""Flags of every stage that computes."""

DATASET = flag("dataset", str, "Name of a dataset.")
SEED = flag("seed", int, "Seed of the distillation.", 0)
CELL = [DATASET, flag("ipc", int, "Images per class."), flag("method", str, "Name of a method."), SEED]
"""Flags that name a synthetic set."""


def optional_cell(when: str) -> list[Flag]:
    """Return the flags that name a synthetic set of the dataset; the text says when they are needed."""
    ipc = flag("ipc", int | None, f"Images per class ({when}).", None)
    return [ipc, flag("method", str | None, f"Name of a method ({when}).", None), SEED]


Uses = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
"""By value of `--what`: the required flags beside the dataset, and the optional ones."""


def check_uses(flags: Any, uses: Uses) -> None:
    """Check that the flags of a stage fit its `--what`.

    Raises:
        UsageError: a flag is missing, or would be ignored.
    """
    needed, allowed = uses[flags.what]
    for name in needed:
        if getattr(flags, name) is None:
            raise UsageError(f"--what {flags.what} needs --{' and --'.join(needed)}, got no --{name}; add it")
    for name in {name for names in uses.values() for part in names for name in part} - {*needed, *allowed}:
        if getattr(flags, name) != type(flags).__dataclass_fields__[name].default:
            raise UsageError(f"--{name} has no effect with --what {flags.what}; leave it out")


def peek(arguments: Sequence[str], **axes: Any) -> tuple[argparse.Namespace, Resolver]:
    """Return the flags that determine the defaults of the others, and the campaign."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", default=None, type=Path)
    for name, default in axes.items():
        parser.add_argument(f"--{name}", default=default, type=type(default))
    try:
        known = parser.parse_known_args(list(arguments))[0]
    except argparse.ArgumentError as error:
        text = re.sub(r"argument (--[\w-]+): invalid int value: ", r"\1: expected a whole number, got ", str(error))
        raise UsageError(f"{text}; see --help") from error
    return known, load_campaign(known.config)


def parse_flags(
    stage: Callable[..., None], flags: Sequence[Flag], arguments: Sequence[str], options: Options | None = None
) -> Any:
    """Return the values of a stage's flags as an object; for a stage that computes, `options` is one of its fields."""
    fields: list[Any] = [*flags, CONFIG]
    if options is not None:
        kind: Any = type(options)
        heading = tyro.conf.arg(name=stage.__name__)  # tyro adds "options"
        field = ("options", Annotated[kind, tyro.conf.OmitArgPrefixes, heading], dataclasses.field(default=options))
        fields += [*COMPUTE, field]
    target = dataclasses.make_dataclass(stage.__name__, fields, frozen=True, kw_only=True)
    return call_with_flags(target, stage.__name__, stage.__doc__, arguments)


def open_device(flags: Any) -> "torch.device":
    """Return the device that the flags ask for, with the threads and the time limit set."""
    device = choose_device(flags.device, flags.threads, flags.gpus)
    LOG.info("computing on %s", describe_backend(device))
    computes_on(device)
    if (seconds := limit(flags.time_limit)) is not None:
        LOG.info("this run may take %.3g minutes; before that limit it stops with its state saved", seconds / 60)
    return device


def place_results(
    resolver: Resolver, flags: Any, campaign: Options, *place: str, further: Mapping[str, object] = MappingProxyType({})
) -> Resolver:
    """Return the resolver for the results of a command: those of the campaign, or of a run by hand.

    Args:
        resolver: the campaign.
        flags: the values of the flags.
        campaign: the campaign's options of the command.
        place: for experts and synthetic sets, their place (`satm.config.place_of`).
        further: the campaign's values of other flags on which the results depend.

    Raises:
        UsageError: the name of the run cannot be that of a folder.
    """
    usual = {**campaign.model_dump(mode="json"), **further}
    values = {**flags.options.model_dump(mode="json"), **{name: getattr(flags, name) for name in further}}
    changed = {name: value for name, value in values.items() if value != usual.get(name)}
    name = resolver.path.stem if flags.run is None and resolver.path and changed else flags.run
    if name is not None:
        try:
            check_name(name)
        except ValueError as error:
            raise UsageError(f"--run: {error}; correct it") from error
    unnamed = ByHand(UNNAMED, None, place, changed)
    if resolver.path is None:
        own = name in (None, UNNAMED)
        resolver = resolver.for_hand(unnamed if own else ByHand(str(name), unnamed.root, place, changed))
    elif name is not None:
        resolver = resolver.for_hand(ByHand(name, resolver.layout.root, place, changed, named=flags.run is not None))
    else:
        resolver = copy.copy(resolver)
    resolver.overwrite = flags.overwrite
    return resolver


@contextlib.contextmanager
def command(
    resolver: Resolver, rule: str, flags: Any, options: Options | None = None, **names: object
) -> Iterator[None]:
    """Log a command with its flags and resolved options, and record its cost beside the log.

    The place of both is that of a rule (`satm.config.place_of`), by the flags and the other names.

    Raises:
        UsageError: a part of the place is not a name, so that the path could lead anywhere.
    """
    values = {name: value for name, value in vars(flags).items() if name != "options"}
    place = place_of(rule, **values | names)
    for part in place:  # before it becomes a folder
        try:
            check_name(part)
        except ValueError as error:
            raise UsageError(f"{error}; correct it") from error
    with logged(Path(resolver.layout.log(*place))), account(Path(resolver.layout.account(*place))):
        if options is not None:
            LOG.info("satm %s %s", __version__, type(flags).__name__)
            for name, value in {**values, **options.model_dump(mode="json")}.items():
                LOG.info("  %s: %s", name.replace("_", "-"), value)
        if (run := resolver.by_hand) and options is not None:
            differing = ", ".join(name.replace("_", "-") for name in run.changed) or "none"
            campaign = f"from {resolver.path}" if resolver.path else "from the presets"
            LOG.info("by hand: options that differ %s: %s; results below %s", campaign, differing, run.root)
            if run.name != UNNAMED:
                LOG.info("commands with --run %s read these results", run.name)
        yield


def call_with_flags(target: Callable[..., T], stage: str, description: str | None, arguments: Sequence[str]) -> T:
    """Call a function or a class whose parameters are the flags.

    Raises:
        UsageError: an unknown, missing or unusable flag, in one line instead of tyro's box.
    """
    box = io.StringIO()
    helps = "-h" in arguments or "--help" in arguments
    try:
        with contextlib.nullcontext() if helps else contextlib.redirect_stderr(box):
            return tyro.cli(target, prog=f"python -m satm {stage}", description=description, args=list(arguments))
    except SystemExit as error:
        if not box.getvalue():
            raise
        raise UsageError(_one_line(box.getvalue())) from error


def _dashed(match: re.Match[str]) -> str:
    """Return the name of an option as a flag, before what is wrong with it."""
    return f"--{match[1].replace('_', '-')}: "


def _unknown(match: re.Match[str]) -> str:
    """Return what is unknown, with the nearest of the flags that tyro lists with their texts."""
    before, known = match.string[: match.start()].strip(), re.findall(r"--[a-z][\w-]*", match.string)
    name = match[1].split()[0].rstrip(",")
    near = nearest(name, [flag for flag in known if flag != name])
    return f"{'; ' if before else ''}unknown: {match[1].strip()}{f' (the nearest flag is {near})' if near else ''}"


def _one_line(box: str) -> str:
    """Return the text in tyro's box as one line: the mistake and the nearest flag."""
    lines = [line.strip(" │|") for line in box.splitlines()[1:] if not set(line) <= set(" │|╭╮╰╯+─-")]
    text = " ".join(word for line in lines if not line.startswith("For full helptext") for word in line.split())
    for pattern, replacement in (
        (r"For further information visit \S+", ""),
        (
            r"Error parsing \w+: 1 validation error for \w+ Value error, (.*) \[type=value_error, .*input_type=\w+\]",
            r"\1",
        ),
        (r"\[type=\w+, input_value=(.*?), input_type=\w+\]", r"(got \1)"),
        (r"Error parsing \w+: \d+ validation errors? for \w+", "unusable option"),
        (r"\b([a-z][\w.]*) (?=Input should|Value error)", _dashed),
        (r"Missing from python -m satm [\w ]+:", "missing:"),
        (r"python -m satm [\w ]+ --help", ""),
        (r"Argument helptext.*", ""),
        (r"(--[\w-]+)[^()]*\(required\)", r"\1"),
        (r" ?Unrecognized options: (.*?)(?: Perhaps you meant: .*)?$", _unknown),
        (r"Error parsing (--[\w-]+): invalid literal for int\(\) with base 10: ", r"\1: expected a whole number, got "),
        (r"Error parsing (--[\w-]+): could not convert string to float: ", r"\1: expected a number, got "),
        (
            r"Error parsing (--[\w-]+): no type matching (\S+) could be instantiated from \[(.*?)\]\..*",
            r"\1: expected \2, got \3",
        ),
        (
            r"invalid choice (.*?) for argument '(--[\w-]+)'\. Expected one of \((.*?) ?\) ?\.",
            r"\2: expected one of \3, got \1",
        ),
    ):
        text = re.sub(pattern, replacement, text)
    return f"{' '.join(text.split())}; see --help"
