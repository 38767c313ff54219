"""What the commands share: flags, declared in one line each and parsed by tyro, the log, and the device.

The flags of a stage's options are made from their model, with the values that presets and campaign give as defaults,
so `--help` after `--dataset` and `--method` shows what will be used.
"""

import argparse
import contextlib
import dataclasses
import io
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import tyro

from satm.config import Options, Resolver, check_name
from satm.errors import UsageError
from satm.run.log import logged
from satm.run.machine import choose_device
from satm.run.record import account, computes_on
from satm.run.stopping import limit
from satm.version import __version__

LOG = logging.getLogger("satm")

T = TypeVar("T")

Flag = tuple[Any, ...]
"""Name, type and, where there is one, default."""


def flag(name: str, kind: Any, text: str, *default: Any) -> Flag:
    """Return a flag of some type, with its text in `--help`."""
    return (name, Annotated[kind, tyro.conf.arg(help=text)], *default)


WHERE = [flag("config", Path | None, "Campaign (YAML); decides where results go. None: `results/`.", None)]
"""Flags of every stage."""

COMPUTE = [
    *WHERE,
    flag("device", str, "auto, cpu, cuda or cuda:N.", "auto"),
    flag("threads", int | None, "CPU threads; None: as torch chooses.", None),
    flag(
        "time_limit",
        float | None,
        "Minutes after which the run stops with its state saved; None: $SATM_TIME_LIMIT, or the SLURM job's.",
        None,
    ),
]
"""Flags of every stage that computes."""

DATASET = flag("dataset", str, "Name of a dataset.")
IPC = flag("ipc", int, "Images per class.")
METHOD = flag("method", str, "Name of a method.")
SEED = flag("seed", int, "Seed of the distillation.", 0)
CELL = [DATASET, IPC, METHOD, SEED]
"""Flags that name a synthetic set."""


def optional(given: Flag, text: str) -> Flag:
    """Return a flag that may be left out; the text says when it is needed."""
    name, kind = given[:2]
    told = kind.__metadata__[0].help.removesuffix(".")
    return flag(name, kind.__origin__ | None, f"{told} ({text}).", None)


Uses = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
"""What a stage with `--what` can do: the flags that each needs beside the dataset, and those that it may have."""


def check_uses(flags: Any, uses: Uses) -> None:
    """Check that the flags of a stage fit its `--what`.

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


def peek(arguments: Sequence[str], **axes: Any) -> argparse.Namespace:
    """Return the flags that decide the defaults of the others, before those are known."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", default=None, type=Path)
    for name, default in axes.items():
        parser.add_argument(f"--{name}", default=default, type=type(default))
    try:
        return parser.parse_known_args(list(arguments))[0]
    except argparse.ArgumentError as error:
        raise UsageError(f"{error}; see --help") from error


def parse_flags(
    stage: Callable[..., None], fields: Sequence[Flag], arguments: Sequence[str], options: Options | None = None
) -> Any:
    """Return the flags of a stage as an object; the options are its field `options`."""
    made: list[Any] = [(*one[:2], dataclasses.field(default=one[2])) if len(one) > 2 else one for one in fields]
    if options is not None:
        kind: Any = type(options)
        default = dataclasses.field(default=options)
        made.append(("options", Annotated[kind, tyro.conf.OmitArgPrefixes], default))
    flags = dataclasses.make_dataclass(stage.__name__, made, frozen=True, kw_only=True)
    return call_with_flags(flags, stage.__name__, stage.__doc__, arguments)


def show(flags: Any, options: Options) -> None:
    """Log the flags of a stage and its resolved options, before any work."""
    named = {field.name: getattr(flags, field.name) for field in dataclasses.fields(flags) if field.name != "options"}
    LOG.info("satm %s %s", __version__, type(flags).__name__)
    for name, value in {**named, **options.model_dump(mode="json")}.items():
        LOG.info("  %s: %s", name.replace("_", "-"), value)


def open_device(flags: Any) -> torch.device:
    """Return the device that the flags ask for, with the threads and the time limit set."""
    if flags.threads is not None:
        if flags.threads < 1:
            raise UsageError(f"threads must be at least 1, got {flags.threads}")
        torch.set_num_threads(flags.threads)
    device = choose_device(flags.device)
    computes_on(device)
    if (seconds := limit(flags.time_limit)) is not None:
        LOG.info("this run may take %.3g minutes; before they are over it stops with its state saved", seconds / 60)
    return device


@contextlib.contextmanager
def command(resolver: Resolver, *place: str) -> Iterator[None]:
    """Log a command, and keep the account of what it takes beside the log.

    Raises:
        UsageError: a part of the place is no name: given on the command line it could lead anywhere.
    """
    for part in place:  # before a folder is made of it
        try:
            check_name(part)
        except ValueError as error:
            raise UsageError(f"{error}; correct it") from error
    layout = resolver.layout
    with logged(Path(layout.log(*place))), account(Path(layout.account(*place))):
        yield


def call_with_flags(target: Callable[..., T], stage: str, description: str | None, arguments: Sequence[str]) -> T:
    """Call a function or a class with the flags that its parameters are.

    Raises:
        UsageError: an unknown, missing or unusable flag, told in one line instead of tyro's box.
    """
    told = io.StringIO()
    shown = "-h" in arguments or "--help" in arguments
    try:
        with contextlib.nullcontext() if shown else contextlib.redirect_stderr(told):
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
