"""The command that makes a result. Nothing here imports torch."""

import contextlib
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from satm.config import UNNAMED, Resolver
from satm.errors import UsageError
from satm.workflow.rules import RULES

KINDS = {
    "full": "--what full",
    "variants": "--what variants",
    "nas_real": "--real",
    "expert_sharpness": "--what expert-sharpness",
    "difficulty": "--measure-difficulty",
}
"""Flags of the rules that are not their stage's usual one."""

REMEMBERED = ("experts", "distill")
"""Rules whose options a run by hand remembers."""

TOGETHER = ("experts_part", "experts")
"""Rules whose jobs one command does together."""


def command_of(resolver: Resolver, rule: str, names: Mapping[str, object], overwrite: bool = False) -> str:
    """Return the command that makes the results of a job, for messages.

    Args:
        resolver: the campaign, or a run by hand with it.
        rule: key of the table of jobs (`satm.workflow.rules.RULES`).
        names: the job's wildcards.
        overwrite: whether the results exist and are to be replaced.
    """
    stage, run = RULES[rule].stage, resolver.by_hand
    words = [f"python -m satm {stage}", *([KINDS[rule]] if rule in KINDS else [])]
    words += [f"--config {shlex.quote(str(resolver.path))}"] if resolver.path else []
    left_out = {"root", *(["part"] if rule in TOGETHER else [])}
    words += [f"--{name} {value}" for name, value in names.items() if name not in left_out]
    if run and stage != "data":
        words += [f"--run {run.name}"] if run.name != UNNAMED else []
        kind = {"experts_part": "experts"}.get(rule, rule)
        words += [_flag(*each) for each in run.options(kind, **names).items()] if kind in REMEMBERED else []
    return " ".join([*words, *(["--overwrite"] if overwrite else [])])


def _flag(name: str, value: Any) -> str:
    """Return an option as a flag of the command line."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    values = value if isinstance(value, list | tuple) else [value]
    return " ".join([f"--{flag}", *(shlex.quote(str(each)) for each in values)])


def workflow_command(resolver: Resolver, path: str) -> str | None:
    """Return the command by which the workflow makes a result with all that it needs; None: there is no checkout here.

    Args:
        resolver: a campaign of a file.
        path: the result.
    """
    if resolver.path is None or not Path("Snakefile").is_file():
        return None
    # Snakemake would take a target after the campaign for a second campaign.
    return f"snakemake --profile local {shlex.quote(path)} --configfile {shlex.quote(str(resolver.path))}"


@contextlib.contextmanager
def remedy(command: str, kind: type[UsageError] = UsageError) -> Iterator[None]:
    """Add a command to the message of a `UsageError`, which becomes one of a kind."""
    try:
        yield
    except UsageError as error:
        raise kind(f"{error}: `{command}`") from error
